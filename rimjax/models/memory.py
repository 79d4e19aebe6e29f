"""Batches that a device's memory holds: halved, and tried again, when it runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from jax.errors import JaxRuntimeError

Result = TypeVar("Result")


class MemoryRunsOut(UserWarning):
    """A batch was halved because the device's memory ran out."""


@dataclass
class BatchLimit:
    """The largest batch that memory holds, as far as it is known; threads may share it.

    Attributes:
        stage: what is computed, e.g. "drawing images", for messages.
        advice: what helps where a single item is too large, for the error.
        largest: items in a batch; None: nothing has failed yet.
    """

    stage: str
    advice: str
    largest: int | None = None

    def run(
        self, compute: Callable[[int, int], Result], count: int, batch_size: int
    ) -> list[Result]:
        """Compute items 0 to count - 1 in batches of equal size and return each batch's result.

        When memory runs out, a line says so as a `MemoryRunsOut` warning, and this batch and all
        later ones are of half the size.

        Args:
            compute: the first item and the size of a batch to its result, which must be finished:
                as NumPy arrays, say. The last batch may reach past `count`.
            count: number of items.
            batch_size: items in a batch, at least 1, if memory holds them.

        Raises:
            MemoryError: memory doesn't hold a single item.
        """
        results: list[Result] = []
        start = 0
        while start < count:
            size = min(batch_size, self.largest or batch_size)
            try:
                results.append(compute(start, size))
                start += size
            except JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if size == 1:
                    raise MemoryError(
                        f"{self.stage} needs more memory than the device has free, even one at a "
                        f"time; {self.advice}"
                    ) from error
                self._halve(size)
        return results

    def _halve(self, size: int) -> None:
        self.largest = min(self.largest or size, size // 2)
        warnings.warn(
            f"{self.stage} ran out of the device's memory in a batch of {size}; "
            f"batches are now of {self.largest}",
            MemoryRunsOut,
            stacklevel=3,
        )


@contextmanager
def name_memory_error(stage: str, advice: str) -> Iterator[None]:
    """Turn torch's error of a device without free memory into a MemoryError that says what helps.

    Args:
        stage: what is computed, e.g. "proposing regions".
        advice: what the user can do.

    Raises:
        MemoryError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        ran_out = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(
            error
        )
        if not ran_out:
            raise
        raise MemoryError(
            f"{stage} needs more memory than the device has free; {advice}"
        ) from error


def advise_on_memory(dtype: str, smaller: str) -> str:
    """Say what helps where a model doesn't fit.

    Args:
        dtype: that it computes in.
        smaller: what else helps, e.g. "choose a smaller encoder".
    """
    return smaller if dtype == "bfloat16" else f"load the preset with dtype bfloat16, or {smaller}"
