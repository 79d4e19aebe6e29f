"""Weights are identified by the record of their digests, without opening them, or by content."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from rimjax.models import weight_record
from rimjax.models.stable_diffusion import DeferredGenerator, DiffusionConfig, StoredWeights
from rimjax.models.weight_record import digest_weights, find_damaged, write_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "sd"
    for name in ("unet/flax_model.safetensors", "vae/flax_model.safetensors", "unet/config.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"content of {name}")
    return path


def print_of(path: Path) -> str:
    return DeferredGenerator(StoredWeights(path), DiffusionConfig()).fingerprint


def change(path: Path) -> None:
    """Change a file's content, but not its size; its time is later than any record's."""
    path.write_bytes(path.read_bytes()[::-1])
    later = time.time() + 10
    os.utime(path, (later, later))


def test_a_recorded_folder_is_identified_without_being_opened(folder, monkeypatch):
    by_content = print_of(folder)
    write_record(folder, folder)
    record = weight_record.locate_record(folder)
    opened = Path.open

    def refuse(self: Path, *args, **options):
        assert self == record, f"{self} was opened"
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert print_of(folder) == by_content
    with pytest.raises(AssertionError, match="was opened"):
        find_damaged(folder)  # reads every byte


def test_the_record_is_what_sha256sum_checks(folder):
    write_record(folder, folder)
    command = ["sha256sum", "-c", "--strict", "sd.sha256"]
    assert subprocess.run(command, cwd=folder.parent, capture_output=True).returncode == 0
    change(folder / "vae/flax_model.safetensors")
    assert subprocess.run(command, cwd=folder.parent, capture_output=True).returncode == 1


def test_content_counts_wherever_it_lies(folder, tmp_path):
    whole = print_of(folder)
    (tmp_path / "link").symlink_to(folder)
    assert print_of(tmp_path / "link") == whole
    (folder / "unet").rename(tmp_path / "elsewhere")
    assert print_of(folder) != whole
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert print_of(folder) == whole
    change(tmp_path / "elsewhere/flax_model.safetensors")
    assert print_of(folder) != whole


def test_a_record_counts_through_a_link_and_under_another_name(folder, tmp_path, monkeypatch):
    whole = print_of(folder)
    write_record(folder, folder)
    (tmp_path / "link").symlink_to(folder)
    folder.with_name("sd.sha256").rename(tmp_path / "moved.sha256")
    folder.rename(tmp_path / "moved")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.setattr(weight_record, "sha256", None)  # nothing may be digested
    assert print_of(tmp_path / "moved") == print_of(tmp_path / "link") == whole


def test_a_file_that_changed_after_the_record_counts_by_content(folder):
    write_record(folder, folder)
    whole = print_of(folder)
    change(folder / "unet/flax_model.safetensors")
    assert print_of(folder) != whole
    assert find_damaged(folder) == ["sd/unet/flax_model.safetensors"]


def test_weights_linked_into_a_recorded_folder_count_by_content(folder, tmp_path):
    write_record(folder, folder)
    whole = print_of(folder)
    (folder / "unet").rename(tmp_path / "unet")
    other = tmp_path / "unet/flax_model.safetensors"
    other.write_bytes(other.read_bytes()[::-1])
    os.utime(other, (0, 0))
    (folder / "unet").symlink_to(tmp_path / "unet")
    assert print_of(folder) != whole


def test_verifying_renews_the_trust_in_a_record(folder, monkeypatch):
    write_record(folder, folder)
    whole = print_of(folder)
    past = time.time() - 100
    os.utime(folder.with_name("sd.sha256"), (past, past))  # as after a copy in another order
    assert find_damaged(folder) == []
    monkeypatch.setattr(weight_record, "sha256", None)
    assert print_of(folder) == whole


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "missing, though recorded"),
        (lambda path: path.write_text("x"), "must have .* bytes as recorded, got 1"),
    ],
)
def test_a_folder_that_cant_be_what_was_recorded_is_refused(folder, spoil, message):
    write_record(folder, folder)
    spoil(folder / "vae/flax_model.safetensors")
    with pytest.raises(ValueError, match=rf"vae/flax_model\.safetensors: {message}"):
        print_of(folder)
    assert find_damaged(folder) == ["sd/vae/flax_model.safetensors"]


@pytest.mark.parametrize("line", ["garbage", "0123  sd/../../etc/passwd", "# a comment"])
def test_a_damaged_record_is_named(folder, line):
    folder.with_name("sd.sha256").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"sd\.sha256: damaged"):
        digest_weights(folder)


@pytest.mark.parametrize("part", [0, 1, 2, -1])
def test_a_changed_digit_in_a_record_is_noticed(folder, part):
    write_record(folder, folder)
    record = folder.with_name("sd.sha256")
    lines = record.read_text().splitlines()
    lines[part] = lines[part].translate(str.maketrans("0123456789", "1234567890"))
    record.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"sd\.sha256: damaged, it differs from its own digest"):
        digest_weights(folder)


def test_records_without_sizes_are_read(folder):
    """Earlier versions wrote digests alone."""
    write_record(folder, folder)
    record = folder.with_name("sd.sha256")
    lines = [line for line in record.read_text().splitlines() if not line.startswith("#")]
    record.write_text("\n".join(lines) + "\n")
    whole = digest_weights(folder)
    record.write_text(record.read_text().replace(whole["unet/config.json"], "0" * 64))
    assert digest_weights(folder) == whole, "a record that isn't sealed is not trusted"
    record.write_text("\n".join(lines[:-1]) + "\n")
    assert find_damaged(folder) == [], "from now on it is"
    record.write_text(record.read_text().replace(whole["unet/config.json"], "0" * 64))
    with pytest.raises(ValueError, match="differs from its own digest"):
        digest_weights(folder)


def test_a_single_file_has_a_record_too(tmp_path):
    path = tmp_path / "vit.safetensors"
    path.write_text("weights")
    digests = digest_weights(path)
    write_record(path, path)
    assert digest_weights(path) == digests and find_damaged(path) == []
    change(path)
    assert find_damaged(path) == ["vit.safetensors"]


def test_random_weights_and_drawing_settings_have_fingerprints_of_their_own(folder):
    from rimjax.models.random_weights import RandomWeights

    generators = [
        DeferredGenerator(weights, DiffusionConfig(steps=steps))
        for weights in (StoredWeights(folder), RandomWeights(0), RandomWeights(1))
        for steps in (1, 2)
    ]
    assert len({generator.fingerprint for generator in generators}) == 6
    batched = DeferredGenerator(StoredWeights(folder), DiffusionConfig(steps=1, batch_size=1))
    assert batched.fingerprint == generators[0].fingerprint
