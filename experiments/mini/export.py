"""Port the trained mini checkpoints and write them to `ported_weights/mini/`, and the [mini] part of `ported_weights/MANIFEST.toml`.

Command:  python experiments/mini/export.py     every model whose checkpoints are in --out; the others stay as they are; half a minute
The held-out figures of heldout.py are copied from ported_weights/mini/heldout.json where it is there.
"""

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip
import jax
import mae
import maskformer
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

from ported_weights import clip as clip_port
from ported_weights import dinov2, save_vit, stable_diffusion
from ported_weights import mae as mae_port
from rimjax.choices import MINI_SAM
from rimjax.models import checkpoint as saved
from rimjax.models import sam

ROOT = Path(__file__).parents[2] / "ported_weights"
MINI = ROOT / "mini"
HEADS = VIT["num_attention_heads"]


def write_stable_diffusion(out: Path) -> None:
    auto = trained("vae", AutoencoderKL(**vae.CONFIG), out)
    latents = torch.load(out / "latents.pt", weights_only=True)["latents"]
    auto.register_to_config(scaling_factor=round(float(1 / latents.float().chunk(2, 1)[0].std()), 5))
    whole = trained("clip", clip.build(), out)
    text = CLIPTextModel(whole.config.text_config)
    text.text_model.load_state_dict(whole.text_model.state_dict())
    unet_model = trained("unet", UNet2DConditionModel(**unet.CONFIG), out)
    checkpoint = stable_diffusion.port(unet_model, auto, text.eval(), clip.tokenizer(), DDPMScheduler(**unet.SCHEDULER))
    halved = jax.tree.map(lambda array: array.astype(np.float16), checkpoint.params)  # half the download; computed in float32
    saved.save(replace(checkpoint, params=halved), MINI / "stable-diffusion")


def write_vit(out: Path) -> None:
    state = {key: value.numpy() for key, value in trained("vit", Student(), out).vit.state_dict().items()}
    save_vit(*dinov2.port(state, num_heads=HEADS), MINI / "vit.safetensors")


def write_sam(out: Path) -> None:
    masker = trained("sam", Prompted(sam.build(MINI_SAM)), out).sam
    save_file({key: value.contiguous() for key, value in masker.state_dict().items()}, MINI / "sam.safetensors")


def write_clip(out: Path) -> None:
    model = trained("clip_towers", clip.build(), out)
    params, config = clip_port.port(model.state_dict(), num_heads=clip.TOWER["num_attention_heads"])
    save_vit(params, config, MINI / "clip-vit.safetensors")
    model.half().save_pretrained(MINI / "clip")
    clip.tokenizer().save_pretrained(MINI / "clip")


def write_mae(out: Path) -> None:
    save_vit(*mae_port.port(trained("mae", mae.build(), out).state_dict(), num_heads=HEADS), MINI / "mae-vit.safetensors")


def write_maskformer(out: Path) -> None:
    trained("maskformer", maskformer.build(), out).half().save_pretrained(MINI / "maskformer")


EXPORTS: list[tuple[Callable[[Path], None], dict[str, tuple[str, str]]]] = [
    (
        write_stable_diffusion,
        {
            "clip": ("clip", "stable-diffusion/text_encoder/flax_model.safetensors"),
            "vae": ("vae", "stable-diffusion/vae/flax_model.safetensors"),
            "unet": ("unet", "stable-diffusion/unet/flax_model.safetensors"),
        },
    ),
    (write_vit, {"vit": ("vit", "vit.safetensors")}),
    (write_sam, {"sam": ("sam", "sam.safetensors")}),
    (write_clip, {"clip_towers": ("clip_towers", "clip/model.safetensors"), "clip_vit": ("clip_towers", "clip-vit.safetensors")}),
    (write_mae, {"mae_vit": ("mae", "mae-vit.safetensors")}),
    (write_maskformer, {"maskformer": ("maskformer", "maskformer/model.safetensors")}),
]
"""What writes files: each one's name in the manifest, the checkpoint it comes from, and its place."""


def described(checkpoint: str, place: str, out: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    steps, seconds, *losses = list(csv.reader((out / f"{checkpoint}.csv").open()))[-1]
    path = MINI / place
    return {
        "file": str(path.relative_to(ROOT)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "source": f"trained by experiments/mini/{checkpoint}.py on Fashion-MNIST's training split laid on textured grounds",
        "licence": "Apache-2.0; the photographs are Fashion-MNIST's (MIT)",
        "seed": 0,
        "steps": int(steps),
        "training_seconds": int(seconds),
        "last_losses": ", ".join(losses),
    }


def main() -> None:
    out = arguments(__doc__, steps=0).out
    manifest = tomlkit.parse((ROOT / "MANIFEST.toml").read_text())
    entries = manifest["mini"]
    for write, files in EXPORTS:
        lacking = [f"{checkpoint}.pt" for checkpoint, _ in files.values() if not (out / f"{checkpoint}.pt").exists()]
        if lacking:
            print(f"{', '.join(files)}: left as they are, for want of {', '.join(lacking)}")
            continue
        write(out)
        for name, (checkpoint, place) in files.items():
            entries[name] = described(checkpoint, place, out)
    figures = MINI / "heldout.json"
    if figures.exists():
        measured = {key: round(value, 4) for key, value in json.loads(figures.read_text()).items() if isinstance(value, float)}
        if measured != entries.get("heldout"):
            entries["heldout"] = measured
    (ROOT / "MANIFEST.toml").write_text(tomlkit.dumps(manifest))
    total = sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file())
    print(f"{MINI}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
