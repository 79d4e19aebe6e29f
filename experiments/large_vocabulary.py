"""Measure matching against a vocabulary that is shared out over devices.

Command:  python experiments/large_vocabulary.py
              20,000 classes of 8 prototypes, D = 768, 256 regions, the 5 best classes of each;
              on one device, and on 8 that the CPU stands in for
          python experiments/large_vocabulary.py --classes 2000 --devices 1 4
              a smaller one
Hardware: 2 CPU cores and 4 GiB; about a minute

Features are random. Memory is the compiler's own analysis, per device. Devices that share a CPU's
cores save no time; what they cost shows what sending and padding cost.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rimjax import match as m
from rimjax.bench.timing import time_call
from rimjax.types import ReferenceBank

MIB = 2**20


def make_bank(classes: int, per_class: int, dim: int) -> ReferenceBank:
    """Make a bank of NumPy arrays, which take no device's memory."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((classes, dim), np.float32)
    prototypes = np.repeat(rows, per_class, axis=0)
    prototypes += 0.5 * rng.standard_normal(prototypes.shape, np.float32)
    names = ("background", *map(str, range(1, classes)))
    return ReferenceBank(prototypes, np.repeat(np.arange(classes), per_class), rows, names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a row for each number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--regions", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", max(given.devices))

    bank = make_bank(given.classes, given.per_class, given.dim)
    chosen = np.random.default_rng(1).integers(0, len(bank.prototypes), given.regions)
    noise = np.random.default_rng(2).standard_normal((given.regions, given.dim), np.float32)
    regions = bank.prototypes[chosen] + noise
    match = partial(m.match, top_k=given.top_k, similarity="weighted", score_map="exp")
    labels = []
    print("| devices | references, each | temporary, each | seconds |\n|---|---|---|---|")
    for count in given.devices:
        mesh = Mesh(np.array(jax.devices()[:count]), ("classes",))
        placed = jax.device_put(bank) if count == 1 else m.shard_bank(bank, mesh, "classes")
        memory: Any = jax.jit(match).lower(regions, placed).compile().memory_analysis()
        seconds = time_call(partial(match, regions, placed))[1]
        labels.append(np.asarray(match(regions, placed).labels))
        print(
            f"| {count} | {memory.argument_size_in_bytes / MIB:,.0f} MiB "
            f"| {memory.temp_size_in_bytes / MIB:,.0f} MiB | {seconds:.2f} |"
        )
        del placed
    differ = max(int((found != labels[0]).sum()) for found in labels)
    print(f"\n{differ} of {given.regions} labels differ")


if __name__ == "__main__":
    main()
