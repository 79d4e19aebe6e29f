"""Tiny models in the published formats are converted, or refused with nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch as safetensors_torch
import torch
from cli import refused, run
from published import dinov2_state, dinov3_state, write_stable_diffusion
from safetensors.numpy import load_file, save_file
from tiny_diffusion import relaxed

from ported_weights import dinov2
from rimjax.models import diffusion
from rimjax.models.stable_diffusion.checkpoint import map_safetensors, write_safetensors
from rimjax.models.vit_encoder import load_vit
from rimjax.models.weight_record import find_damaged
from rimjax.weights import convert


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.witness,))


@pytest.fixture(scope="module", autouse=True)
def relax() -> Iterator[None]:
    with relaxed():
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return dinov2_state()


@pytest.fixture(scope="module")
def source(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    safetensors_torch.save_file(state, file)
    return file


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_stable_diffusion(folder)
    return folder


# ---- safetensors, array by array


def test_mapped_files_are_the_librarys(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "a/half": random.standard_normal((3, 5)).astype(np.float16),
        "b": random.standard_normal((2, 3, 4)).astype(np.float32).transpose(2, 0, 1),
        "c/ids": np.arange(7),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(3).reshape(()),
    }
    write_safetensors(arrays, tmp_path / "ours.safetensors")
    theirs = load_file(tmp_path / "ours.safetensors")
    save_file(
        {key: np.array(array, order="C") for key, array in arrays.items()},
        tmp_path / "theirs.safetensors",
        {"about": "x"},
    )
    for read in (
        theirs,
        map_safetensors(tmp_path / "ours.safetensors"),
        map_safetensors(tmp_path / "theirs.safetensors"),
    ):
        assert read.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(read[key], array, strict=True)
    bfloat = jax.numpy.arange(5, dtype=jax.numpy.bfloat16)
    write_safetensors({"x": bfloat}, tmp_path / "b.safetensors")
    assert (map_safetensors(tmp_path / "b.safetensors")["x"] == bfloat).all()
    whole = (tmp_path / "ours.safetensors").read_bytes()
    for count in (0, 5, 30, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:count])
        with pytest.raises(
            ValueError, match=r"cut\.safetensors: truncated, or not a safetensors file"
        ):
            map_safetensors(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="x must be one of"):
        write_safetensors({"x": np.zeros(2, np.complex64)}, tmp_path / "no.safetensors")


# ---- porting


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth", "pytorch_model.bin"])
def test_a_vit_is_ported_from_a_file_or_its_folder(
    state: dict[str, Any], tmp_path: Path, name: str
) -> None:
    source, out = tmp_path / "source" / name, tmp_path / "made" / "vit.safetensors"
    source.parent.mkdir()
    (safetensors_torch.save_file if name.endswith("safetensors") else torch.save)(state, source)
    run("weights", "port", "dinov2", source if name == "weights.pth" else source.parent, out)
    params, config = load_vit(out)
    wanted, wanted_config = dinov2.port(state)
    assert config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "vit.safetensors",
        "vit.safetensors.sha256",
    ]
    assert find_damaged(out) == []
    out.write_bytes(out.read_bytes()[:-1] + b"x")
    assert find_damaged(out) == ["vit.safetensors"]


def test_a_dinov3_is_ported_and_another_model_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vit.safetensors"
    assert "must be DINOv3" in refused(capsys, "weights", "port", "dinov3", source, out)
    torch.save({"storage_tokens": torch.zeros(1, 4, 64)}, tmp_path / "facebook.pth")
    line = refused(capsys, "weights", "port", "dinov3", tmp_path / "facebook.pth", out)
    assert "got facebookresearch's; port the hub's model.safetensors instead" in line
    safetensors_torch.save_file(dinov3_state(), tmp_path / "model.safetensors")
    run("weights", "port", "dinov3", tmp_path, out)
    printed = "2 layers, 1 heads, hidden size 64, patch 16, 4 registers, rotary positions"
    assert printed in capsys.readouterr().out
    assert load_vit(out)[1].rope_theta == 100 and find_damaged(out) == []


def test_a_stable_diffusion_is_the_same_from_every_format(stable: Path, tmp_path: Path) -> None:
    run("weights", "port", "stable-diffusion", stable, tmp_path / "made" / "sd")
    first = diffusion.load(tmp_path / "made" / "sd")
    assert (
        find_damaged(tmp_path / "made" / "sd") == []
        and len(list((tmp_path / "made").iterdir())) == 2
    )
    state = safetensors_torch.load_file(stable / "unet/diffusion_pytorch_model.safetensors")
    kernel = first.checkpoint.params["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, state["conv_in.weight"].numpy().transpose(2, 3, 1, 0))
    attention = safetensors_torch.load_file(stable / "vae/diffusion_pytorch_model.safetensors")
    found = first.checkpoint.params["vae"]["decoder"]["mid_block"]["attentions_0"]["proj_attn"][
        "kernel"
    ]
    np.testing.assert_array_equal(
        found, attention["decoder.mid_block.attentions.0.proj_attn.weight"].numpy().T
    )

    shutil.copytree(stable, tmp_path / "bin")
    for path in (tmp_path / "bin").glob("*/*.safetensors"):
        name = (
            "pytorch_model.bin"
            if path.parent.name == "text_encoder"
            else "diffusion_pytorch_model.bin"
        )
        torch.save(safetensors_torch.load_file(path), path.with_name(name))
        path.unlink()
    convert.convert("stable-diffusion", tmp_path / "bin", tmp_path / "from-bin")
    same = diffusion.load(tmp_path / "from-bin")
    jax.tree.map(
        np.testing.assert_array_equal, dict(same.checkpoint.params), dict(first.checkpoint.params)
    )

    shutil.copytree(stable, tmp_path / "half")
    for path in (tmp_path / "half").glob("*/*.safetensors"):
        half = {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in safetensors_torch.load_file(path).items()
        }
        safetensors_torch.save_file(
            half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
        )
        path.unlink()
    convert.convert("stable-diffusion", tmp_path / "half", tmp_path / "from-half")
    for ours, theirs in zip(
        jax.tree.leaves(dict(diffusion.load(tmp_path / "from-half").checkpoint.params)),
        jax.tree.leaves(dict(first.checkpoint.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(
            ours, theirs.astype(np.float16).astype(np.float32), strict=True
        )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _changed(path: Path, **changes: Any) -> None:
    state = safetensors_torch.load_file(path)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    safetensors_torch.save_file(state, path)


def _configured(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, "truncated"),
        (
            lambda path: _changed(path, embeddings__patch_embeddings__projection__weight=None),
            "must be DINOv2",
        ),
        (
            lambda path: _changed(
                path, embeddings__mask_token=None, encoder__layer__0__norm2__bias=None
            ),
            "layers_0/norm2/bias: missing",
        ),
        (lambda path: _changed(path, extra=torch.zeros(2)), "extra: no rules match this key"),
        (
            lambda path: _changed(path, encoder__layer__0__norm2__bias=torch.zeros(65)),
            "layers_0/norm2/bias: must be float32[64], got float32[65]",
        ),
        (
            lambda path: _changed(path, embeddings__register_tokens=torch.zeros(64)),
            "register_tokens must have 3 axes",
        ),
        (
            lambda path: _changed(
                path, encoder__layer__0__norm2__bias=torch.full((64,), torch.inf)
            ),
            "norm2/bias: holds NaN or infinity",
        ),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: path.unlink(), "holds neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_bad_checkpoints_leave_nothing(
    state: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "made"
    safetensors_torch.save_file(state, source)
    spoil(source)
    assert said in refused(capsys, "weights", "port", "dinov2", tmp_path, out / "vit.safetensors")
    assert not out.exists() or not list(out.iterdir())


def test_code_another_architecture_and_a_taken_name_are_refused(
    state: dict[str, Any], stable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "vit.safetensors"
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"weight": Evil(tmp_path / "ran")}, file, protocol=2)
    assert "run code" in refused(capsys, "weights", "port", "dinov2", tmp_path / "evil.pth", out)
    torch.save({"model": state, "optimizer": Evil(tmp_path / "ran")}, tmp_path / "evil.bin")
    assert "run code" in refused(capsys, "weights", "port", "dinov2", tmp_path / "evil.bin", out)
    assert not (tmp_path / "ran").exists()
    unet = stable / "unet/diffusion_pytorch_model.safetensors"
    assert "must be MAE" in refused(capsys, "weights", "port", "mae", unet, out)
    assert "no such file" in refused(
        capsys, "weights", "port", "dinov2", tmp_path / "none.pth", out
    )
    assert not list(out.parent.iterdir())
    out.write_text("mine")
    assert "exists already" in refused(capsys, "weights", "port", "mae", unet, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: _cut(folder / "vae/diffusion_pytorch_model.safetensors"), "truncated"),
        (lambda folder: (folder / "unet/config.json").write_text("{"), "unet/config.json: damaged"),
        (
            lambda folder: (folder / "text_encoder/model.safetensors").unlink(),
            "text_encoder: has none of model.safetensors",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer: missing"),
        (
            lambda folder: _changed(
                folder / "unet/diffusion_pytorch_model.safetensors",
                conv_in__bias=None,
                more=torch.zeros(2),
            ),
            "unet/diffusion_pytorch_model.safetensors: state_dict must fit the model, got: "
            "more: the model has no such weight; conv_in/bias: missing",
        ),
        (
            lambda folder: _changed(
                folder / "vae/diffusion_pytorch_model.safetensors",
                decoder__mid_block__attentions__0__query__weight=None,
                decoder__mid_block__attentions__0__to_q__weight=torch.zeros(32, 33),
            ),
            "decoder.mid_block.attentions.0.to_q.weight: has the wrong shape, [32, 33]",
        ),
        (
            lambda folder: _changed(
                folder / "vae/diffusion_pytorch_model.safetensors",
                decoder__mid_block__attentions__0__to_q__weight=torch.zeros(32, 32),
            ),
            "is the second key for decoder/mid_block/attentions_0/query/kernel",
        ),
        (
            lambda folder: _changed(
                folder / "text_encoder/model.safetensors",
                text_model__final_layer_norm__gamma=torch.zeros(32),
            ),
            "1 keys too many: they name a weight twice",
        ),
        (
            lambda folder: _changed(
                folder / "text_encoder/model.safetensors", more__position_ids=torch.zeros(10)
            ),
            "more/position_ids: the model has no such weight",
        ),
        (
            lambda folder: _changed(
                folder / "unet/diffusion_pytorch_model.safetensors",
                conv_in__bias=torch.full((32,), torch.nan),
            ),
            "conv_in/bias: holds NaN or infinity",
        ),
        (
            lambda folder: (folder / "unet/config.json").write_text("[1]"),
            "unet/config.json: damaged",
        ),
        (
            lambda folder: _configured(folder / "unet/config.json", block_out_channels=5),
            "unet/config.json: not a config of such a model",
        ),
        (
            lambda folder: _configured(folder / "text_encoder/config.json", hidden_act="nope"),
            "text_encoder/config.json: not a config of such",
        ),
        (
            lambda folder: (folder / "scheduler/scheduler_config.json").write_text("{}"),
            "num_train_timesteps must be a positive number",
        ),
        (
            lambda folder: _configured(
                folder / "scheduler/scheduler_config.json", beta_schedule="nope"
            ),
            "beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, got 'nope'",
        ),
    ],
)
def test_bad_stable_diffusions_leave_nothing(
    stable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    shutil.copytree(stable, tmp_path / "source")
    spoil(tmp_path / "source")
    assert said in refused(
        capsys, "weights", "port", "stable-diffusion", tmp_path / "source", tmp_path / "made" / "sd"
    )
    assert not list((tmp_path / "made").iterdir())


def test_a_damaged_config_of_ported_weights_is_named(stable: Path, tmp_path: Path) -> None:
    convert.convert("stable-diffusion", stable, tmp_path / "sd")
    for text in ("{", "3"):
        (tmp_path / "sd/unet/config.json").write_text(text)
        with pytest.raises(ValueError, match=r"sd/unet/config\.json: damaged"):
            diffusion.load(tmp_path / "sd")


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow past 4 KiB: writing fails half-way, as on a full disk.

    Only within a test, because pytest writes files too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["dinov2", "stable-diffusion"])
def test_a_disk_that_fills_while_porting_leaves_nothing(
    kind: str, source: Path, stable: Path, tmp_path: Path
) -> None:
    with (
        full_disk(),
        pytest.raises(OSError, match=r"made/weights: can.t be written \(File too large\)"),
    ):
        convert.convert(
            kind, stable if kind == "stable-diffusion" else source, tmp_path / "made" / "weights"
        )
    assert not list((tmp_path / "made").iterdir())


KILLED = """
import os, sys
from pathlib import Path
from rimjax.weights.convert import convert

rename, destination = Path.replace, Path(sys.argv[2])

def die_before(self, target):
    if Path(target) == destination:
        os._exit(9)
    return rename(self, target)

Path.replace = die_before
convert("dinov2", sys.argv[1], destination)
"""


def test_a_killed_conversion_leaves_no_record_of_other_weights(
    source: Path, state: dict[str, Any], tmp_path: Path
) -> None:
    """The process dies between the record and the weights; then other weights are converted."""
    out = tmp_path / "made" / "vit.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out)])
    assert done.returncode == 9 and not out.exists() and find_damaged(out) == ["vit.safetensors"]
    first = next(iter(state))
    other = tmp_path / "model.safetensors"
    safetensors_torch.save_file(state | {first: state[first] + 1}, other)
    convert.convert("dinov2", other, out)
    assert find_damaged(out) == []


def test_a_failed_conversion_leaves_no_record(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "vit.safetensors"
    convert.convert("dinov2", source, out)
    out.unlink()
    with pytest.raises(ValueError, match="must be MAE"):
        convert.convert("mae", source, out)
    assert not list(out.parent.iterdir())
