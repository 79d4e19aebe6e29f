"""Models and tokenizers from a folder of transformers: whole, or an error that names the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

UNUSED = ("num_batches_tracked", "position_ids", "criterion.empty_weight")
"""Ends of the names of what a state dict may lack: inference reads none of them."""


def load_model(kind: str, directory: Path, what: str, device: str | None = None, **options: Any) -> tuple[ModuleType, Any]:
    """PyTorch, and a model of transformers with every weight from the folder, for inference, on its device.

    Args:
        kind: the name of its class.
        directory: of config.json and the weights.
        what: the model's name, for messages.
        device: of torch; default: "cuda" if there is one, else "cpu".
        options: of `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no such model, or it is damaged.
        ImportError: torch or transformers is missing.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f'{what} needs torch and transformers ({error}): pip install "rimjax[pipeline]"') from error
    with _naming(directory, what):
        model, about = getattr(transformers, kind).from_pretrained(directory, local_files_only=True, output_loading_info=True, **options)
    lacking = sorted(key for key in about["missing_keys"] if not key.endswith(UNUSED))  # transformers would leave them random
    if lacking:
        few = f"it lacks {len(lacking)} weights, {lacking[0]} among them"
        raise ValueError(f"{directory}: no {what} as transformers writes it, or damaged ({few})")
    return torch, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def architecture(model: Any) -> dict[str, Any]:
    """A model's config, as JSON has it, for fingerprints: without where it lies and which version of transformers wrote it."""
    config = json.loads(model.config.to_json_string())
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}


def load_tokenizer(directory: Path, what: str) -> Any:
    """The tokenizer in a model's folder; raises as `load_model`."""
    from transformers import AutoTokenizer

    with _naming(directory, f"{what} tokenizer"):
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)  # else it asks, and may run code


@contextmanager
def _naming(directory: Path, what: str) -> Iterator[None]:
    from transformers.utils import logging

    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; expected a {what} as transformers writes it")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # of damaged files transformers and its libraries raise whatever Python does
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(f"{directory}: no {what} as transformers writes it, or damaged ({' '.join(lines[:2])})") from error
    finally:
        logging.set_verbosity(before)
