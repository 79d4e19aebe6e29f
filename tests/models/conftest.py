"""A tiny Stable Diffusion for the tests of models."""

from pathlib import Path
from typing import Any

import pytest
from tiny_diffusion import relaxed, tiny_checkpoint, tiny_stable_diffusion

from rimjax.models.stable_diffusion.checkpoint import save


@pytest.fixture(scope="session")
def originals() -> dict[str, Any]:
    """PyTorch's models."""
    with relaxed():
        return tiny_stable_diffusion()


@pytest.fixture(scope="session")
def folder(originals, tmp_path_factory) -> Path:
    """The same, ported."""
    directory = tmp_path_factory.mktemp("diffusion")
    with relaxed():
        save(tiny_checkpoint(originals), directory)
    return directory
