"""The encoder's feature cells as regions: the paper's matching without proposals (Table 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rimjax.models.protocols import Encoder, Proposals, check_image


@dataclass(frozen=True, eq=False)
class CellProposer:
    """Every cell of the encoder's feature grid as a region: a `Proposer`.

    When cells are pooled like any region (Eq. 4), about half of a cell's feature is its own and the
    rest its neighbours', because resizing a mask to the grid spreads it over them.

    Attributes:
        encoder: gives the grid.
    """

    encoder: Encoder

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features."""
        height, width, _ = self.encoder.encode(np.zeros((64, 64, 3), np.uint8)).shape
        return height, width

    @property
    def fingerprint(self) -> str:
        """The grid's size: proposals depend on nothing else."""
        return f"cells-{self.grid[0]}x{self.grid[1]}"

    def propose(self, image: np.ndarray) -> Proposals:
        """Return h * w masks that partition the image, without scores.

        Args:
            image: uint8[H, W, 3]; if it is smaller than the grid, some masks are empty.

        Raises:
            ValueError: the image is something else.
        """
        check_image(image)
        height, width = self.grid
        rows = np.arange(image.shape[0]) * height // image.shape[0]
        columns = np.arange(image.shape[1]) * width // image.shape[1]
        owners = rows[:, None] * width + columns
        return Proposals(owners == np.arange(height * width)[:, None, None])
