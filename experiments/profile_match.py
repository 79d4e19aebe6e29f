"""Profile the matching kernel: write a trace for Perfetto or xprof, and XLA's compiled program.

    python experiments/profile_match.py profile --num-agents 4 --regions 10000 --prototypes 648

Writes profile/plugins/profile/*/perfetto_trace.json.gz (open it at ui.perfetto.dev) and
profile/program.txt, and prints the program's number of loops and products and its temporary memory.
`rimjax bench match` measures times and compares them with other implementations and the roofline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp

from rimjax.bench.match import make_features, write_trace
from rimjax.match.classify import MatchOptions, Scalars, compare_regions
from rimjax.match.tiling import Tiling

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
    args = parser.parse_args()
    sizes = (args.regions, args.prototypes, args.classes)
    write_trace(args.folder, args.num_agents, *sizes, args.dim)
    arrays = [jnp.asarray(array) for array in make_features(2, *sizes, dim=args.dim)]
    options = MatchOptions(num_agents=args.num_agents)
    compiled = compare_regions.lower(*arrays, Scalars(), options, Tiling()).compile()
    program, analysis = compiled.as_text(), compiled.memory_analysis()
    assert program is not None and analysis is not None, "not reported on this platform"
    (args.folder / "program.txt").write_text(program)
    fused, loops = program.count(" fusion("), program.count(" while(")
    temporary = analysis.temp_size_in_bytes / 2**20
    print(f"{fused} fused loops and products, {loops} while loops; {temporary:.1f} MiB temporary")
    print(f"{args.folder}/program.txt and {args.folder}/plugins/profile/")
