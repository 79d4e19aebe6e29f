"""A call keeps to `max_bytes`, whatever the number of regions."""

import jax
import numpy as np
import pytest

from rimjax import match as m
from rimjax.bench.timing import measure_peak
from rimjax.types import ReferenceBank

LIMIT = 100 * 2**20


@pytest.mark.parametrize("count", [20_000, 20_480])  # with padding 20,480 both
def test_resident_memory_rises_by_max_bytes_at_most(count):
    rng = np.random.default_rng(0)
    rows, classes = (rng.standard_normal((size, 768), np.float32) for size in (count, 171))
    names = ("background", *map(str, range(1, 171)))
    bank = ReferenceBank.create(classes, np.arange(171), classes, names)

    def call():
        return m.match(rows, bank, num_agents=2, max_bytes=LIMIT)

    jax.block_until_ready(call())  # compiles
    peak, result = measure_peak(call)
    assert result.labels.shape == (count,)
    if peak is None:
        pytest.skip("this system doesn't report resident memory")
    assert peak <= LIMIT
