"""The memory table, on a tiny architecture."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from tiny_diffusion import relaxed

from rimjax.models import attention, random_weights

FOLDER = Path(__file__).parents[2] / "experiments"
SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "sample_size": 32,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
    },
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 300,
    },
    "scheduler": {},
}
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""The machine code, which nothing runs, need not be good."""


def test_memory_is_tabulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    memory = importlib.import_module("memory")
    configs = {part: {**random_weights.STABLE_DIFFUSION[part], **SIZES[part]} for part in SIZES}
    scores = 2 * 8 * 1024**2  # the UNet's: two rows, eight heads, 32 x 32 pixels
    monkeypatch.setattr(attention, "_MAX_SCORES", scores // 64)
    monkeypatch.setattr(memory, "COMPILER", {**memory.COMPILER, **FAST})
    with relaxed():
        rows = list(memory.measure(configs, batches=(1,), dtypes=("float32",)))
    assert len(rows) == 4
    unet = {row.computed: row for row in rows if row.stage == "UNet and sampler"}
    at_once, in_parts = unet["at once"], unet["in parts"]
    assert at_once.weights == in_parts.weights
    assert at_once.temporary > 4 * scores > 4 * in_parts.temporary
    table = memory.format_table(rows).splitlines()
    assert len(table) == 2 + 2 and table[2].startswith("| UNet and sampler | float32 | 1 |")
