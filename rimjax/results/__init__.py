"""A segmentation, and what the next tool reads of it: segments, COCO, supervision."""

from rimjax.results.segmentation import Segment as Segment
from rimjax.results.segmentation import Segmentation as Segmentation
