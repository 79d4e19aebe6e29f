"""The parts of accelerator.py: the kernel, the encoder, SAM's proposals and drawing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rimjax.bench.match import make_features, measure_accuracy, measure_speed, start_from_cosines
from rimjax.bench.peers import recurse_with_numpy
from rimjax.bench.roofline import compute_roofline, measure_rates
from rimjax.bench.timing import time_call
from rimjax.match import relation_aware_similarity

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
SECONDS = 60
"""Drawing with and without capture stops being repeated after this."""


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        part: "kernel", "encoder", "proposals", "drawing".
        measure: what was measured.
        value: the figure; None if there is none.
        unit: its unit; or why there is no figure.
    """

    part: str
    measure: str
    value: float | None
    unit: str


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        kernel: agents, regions, prototypes and classes of each case.
        dim: D of the kernel's features.
        narrow: two narrow layers instead of DINOv2 ViT-B/14, and a rough roofline.
        encoder: side of the encoder's images in pixels, and images at once.
        sam: "sam-vit-b" with random weights, or "mini".
        generator: "paper" with random weights, or "mini".
        steps: of the sampler; None: the preset's.
        batch: images drawn at once.
        rounds: drawings with and without capture, at most.
    """

    kernel: tuple[tuple[int, int, int, int], ...] = ((4, 100, 648, 81), (4, 10_000, 648, 81))
    dim: int = 768
    narrow: bool = False
    encoder: tuple[int, int] = (518, 8)
    sam: Literal["sam-vit-b", "mini"] = "sam-vit-b"
    generator: Literal["paper", "mini"] = "paper"
    steps: int | None = None
    batch: int = 8
    rounds: int = 7


CPU = Sizes(encoder=(518, 1), generator="mini")
SMALL = Sizes(((4, 20, 30, 9),), 64, True, (56, 2), "mini", "mini", 2, 2, 2)


def measure_kernel(sizes: Sizes) -> Iterator[Figure]:
    """Compare the kernel with float64 and with the machine's roofline."""
    figure = partial(Figure, "kernel")
    arrays = make_features(2, *sizes.kernel[0][1:], dim=sizes.dim)
    for dtype in DTYPES:
        rounded = [jnp.asarray(array, dtype) for array in arrays]
        exact = [np.asarray(array, np.float64) for array in rounded]
        regions, prototypes, classes = exact
        expected = recurse_with_numpy(*start_from_cosines(regions, prototypes, classes, 4))
        error = np.abs(np.asarray(relation_aware_similarity(*rounded, num_agents=4)) - expected)
        # Where the last agent is as near as the next class, either may be taken.
        nearest = start_from_cosines(regions, prototypes, classes, 5)[0]
        clear = nearest[:, 3] - nearest[:, 4] > 1e-6
        text = f"similarities of equal inputs in {dtype}: largest error against float64"
        yield figure(text, float(error[clear].max()), "")
    for row in measure_accuracy():
        labels = row["same inputs"]
        count = labels["regions above 1e-5"]
        text = f"{count} labels with a margin above 1e-5, {row['dtype']}: differ from float64's"
        yield figure(text, labels["disagree above 1e-5"], "labels")
    rates = measure_rates(sizes.narrow)
    for size in sizes.kernel:
        row = measure_speed(*size, sizes.dim, peers=False)
        row["roofline"] = compute_roofline(row, rates)
        text = "N={}, P={}, R={}".format(*size)
        yield figure(f"{text}: from features", row["seconds"] * 1e3, "ms")
        for part in ("kernel", "whole call"):
            ratio = row["roofline"][f"{part}, one division in twelve"]["ratio"]
            yield figure(f"{text}: {part} over its roofline", ratio, "times the least time")


def measure_encoder(sizes: Sizes) -> Iterator[Figure]:
    """Compare DINOv2's keys with torch's in float32, and time both."""
    import torch

    from rimjax.bench import encode

    torch.backends.cudnn.allow_tf32 = False  # otherwise torch's own keys would be off by 1e-3
    size, batch = sizes.encoder
    name = "two narrow layers" if sizes.narrow else "DINOv2 ViT-B/14"
    figure = partial(Figure, "encoder")
    for dtype in DTYPES:
        row = encode.measure_encoder(size, batch, sizes.narrow, dtype)
        text = f"{name}, {size}x{size}, {dtype}"
        error = row["largest difference"]
        yield figure(f"{text}: largest error against torch's float32", error, "of the largest key")
        yield figure(f"{text}, batch {batch}", 1 / row["seconds"], "images/s")
        yield figure(f"{text}: compilation", row["compile s"], "s")
        if dtype == "float32":
            text = f"the same in torch on {row['torch device']}, {dtype}, batch {batch}"
            yield figure(text, 1 / row["torch seconds"], "images/s")


