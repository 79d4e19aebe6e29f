"""Flow 1 on fake models: what is drawn, stored, reused and refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from fakes import FakeEncoder, FakeGenerator, fake_models, list_drawn, pick_colour
from PIL import Image
from scenes import NAMES

import rimjax
from rimjax import files, images
from rimjax.references import store
from rimjax.references.build import build_references
from rimjax.sealed import read_sealed, seal

TESTS = Path(__file__).parents[1]


def reseal(path: Path, **changes: object) -> None:
    """Change entries of a bank's JSON as somebody would who knows how it is sealed."""
    path.write_text(json.dumps(seal(read_sealed(path) | changes)))


def test_prototypes_come_from_the_cut_outs(tmp_path: Path) -> None:
    manifest, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    references = store.read_all_references(manifest, pictures=True)[0]
    assert references.images is not None
    inside = (references.images == pick_colour("apple")).all(-1)
    np.testing.assert_array_equal(references.masks, inside)
    expected = pick_colour("apple") / 128.0 - 1 + [0, 0, 0.01]
    np.testing.assert_allclose(references.foreground[0], expected, atol=0.15)
    bank = rimjax.load_bank(manifest.path)
    np.testing.assert_allclose(bank.classes[1], references.foreground.mean(0), rtol=1e-5)


def test_without_foreground_masks_whole_images_are_pooled(tmp_path: Path) -> None:
    models = fake_models()
    settings = replace(models.references, foreground_mask=False, num_subcategories=1)
    bank = rimjax.build_bank(NAMES, models, settings=settings, cache_dir=tmp_path)
    manifest = store.read_manifest(next((tmp_path / "banks").glob("*.json")))
    references = store.read_all_references(manifest)[0]
    np.testing.assert_allclose(bank.prototypes[1], references.whole.mean(0), rtol=1e-5)


def test_a_second_build_draws_nothing_and_is_equal(tmp_path: Path) -> None:
    bank = rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path)
    again = fake_models()
    second = rimjax.build_bank(NAMES, again, cache_dir=tmp_path)
    assert list_drawn(again) == []
    np.testing.assert_array_equal(bank.prototypes, second.prototypes)
    more = fake_models()
    rimjax.build_bank([*NAMES, "sky"], more, cache_dir=tmp_path)
    assert list_drawn(more) == ["sky"]


def test_a_built_bank_equals_the_stored_bank_and_is_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = store.read_references
    monkeypatch.setattr(
        store, "read_references", lambda path, *rest: reads.append(path) or read(path, *rest)
    )
    bank = rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path)
    assert not reads
    stored = rimjax.load_bank(next((tmp_path / "banks").glob("*.json")))
    for name in ("prototypes", "owners", "classes"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(stored, name))
    assert bank.names == stored.names and len(reads) == 3


def test_a_class_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = rimjax.build_bank(["plum"], fake_models(), cache_dir=tmp_path / "a")
    among = rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(alone.classes[1], among.classes[2])


SMALL = rimjax.ReferenceSettings(num_images=3, num_subcategories=2)


@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({"generator": FakeGenerator("other")}, ["plum"]),
        ({"references": replace(SMALL, seed=1)}, ["plum"]),
        ({"references": replace(SMALL, num_images=2)}, ["plum"]),
        ({"encoder": FakeEncoder("other")}, []),  # the stored images serve again
        ({"references": replace(SMALL, threshold=0.5)}, []),
        ({"antialias": False}, []),
    ],
)
def test_a_changed_dependency_builds_other_references(
    tmp_path: Path, change: dict, drawn: list[str]
) -> None:
    before, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    changed = replace(fake_models(), **change)
    list_drawn(changed).clear()
    after, _ = build_references(["plum"], changed, cache_dir=tmp_path)
    assert list_drawn(changed) == drawn and after.folders != before.folders
    if not drawn:
        old, new = (store.read_all_references(m, pictures=True)[0] for m in (before, after))
        np.testing.assert_array_equal(old.images, new.images)


