"""`rimjax segment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from rimjax.commands.console import (
    check_outputs,
    describe_origin,
    keep_compilations,
    progress,
    show_class_progress,
    write_picture,
)
from rimjax.commands.options import CACHE_DEFAULT, NO_DEFAULT, ModelOptions, default, report_stage
from rimjax.files import write_json
from rimjax.images import read_image
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder, segment
from rimjax.references import store
from rimjax.references.build import build_bank, load_bank, parse_names
from rimjax.settings import name_configuration
from rimjax.show import draw
from rimjax.types import ReferenceBank, Segmentation


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images into classes that you name.

    Example: rimjax segment photo.jpg --classes "sneaker,bag" --output out.png --json out.json

    Attributes:
        files: Image files.
        classes: Class names, comma-separated. Leave them out with --bank.
        bank: A bank's manifest, as `rimjax bank build` prints it, instead of building a bank. It
            keeps its configuration unless --configuration is given.
        output: The overlay's PNG file, or a folder (a name without a suffix). NAME_labels.png goes
            beside it.
        json: File for regions, scores and timings.
        cache_dir: Folder that keeps banks.
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], NO_DEFAULT]
    classes: Annotated[str | None, NO_DEFAULT] = None
    bank: Annotated[Path | None, NO_DEFAULT] = None
    output: Annotated[Path | None, default("NAME_segmented.png here")] = None
    json: Annotated[Path | None, NO_DEFAULT] = None
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        if not self.files:
            raise ValueError("segment needs at least one image file, got none")
        names = parse_names(self.classes.split(",")) if self.classes is not None else None
        if names is None and self.bank is None:
            raise ValueError('classes must be given, e.g. --classes "sneaker,bag"; or give --bank')
        outputs = self._plan_outputs()
        images = [read_image(path) for path in self.files]
        models = self.models.load(with_bank=self.bank is not None)
        keep_compilations(store.locate_cache(self.cache_dir))
        manifest = None if self.bank is None else store.read_manifest(self.bank)
        if manifest is not None:
            models = self.models.adopt_bank(manifest, models)
        bank = _open_bank(manifest, names, models, self.cache_dir)
        configuration = name_configuration(models.references, models.segmentation)
        print(f"configuration: {configuration}")
        results = []
        jobs = list(zip(self.files, images, outputs, strict=True))
        for path, image, (overlay, labels) in progress(jobs, "segment", "image"):
            try:
                seg = segment(image, bank, models)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            if self.models.random_weights:
                stages = ", ".join(f"{stage} {sec:.1f} s" for stage, sec in seg.timings.items())
                report_stage(
                    f"{path}: {len(seg.masks)} regions; {stages}; in all", sum(seg.timings.values())
                )
            write_picture(overlay, draw.overlay(image, seg))
            write_picture(labels, Image.fromarray(seg.labels))
            shares = {name: float((seg.labels == i).mean()) for i, name in enumerate(seg.names)}
            files = {"image": str(path), "overlay": str(overlay), "labels": str(labels)}
            results.append({**files, "shares": shares, **describe_regions(seg)})
            present = ", ".join(f"{name} {100 * s:.0f} %" for name, s in shares.items() if s)
            tqdm.write(f"{path}: {present} -> {overlay}, {labels}")
        if self.json is not None:
            contents = {"results": results, "names": bank.names, **describe_origin(models)}
            write_json(self.json, contents)

    def _plan_outputs(self) -> list[tuple[Path, Path]]:
        """Return each image's overlay and label map, refusing names that can't be written."""
        if len({path.stem for path in self.files}) < len(self.files):
            raise ValueError(
                "files must have different names, got a name twice, whose results would overwrite "
                "each other; segment them separately"
            )
        overlays = [self._locate_overlay(path) for path in self.files]
        stems = [path.stem.removesuffix("_segmented") for path in overlays]
        pairs = [
            (path, path.with_name(f"{stem}_labels.png"))
            for path, stem in zip(overlays, stems, strict=True)
        ]
        outputs = [path for pair in pairs for path in pair]
        check_outputs(*outputs, self.json)
        inputs = {path.resolve() for path in self.files}
        written = [path for path in (*outputs, self.json) if path is not None]
        if overwritten := [str(path) for path in written if path.resolve() in inputs]:
            raise ValueError(
                f"output must not overwrite an image, got {', '.join(overwritten)}; choose another "
                "name"
            )
        return pairs

    def _locate_overlay(self, image: Path) -> Path:
        if self.output is None:
            return Path(f"{image.stem}_segmented.png")
        if self.output.is_dir() or not self.output.suffix:
            return self.output / f"{image.stem}_segmented.png"
        if len(self.files) > 1:
            raise ValueError(
                f"output must be a folder for {len(self.files)} images, got {self.output}"
            )
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"output must be a PNG file or a folder, got {self.output}")
        return self.output


def describe_regions(seg: Segmentation) -> dict[str, Any]:
    """Return a segmentation's regions as JSON: class, score, area in pixels and box xyxy."""
    regions = []
    for mask, index, scores in zip(seg.masks, seg.region_labels, seg.scores, strict=True):
        if index >= 0:
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            regions.append(
                {
                    "class": seg.names[index],
                    "score": float(scores[index]),
                    "area": int(mask.sum()),
                    "box": [int(side) for side in box],
                }
            )
    return {"regions": regions, "timings": seg.timings}


def _open_bank(
    manifest: store.Manifest | None,
    names: tuple[str, ...] | None,
    models: Models,
    cache_dir: Path | None,
) -> ReferenceBank:
    if manifest is None:
        assert names is not None
        return build_bank(names, models, cache_dir=cache_dir, progress=show_class_progress)
    bank = load_bank(manifest, models.references)
    check_encoder(bank, models)
    if names is not None and names != bank.names[1:]:
        held = ", ".join(bank.names[1:])
        raise ValueError(
            f"classes must be the bank's ({held}), got {', '.join(names)}; leave --classes out"
        )
    return bank
