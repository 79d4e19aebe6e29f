"""`rimjax segment`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro
from tqdm import tqdm

from rimjax.commands.class_options import Classes, ClassOptions
from rimjax.commands.console import (
    check_outputs,
    describe_origin,
    keep_compilations,
    progress,
    shorten,
    show_class_progress,
    warn,
    write_labels,
    write_picture,
)
from rimjax.commands.options import (
    CACHE_DEFAULT,
    NO_DEFAULT,
    Flag,
    ModelOptions,
    default,
    report_stage,
)
from rimjax.files import write_json
from rimjax.images import read_image
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder, segment
from rimjax.references import store
from rimjax.references.build import build_bank, load_bank
from rimjax.settings import name_configuration
from rimjax.show import draw
from rimjax.types import ReferenceBank, Segmentation

MOST_CLASSES = 65535
"""As many as a 16-bit PNG can tell apart, beside the background."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images into classes that you name.

    Example: rimjax segment photo.jpg --classes "sneaker,bag" --output out.png --json out.json

    Attributes:
        files: Image files.
        bank: A bank's manifest, as `rimjax bank build` prints it, or a packed bank, instead of
            building a bank. It keeps its configuration unless --configuration is given.
        output: The overlay's PNG file, or a folder (a name without a suffix). NAME_labels.png goes
            beside it.
        json: File for regions, scores and timings; it grows with the images.
        overwrite: Replace files that rimjax didn't write; its own are always replaced.
        stop_on_error: End at the first image that can't be used, with exit status 2. Otherwise the
            others are segmented, the bad ones listed at the end, and the exit status is 1.
        cache_dir: Folder that keeps banks.
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], NO_DEFAULT]
    own: ClassOptions = field(default_factory=ClassOptions)
    bank: Annotated[Path | None, NO_DEFAULT] = None
    output: Annotated[Path | None, default("NAME_segmented.png here")] = None
    json: Annotated[Path | None, NO_DEFAULT] = None
    overwrite: Flag = False
    stop_on_error: Flag = False
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        if not self.files:
            raise ValueError("segment needs at least one image file, got none")
        if not self.own.is_given and self.bank is None:
            raise ValueError('classes must be given, e.g. --classes "sneaker,bag"; or give --bank')
        if self.bank is None:
            classes = self.own.read(self.models.preset)
            check_label_format(classes[0])
        else:
            classes = self.own.read_names(with_bank=True), {}
        outputs = self._plan_outputs()
        bad: dict[Path, str] = {}
        if not any(self._read(path, bad) is not None for path in self.files):
            self._end(bad)  # before the models are loaded and a bank is drawn
        models = self.models.load(with_bank=self.bank is not None)
        keep_compilations(store.locate_cache(self.cache_dir))
        manifest = None if self.bank is None else store.read_manifest(self.bank)
        if manifest is not None:
            check_label_format(manifest.names)
            models = self.models.adopt_bank(manifest, models)
        bank = _open_bank(manifest, classes, models, self.cache_dir)
        configuration = name_configuration(models.references, models.segmentation)
        print(f"configuration: {configuration}")
        report: dict[str, Any] = {
            "results": [],
            "bad_images": {},
            "names": bank.names,
            **describe_origin(models),
        }
        jobs = list(zip(self.files, outputs, strict=True))
        bad.clear()
        try:
            for count, (path, (overlay, labels)) in enumerate(
                progress(jobs, "segment", "image"), 1
            ):
                result = self._segment_file(path, overlay, labels, bank, models, bad)
                report["results"] += [result] if result is not None else []
                report["bad_images"] = {str(path): reason for path, reason in bad.items()}
                if self.json is not None and count % max(1, count // 20) == 0:
                    write_json(self.json, report)  # not for each of thousands: it grows with them
        except BaseException:
            with suppress(OSError):
                if self.json is not None and report["results"]:
                    write_json(self.json, report)
            raise
        if self.json is not None:
            write_json(self.json, report)
        if bad:
            self._end(bad)

    def _segment_file(
        self,
        path: Path,
        overlay: Path,
        labels: Path,
        bank: ReferenceBank,
        models: Models,
        bad: dict[Path, str],
    ) -> dict[str, Any] | None:
        """Segment an image and write its pictures; return None, and note why, if it is bad."""
        image = self._read(path, bad)
        if image is None:
            warn(bad[path])
            return None
        try:
            seg = segment(image, bank, models)
        except ValueError as error:
            self._note(path, f"{path}: {shorten(error)}", bad)
            warn(bad[path])
            return None
        if self.models.random_weights:
            stages = ", ".join(f"{stage} {sec:.1f} s" for stage, sec in seg.timings.items())
            report_stage(
                f"{path}: {len(seg.masks)} regions; {stages}; in all", sum(seg.timings.values())
            )
        write_picture(overlay, draw.overlay(image, seg))
        write_labels(labels, seg.labels)
        shares = {name: float((seg.labels == i).mean()) for i, name in enumerate(seg.names)}
        present = ", ".join(f"{name} {100 * s:.0f} %" for name, s in shares.items() if s)
        tqdm.write(f"{path}: {present} -> {overlay}, {labels}")
        files = {"image": str(path), "overlay": str(overlay), "labels": str(labels)}
        return {**files, "shares": shares, **describe_regions(seg)}

    def _read(self, path: Path, bad: dict[Path, str]) -> np.ndarray | None:
        """Read an image; return None, and note why, if it is bad."""
        try:
            return read_image(path)
        except (ValueError, OSError) as error:
            self._note(path, shorten(error), bad)
            return None

    def _note(self, path: Path, reason: str, bad: dict[Path, str]) -> None:
        if self.stop_on_error:
            raise ValueError(reason)
        bad[path] = reason

    def _end(self, bad: Mapping[Path, str]) -> NoReturn:
        """List the bad images and exit with status 1."""
        count = f"{len(bad)} of {len(self.files)} images could not be used"
        print(f"rimjax: {count}: {'; '.join(bad.values())}", file=sys.stderr)
        sys.exit(1)

    def _plan_outputs(self) -> list[tuple[Path, Path]]:
        """Return each image's overlay and label map, refusing names that can't be written."""
        stems = Counter(path.stem for path in self.files)
        if repeated := [stem for stem, count in stems.items() if count > 1]:
            raise ValueError(
                "files must have different names, without folder and suffix, got "
                f"{', '.join(repeated[:5])} more than once, whose results would overwrite each "
                "other; segment them separately"
            )
        overlays = [self._locate_overlay(path) for path in self.files]
        pairs = [
            (path, path.with_name(f"{path.stem.removesuffix('_segmented')}_labels.png"))
            for path in overlays
        ]
        outputs = [path for pair in pairs for path in pair]
        inputs = {path.resolve() for path in self.files}
        written = [path for path in (*outputs, self.json) if path is not None]
        if overwritten := [str(path) for path in written if path.resolve() in inputs]:
            raise ValueError(
                f"output must not overwrite an image, got {', '.join(overwritten)}; choose another "
                "name"
            )
        if len({path.resolve() for path in written}) < len(written):
            raise ValueError(f"json must be a file of its own, got {self.json}; choose another")
        check_outputs(*written, overwrite=self.overwrite)
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


def check_label_format(names: Collection[str]) -> None:
    """Raise ValueError, before any work is done, for more classes than a label PNG can tell."""
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"classes must be at most {MOST_CLASSES}, as many as a 16-bit label PNG can tell "
            f"apart, got {len(names)}; segment with several banks"
        )


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
    classes: Classes,
    models: Models,
    cache_dir: Path | None,
) -> ReferenceBank:
    names, references = classes
    if manifest is None:
        return build_bank(
            names,
            models,
            cache_dir=cache_dir,
            references=references,
            progress=show_class_progress,
        )
    bank = load_bank(manifest, models.references)
    check_encoder(bank, models)
    if names and (tuple(names) != bank.names[1:]):
        held = ", ".join(bank.names[1:])
        raise ValueError(
            f"classes must be the bank's ({held}), got {', '.join(names)}; leave --classes out"
        )
    kept = {name: prompts for name, prompts in names.items() if prompts}
    if kept and kept != manifest.prompts:
        raise ValueError("classes must have the bank's prompts or none; leave --classes out")
    return bank
