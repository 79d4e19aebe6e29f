"""Build the reference bank (Sec. 3.4): references of each class, clusters, class features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from rimjax.datasets.names import parse_names
from rimjax.files import WriteError, check_writable
from rimjax.images import ImageSource
from rimjax.models.protocols import Models
from rimjax.references import store
from rimjax.references.arguments import check_call
from rimjax.references.contents import ClassReferences, Manifest
from rimjax.references.cut import cut_references, describe_references, open_references
from rimjax.references.one_class import draw_references, drawing_key, references_key
from rimjax.references.reference import Point, Reference
from rimjax.references.stored_masks import StoredMasks
from rimjax.settings import ReferenceSettings
from rimjax.steps.cluster import cluster_prototypes
from rimjax.steps.whiten import fit_whitening
from rimjax.types import BACKGROUND, ReferenceBank

Progress = Callable[[Iterable[str]], Iterable[str]]
Names = Sequence[str] | Mapping[str, str | Sequence[str] | None]


def assemble_bank(
    references: Sequence[ClassReferences], settings: ReferenceSettings, encoder: str
) -> ReferenceBank:
    """Compute class references (Eq. 4), the background reference and sub-categories (Sec. 3.5).

    Args:
        references: a class's references each, in the bank's class order.
        settings: `num_subcategories`, `foreground_mask`, `whiten` and `seed` are used.
        encoder: `Models.features` of the models that computed the features.

    Raises:
        ValueError: a class without a usable foreground, or no background at all.
    """
    background = np.concatenate(
        [
            _drop_invalid(group.background if settings.background_mask else group.whole)
            for group in references
        ]
    )
    if not len(background):
        raise ValueError("references must show some background, got none in any image")
    groups = [background]
    for group in references:
        rows = _drop_invalid(group.foreground if settings.foreground_mask else group.whole)
        if not len(rows):
            raise ValueError(
                f"references of {group.name!r} must hold a usable foreground, got none; "
                "look at them with `rimjax bank show`"
            )
        groups.append(rows)
    whitening = None
    if settings.whiten or settings.centre:
        whitening = fit_whitening(groups, settings.whiten, settings.centre)
    if whitening is not None:
        groups = [np.asarray(whitening.apply(rows)) for rows in groups]
    counts = [settings.num_subcategories] * len(groups)
    counts[0] = settings.background_subcategories or counts[0]
    clusters = [
        cluster_prototypes(rows, count, settings.seed)
        for rows, count in zip(groups, counts, strict=True)
    ]
    return ReferenceBank.create(
        prototypes=np.concatenate(clusters),
        owners=np.repeat(np.arange(len(clusters)), [len(rows) for rows in clusters]),
        classes=np.stack([rows.mean(0) for rows in groups]),
        names=(BACKGROUND, *(group.name for group in references)),
        encoder=encoder,
        whitening=whitening,
    )


def build_references(
    names: Names,
    models: Models,
    *,
    settings: ReferenceSettings | None = None,
    cache_dir: str | Path | None = None,
    references: Mapping[str, Sequence[ImageSource | Reference]] | None = None,
    points: Mapping[str, Sequence[Point]] | None = None,
    progress: Progress = iter,
    extend: Manifest | None = None,
) -> tuple[Manifest, list[ClassReferences]]:
    """Compute the references that the cache lacks, then write the bank's manifest.

    Args: as of `build_bank`, and
        extend: a bank whose classes come first; nothing of theirs is computed again.

    Returns:
        The manifest, and every class's references without their pictures.
    """
    classes, given = check_call(names, models, settings, references, points)
    settings, cache = settings or models.references, store.locate_cache(cache_dir)
    old = extend.names if extend else ()
    order = parse_names([*old, *classes])
    for folder in ("references", "banks"):  # before hours of drawing
        check_writable(cache / folder)
    drawn = [name for name in classes if name not in given]
    for name in drawn:
        if not locate_class(name, models, settings, cache, classes[name]).exists():
            for words in classes[name] or (name,):
                models.generator.check(words)

    built: dict[str, tuple[str, ClassReferences]] = {}
    if extend is not None:
        stored = zip(extend.folders, store.read_all_references(extend), strict=True)
        built |= zip(old, stored, strict=True)
    models = replace(models, masker=StoredMasks(models.masker, cache))
    try:
        for name in progress([*given, *drawn]):  # photographs first: they fail fastest
            if name in given:
                built[name] = _cut_class(name, models, settings, cache, given[name])
            else:
                built[name] = draw_class(name, models, settings, cache, classes[name])
        folders, groups = zip(*(built[name] for name in order), strict=True)
        manifest = store.write_manifest(
            cache,
            names=order,
            folders=folders,
            settings=asdict(settings),
            preset=models.name,
            encoder=models.features,
            prompts={group.name: group.prompts for group in groups if group.prompts},
        )
    except WriteError as error:
        raise WriteError(
            f"{error}; {len(built)} of {len(order)} classes are kept, and the same command goes on "
            "from there"
        ) from error
    return manifest, list(groups)


def locate_class(
    name: str, models: Models, settings: ReferenceSettings, cache: Path, prompts: Sequence[str]
) -> Path:
    """Return the folder of a drawn class's references in a cache, whether it is there or not."""
    return store.locate_references(cache, name, references_key(name, models, settings, prompts))


