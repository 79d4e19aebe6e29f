"""The devices that JAX and torch see, and how the two frameworks share a GPU's memory.

Needs neither the `pipeline` extra nor a started backend to be imported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ALLOCATOR_PREFIXES = ("XLA_PYTHON_CLIENT_", "XLA_CLIENT_MEM_FRACTION")
"""Beginnings of the environment variables that set JAX's allocator."""

GUIDE = "docs/accelerators.md"


@dataclass(frozen=True)
class Device:
    """A device as a framework sees it.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        name: e.g. "NVIDIA A100-SXM4-80GB".
        free: bytes that the framework can still take; None where it doesn't tell.
        total: bytes of which these are left: of a GPU under torch all its memory, under JAX what
            its allocator may take.
    """

    platform: str
    name: str
    free: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Framework:
    """What JAX or torch is built for, and what it sees.

    Attributes:
        version: of the package; None if it is missing.
        cuda: major versions of CUDA that it is built for or has a plugin for; () for a CPU build.
        devices: what it sees.
        error: why it sees no device; None if it started.
    """

    version: str | None
    cuda: tuple[int, ...] = ()
    devices: tuple[Device, ...] = ()
    error: str | None = None

    @property
    def has_gpu(self) -> bool:
        """Whether it sees a GPU."""
        return any(device.platform == "gpu" for device in self.devices)


@dataclass(frozen=True)
class Facts:
    """What `judge_devices` judges.

    Attributes:
        jax: JAX.
        torch: torch, which runs SAM, MaskFormer and CLIP's text tower.
        nvidia: whether the machine has `nvidia-smi` or /dev/nvidia0.
    """

    jax: Framework
    torch: Framework
    nvidia: bool


def share_gpu_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let JAX take a GPU's memory as it needs it, before its backend starts.

    By default JAX takes 75 % at once, and torch, which runs SAM, gets the rest. Nothing is changed
    if the user has set any variable of JAX's allocator.
    """
    if not any(name.startswith(ALLOCATOR_PREFIXES) for name in environment):
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def collect_facts() -> Facts:
    """Ask both frameworks what they see; starts their backends."""
    nvidia = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    return Facts(_ask_jax(), _ask_torch(), nvidia)


def _ask_jax() -> Framework:
    import jax

    majors = tuple(n for n in (12, 13) if _find_version(f"jax-cuda{n}-plugin") is not None)
    devices = []
    try:
        for device in jax.local_devices():
            stats = device.memory_stats() or {}
            total, used = stats.get("bytes_limit"), stats.get("bytes_in_use", 0)
            free = None if total is None else total - used
            platform = device.platform if device.platform in ("cpu", "tpu") else "gpu"
            devices.append(Device(platform, device.device_kind, free, total))
    except (RuntimeError, AssertionError) as error:  # both are JAX's way to say: no such platform
        asked = f"no platform of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} is here"
        return Framework(jax.__version__, majors, error=str(error) or asked)
    return Framework(jax.__version__, majors, tuple(devices))


def _ask_torch() -> Framework:
    version = _find_version("torch")
    if version is None:
        return Framework(None)
    try:
        import torch
    except (ImportError, OSError) as error:  # e.g. a CUDA library of another version
        return Framework(version, error=str(error))
    cuda = (int(torch.version.cuda.split(".")[0]),) if torch.version.cuda else ()
    devices = [Device("cpu", "cpu")]
    try:
        if torch.cuda.is_available():
            devices = [
                Device("gpu", torch.cuda.get_device_name(index), *torch.cuda.mem_get_info(index))
                for index in range(torch.cuda.device_count())
            ]
    except RuntimeError as error:
        return Framework(version, cuda, error=str(error))
    return Framework(version, cuda, tuple(devices))


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def judge_devices(facts: Facts) -> list[str]:
    """Say what is wrong with the frameworks' builds beside the machine's GPU, and the way out.

    Returns:
        A line for each fault; none if nothing is wrong.
    """
    jax, torch = facts.jax, facts.torch
    lines = [
        f"{name} {framework.version} doesn't start: {' '.join(framework.error.split())}"
        for name, framework in (("JAX", jax), ("torch", torch))
        if framework.error is not None
    ]
    usable = torch.version is not None and torch.error is None
    if jax.has_gpu and usable and not torch.has_gpu:
        lines.append(
            f"torch {torch.version} is built for {_name_build(torch)} and sees no GPU, but JAX "
            "sees one"
            if torch.cuda
            else f"torch {torch.version} is the CPU build beside a GPU that JAX sees, so SAM runs "
            f"on the CPU: install torch's build for {_name_build(jax)}"
        )
    elif torch.has_gpu and not jax.has_gpu and jax.error is None:
        lines.append(
            f"JAX {jax.version} has a plugin for {_name_build(jax)} and sees no GPU, but torch "
            "sees one: JAX says why when it starts"
            if jax.cuda
            else f"JAX {jax.version} is the CPU build beside a GPU that torch sees: "
            f"{_name_extra(torch)}"
        )
    elif facts.nvidia and not jax.has_gpu and not torch.has_gpu:
        remedy = (
            "run nvidia-smi, and see whether CUDA_VISIBLE_DEVICES or JAX_PLATFORMS hides the GPU"
            if jax.cuda
            else _name_extra(torch)
        )
        lines.append(
            "an NVIDIA GPU or its driver is here, but neither JAX nor torch sees a GPU: " + remedy
        )
    if len(jax.cuda) > 1:
        lines.append(
            f"JAX has plugins for {_name_build(jax)}, which clash: uninstall the packages of one"
        )
    elif jax.cuda and torch.cuda and jax.cuda != torch.cuda:
        lines.append(
            f"JAX's plugin is for {_name_build(jax)}, torch's build for {_name_build(torch)}, and "
            f"their libraries clash: install both for the same CUDA, {_name_extra(torch)}"
        )
    return [f"{line} ({GUIDE})" for line in lines]


def _name_build(framework: Framework) -> str:
    return " and ".join(f"CUDA {major}" for major in framework.cuda) or "your CUDA"


def _name_extra(torch: Framework) -> str:
    """Return the command that installs JAX for the same CUDA as torch, or for 13."""
    major = max(torch.cuda, default=13)
    return f'pip install "rimjax[pipeline,cuda{12 if major < 13 else 13}]"'