@pytest.mark.parametrize(("step", "drawn"), [("draw", ["plum"]), ("pool", []), ("localise", [])])
def test_another_version_of_a_step_builds_other_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, drawn: list[str]
) -> None:
    before, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    monkeypatch.setitem(files.STEP_VERSIONS, step, files.STEP_VERSIONS[step] + 1)
    models = fake_models()
    after, _ = build_references(["plum"], models, cache_dir=tmp_path)
    assert after.folders != before.folders and list_drawn(models) == drawn


def test_damaged_references_are_not_a_source_of_images(tmp_path: Path) -> None:
    before, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    image = tmp_path / "references" / before.folders[0] / "image-00000.png"
    image.write_bytes(b"rubbish")
    changed = replace(fake_models(), encoder=FakeEncoder("other"))
    build_references(["plum"], changed, cache_dir=tmp_path)
    assert list_drawn(changed) == ["plum"]


def test_references_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, before[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match=r"references/plum-.*can't be written \(File too large\)"):
            build_references(["plum"], fake_models(), cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "references").iterdir())


def test_another_encoder_cuts_nothing_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, cut = fake_models(), []
    mask = type(models.masker).mask

    def count(self: Any, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        cut.append(points)
        return mask(self, image, points)

    monkeypatch.setattr(type(models.masker), "mask", count)
    before = build_references(["apple"], models, cache_dir=tmp_path)[0]
    assert len(cut) == models.references.num_images
    other = replace(fake_models(), encoder=FakeEncoder("another encoder"))
    after = build_references(["apple"], other, cache_dir=tmp_path)[0]
    assert len(cut) == models.references.num_images and list_drawn(other) == []
    first, second = (
        store.read_all_references(each, pictures=True)[0].masks for each in (before, after)
    )
    assert first is not None and second is not None and (first == second).all()
    settings = replace(models.references, threshold=0.2)
    build_references(["apple"], fake_models(), settings=settings, cache_dir=tmp_path)
    assert len(cut) > models.references.num_images, "other points ask for other masks"


def test_another_number_of_subcategories_draws_nothing(tmp_path: Path) -> None:
    rimjax.build_bank(["plum"], fake_models(), cache_dir=tmp_path)
    changed = replace(fake_models(), references=replace(SMALL, num_subcategories=1))
    bank = rimjax.build_bank(["plum"], changed, cache_dir=tmp_path)
    assert list_drawn(changed) == [] and len(bank.prototypes) == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import rimjax, fakes
models = fakes.fake_models()
draw = models.generator.generate
def generate(name, *args):
    if name == "leaf":
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(name, *args)
models.generator.generate = generate
rimjax.build_bank(("apple", "plum", "leaf"), models, cache_dir={cache!r})
"""


def test_a_killed_build_resumes_with_the_class_it_was_drawing(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(TESTS), cache=str(tmp_path))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not list(tmp_path.glob("banks/*.json")), "the manifest is written last"
    models = fake_models()
    rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert list_drawn(models) == ["leaf"]


def test_a_cache_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(
    unwritable: Path,
) -> None:
    models = fake_models()
    with pytest.raises(OSError, match=rf"^{unwritable}/.*can't be written"):
        rimjax.build_bank(NAMES, models, cache_dir=unwritable / "cache")
    assert not list_drawn(models)


def test_a_class_name_of_any_length_and_alphabet_is_stored(tmp_path: Path) -> None:
    names = ["x" * 275, "x" * 275 + "y", "苹果" * 100]
    rimjax.build_bank(names, fake_models(), cache_dir=tmp_path)
    models = fake_models()
    assert rimjax.build_bank(names, models, cache_dir=tmp_path).names[1:] == tuple(names)
    assert not list_drawn(models)
    folders = list((tmp_path / "references").iterdir())
    assert len(folders) == 3 and all(len(os.fsencode(path.name)) <= 100 for path in folders)


def test_a_full_disk_says_what_is_kept_and_the_build_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(array: np.ndarray) -> Image.Image:
        if len(list((tmp_path / "references").glob("[!.]*"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return from_array(array)

    from_array = Image.fromarray
    with monkeypatch.context() as patched:
        patched.setattr(store.Image, "fromarray", fill)
        with pytest.raises(OSError, match=r"references/leaf-.*can't be written \(No space") as full:
            rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path)
    assert "2 of 3 classes are kept, and the same command goes on" in str(full.value)
    models = fake_models()
    rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert list_drawn(models) == ["leaf"]


def test_deeply_nested_json_is_named_in_one_line(tmp_path: Path) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "references" / manifest.folders[0] / "references.json").write_text(deep)
    with pytest.raises(
        ValueError, match=rf"{manifest.folders[0]}: incomplete or damaged.*too deeply"
    ):
        rimjax.load_bank(manifest.path)
    manifest.path.write_text(deep)
    with pytest.raises(ValueError, match=r"\.json: not a bank manifest, or damaged"):
        rimjax.load_bank(manifest.path)


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Switch jaxtyping's checks off: wrong types are passed on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], fake_models()), "names must be texts, got 1"),
        ((["a", None], fake_models()), "names must be texts, got None"),
        ((7, fake_models()), "names must be a list of class names, got 7"),
        (("bag", fake_models()), "names must be a list of class names, got 'bag'"),
        (
            ({"bag": [3]}, fake_models()),
            r"names must map 'bag' to prompts that are texts, got \[3\]",
        ),
        (({"bag": 3}, fake_models()), "names must map 'bag' to a list of prompts or None, got 3"),
        (({"bag": ["a {b"]}, fake_models()), "prompts must mark the object by one pair of braces"),
        (({"bag": ["a", " a"]}, fake_models()), "prompts of 'bag' must differ"),
        (({"bag": list("abcd")}, fake_models()), "images must be at least 4, one for each prompt"),
        ((["a {b}"], fake_models()), "names must be without braces, got 'a {b}'"),
        ((fake_models(), ["bag"]), "models must be Models, got a list"),
        ((["bag"], "mini"), "models must be Models, got 'mini'"),
        (([], fake_models(), ["a.png"]), "references must map class names .* got a list"),
        (([], fake_models(), {"x": "a.png"}), "references must map .* got 'a.png' for 'x'"),
        (([], fake_models(), {"x": Path("a.png")}), "references must map .* for 'x'"),
        (([], fake_models(), {"x": b"content"}), "references must map .* got a bytes for 'x'"),
        (([], fake_models(), {"x": PICTURE}), r"references must map .* got uint8\[4, 4, 3\]"),
        (([], fake_models(), {"x": 3}), "references must map .* got 3 for 'x'"),
        (([], fake_models(), {1: []}), "references must map .* got 1 as a name"),
        (([], fake_models(), {"x": [3]}), "image must be a path, file, PIL image or array"),
        (([], fake_models(), {"x": [PICTURE]}, {"x": 3}), "points must map .* got 3 for 'x'"),
        (([], fake_models(), {"x": [PICTURE]}, {"x": [3]}), "points must hold points"),
        (([], fake_models(), {"x": [PICTURE]}, [(1, 2)]), "points must map class names"),
    ],
)
def test_a_wrong_call_is_refused_by_the_arguments_name(
    tmp_path: Path, arguments: tuple[Any, ...], message: str
) -> None:
    padded: tuple[Any, ...] = (*arguments, None, None)
    names, models, references, points = padded[:4]
    with pytest.raises(ValueError, match=f"^{message}"):
        rimjax.build_bank(names, models, cache_dir=tmp_path, references=references, points=points)
    with pytest.raises(ValueError, match="settings must be ReferenceSettings, got a dict"):
        rimjax.build_bank(["bag"], fake_models(), cache_dir=tmp_path, settings={"seed": 1})  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("without_type_checks")
def test_arguments_that_can_be_read_only_once_lose_nothing(tmp_path: Path) -> None:
    pictures = np.zeros((2, 20, 20, 3), np.uint8)
    pictures[:, 5:12, 5:12] = pick_colour("mug")
    bank = rimjax.build_bank(
        (name for name in ["apple", "plum"]),  # pyright: ignore[reportArgumentType]
        fake_models(),
        cache_dir=tmp_path,
        references={"mug": iter(pictures)},  # pyright: ignore[reportArgumentType]
        points={"mug": zip([8, 9], [8, 9], strict=True)},  # pyright: ignore[reportArgumentType]
    )
    assert bank.names == ("background", "apple", "plum", "mug")
    manifest = store.read_manifest(next((tmp_path / "banks").glob("*.json")))
    assert len(store.read_all_references(manifest)[2].foreground) == 2


@pytest.mark.usefixtures("without_type_checks")
def test_settings_of_numpys_types_are_stored_as_pythons(tmp_path: Path) -> None:
    ours: dict[str, Any] = {"num_images": 2, "foreground_mask": False, "whiten": 0.5, "seed": 3}
    theirs: dict[str, Any] = {
        **{"num_images": np.int64(2), "foreground_mask": np.bool(False)},
        **{"whiten": np.float32(0.5), "seed": np.uint32(3)},
    }
    paths = []
    for values in (ours, theirs):
        settings = rimjax.ReferenceSettings(**values)
        manifest, _ = build_references(
            ["plum"], fake_models(), settings=settings, cache_dir=tmp_path
        )
        paths.append(manifest.path)
    assert paths[0] == paths[1]
    assert len(rimjax.load_bank(paths[0]).names) == 2


def test_what_a_killed_build_left_is_removed_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "references"
    (folder / f"{files._PREFIX}old").mkdir(parents=True)
    (folder / f"{files._PREFIX}old" / "image-00000.png").touch()
    (folder / f"{files._PREFIX}new").mkdir()
    yesterday = time.time() - files.STALE_SECONDS - 60
    os.utime(folder / f"{files._PREFIX}old", (yesterday, yesterday))
    rimjax.build_bank(["plum"], fake_models(), cache_dir=tmp_path)
    left = [path.name for path in folder.iterdir() if files.is_temporary(path)]
    assert left == [f"{files._PREFIX}new"], "another builder may be writing it"


def test_builders_that_finish_a_class_at_once_all_succeed(tmp_path: Path) -> None:
    barrier, errors = threading.Barrier(4), []

    def build_once() -> None:
        models = fake_models()
        generate = models.generator.generate

        def wait(name: str, num_images: int, seed: int) -> object:
            drawing = generate(name, num_images, seed)
            barrier.wait()
            return drawing

        models.generator.generate = wait  # pyright: ignore[reportAttributeAccessIssue]
        try:
            rimjax.build_bank(["plum"], models, cache_dir=tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    (folder,) = (tmp_path / "references").iterdir()
    store.read_references(folder, pictures=True)


def test_extending_a_bank_draws_only_the_new_class(tmp_path: Path) -> None:
    old, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    models = fake_models()
    new, references = build_references(["sky"], models, cache_dir=tmp_path, extend=old)
    assert list_drawn(models) == ["sky"]
    assert rimjax.load_bank(new).names == ("background", *NAMES, "sky")
    assert [group.name for group in references] == [*NAMES, "sky"]


def test_a_bank_is_found_by_its_bare_name_and_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path / "cache")
    monkeypatch.chdir(built.path.parent)
    assert rimjax.load_bank(built.path.name).names == ("background", *NAMES)
    (tmp_path / "link.json").symlink_to(built.path)
    models = fake_models()
    linked = store.read_manifest(tmp_path / "link.json")
    build_references(["sky"], models, cache_dir=linked.cache, extend=linked)
    assert list_drawn(models) == ["sky"]


def test_pictures_keep_their_order_whatever_their_number(tmp_path: Path) -> None:
    """A thousand pictures and more sort as text only with padded numbers."""
    count = 1001
    rows = np.arange(count, dtype=np.float32)[:, None]
    numbers = np.arange(count, dtype=np.uint16).reshape(-1, 1, 1, 1)
    pictures = np.concatenate([numbers % 256, numbers // 256, numbers * 0], axis=3)
    references = store.ClassReferences(
        name="plum",
        images=pictures.astype(np.uint8),
        masks=numbers[..., 0] % 2 == 1,
        attention=np.zeros((count, 1, 1), np.float32),
        points=np.zeros((count, 1, 2), np.float32),
        fallbacks=0,
        foreground=rows,
        background=rows,
        whole=rows,
    )
    store.write_references(tmp_path / "plum-0", references)
    again = store.read_references(tmp_path / "plum-0", pictures=True)
    for part in ("images", "masks", "foreground"):
        np.testing.assert_array_equal(getattr(again, part), getattr(references, part))


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
@pytest.mark.parametrize("file", ["prototypes.safetensors", "references.json"])
def test_damaged_references_are_named(tmp_path: Path, file: str, damage: bytes) -> None:
    manifest, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    (tmp_path / "references" / manifest.folders[1] / file).write_bytes(damage)
    with pytest.raises(ValueError, match=rf"{manifest.folders[1]}.*delete that folder"):
        rimjax.load_bank(manifest.path)


def test_a_damaged_or_swapped_manifest_is_named(tmp_path: Path) -> None:
    manifest, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    text = manifest.path.read_text()
    manifest.path.write_text(text[:50])
    with pytest.raises(ValueError, match="not a bank manifest"):
        rimjax.load_bank(manifest.path)
    manifest.path.write_text(text)
    reseal(manifest.path, names=["pear", *NAMES[1:]])
    with pytest.raises(ValueError, match=r"'pear'.*'apple'"):
        rimjax.load_bank(manifest.path)
    with pytest.raises(FileNotFoundError, match="no such bank"):
        rimjax.load_bank(tmp_path / "none.json")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(
            ("settings", value)
            for value in ([1], None, "whiten", 3, {}, {"seed": 1}, [["seed", 1]])
        ),
        *(("encoder", value) for value in (None, 3, ["fake-encoder"])),
        *(("preset", value) for value in (None, {})),
        *(("names", value) for value in (None, "p", [3], [], {"plum": 1}, ["plum", "plum"])),
        *(("folders", value) for value in (None, "p", [3], [])),
    ],
)
def test_a_sealed_manifest_of_other_types_is_named(
    tmp_path: Path, entry: str, value: object
) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    reseal(manifest.path, **{entry: value})
    with pytest.raises(ValueError, match=r": .*build the bank again") as stop:
        rimjax.load_bank(manifest.path)
    assert str(tmp_path) in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("entry", "value"),
    [("name", None), ("fallbacks", "none"), ("drawing", 3), ("files", []), ("files", {"a": 1})],
)
def test_a_sealed_record_of_other_types_is_named(tmp_path: Path, entry: str, value: object) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    folder = tmp_path / "references" / manifest.folders[0]
    reseal(folder / "references.json", **{entry: value})
    with pytest.raises(ValueError, match=rf"{folder.name}: .*build the bank again"):
        rimjax.load_bank(manifest.path)


@pytest.mark.parametrize("name", ["../plum", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_names_that_lead_out_of_a_bank_are_refused(tmp_path: Path, name: str) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    reseal(manifest.path, folders=[name])
    with pytest.raises(ValueError, match="isn't a plain file name"):
        rimjax.load_bank(manifest.path)
    record = tmp_path / "references" / manifest.folders[0] / "references.json"
    files = read_sealed(record)["files"]
    reseal(record, files={**files, name: files["prototypes.safetensors"]})
    with pytest.raises(ValueError, match="isn't a plain file name"):
        store.read_references(record.parent, pictures=True)


@pytest.mark.parametrize("lacking", ["prototypes.safetensors", "image-00001.png", "mask-00002.png"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_is_not_recorded_is_not_read(tmp_path: Path, lacking: str, whole: bool) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    folder = tmp_path / "references" / manifest.folders[0]
    files = read_sealed(folder / "references.json")["files"]
    assert lacking in files
    kept = {name: digest for name, digest in files.items() if name != lacking and not whole}
    reseal(folder / "references.json", files=kept)
    with pytest.raises(ValueError, match=rf"{folder.name}: .* isn't recorded; delete"):
        store.read_references(folder, pictures=True)


@pytest.mark.parametrize(
    "name", ["prototypes.safetensors", "image-00000.png", "references.json", "."]
)
def test_links_out_of_the_cache_are_not_followed(tmp_path: Path, name: str) -> None:
    """Though what they lead to is as recorded."""
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path / "cache")
    folder = tmp_path / "cache/references" / manifest.folders[0]
    file = folder / name
    file.resolve().rename(tmp_path / "outside")
    folder.joinpath(name).absolute().parent.mkdir(exist_ok=True) if name != "." else None
    (folder if name == "." else file).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads elsewhere by a symbolic link"):
        store.read_references(folder, pictures=True)
    if not name.startswith("image"):
        with pytest.raises(ValueError, match="leads elsewhere by a symbolic link"):
            rimjax.load_bank(manifest.path)


@pytest.mark.parametrize("linked", [".", "references"])
def test_a_linked_cache_is_read(tmp_path: Path, linked: str) -> None:
    """Cache and references may be links that their owner made, e.g. to a larger disk."""
    cache = tmp_path / "cache"
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=cache)
    (cache / linked).resolve().rename(tmp_path / "elsewhere")
    (cache / linked).symlink_to(tmp_path / "elsewhere")
    store.read_references(cache / "references" / manifest.folders[0], pictures=True)
    again = fake_models()
    assert len(rimjax.build_bank(["plum"], again, cache_dir=cache).names) == 2
    assert list_drawn(again) == []
    assert len(rimjax.load_bank(manifest.path).names) == 2


@pytest.mark.parametrize("file", ["manifest", "record"])
def test_a_changed_digit_in_a_banks_json_is_noticed(tmp_path: Path, file: str) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    record = tmp_path / "references" / manifest.folders[0] / "references.json"
    path = {"manifest": manifest.path, "record": record}[file]
    text = path.read_text()
    for change in (('"whiten": 0.0', '"whiten": 6.0'), ('"fallbacks": 0', '"fallbacks": 1')):
        path.write_text(text.replace(*change))
        if path.read_text() != text:
            message = rf"{path.stem}.*differs from its own digest.*build the bank again"
            with pytest.raises(ValueError, match=message):
                rimjax.load_bank(manifest.path)


@pytest.mark.parametrize("file", ["manifest", "record"])
def test_files_of_earlier_versions_are_refused_with_a_way_out(tmp_path: Path, file: str) -> None:
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    record = tmp_path / "references" / manifest.folders[0] / "references.json"
    path = {"manifest": manifest.path, "record": record}[file]
    path.write_text(json.dumps(read_sealed(path)))
    message = r"no digest of its own, as earlier versions wrote it.*build the bank again"
    with pytest.raises(ValueError, match=message):
        rimjax.load_bank(manifest.path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least one"),
        (["a", " "], "blank"),
        (["a", "b", "A"], "more than once"),
        (["Background", "b"], "every bank has it"),
        (["_background_", "b"], "every bank has it"),
        (["b", "__ignore__"], "pixels without a label"),
        (["hot dog", "hot  dog"], "more than once"),
        (["caf\u00e9", "cafe\u0301"], "more than once"),
        (["caf\u00e9", "cafe\u200b\u0301"], "more than once"),
        (["bag", "bag\u200b"], "more than once"),
        (["bag", "\u2060b\u00adag\u200e"], "more than once"),
        (["b", "\u200bback\u200dground"], "every bank has it"),
        (["a", "\u200b"], "blank"),
        ("apple", "must be a list"),
    ],
)
def test_bad_class_names_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rimjax.build_bank(names, fake_models(), cache_dir=tmp_path)
    assert not (tmp_path / "banks").exists()


def test_a_class_from_photographs(tmp_path: Path) -> None:
    photo = np.full((50, 70, 3), 128, np.uint8)
    photo[10:40, 20:50] = pick_colour("mug")
    Image.fromarray(photo).save(tmp_path / "mug.png")
    models, photos = fake_models(), {" my mug ": [tmp_path / "mug.png"]}
    bank = rimjax.build_bank(["apple"], models, cache_dir=tmp_path, references=photos)
    assert bank.names == ("background", "apple", "my mug") and list_drawn(models) == ["apple"]
    seg = rimjax.segment(photo, bank, models)
    np.testing.assert_array_equal(seg.labels == 2, (photo == pick_colour("mug")).all(-1))


@pytest.mark.parametrize("spelled", ["mug ", "\ufeffmug", "mug\u200b", "mug\u00a0", "\tmug"])
def test_a_key_with_blanks_or_marks_means_the_cleaned_name(tmp_path: Path, spelled: str) -> None:
    """As keys from a CSV: the class must not be drawn, and its points must not be lost."""
    photo = np.full((50, 70, 3), 128, np.uint8)
    photo[10:40, 20:50] = pick_colour("mug")
    models = fake_models()
    options = {"references": {spelled: [photo]}, "points": {"mug": [(25.0, 15.0)]}}
    manifest, _ = build_references([], models, cache_dir=tmp_path, **options)
    options = {"references": {"mug": [photo]}, "points": {spelled: [(25.0, 15.0)]}}
    again, _ = build_references([], models, cache_dir=tmp_path, **options)
    assert manifest.names == ("mug",) and list_drawn(models) == []
    assert manifest.folders == again.folders
    for name in ("references", "points"):
        twice = {**options, name: {"mug": options[name][next(iter(options[name]))]}}
        twice[name] |= {spelled: twice[name]["mug"]}
        with pytest.raises(ValueError, match=f"{name} must name each class once, got 'mug' twice"):
            build_references([], models, cache_dir=tmp_path, **twice)


def test_a_photograph_is_decoded_once_per_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = np.full((50, 70, 3), 128, np.uint8)
    photo[10:40, 20:50] = pick_colour("mug")
    paths = [tmp_path / f"mug{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(photo).save(path)
    decoded: list[object] = []
    decode = images._load
    monkeypatch.setattr(images, "_load", lambda path: decoded.append(path) or decode(path))
    rimjax.build_bank([], fake_models(), cache_dir=tmp_path, references={"mug": paths})
    assert decoded == paths


def test_a_photographs_alpha_or_point_is_its_mask(tmp_path: Path) -> None:
    photo = np.full((40, 40, 4), 255, np.uint8)
    photo[..., :3] = 128
    photo[:10, :10, :3] = pick_colour("mug")
    photo[20:, :, 3] = 0
    models = fake_models()

    def cut(points: dict | None) -> np.ndarray:
        options = {"references": {"mug": [photo]}, "points": points}
        manifest, _ = build_references([], models, cache_dir=tmp_path, **options)
        (references,) = store.read_all_references(manifest, pictures=True)
        assert references.masks is not None
        return references.masks[0]

    assert cut(None)[:250].all() and not cut(None)[262:].any()
    mask = cut({"mug ": [(5.0, 5.0)]})
    assert mask[:120, :120].all() and not mask[140:].any() and not mask[:, 140:].any()
    with pytest.raises(ValueError, match="points must lie in the 40x40 image"):
        cut({"mug": [(50.0, 5.0)]})
    with pytest.raises(ValueError, match="points must name classes of references, got cup"):
        cut({"cup": [(5.0, 5.0)]})


def test_models_of_ones_own_need_no_library_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest records versions; packages that aren't installed are None."""
    installed = files.metadata.version

    def version(package: str) -> str:
        if package in ("diffusers", "flax", "torch"):
            raise files.metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(files.metadata, "version", version)
    manifest, _ = build_references(["plum"], fake_models(), cache_dir=tmp_path)
    versions = json.loads(manifest.path.read_text())["versions"]
    assert versions["torch"] is None and versions["jax"]


def test_contact_sheet_shows_four_rows(tmp_path: Path) -> None:
    manifest, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    references = store.read_all_references(manifest, pictures=True)[0]
    sheet = rimjax.draw.contact_sheet(references)
    assert sheet.width > 8 * 128 and sheet.height > 4 * 128
    with pytest.raises(ValueError, match="pictures=True"):
        rimjax.draw.contact_sheet(store.read_all_references(manifest)[0])
