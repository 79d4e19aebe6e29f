"""The files that `rimjax segment` reads and writes."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rimjax.commands.console import check_outputs, is_result, warn, write_labels, write_picture
from rimjax.commands.segment_record import read_lines
from rimjax.files import atomic_file, sha256
from rimjax.references.photographs import SUFFIXES, list_photographs
from rimjax.results import Segmentation
from rimjax.results.coco import CocoIds, read_ids, write_annotations
from rimjax.show import draw

IMAGE_FORMATS = {
    "overlay": "_segmented.png",
    "labels": "_labels.png",
    "ids": "_ids.png",
    "yolo": ".txt",
}
"""Files of each image, by what follows its name."""
CLASSES = "data.yaml"
RUN_FORMATS = {"coco": "annotations.json", "coco-results": "results.json", "yolo": CLASSES}
"""Files of all images together; of YOLO the class names."""


def list_pictures(words: Sequence[Path]) -> list[Path]:
    """Return the image files that words stand for: files, folders and patterns such as "*.jpg".

    Of a folder or pattern, hidden files, masks beside photographs and rimjax's results are left
    out.

    Raises:
        ValueError: a folder or pattern holds no image.
    """
    found: dict[Path, None] = {}
    for word in words:
        matches = [word]
        if word.is_dir() or (glob.has_magic(str(word)) and not word.exists()):
            matches = [path for path in list_photographs(word) if not is_result(path)]
            if not matches:
                raise ValueError(f"{word}: holds no image besides rimjax's results")
        found |= dict.fromkeys(matches)
    return list(found)


@dataclass(frozen=True)
class Outputs:
    """What is written for each image, and for all of them.

    Attributes:
        files: the images.
        output: an overlay's PNG for a single image, or a folder; None for the working folder.
        formats: names of `IMAGE_FORMATS` and `RUN_FORMATS`.
        json: the report; None for none.
        ids_from: a COCO file whose image and category ids are used; None numbers them.
        opacity: of the overlay's colours.
        explanation: the picture of a region's explanation; None for none.
    """

    files: Sequence[Path]
    output: Path | None
    formats: Sequence[str]
    json: Path | None
    ids_from: Path | None
    opacity: float
    explanation: Path | None = None

    @cached_property
    def ids(self) -> CocoIds | None:
        """The ids of the COCO file.

        Raises:
            ValueError: it can't be read, or isn't a COCO file.
        """
        return None if self.ids_from is None else read_ids(self.ids_from)

    @property
    def folder(self) -> Path | None:
        """The folder whose record lets a run go on; None without one."""
        if self.output is None or self.output.is_dir():
            return self.output
        return None if self.output.suffix.lower() in SUFFIXES else self.output

    def locate(self, image: Path) -> dict[str, Path]:
        """Return the files of an image by format."""
        folder = self.folder or Path()
        names = {name: IMAGE_FORMATS[name] for name in self.formats if name in IMAGE_FORMATS}
        if self.output is None or self.folder is not None:
            return {name: folder / f"{image.stem}{end}" for name, end in names.items()}
        stem = self.output.stem.removesuffix("_segmented")
        places = {name: self.output.with_name(f"{stem}{end}") for name, end in names.items()}
        own = "overlay" if len(names) > 1 else next(iter(names), None)  # gets the name as given
        return {name: self.output if name == own else place for name, place in places.items()}

    def locate_shared(self) -> dict[str, Path]:
        """Return the files of all images by format."""
        folder = self.folder or (self.output.parent if self.output else Path())
        return {name: folder / end for name, end in RUN_FORMATS.items() if name in self.formats}

    def describe(self, image: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return an image's result with the image's path and those of its files."""
        places = {name: str(place) for name, place in self.locate(image).items()}
        return {"image": str(image), **places, **result}

    @property
    def settings(self) -> list[Any]:
        """What an image's files depend on besides the segmentation."""
        return [sorted(self.formats), self.opacity]

    def check_ids(self, names: Sequence[str]) -> None:
        """Raise ValueError, before any work is done, where an image or a class has no id."""
        if self.ids is not None:
            self.ids.number_classes(names)
            for image in self.files:
                self.ids.find_image(image)

    def check(self, overwrite: bool) -> None:
        """Refuse what can't be written, before any work is done.

        Raises:
            ValueError: names repeat or would overwrite an image, or a file isn't rimjax's.
        """
        known = (*IMAGE_FORMATS, *RUN_FORMATS)
        if wrong := [name for name in self.formats if name not in known]:
            raise ValueError(f"format must be of {', '.join(known)}, got {wrong[0]!r}")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must be from 0 to 1, got {self.opacity}")
        if self.ids is not None and not {"coco", "coco-results"} & set(self.formats):
            raise ValueError("coco_ids must be given with --format coco or coco-results")
        stems = Counter(path.stem for path in self.files)
        if repeated := [stem for stem, count in stems.items() if count > 1]:
            raise ValueError(
                "files must have different names, without folder and suffix, got "
                f"{', '.join(repeated[:5])} more than once, whose results would overwrite each "
                "other; segment them separately"
            )
        if self.output is not None and self.folder is None:
            if len(self.files) > 1:
                raise ValueError(
                    f"output must be a folder for {len(self.files)} images, got {self.output}"
                )
            if self.output.suffix.lower() != ".png":
                raise ValueError(f"output must be a PNG file or a folder, got {self.output}")
        if self.folder is None and (shared := set(self.formats) & RUN_FORMATS.keys()):
            raise ValueError(f"output must be a folder for {', '.join(sorted(shared))}, got none")
        outputs = [place for path in self.files for place in self.locate(path).values()]
        written = [*outputs, *self.locate_shared().values()]
        written += [path for path in (self.json, self.explanation) if path is not None]
        inputs = {path.resolve() for path in self.files}
        if overwritten := [str(path) for path in written if path.resolve() in inputs]:
            raise ValueError(
                f"output must not overwrite an image, got {', '.join(overwritten)}; choose another "
                "name"
            )
        if len({path.resolve() for path in written}) < len(written):
            raise ValueError("json must be a file of its own, and so must explain")
        ours = self._list_recorded()
        check_outputs(*(path for path in written if path not in ours), overwrite=overwrite)

    def check_for_workers(self) -> Path:
        """Return the folder, by whose record images are told that workers have done.

        Raises:
            ValueError: there is none, or a region shall be explained.
        """
        if self.folder is None:
            raise ValueError(f"output must be a folder with --ray, got {self.output}")
        if self.explanation is not None:
            raise ValueError("explain must be left out with --ray, which segments many images")
        return self.folder

    def _list_recorded(self) -> set[Path]:
        """Return the files that the folder's record lists, and thereby knows to be rimjax's."""
        folder = self.folder or Path()
        listed = {folder / name for entry in read_lines(self.folder) for name in entry["files"]}
        return listed | ({folder / CLASSES} if listed else set())

    def write(self, image: Path, pixels: np.ndarray, seg: Segmentation) -> dict[str, Any]:
        """Write an image's files.

        Args:
            image: its path.
            pixels: uint8[H, W, 3].
            seg: its segmentation.

        Returns:
            Digests of image and files, where they lie in a folder; and what the report says of it.

        Raises:
            OSError: a file can't be written; the message names it.
        """
        places = self.locate(image)
        if "overlay" in places:
            write_picture(places["overlay"], draw.overlay(pixels, seg, self.opacity))
        if "labels" in places:
            write_labels(places["labels"], seg.labels, draw.colour_names(seg.names))
        if "ids" in places:
            write_labels(places["ids"], seg.id_map)
        if "yolo" in places:
            with atomic_file(places["yolo"]) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in seg.to_yolo()))
        shares = {name: float((seg.labels == i).mean()) for i, name in enumerate(seg.names)}
        result = {
            "size": [pixels.shape[1], pixels.shape[0]],
            "familiar": seg.familiar,
            "shares": shares,
            "regions": describe_segments(seg),
            "timings": seg.timings,
        }
        if "coco" in self.formats or "coco-results" in self.formats:
            result["annotations"] = seg.to_coco()
        if self.folder is None:
            return {"result": result}
        files = {place.name: sha256(place) for place in places.values()}
        return {"image": image.name, "sha256": sha256(image), "files": files, "result": result}

    def write_shared(self, results: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]) -> None:
        """Write the files of all images.

        Raises:
            ValueError: an image or a class has no id in the COCO file that ids are taken from.
            OSError: a file can't be written; the message names it.
        """
        for name, path in self.locate_shared().items():
            if name == "yolo":
                names = json.dumps(origin["names"][1:], ensure_ascii=False)  # YAML as well
                with atomic_file(path) as temporary:
                    temporary.write_text(
                        f"nc: {len(origin['names']) - 1}\nnames: {names}\n", "utf-8"
                    )
                continue
            write_annotations(path, results, origin, self.ids, results_only=name == "coco-results")
            if not any(result["annotations"] for result in results):
                warn(f"{path}: holds no segment; pycocotools' loadRes takes no empty list")


def describe_segments(seg: Segmentation) -> list[dict[str, Any]]:
    """Return the segments as JSON: id, class, score, margin, confidence, area and box xyxy.

    Areas and boxes are in pixels; score, margin and confidence are those of `Segment`.
    """
    return [
        {
            "id": segment.id,
            "class": seg.names[segment.class_id],
            "class_id": segment.class_id,
            "score": segment.score,
            "margin": segment.margin,
            "confidence": segment.confidence,
            "area": segment.area,
            "box": list(segment.box),
        }
        for segment in seg.segments
    ]


def warn_of_unfamiliar(results: Sequence[Mapping[str, Any]], preset: str) -> None:
    """Print one warning for all images that are unlike the preset's training scenes."""
    count = sum(result["familiar"] is False for result in results)
    if count:
        warn(
            f"{count} of {len(results)} images are unlike the scenes that preset {preset} was "
            "trained on (clothing on plain grounds), so names in them mean little; segment with "
            "--preset paper"
        )
