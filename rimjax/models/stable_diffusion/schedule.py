"""diffusers' Flax schedulers with a checkpoint's noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

_NOISE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
    *("trained_betas", "prediction_type"),
)


def build_scheduler(library: SimpleNamespace, name: str, config: Mapping[str, Any]) -> Any:
    """Build a scheduler.

    Args:
        library: from `import_libraries`.
        name: see `DiffusionConfig.scheduler`.
        config: the checkpoint's scheduler config.
    """
    noise = {key: config[key] for key in _NOISE if key in config}
    if name == "pndm":
        offset = config.get("steps_offset", 0)
        return library.FlaxPNDMScheduler(**noise, skip_prk_steps=True, steps_offset=offset)
    order = 2 if name == "dpmsolver++" else 1
    return library.FlaxDPMSolverMultistepScheduler(**noise, solver_order=order)


def start_schedule(scheduler: Any, steps: int, shape: tuple[int, ...]) -> Any:
    """Return a scheduler's state before the first step.

    Args:
        scheduler: from `build_scheduler`.
        steps: at least 1; the state's timesteps are as many, or one more under PNDM.
        shape: of the latents.
    """
    state = scheduler.set_timesteps(scheduler.create_state(), steps, shape)
    # The schedulers select between these and Python integers: under x64 they must be 64-bit.
    names = [name for name in ("timesteps", "prev_timestep") if hasattr(state, name)]
    return state.replace(**{name: getattr(state, name).astype(int) for name in names})