def draw_class(
    name: str, models: Models, settings: ReferenceSettings, cache: Path, prompts: Sequence[str]
) -> tuple[str, ClassReferences]:
    """Return a drawn class's folder name and references: stored, or drawn now and stored."""
    path = locate_class(name, models, settings, cache, prompts)
    if path.exists():
        return path.name, store.read_references(path)
    key = drawing_key(name, models, settings, prompts)
    drawing = store.find_drawing(cache, name, key)
    return _keep(path, draw_references(name, models, settings, drawing, prompts))


def _cut_class(
    name: str,
    models: Models,
    settings: ReferenceSettings,
    cache: Path,
    references: Sequence[Reference],
) -> tuple[str, ClassReferences]:
    """Return the same of a class from photographs: stored, or cut out now and stored."""
    opened = open_references(references)
    photographs = describe_references(opened)
    key = references_key(name, models, settings, photographs=photographs)
    path = store.locate_references(cache, name, key)
    if path.exists():
        return path.name, store.read_references(path)
    return _keep(path, cut_references(name, opened, models))


def _keep(path: Path, references: ClassReferences) -> tuple[str, ClassReferences]:
    """Store a class's references; return its folder's name and them without their pictures."""
    if not store.write_references(path, references):  # another process was faster
        return path.name, store.read_references(path)
    return path.name, replace(references, images=None, masks=None)


def load_bank(
    manifest: Manifest | str | Path, settings: ReferenceSettings | None = None
) -> ReferenceBank:
    """Load a stored bank.

    Args:
        manifest: the manifest, or its path as `rimjax bank build` prints it, or a packed bank's
            path.
        settings: as of `assemble_bank`; default: the settings that the bank was built with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the bank is damaged.
    """
    if not isinstance(manifest, Manifest):
        manifest = store.read_manifest(manifest)
    settings = settings or read_settings(manifest)
    return assemble_bank(store.read_all_references(manifest), settings, manifest.encoder)


def read_settings(manifest: Manifest) -> ReferenceSettings:
    """Return the settings that a bank was built with.

    Raises:
        ValueError: they are damaged, or another version's.
    """
    try:
        if missing := ReferenceSettings.__dataclass_fields__.keys() - manifest.settings.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")
        return ReferenceSettings(**manifest.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{manifest.path}: settings are damaged or another version's ({error}); "
            "build the bank again"
        ) from error


def build_bank(
    names: Names,
    models: Models,
    *,
    settings: ReferenceSettings | None = None,
    cache_dir: str | Path | None = None,
    references: Mapping[str, Sequence[ImageSource | Reference]] | None = None,
    points: Mapping[str, Sequence[Point]] | None = None,
    progress: Progress = iter,
) -> ReferenceBank:
    """Build the reference bank of some classes, drawing only what the cache lacks (Sec. 3.4).

    Args:
        names: classes to draw; they come first in the bank, then the other classes of `references`.
            A class of `references` among them isn't drawn. A mapping gives a class prompts, which
            share its images out: name -> prompts, or None for its name alone; see
            `rimjax.references.class_prompts`.
        models: from `load_preset`; replace any stage with `dataclasses.replace`.
        settings: settings of flow 1; default: the preset's.
        cache_dir: folder that keeps references and manifests; default: the user's cache folder.
        references: classes from photographs: name -> `Reference`s, or paths, files, PIL images or
            arrays. A folder or a pattern such as "mugs/*.jpg" stands for its pictures, sorted, and
            `mug.png` beside `mug.jpg` is its mask.
        points: for some of those classes, a point (x, y) on the object in each photograph.
        progress: wraps the class names while they are built, e.g. `tqdm.tqdm`.

    Returns:
        The bank; `names[0]` is the background.

    Raises:
        ValueError: names are blank, repeated or unknown to the model, or a class has no usable
            foreground, or an argument is of another type.
        OSError: a photograph isn't there, or the cache folder can't be written; finished classes
            are kept.
    """
    _, groups = build_references(
        names,
        models,
        settings=settings,
        cache_dir=cache_dir,
        references=references,
        points=points,
        progress=progress,
    )
    return assemble_bank(groups, settings or models.references, models.features)


def _drop_invalid(rows: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, "n D"]:
    return rows[np.isfinite(rows).all(axis=1)]
