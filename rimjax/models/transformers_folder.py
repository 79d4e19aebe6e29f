"""Models and tokenizers from a folder that transformers wrote; errors begin with the folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ported_weights.rules import check_finite
from rimjax.files import check_plain_name, fingerprint

TOKENISING = threading.Lock()
"""Held round calls of tokenizers, whose settings of padding threads can't share."""

UNUSED = ("num_batches_tracked", "position_ids", "criterion.empty_weight")
"""Endings of the names that a state dict may lack: inference doesn't read these weights."""


def load_model(
    kind: str, directory: Path, what: str, device: str | None = None, **options: Any
) -> Any:
    """Load a model of transformers for inference, with every weight from the folder.

    Args:
        kind: the name of its class.
        directory: holds config.json and the weights.
        what: the model's name, for messages.
        device: torch's device; default: "cuda" if available, else "cpu".
        options: of `from_pretrained`.

    Returns:
        The model on its device.

    Raises:
        FileNotFoundError: the folder doesn't exist.
        ValueError: the folder doesn't hold such a model, or it is damaged, or a weight is NaN or
            infinite.
        ImportError: torch or transformers is missing.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        needs = f"{what} needs torch and transformers ({error})"
        raise ImportError(f'{needs}: pip install "rimjax[pipeline]"') from error
    with _name_folder(directory, what):
        _check_shards(directory)
        model, info = getattr(transformers, kind).from_pretrained(
            directory, local_files_only=True, output_loading_info=True, **options
        )
    # transformers would leave missing weights random.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(UNUSED))
    if missing:
        reason = f"it lacks {len(missing)} weights, {missing[0]} among them"
        raise ValueError(_describe_damage(directory, what, reason))
    check_finite(directory, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()


def fingerprint_model(model: Any, *settings: Any) -> str:
    """Digest a model's weights, its config and other settings."""
    config = json.loads(model.config.to_json_string())
    for ignored in ("_name_or_path", "transformers_version"):
        config.pop(ignored, None)
    weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    return fingerprint([config, *settings], weights)


def load_tokenizer(directory: Path, what: str) -> Any:
    """Load the tokenizer in a model's folder; raises as `load_model`."""
    from transformers import AutoTokenizer

    with _name_folder(directory, f"{what} tokenizer"):
        # Without trust_remote_code=False transformers asks the user, and may run code.
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )


def _check_shards(directory: Path) -> None:
    """Raise ValueError where an index of split weights names a file outside the folder."""
    for index in sorted(directory.glob("*.index.json")):
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values():
            check_plain_name(shard, index)


@contextmanager
def _name_folder(directory: Path, what: str) -> Iterator[None]:
    """Begin every error with the folder, and silence transformers meanwhile."""
    from transformers.utils import logging

    if not directory.is_dir():
        expected = f"no such folder; expected a {what} as transformers writes it"
        raise FileNotFoundError(f"{directory}: {expected}")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # for damaged files transformers raises all kinds of errors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__
        raise ValueError(_describe_damage(directory, what, reason)) from error
    finally:
        logging.set_verbosity(verbosity)


def _describe_damage(directory: Path, what: str, reason: str) -> str:
    return f"{directory}: not a {what} as transformers writes it, or damaged ({reason})"
