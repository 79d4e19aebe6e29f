"""Connect to a Ray cluster, and count the workers that it has room for."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATIENCE = 3.0
"""Seconds that an address may be silent, and a cluster full before a warning says so."""


class FullClusterWarning(UserWarning):
    """Others use all of the cluster's room for now."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers to ask Ray for.

    Attributes:
        address: a cluster's address; "auto" for the cluster that this machine belongs to, "local"
            for a cluster on this machine alone, which ends with this process.
        count: number of workers; None for as many as the cluster has room for.
        cpus: CPUs of a worker; fractions are allowed.
        gpus: GPUs of a worker, likewise.
    """

    address: str
    count: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


def connect(workers: Workers) -> int:
    """Connect to the cluster; return the number of workers to start.

    Raises:
        ImportError: Ray is missing.
        ValueError: nothing answers at the address, it is no cluster's, or none of the cluster's
            machines has room for a worker.

    Warns:
        FullClusterWarning: others use all of the room, so that workers have to wait for it.
    """
    ray = import_ray()
    if not ray.is_initialized():
        _check_answer(workers.address)
        try:
            with warnings.catch_warnings():
                # Ray starts programs by fork and exec, against which JAX warns in vain.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(address=workers.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            why = " ".join(dict.fromkeys([lines[0], lines[-1]]))  # a traceback may be between
            raise ValueError(
                f"ray must be a cluster's address HOST:PORT, auto or local, got "
                f"{workers.address!r} ({why}); if that cluster runs, set RAY_AUTH_MODE=token where "
                "it asks for a token, and install the same versions of Ray and Python"
            ) from error
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_count_room(machine, workers) for machine in machines)
    if not room:
        have = ", ".join(
            f"{each.get('CPU', 0):g} and {each.get('GPU', 0):g}" for each in machines[:5]
        )
        raise ValueError(
            f"ray's cluster must have a machine with room for a worker of {workers.cpus:g} CPUs "
            f"and {workers.gpus:g} GPUs, got {have}; lower --ray-cpus or --ray-gpus"
        )
    end = time.monotonic() + PATIENCE  # Ray hears of workers that have just ended a little later
    while not _count_room(ray.available_resources(), workers):
        if time.monotonic() > end:
            others = "the cluster is full for now; workers start when others leave room"
            warnings.warn(others, FullClusterWarning, stacklevel=2)
            break
        time.sleep(0.1)
    return room if workers.count is None else workers.count


def _check_answer(address: str) -> None:
    """Refuse a host and port where nothing listens; Ray itself would wait for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdecimal():
        return  # auto, local, another protocol's, or what Ray refuses at once
    if not 0 < int(port) < 2**16:
        raise ValueError(f"ray must be HOST:PORT with a port from 1 to 65535, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise ValueError(
            f"ray must be the address of a cluster that runs, got {address!r}, where nothing "
            f"answers ({error}); `ray start --head` prints it"
        ) from error


def _count_room(resources: Mapping[str, float], workers: Workers) -> int:
    """Count the workers that resources suffice for."""
    needs = {"CPU": workers.cpus, "GPU": workers.gpus}
    return min(
        int(resources.get(name, 0) / each + 1e-6) for name, each in needs.items() if each > 0
    )


def import_ray() -> Any:
    """Import Ray, which only `--ray` needs; raise ImportError with the way out."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ImportError('ray needs Ray: pip install ".[ray]"') from None
