"""Tabulate the memory that Stable Diffusion takes, from the compiler's own analysis.

Command:  python experiments/memory.py
              SD 1.4's UNet with its sampler, and its VAE decoder; batches of 1, 4 and 8 images in
              float32 and bfloat16; all at once as Flax diffusers computes it, and in parts as we do
          python experiments/memory.py --batches 1 --dtypes float32
              a part of the table
Hardware: 2 CPU cores and 4 GiB; about 11 minutes; no weights are made, nothing is computed

Prints a table in Markdown and, with --output, writes the same figures as JSON. The functions are
compiled for the device that JAX finds: on a CPU the table stands in for a GPU's. A CPU has no
bfloat16 of its own, so XLA keeps float32 copies there, and its bfloat16 rows are upper bounds.

XLA for CPUs can fuse attention into kernels whose scratch memory its analysis leaves out; that
fusion is switched off here.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from rimjax.models import random_weights
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.stable_diffusion import sampler
from rimjax.models.stable_diffusion.checkpoint import MODELS, Checkpoint, compute_shapes

COMPILER: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}


@dataclass(frozen=True)
class Row:
    """What a compiled function takes.

    Attributes:
        stage: "UNet and sampler" or "VAE decoder".
        dtype: of weights and activations.
        batch: images; the UNet computes twice as many rows, for guidance.
        computed: "at once", as Flax diffusers does, or "in parts": attention in blocks of queries,
            and large images one at a time through the VAE.
        weights: bytes of the arguments, nearly all of them weights.
        temporary: bytes of everything in between.
        output: bytes of the result.
    """

    stage: str
    dtype: str
    batch: int
    computed: str
    weights: int
    temporary: int
    output: int


def measure(
    configs: Mapping[str, dict[str, Any]],
    batches: Collection[int] = (1, 4, 8),
    dtypes: Collection[Any] = ("float32", "bfloat16"),
) -> Iterator[Row]:
    """Compile every case and yield its row.

    Args:
        configs: of a Stable Diffusion, as in `Checkpoint`.
        batches: images drawn at once.
        dtypes: of weights and activations.
    """
    length = configs["text_encoder"]["max_position_embeddings"]
    tokenizer = random_weights.make_byte_tokenizer(configs["text_encoder"]["vocab_size"], length)
    shapes = {part: compute_shapes(part, configs[part]) for part in MODELS}
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((length,), jnp.float32)
    for dtype in dtypes:
        config = DiffusionConfig(dtype=dtype)
        model = StableDiffusion(Checkpoint(configs, {}, tokenizer), config)
        params = jax.tree.map(lambda leaf, d=dtype: jax.ShapeDtypeStruct(leaf.shape, d), shapes)
        for batch in batches:
            latents = jax.ShapeDtypeStruct((batch, *model._latent_shape), jnp.float32)
            stages: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
                "UNet and sampler": (model.denoise, (params, ids, weights, latents)),
                "VAE decoder": (model.decode, (params, latents)),
            }
            for stage, (function, arguments) in stages.items():
                for computed in ("at once", "in parts"):
                    with compute_at_once() if computed == "at once" else nullcontext():
                        # JAX keeps what it has traced: a new function is traced anew.
                        lowered = jax.jit(lambda *a, f=function: f(*a)).lower(*arguments)
                    about: Any = compile_visibly(lowered).memory_analysis()
                    yield Row(
                        stage,
                        dtype,
                        batch,
                        computed,
                        about.argument_size_in_bytes,
                        about.temp_size_in_bytes,
                        about.output_size_in_bytes,
                    )


def compile_visibly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile without the fusion whose memory the analysis leaves out."""
    try:
        return lowered.compile(compiler_options=COMPILER)
    except jax.errors.JaxRuntimeError:  # an older XLA has neither the option nor the fusion
        return lowered.compile()


@contextmanager
def compute_at_once() -> Iterator[None]:
    """Leave attention as Flax diffusers computes it, and decode all images together."""

    def call_through(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return call(*args, **kwargs)

    with (
        mock.patch.object(sampler, "save_memory", call_through),
        mock.patch.object(sampler, "_LARGE", np.inf),
    ):
        yield


def format_table(rows: Collection[Row]) -> str:
    """Return a table in Markdown, in MiB: one line a stage, dtype and batch."""
    lines = [
        "| stage | dtype | batch | weights | at once | in parts | weights and in parts |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = dict.fromkeys((row.stage, row.dtype, row.batch) for row in rows)
    for case in sorted(cases, key=lambda case: (case[0], case[1] != "float32", case[2])):
        by_kind = {r.computed: r for r in rows if (r.stage, r.dtype, r.batch) == case}
        parts = by_kind["in parts"]
        between = [by_kind["at once"].temporary, parts.temporary]
        sizes = [parts.weights, *between, parts.weights + parts.temporary + parts.output]
        cells = [*map(str, case), *(f"{np.ceil(size / 2**20):,.0f}" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--output", type=Path, help="JSON file for the figures, in bytes")
    options = parser.parse_args()
    rows: list[Row] = []
    for row in measure(random_weights.STABLE_DIFFUSION, options.batches, options.dtypes):
        rows.append(row)
        print(f"{row.stage}, {row.dtype}, batch {row.batch}, {row.computed}", flush=True)
    print(format_table(rows))
    if options.output is not None:
        device = jax.devices()[0]
        about = {"jax": jax.__version__, "device": f"{device.platform}, {device.device_kind}"}
        about["unit"] = "bytes"
        text = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