def measure_proposals(sizes: Sizes) -> Iterator[Figure]:
    """Time SAM's proposals of an image, in bfloat16 too on a GPU."""
    import torch

    from rimjax import datasets, load_preset
    from rimjax.bench.propose import lower_thresholds
    from rimjax.commands.bench import SIZE, make_picture
    from rimjax.models.sam import SamProposer, load
    from rimjax.presets.catalogue import PRESETS

    if sizes.sam == "mini":
        proposer: Any = load_preset("mini").proposer
        image = datasets.load("fashion-scenes").items[0].image()
    else:
        preset, image = PRESETS["paper"], make_picture(SIZE)
        sam = load(None, preset.maskers[sizes.sam].sam)
        proposer = SamProposer(sam, lower_thresholds(sam, image, 0.3, preset.proposals))
    state, config = proposer.sam.model.state_dict(), proposer.sam.config
    for dtype in DTYPES if torch.cuda.is_available() else DTYPES[:1]:
        sam = load(state, config, dtype=dtype)
        proposer = SamProposer(sam, proposer.config)

        def propose(sam: Any = sam, proposer: Any = proposer) -> int:
            sam.forget()
            return len(proposer.propose(image).masks)

        seconds = time_call(propose, 3)[1]
        points, (height, width) = proposer.config.points_per_side, image.shape[:2]
        text = f"{sizes.sam}, {width}x{height}, {points}x{points} points, {dtype}"
        text += f", torch on {sam.model.device}"
        yield Figure("proposals", text, 1 / seconds, "images/s")


def measure_drawing(sizes: Sizes) -> Iterator[Figure]:
    """Draw with and without capturing attention, by turns."""
    from rimjax.models.stable_diffusion import DeferredGenerator
    from rimjax.presets import locate_weights
    from rimjax.presets.catalogue import PRESETS
    from rimjax.presets.stages import find_diffusion_weights

    preset = PRESETS[sizes.generator]
    mini = sizes.generator == "mini"
    path = locate_weights("mini") / preset.generators["mini"] if mini else None
    weights = find_diffusion_weights(path)
    config = replace(preset.diffusion, steps=sizes.steps or preset.diffusion.steps)
    for dtype in DTYPES[:1] if mini else DTYPES[::-1]:
        model = DeferredGenerator(weights, replace(config, dtype=dtype)).model
        ids, tokens = model.prompts.encode("bag")
        side = model.checkpoint.configs["unet"]["sample_size"]
        shape = (sizes.batch, model.unet.in_channels, side, side)
        noise = jax.random.normal(jax.random.key(0), shape, jnp.float32)

        denoise, decode = jax.jit(model.denoise), jax.jit(model.decode)

        def draw(tokens: Any, model: Any, denoise: Any, decode: Any, ids: Any, noise: Any) -> Any:
            with jax.default_matmul_precision(model.config.precision):
                latents, attention = denoise(model.params, ids, tokens, noise)
                return decode(model.params, latents), attention

        calls = [partial(draw, each, model, denoise, decode, ids, noise) for each in (tokens, None)]
        start = time.perf_counter()
        images = [np.asarray(jax.block_until_ready(call())[0]) for call in calls]
        compiled = time.perf_counter() - start
        differ = int(np.abs(np.subtract(*(image.astype(int) for image in images))).max())
        seconds = time_by_turns(calls, sizes.rounds)
        text = f"Stable Diffusion, {sizes.generator}, {images[0].shape[1]} pixels, "
        text += f"{model.config.steps} steps, {dtype}, batch {sizes.batch}"
        medians = [statistics.median(each) for each in seconds]
        for name, median in zip(("with capture", "without capture"), medians, strict=True):
            yield Figure("drawing", f"{text}: {name}", sizes.batch / median, "images/s")
        costs = [captured / plain - 1 for captured, plain in zip(*seconds, strict=True)]
        yield Figure("drawing", f"{text}: cost of capture", 100 * statistics.median(costs), "%")
        yield Figure("drawing", f"{text}: largest change by capture", differ, "of 255 levels")
        yield Figure("drawing", f"{text}: compilation of both", compiled, "s")


def time_by_turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Time compiled calls by turns, at least twice each: the seconds of each call."""
    seconds: list[list[float]] = [[] for _ in calls]
    while len(seconds[0]) < 2 or (len(seconds[0]) < rounds and sum(map(sum, seconds)) < SECONDS):
        for call, kept in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            kept.append(time.perf_counter() - start)
    return seconds


PARTS: dict[str, Callable[[Sizes], Iterator[Figure]]] = {
    "kernel": measure_kernel,
    "encoder": measure_encoder,
    "proposals": measure_proposals,
    "drawing": measure_drawing,
}
