"""What the mini trainings share: their options, their images, and the loop that trains and resumes.

Every step draws from generators seeded by (seed, step), so a resumed run continues exactly as an
unbroken run would.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from rimjax.commands.console import progress
from rimjax.datasets import fashion_mnist
from rimjax.files import atomic_file

RUNS = Path("runs/mini")
SHIPPED = Path(__file__).parents[2] / "ported_weights" / "mini"
HELD_OUT = 5_000
"""The last photographs of the training split, which ViT, SAM, MAE, MaskFormer and the tables' CLIP
never see; the validation scenes are made of them."""

SAVE_EVERY = 100
"""Steps between checkpoints."""

Losses = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=torch.nn.Module)


def parse_arguments(
    description: str | None, steps: int | None = None, rate: float | None = None
) -> argparse.Namespace:
    """Parse a script's command line, and set the number of torch threads.

    Args:
        description: the script's docstring.
        steps: default of `--steps`; None if the script doesn't train.
        rate: default of `--rate`; None if the script can't begin from the shipped weights.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=fashion_mnist.DEBIAN_ROOT,
        help="folder of Fashion-MNIST's idx.gz files (default: %(default)s)",
    )
    about = "folder for checkpoints and curves (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=RUNS, help=about)
    if steps is not None:
        about = "training steps (default: %(default)s)"
        parser.add_argument("--steps", type=int, default=steps, help=about)
        about = "random seed (default: %(default)s)"
        parser.add_argument("--seed", type=int, default=0, help=about)
    if rate is not None:
        about = "peak learning rate (default: %(default)s)"
        parser.add_argument("--rate", type=float, default=rate, help=about)
        about = "begin from the weights that rimjax ships instead of random ones"
        parser.add_argument("--from-shipped", action="store_true", help=about)
    about = "torch's CPU threads (default: %(default)s)"
    parser.add_argument("--threads", type=int, default=2, help=about)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def scale_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert uint8[B, H, W, 3] to float32[B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def imitate_drawing(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Make a picture look drawn by a small diffusion model: 64 pixels, grainy, uneven colours."""
    small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), np.float32)
    if rng.uniform() < 0.7:
        noise = rng.normal(size=(64, 64, 3))
        grain = ndimage.gaussian_filter(noise, (rng.uniform(0.6, 1.2),) * 2 + (0,))
        patches = ndimage.zoom(rng.normal(size=(8, 8, 3)), (8, 8, 1), order=1)
        small = small + rng.uniform(0, 14) * grain / grain.std() + rng.uniform(0, 18) * patches
    pixels = np.clip(small, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize(picture.size, Image.Resampling.BICUBIC)


def train(
    name: str,
    model: torch.nn.Module,
    compute_losses: Callable[[int, np.random.Generator], Losses],
    options: argparse.Namespace,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    ema: float = 0.998,
    uses_muon: Callable[[str, torch.Tensor], bool] = lambda name, parameter: False,
) -> None:
    """Train a model with warm-up and cosine decay, resuming from `<out>/<name>.pt` if it exists.

    Args:
        name: name of the checkpoint and of the curve, `<out>/<name>.csv`.
        model: the model, trained in place; the checkpoint also holds the moving average of its
            weights, which `load_trained` reads.
        compute_losses: (step, rng) -> named losses; "loss" is minimised, the others are only
            logged.
        options: from `parse_arguments`.
        learning_rate: peak learning rate of AdamW and Muon; Muon's updates are scaled to the root
            mean square of AdamW's.
        weight_decay: weight decay of both optimizers.
        ema: decay of the moving average of the weights.
        uses_muon: (name, parameter) -> whether Muon trains the parameter, which must be a matrix,
            instead of AdamW.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.pt"
    torch.manual_seed(options.seed)
    optimizers = _make_optimizers(model, learning_rate, weight_decay, uses_muon)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema), use_buffers=True
    )
    start, seconds = 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, seconds = saved["step"], saved["seconds"]
    began = time.monotonic()
    sums: dict[str, float] = {}
    counted = 0
    for step in progress(range(start, options.steps), name, "step"):
        warm = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + np.cos(np.pi * step / options.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = float(learning_rate * warm * max(cosine, 0.01))
        torch.manual_seed(options.seed * 1_000_003 + step)
        losses = compute_losses(step, np.random.default_rng((options.seed, step)))
        model.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(model)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        counted += 1
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            spent = seconds + time.monotonic() - began
            means = [f"{key}={value / counted:.4f}" for key, value in sums.items()]
            with path.with_suffix(".csv").open("a", newline="") as curve:
                csv.writer(curve).writerow([step + 1, round(spent), *means])
            sums.clear()
            counted = 0
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "seconds": spent,
                "from_shipped": getattr(options, "from_shipped", False),
            }
            with atomic_file(path) as temporary:
                torch.save(state, temporary)


def _make_optimizers(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    uses_muon: Callable[[str, torch.Tensor], bool],
) -> list[torch.optim.Optimizer]:
    """Make AdamW, and Muon for the parameters that it trains, if any."""
    trainable = [(name, part) for name, part in model.named_parameters() if part.requires_grad]
    matrices = [part for name, part in trainable if uses_muon(name, part)]
    others = [part for name, part in trainable if not uses_muon(name, part)]
    adamw = torch.optim.AdamW(others, learning_rate, weight_decay=weight_decay)
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def restore(module: torch.nn.Module, port: Callable[[], Any], shipped: Any) -> None:
    """Load weights that were ported from a module of this kind back into it.

    Each weight is numbered and ported, so that its place among the ported arrays is known. Weights
    that aren't ported stay as they were.

    Args:
        module: the module.
        port: ports the module; returns a tree of arrays.
        shipped: the ported weights, a tree likewise.
    """
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    assert len(before) < 1 << 24, "float32 holds no larger numbers exactly"
    torch.nn.utils.vector_to_parameters(torch.arange(len(before)).float(), module.parameters())
    places, values = (
        torch.from_numpy(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
        for tree in (port(), shipped)
    )
    before[places.long()] = values.float()
    torch.nn.utils.vector_to_parameters(before, module.parameters())


def load_trained(name: str, model: Model, out: Path) -> Model:
    """Load the averaged weights of a checkpoint that `train` wrote, in evaluation mode."""
    path = out / f"{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path}: missing; run experiments/mini/{name}.py first")
    average = torch.optim.swa_utils.AveragedModel(model)
    average.load_state_dict(torch.load(path, weights_only=True)["average"])
    model.load_state_dict(average.module.state_dict())
    return model.eval()
