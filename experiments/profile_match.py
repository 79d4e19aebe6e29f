"""A profile of the matching kernel: a trace for Perfetto or xprof, and beside it the program that XLA made of it.

    python experiments/profile_match.py profile --num-agents 4 --regions 10000 --prototypes 648

writes profile/plugins/profile/*/perfetto_trace.json.gz (open it at ui.perfetto.dev), profile/program.txt, and prints how many loops
and products the program has and what memory it takes. For times, peers and the roofline: `rimjax bench match`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp

from rimjax import bench
from rimjax.match.arguments import Settings
from rimjax.match.blocks import relation_matrix

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", type=Path)
parser.add_argument("--num-agents", type=int, default=4)
parser.add_argument("--regions", type=int, default=10_000)
parser.add_argument("--prototypes", type=int, default=648)
parser.add_argument("--classes", type=int, default=81)
parser.add_argument("--dim", type=int, default=768)

if __name__ == "__main__":
    given = parser.parse_args()
    shape = (given.regions, given.prototypes, given.classes)
    bench.trace(given.folder, given.num_agents, *shape, given.dim)
    arrays = [jnp.asarray(array) for array in bench.features(2, *shape, dim=given.dim)]
    settings = Settings(given.num_agents, "cosine", "lattice", "clip", "top")
    compiled = relation_matrix.lower(*arrays, 0.1, None, settings).compile()
    program = compiled.as_text()
    (given.folder / "program.txt").write_text(program)
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(
        f"{program.count(' fusion(')} fused loops and products, {program.count(' while(')} while loops; {temporary:.1f} MiB temporary"
    )
    print(f"{given.folder}/program.txt and {given.folder}/plugins/profile/")
