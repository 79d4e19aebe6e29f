"""The segmentation of an image: its label map, its regions, and what is to be seen of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Integer

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class Segment:
    """What is to be seen of a region in the label map, or a connected part of a class.

    Attributes:
        id: its value in `Segmentation.id_map`, from 1 on.
        class_id: index of its class in `Segmentation.names`, from 1 on.
        area: its pixels.
        box: (x0, y0, x1, y1) in pixels; x1 and y1 lie just outside.
        score: its region's score of its class, or of the best class where it is unknown; None for a
            connected part.
        margin: how far that score stands above the runner-up's; None for a connected part.
        confidence: share of such regions that is named rightly, in 0..1; None without a
            calibration.
    """

    id: int
    class_id: int
    area: int
    box: tuple[int, int, int, int]
    score: float | None = None
    margin: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image, in NumPy.

    Attributes:
        labels: class of each pixel, in [0, C).
        masks: the regions' pixels, before they were painted over each other.
        region_labels: the regions' classes; -1 for an invalid region.
        scores: the regions' class scores: similarities, whose range depends on the configuration.
        names: the C class names, of which names[0] is the background; with a class "unknown", label
            C, which has no score, its name follows as the last.
        timings: seconds spent in each stage, by the stage's name.
        owners: the region on top of each pixel, -1 under no region; None where no single region
            decides, because regions voted or pixels were named one by one.
        confidence: share of the regions with such scores and margins that was named rightly on
            validation scenes of the preset, all of whose things were among the classes, in 0..1; 0
            for an invalid region. None for models or settings that aren't calibrated.
        familiar: whether the image is like the scenes that the preset's encoder was trained on;
            None where that isn't known.
        features: the regions' features, as the encoder gives them; None where pixels were named.
        agents: the references that each region was compared through (Eq. 6), as of `Match`; None
            likewise.
    """

    labels: Integer[np.ndarray, "H W"]
    masks: Bool[np.ndarray, "P H W"]
    region_labels: Int[np.ndarray, " P"]
    scores: Float[np.ndarray, "P C"]
    names: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)
    owners: Int32[np.ndarray, "H W"] | None = None
    confidence: Float[np.ndarray, " P"] | None = None
    familiar: bool | None = None
    features: Float[np.ndarray, "P D"] | None = None
    agents: Int[np.ndarray, "P N"] | None = None

    @cached_property
    def margins(self) -> Float[np.ndarray, " P"]:
        """How far each region's best score stands above the runner-up's; 0 for an invalid one.

        Classes that may not win count as well, with the least score.
        """
        return measure_margins(self.scores)

    @cached_property
    def id_map(self) -> Int32[np.ndarray, "H W"]:
        """The segment at each pixel: 0 for the background, or i + 1 for the region masks[i].

        Without `owners`, the connected parts of each class are numbered.
        """
        if self.owners is not None:
            return np.where(self.labels > 0, self.owners + 1, 0).astype(np.int32)
        ids, count = np.zeros(self.labels.shape, np.int32), 0
        for index in np.unique(self.labels[self.labels > 0]).tolist():
            parts, found = _label(self.labels == index)
            ids = np.where(parts > 0, parts + count, ids).astype(np.int32)
            count += found
        return ids

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of all classes but the background, by their ids.

        A region that others cover has none.
        """
        from scipy import ndimage

        areas, segments = np.bincount(self.id_map.ravel()), []
        for index, window in enumerate(ndimage.find_objects(self.id_map)):
            if window is None:
                continue
            rows, columns = window
            mine = self.id_map[window] == index + 1
            class_id = int(self.labels[window][mine][0])
            box = (columns.start, rows.start, columns.stop, rows.stop)
            numbers = () if self.owners is None else self._score_region(index, class_id)
            segments.append(Segment(index + 1, class_id, int(areas[index + 1]), box, *numbers))
        return tuple(segments)

    def _score_region(self, index: int, class_id: int) -> tuple[float, float, float | None]:
        """Return a region's score, margin and confidence."""
        scores = self.scores[index]
        score = scores[class_id] if class_id < len(scores) else scores.max()
        confidence = None if self.confidence is None else float(self.confidence[index])
        return float(score), float(self.margins[index]), confidence

    def to_coco(
        self, image_id: int = 1, categories: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the segments as COCO annotations, with run lengths by pycocotools.

        They are COCO results as well: `COCO.loadRes` and COCOeval take them.

        Args:
            image_id: the image's id.
            categories: class name -> category id; default: the classes' indices.

        Returns:
            A dict for each segment: image_id, category_id, segmentation, area, bbox (x, y, width,
            height), iscrowd and score (1.0 for a segment without a score).

        Raises:
            ValueError: a class that is present isn't in `categories`.
        """
        from pycocotools import mask as coco

        annotations: list[dict[str, Any]] = []
        for segment in self.segments:
            name = self.names[segment.class_id]
            if categories is not None and name not in categories:
                raise ValueError(
                    f"categories must have an id for {name!r}, got {', '.join(categories)}"
                )
            mask = np.asfortranarray(self.id_map == segment.id, np.uint8)
            runs: Any = coco.encode(mask)
            x0, y0, x1, y1 = segment.box
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": categories[name] if categories else segment.class_id,
                    "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
                    "area": segment.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": 1.0 if segment.score is None else segment.score,
                }
            )
        return annotations

    def to_supervision(self) -> Detections:
        """Return the segments as supervision's Detections, whose annotators draw them.

        Raises:
            ImportError: supervision isn't installed.
        """
        try:
            with warnings.catch_warnings():  # that OpenCV isn't installed
                warnings.simplefilter("ignore")
                import supervision
        except ImportError as error:
            raise ImportError(
                'to_supervision needs supervision: pip install "rimjax[formats]"'
            ) from error
        segments, shape = self.segments, self.labels.shape
        masks = [self.id_map == segment.id for segment in segments]
        return supervision.Detections(
            xyxy=np.array([segment.box for segment in segments], float).reshape(-1, 4),
            mask=np.stack(masks) if masks else np.zeros((0, *shape), bool),
            confidence=np.array([1.0 if s.score is None else s.score for s in segments]),
            class_id=np.array([segment.class_id for segment in segments], int),
            data={"class_name": np.array([self.names[s.class_id] for s in segments])},
        )

    def to_yolo(self) -> list[str]:
        """Return the segments as lines of YOLO polygons: class from 0 on, then x and y in 0..1.

        The background isn't a class here, so names[1] is class 0. A segment of several parts has a
        line for each.

        Raises:
            ImportError: supervision isn't installed.
        """
        detections = self.to_supervision()
        from supervision.dataset.formats.yolo import detections_to_yolo_annotations

        detections.class_id = np.asarray(detections.class_id) - 1
        shape = (self.labels.shape[0], self.labels.shape[1])
        return detections_to_yolo_annotations(detections, shape, approximation_percentage=0)


def measure_margins(scores: Float[np.ndarray, "P C"]) -> Float[np.ndarray, " P"]:
    """Return how far each row's best score stands above the second best."""
    if scores.shape[1] < 2:
        return np.zeros(len(scores), scores.dtype)
    top = np.partition(scores, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _label(mask: Bool[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "H W"], int]:
    """Number the connected parts of a mask from 1 on; pixels connect across corners too."""
    from scipy import ndimage

    numbered: Any = ndimage.label(mask, np.ones((3, 3)))
    return numbered
