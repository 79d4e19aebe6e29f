"""Options of `rimjax segment` that explain a region's name in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from rimjax.commands.console import write_picture
from rimjax.commands.options import NO_DEFAULT, default
from rimjax.models.protocols import Models
from rimjax.references.contents import Manifest
from rimjax.results import Segmentation
from rimjax.show.explain import explain
from rimjax.show.plot import explanation
from rimjax.types import ReferenceBank


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """A picture of why a region got its name.

    Attributes:
        explain: PNG file for a picture of one region's agents, rankings, scores and nearest
            references (a single image only).
        explain_at: Point "X,Y" of the region to explain.
    """

    explain: Annotated[Path | None, NO_DEFAULT] = None
    explain_at: Annotated[str | None, default("the largest that isn't background")] = None

    def check(self, files: Sequence[Path]) -> None:
        """Raise ValueError, before any work is done, for options that can't be followed."""
        if self.explain is None:
            if self.explain_at is not None:
                raise ValueError("explain_at needs --explain FILE.png, got none")
            return
        if len(files) != 1:
            raise ValueError(f"explain needs a single image, got {len(files)}; name one file")
        if self.explain.suffix.lower() != ".png":
            raise ValueError(f"explain must be a PNG file, got {self.explain}")
        if self.explain_at is not None:
            self._read_point(self.explain_at)

    def write(
        self,
        image: np.ndarray,
        seg: Segmentation,
        bank: ReferenceBank,
        models: Models,
        manifest: Manifest,
    ) -> None:
        """Draw the picture.

        Raises:
            ValueError: there is no region to explain.
        """
        if self.explain is None:
            return
        if self.explain_at is not None:
            region = self._read_point(self.explain_at)
        else:
            region = self._find_largest(seg)
        explained = explain(seg, region, bank, models, references=manifest)
        write_picture(self.explain, explanation(image, explained))
        print(f"explanation: {self.explain}")

    @staticmethod
    def _find_largest(seg: Segmentation) -> int:
        """Return the largest region that isn't background, or the largest if all are."""
        segments = sorted(seg.segments, key=lambda segment: segment.area)
        if segments and seg.owners is not None:
            return segments[-1].id - 1
        valid = np.flatnonzero(seg.region_labels >= 0)
        if not len(valid):
            raise ValueError("explain found no region in the image; choose another image")
        return int(valid[np.argmax(seg.masks[valid].sum((1, 2)))])

    @staticmethod
    def _read_point(text: str) -> tuple[int, int]:
        try:
            x, y = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f'explain_at must be a point "X,Y" in pixels, got {text!r}') from None
        return x, y
