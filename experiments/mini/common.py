"""What the mini trainings share: a seeded loop that resumes after a kill and writes its curve, and the data they see.

Every step draws from generators seeded by (seed, step), so a resumed run continues exactly as an unbroken one would.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from rimjax.datasets import fashion_scenes

RUNS = Path("runs/mini")


def arguments(description: str | None, steps: int) -> argparse.Namespace:
    """The command line of every training script; sets the number of torch threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fashion_scenes.DEBIAN_ROOT, help="folder of Fashion-MNIST's idx.gz files")
    parser.add_argument("--out", type=Path, default=RUNS, help="folder for checkpoints and curves")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8[B, H, W, 3] to float32[B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A picture as a small diffusion model might have drawn it: at 64 pixels, grainy, its colours uneven."""
    small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), np.float32)
    if rng.uniform() < 0.7:
        grain = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (rng.uniform(0.6, 1.2),) * 2 + (0,))
        patches = ndimage.zoom(rng.normal(size=(8, 8, 3)), (8, 8, 1), order=1)
        small = small + rng.uniform(0, 14) * grain / grain.std() + rng.uniform(0, 18) * patches
    return Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)


def train(
    name: str,
    model: torch.nn.Module,
    loss: Callable[[int, np.random.Generator], dict[str, torch.Tensor]],
    options: argparse.Namespace,
    learning_rate: float,
    weight_decay: float = 0.01,
    ema: float = 0.998,
    save_every: int = 100,
    muon: Callable[[str, torch.Tensor], bool] = lambda name, parameter: False,
) -> torch.nn.Module:
    """Run AdamW (and Muon) with warm-up and cosine decay, resuming from `<out>/<name>.pt` if it is there.

    Args:
        name: of the checkpoint and of the curve, `<out>/<name>.csv`.
        model: trained in place; left holding the moving average of its weights.
        loss: (step, rng) -> named losses; "loss" is minimised, the others are only logged.
        options: what `arguments` returned.
        learning_rate: at the peak, of both optimisers (Muon's is scaled to AdamW's root mean square of an update).
        weight_decay: of both optimisers.
        ema: decay of the moving average of the weights.
        save_every: steps between checkpoints.
        muon: (name, parameter) -> whether Muon trains it; it has to be a matrix.

    Returns:
        The model.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.pt"
    torch.manual_seed(options.seed)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = [parameter for name, parameter in trainable.items() if muon(name, parameter)]
    others = [parameter for name, parameter in trainable.items() if not muon(name, parameter)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, learning_rate, weight_decay=weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema), use_buffers=True)
    start, seconds = 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, seconds = saved["step"], saved["seconds"]
    curve = (options.out / f"{name}.csv").open("a", newline="")
    began = time.monotonic()
    sums: dict[str, float] = {}
    counted = 0
    for step in tqdm(range(start, options.steps), initial=start, total=options.steps, desc=name, mininterval=20):
        warm = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + np.cos(np.pi * step / options.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = float(learning_rate * warm * max(cosine, 0.01))
        torch.manual_seed(options.seed * 1_000_003 + step)
        losses = loss(step, np.random.default_rng((options.seed, step)))
        model.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(model)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        counted += 1
        if (step + 1) % save_every == 0 or step + 1 == options.steps:
            spent = seconds + time.monotonic() - began
            csv.writer(curve).writerow([step + 1, round(spent), *(f"{k}={v / counted:.4f}" for k, v in sums.items())])
            curve.flush()
            sums.clear()
            counted = 0
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "seconds": spent,
            }
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def trained(name: str, model: torch.nn.Module, out: Path) -> torch.nn.Module:
    """The model with the averaged weights of a checkpoint that `train` wrote."""
    path = out / f"{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run experiments/mini/{name}.py first")
    average = torch.optim.swa_utils.AveragedModel(model)
    average.load_state_dict(torch.load(path, weights_only=True)["average"])
    model.load_state_dict(average.module.state_dict())
    return model.eval()
