"""Port the trained mini checkpoints to `ported_weights/mini/`, and list them in MANIFEST.toml.

Command:  python experiments/mini/export.py
Hardware: 2 CPU cores, half a minute

Models whose checkpoints aren't in `--out` stay as they are; of Stable Diffusion's parts only the
UNet must be there. The held-out figures are copied from
`ported_weights/mini/heldout.json`, which heldout.py writes, if it exists.
"""

import csv
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
from common import load_trained, parse_arguments
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from sam import PromptedSam
from vit import CONFIG as VIT
from vit import Student

from ported_weights import clip as clip_port
from ported_weights import dinov2
from ported_weights import mae as mae_port
from rimjax.files import sha256, write_text
from rimjax.models import sam
from rimjax.models.stable_diffusion import checkpoint
from rimjax.models.vit_encoder import save_vit
from rimjax.presets.catalogue import MINI_SAM
from rimjax.weights.stable_diffusion import port_modules

ROOT = Path(__file__).parents[2] / "ported_weights"
MINI = ROOT / "mini"
HEADS = VIT["num_attention_heads"]


def write_stable_diffusion(out: Path) -> None:
    from_shipped = not (out / "clip.pt").exists()
    model, autoencoder, text = unet.build_modules(out, from_shipped=from_shipped)
    latents = torch.load(out / "latents.pt", weights_only=True)["latents"]
    scaling = 1 / latents.float().chunk(2, 1)[0].std()
    autoencoder.register_to_config(scaling_factor=round(float(scaling), 5))
    ported = port_modules(
        unet=load_trained("unet", model, out),
        vae=autoencoder,
        text_encoder=text,
        tokenizer=clip.make_tokenizer(),
        scheduler=DDPMScheduler(**unet.SCHEDULER),
    )
    # Stored as float16, which halves the download; computed in float32.
    halved = jax.tree.map(lambda array: array.astype(np.float16), ported.params)
    checkpoint.save(replace(ported, params=halved), MINI / "stable-diffusion")


def write_vit(out: Path) -> None:
    state = load_trained("vit", Student(), out).vit.state_dict()
    state = {key: value.numpy() for key, value in state.items()}
    save_vit(*dinov2.port(state, num_heads=HEADS), MINI / "vit.safetensors")


def write_sam(out: Path) -> None:
    state = load_trained("sam", PromptedSam(sam.build(MINI_SAM)), out).sam.state_dict()
    arrays = {key: value.contiguous() for key, value in state.items()}
    save_file(arrays, MINI / "sam.safetensors")


def write_clip(out: Path) -> None:
    model = load_trained("clip_towers", clip.build(), out)
    heads = clip.TOWER["num_attention_heads"]
    save_vit(*clip_port.port(model.state_dict(), num_heads=heads), MINI / "clip-vit.safetensors")
    model.half().save_pretrained(MINI / "clip")
    clip.make_tokenizer().save_pretrained(MINI / "clip")


def write_mae(out: Path) -> None:
    state = load_trained("mae", mae.build(), out).state_dict()
    save_vit(*mae_port.port(state, num_heads=HEADS), MINI / "mae-vit.safetensors")


def write_maskformer(out: Path) -> None:
    load_trained("maskformer", maskformer.build(), out).half().save_pretrained(MINI / "maskformer")


EXPORTS: list[tuple[Callable[[Path], None], dict[str, tuple[str, str]]]] = [
    (
        write_stable_diffusion,
        {
            "unet": ("unet", "stable-diffusion/unet/flax_model.safetensors"),
            "vae": ("vae", "stable-diffusion/vae/flax_model.safetensors"),
            "clip": ("clip", "stable-diffusion/text_encoder/flax_model.safetensors"),
        },
    ),
    (write_vit, {"vit": ("vit", "vit.safetensors")}),
    (write_sam, {"sam": ("sam", "sam.safetensors")}),
    (
        write_clip,
        {
            "clip_towers": ("clip_towers", "clip/model.safetensors"),
            "clip_vit": ("clip_towers", "clip-vit.safetensors"),
        },
    ),
    (write_mae, {"mae_vit": ("mae", "mae-vit.safetensors")}),
    (write_maskformer, {"maskformer": ("maskformer", "maskformer/model.safetensors")}),
]
"""Functions that write files, and for each file its name in the manifest, the checkpoint that it
comes from and its path. Files are written if the first one's checkpoint exists."""


def describe_file(trained: str, path: Path, out: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest; `trained` is the name of its checkpoint."""
    with (out / f"{trained}.csv").open(newline="") as curve:
        steps, seconds, *losses = list(csv.reader(curve))[-1]
    state = torch.load(out / f"{trained}.pt", weights_only=True)
    began = "the weights shipped before" if state.get("from_shipped") else "random weights"
    return {
        "file": str(path.relative_to(ROOT)),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "source": f"trained by experiments/mini/{trained}.py on Fashion-MNIST's training split "
        f"laid on textured grounds, from {began}",
        "licence": "Apache-2.0; the photographs are Fashion-MNIST's (MIT)",
        "seed": 0,
        "steps": int(steps),
        "training_seconds": int(seconds),
        "last_losses": ", ".join(losses),
    }


def main() -> None:
    out = parse_arguments(__doc__).out
    manifest: Any = tomlkit.parse((ROOT / "MANIFEST.toml").read_text())
    entries = manifest["mini"]
    for write, files in EXPORTS:
        checkpoints = {trained: out / f"{trained}.pt" for trained, _ in files.values()}
        first, *_ = checkpoints.values()
        if not first.exists():
            print(f"{', '.join(files)}: unchanged, without {first}")
            continue
        write(out)
        for name, (trained, place) in files.items():
            if checkpoints[trained].exists():
                entries[name] = describe_file(trained, MINI / place, out)
    figures = MINI / "heldout.json"
    small = (path for path in sorted(MINI.rglob("*.json")) if path != figures)
    for path in small:
        entries["settings"][str(path.relative_to(ROOT))] = sha256(path)
    if figures.exists():
        numbers = json.loads(figures.read_text()).items()
        measured = {key: round(value, 4) for key, value in numbers if isinstance(value, float)}
        if measured != entries.get("heldout"):
            entries["heldout"] = measured
    write_text(ROOT / "MANIFEST.toml", tomlkit.dumps(manifest))
    total = sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file())
    print(f"{MINI}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
