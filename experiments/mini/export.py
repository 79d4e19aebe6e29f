"""Port the trained mini checkpoints to Flax and write `ported_weights/mini/` and the [mini] part of `ported_weights/MANIFEST.toml`.

Command:  python experiments/mini/export.py     (after clip.py, vae.py, unet.py, vit.py and sam.py; half a minute)
The held-out figures of heldout.py are copied from ported_weights/mini/heldout.json where it is there.
"""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip
import jax
import numpy as np
import tomlkit
import torch
import unet
import vae
from common import arguments, trained
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from sam import Prompted
from transformers import CLIPTextModel
from vit import CONFIG as VIT
from vit import Student

from ported_weights import dinov2, save_vit, stable_diffusion
from rimjax.choices import MINI_SAM
from rimjax.models import diffusion, sam

ROOT = Path(__file__).parents[2] / "ported_weights"
SOURCES = {
    "clip": "stable-diffusion/text_encoder",
    "vae": "stable-diffusion/vae",
    "unet": "stable-diffusion/unet",
    "vit": "vit",
    "sam": "sam",
}


def text_encoder(out: Path) -> CLIPTextModel:
    """The text tower of the trained CLIP as a model of its own."""
    whole = trained("clip", clip.build(), out)
    tower = CLIPTextModel(whole.config.text_config)
    tower.text_model.load_state_dict(whole.text_model.state_dict())
    return tower.eval()


def described(out: Path) -> dict[str, dict[str, Any]]:
    """What each file is: the manifest's [mini] part."""
    entries: dict[str, dict[str, Any]] = {}
    for name, place in SOURCES.items():
        rows = list(csv.reader((out / f"{name}.csv").open()))
        steps, seconds, *losses = rows[-1]
        path = ROOT / "mini" / f"{place}.safetensors"
        path = path if path.exists() else ROOT / "mini" / place / "flax_model.safetensors"
        entries[name] = {
            "file": str(path.relative_to(ROOT)),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "source": f"trained by experiments/mini/{name}.py on Fashion-MNIST's training split laid on textured grounds",
            "licence": "Apache-2.0; the photographs are Fashion-MNIST's (MIT)",
            "seed": 0,
            "steps": int(steps),
            "training_seconds": int(seconds),
            "last_losses": ", ".join(losses),
        }
    figures = ROOT / "mini" / "heldout.json"
    if figures.exists():
        measured = json.loads(figures.read_text()).items()
        entries["heldout"] = {key: round(value, 4) for key, value in measured if isinstance(value, float)}
    return entries


def main() -> None:
    options = arguments(__doc__, steps=0)
    out = options.out
    auto = trained("vae", AutoencoderKL(**vae.CONFIG), out)
    latents = torch.load(out / "latents.pt", weights_only=True)["latents"]
    auto.register_to_config(scaling_factor=round(float(1 / latents.float().chunk(2, 1)[0].std()), 5))
    checkpoint = stable_diffusion.port(
        trained("unet", UNet2DConditionModel(**unet.CONFIG), out),
        auto,
        text_encoder(out),
        clip.tokenizer(),
        DDPMScheduler(**unet.SCHEDULER),
    )
    halved = jax.tree.map(lambda array: array.astype(np.float16), checkpoint.params)  # half the download; computed in float32
    diffusion.save(replace(checkpoint, params=halved), ROOT / "mini" / "stable-diffusion")
    state = {key: value.numpy() for key, value in trained("vit", Student(), out).vit.state_dict().items()}
    params, config = dinov2.port(state, num_heads=VIT["num_attention_heads"])
    save_vit(params, config, ROOT / "mini" / "vit.safetensors")
    masker = trained("sam", Prompted(sam.build(MINI_SAM)), out).sam
    save_file({key: value.contiguous() for key, value in masker.state_dict().items()}, ROOT / "mini" / "sam.safetensors")
    manifest = tomlkit.parse((ROOT / "MANIFEST.toml").read_text())
    manifest["mini"] = described(out)
    (ROOT / "MANIFEST.toml").write_text(tomlkit.dumps(manifest))
    total = sum(path.stat().st_size for path in (ROOT / "mini").rglob("*") if path.is_file())
    print(f"{ROOT / 'mini'}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
