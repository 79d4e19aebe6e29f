"""PyTorch's checkpoint files: read as written; damaged, foreign and malicious files refused."""

import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import safetensors.torch as safetensors_torch
import torch

from ported_weights.checkpoints import read_state_dict
from ported_weights.rules import Rule, apply


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("a.safetensors", None),
        ("a.pth", None),
        ("a.pt", "model"),
        ("a.bin", "state_dict"),
        ("A.PTH", None),
    ],
)
def test_files_are_read_as_they_were_written(tmp_path, name, wrapper):
    state = {
        "a.weight": torch.randn(3, 4),
        "a.bias": torch.randn(3).half(),
        "steps": torch.tensor(7),
    }
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors_torch.save_file(state, path)
    else:
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 799}, path)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(
        torch.equal(read[key], state[key]) and read[key].dtype == state[key].dtype for key in state
    )


def test_parameters_and_bfloat16_can_be_ported_from_files(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}, tmp_path / "a.pth")
    state = read_state_dict(str(tmp_path / "a.pth"))
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert apply([Rule("a", ("a",))], state, shapes, widen_halves=True)["a"].tolist() == [1.0, 1.0]


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "\x1b" not in message
    return message


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path, form):
    witness, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"model": Malicious(witness)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert "could run code" in refusal(path)
    assert not witness.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
        assert witness.exists()  # it would have


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated_files_are_refused(tmp_path, form):
    state = {"a": torch.randn(20, 20), "b": torch.randn(3)}
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    if form == "safetensors":
        safetensors_torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for size in [0, 3, 5, 50, *range(100, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert "truncated" in refusal(path) or "damaged" in refusal(path)


def test_other_things_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    traced: Any = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    traced.save(str(path))
    assert "is a TorchScript archive" in refusal(path) and "state_dict() first" in refusal(path)
    contents = {
        "got a list": [1, 2],
        "got a dict without entries": {},
        "got int at 'epoch'": {"epoch": 3},
        "got Tensor at 3": {3: torch.ones(1)},
        "could run code": {"model": {"a": torch.ones(1)}, "args": Namespace(lr=1)},
    }
    for reason, content in contents.items():
        torch.save(content, path)
        assert reason in refusal(path)
    path.write_text("<html>404 not found</html>")
    assert "not a PyTorch file" in refusal(path) or "damaged" in refusal(path)
    (tmp_path / "a.npz").write_bytes(b"")
    assert "must end in .safetensors, .pth, .pt, .bin" in refusal(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        read_state_dict(tmp_path / "b.safetensors")
