"""Flow 1, reference construction (paper, Sec. 3.4): shards of classes > cluster > bank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rimjax import bank as storage
from rimjax.bank import Manifest, Shard
from rimjax.cluster import cluster_prototypes
from rimjax.shards import drawing_key, generated_shard, photo_shard, shard_key
from rimjax.types import BACKGROUND, ReferenceBank
from rimjax.whiten import whitened, whitening

if TYPE_CHECKING:
    from rimjax.presets import Models


@dataclass(frozen=True)
class ReferenceSettings:
    """How references are drawn and summarised (the paper's choices where it gives them, else ours).

    Attributes:
        num_images: K, synthetic images of a class.
        threshold: where the averaged attention map, over its maximum, is binarised (Sec. 4.2: 0.7).
        num_points: prompt points drawn from the binary map (Sec. 4.2: 5).
        num_subcategories: T, clusters of a class's prototypes (Fig. 5a: 8); 1 gives Eq. 9.
        foreground_mask: pool under the foreground mask; False is global average pooling (Table 2, row 2).
        whiten: ridge of the within-class whitening of features (`rimjax.whiten`), a choice of ours; 0: none, as in the paper.
        seed: of everything drawn; a class's own key is folded from it and the class's name.
    """

    num_images: int = 32
    threshold: float = 0.7
    num_points: int = 5
    num_subcategories: int = 8
    foreground_mask: bool = True
    whiten: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "num_points", "num_subcategories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: expected 0 <= threshold < 1, got {self.threshold}")
        if not self.whiten >= 0:
            raise ValueError(f"whiten: expected at least 0, got {self.whiten}")


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names with outer blanks removed.

    Raises:
        ValueError: none at all, a blank, a duplicate (case ignored), or "background", which every bank has anyway.
    """
    clean = tuple(name.strip() for name in names)
    if not clean:
        raise ValueError('classes: expected at least one class name, e.g. --classes "sneaker,bag"')
    if not all(clean):
        raise ValueError(f"classes: a class name is blank in {list(clean)}")
    lowered = [name.lower() for name in clean]
    twice = sorted({name for name in lowered if lowered.count(name) > 1})
    if twice:
        raise ValueError(f"classes: given more than once: {', '.join(twice)}")
    if BACKGROUND in lowered:
        raise ValueError("classes: 'background' is part of every bank already; leave it out")
    return clean


def bank_from_shards(shards: Sequence[Shard], settings: ReferenceSettings, encoder: str) -> ReferenceBank:
    """Class references (Eq. 4), the background reference and the sub-category prototypes (Sec. 3.5).

    Args:
        shards: one a class, in the bank's class order.
        settings: `num_subcategories`, `foreground_mask` and `whiten` are used.
        encoder: the fingerprint of the encoder that made the features.
    """
    background = [row for shard in shards for row in shard.background if np.isfinite(row).all()]
    if not background:
        raise ValueError("no image has any background: the background reference can't be made")
    groups = [np.stack(background)]
    for shard in shards:
        rows = shard.foreground if settings.foreground_mask else shard.whole
        rows = rows[np.isfinite(rows).all(1)]
        if not len(rows):
            raise ValueError(f"class {shard.name!r}: no image has a usable foreground; look at it with `rimjax bank show`")
        groups.append(rows)
    transform = whitening(groups, settings.whiten) if settings.whiten else None
    if transform is not None:
        groups = [whitened(rows, *transform) for rows in groups]
    clusters = [cluster_prototypes(rows, settings.num_subcategories, settings.seed) for rows in groups]
    bank = ReferenceBank.create(
        prototypes=np.concatenate(clusters),
        owners=np.repeat(np.arange(len(clusters)), [len(rows) for rows in clusters]).astype(np.int32),
        classes=np.stack([rows.mean(0) for rows in groups]),
        names=(BACKGROUND, *(shard.name for shard in shards)),
        encoder=encoder,
    )
    return replace(bank, whitening=transform)


def build_manifest(
    names: Sequence[str],
    models: Models,
    *,
    settings: ReferenceSettings | None = None,
    cache_dir: str | Path | None = None,
    references: Mapping[str, Sequence[str | Path | np.ndarray]] | None = None,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
    extend: Manifest | None = None,
) -> Manifest:
    """What `build_bank` does, up to the bank on disk: make the shards that the cache lacks, then write the manifest.

    With `extend`, that bank's classes come first, and nothing of theirs is made again.
    """
    if isinstance(names, str):
        raise ValueError(f"names: expected a list of class names, got the text {names!r}")
    settings = settings or models.references
    references, points = dict(references or {}), dict(points or {})
    old, old_shards = (extend.names, extend.shards) if extend else ((), ())
    checked = check_names([*old, *names, *references])
    folder = storage.cache_folder(cache_dir)
    paths = {
        name: storage.shard_path(folder, name, shard_key(name, models, settings, references.get(name), points.get(name)))
        for name in checked[len(old) :]
    }
    for name, path in paths.items():
        if name not in references and not path.exists():
            models.generator.check(name)
    for name in progress(paths):
        if not paths[name].exists():
            if name in references:
                made = photo_shard(name, references[name], models, points.get(name))
            else:
                made = generated_shard(name, models, settings, storage.find_drawing(folder, name, drawing_key(name, models, settings)))
            storage.write_shard(paths[name], made)
    return storage.write_manifest(
        folder,
        names=checked,
        shards=(*old_shards, *(path.name for path in paths.values())),
        settings=asdict(settings),
        preset=models.name,
        encoder=models.encoder.fingerprint,
    )


def load_bank(manifest: Manifest | str | Path, settings: ReferenceSettings | None = None) -> ReferenceBank:
    """The bank that a manifest names, e.g. a path that `rimjax bank build` printed; FileNotFoundError or ValueError if it is damaged.

    settings: as of `bank_from_shards`; default: those that it was made with.
    """
    manifest = manifest if isinstance(manifest, Manifest) else storage.read_manifest(manifest)
    return bank_from_shards(storage.read_shards(manifest), settings or settings_of(manifest), manifest.encoder)


def settings_of(manifest: Manifest) -> ReferenceSettings:
    """The settings that a bank was made with; ValueError where they are damaged or another version's."""
    try:
        return ReferenceSettings(**manifest.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{manifest.path}: its settings are damaged or another version's ({error}); build the bank again") from error


def build_bank(
    names: Sequence[str],
    models: Models,
    *,
    settings: ReferenceSettings | None = None,
    cache_dir: str | Path | None = None,
    references: Mapping[str, Sequence[str | Path | np.ndarray]] | None = None,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> ReferenceBank:
    """Build the reference bank of some classes, drawing only what the cache doesn't hold.

    Args:
        names: classes to draw; the bank's order is these, then those of `references`.
        models: from `load_preset`, any stage replaced as you like.
        settings: default: the preset's.
        cache_dir: where shards and the manifest are kept (default: the user's cache folder).
        references: further classes from your own photographs: name -> paths or arrays.
        points: for some of those, one point xy on the foreground of each photograph.
        progress: wraps the class names while they are built, e.g. `tqdm.tqdm`.

    Returns:
        The bank; `names[0]` is the background.

    Raises:
        ValueError: names are blank, doubled or unknown to the model, or a class has no usable foreground.
    """
    return load_bank(
        build_manifest(names, models, settings=settings, cache_dir=cache_dir, references=references, points=points, progress=progress)
    )
