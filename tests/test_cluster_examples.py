"""The cluster files of examples/ hold commands with real options, of rimjax and of Ray."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from rimjax.commands.evaluate import Evaluate
from rimjax.commands.main import CONFIG, Command

EXAMPLES = Path(__file__).parents[1] / "examples"


def parse(words: list[str]) -> Evaluate:
    program, *arguments = words
    assert program == "rimjax"
    command: Any = tyro.cli(Command, args=arguments, config=CONFIG)
    assert isinstance(command, Evaluate)
    return command


def check_shared(command: Evaluate, shared: str) -> None:
    """Check that what workers and the command exchange lies where all machines see it."""
    for path in (command.data, command.cache_dir, command.output):
        assert str(path).startswith(shared)
    assert command.models.dtype == "bfloat16", "a head without a GPU would take another format"


def test_kubernetes_job() -> None:
    job = yaml.safe_load((EXAMPLES / "ray-kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command = parse(shlex.split(job["spec"]["entrypoint"]))
    check_shared(command, "/rimjax/")
    assert str(command.models.weights_dir).startswith("/rimjax/")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    head, worker = cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]
    for pod in (head, worker):
        (container,), (volume,) = pod["containers"], pod["volumes"]
        (mount,) = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/rimjax")
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert head["containers"][0]["image"] == worker["containers"][0]["image"]
    workers = command.cluster.open()
    limits = worker["containers"][0]["resources"]["limits"]
    assert workers is not None and workers.address == "auto"
    count = int(limits["nvidia.com/gpu"]) / workers.gpus
    assert count * workers.cpus <= int(limits["cpu"]), "cores for every worker on the GPUs"


def test_slurm_job() -> None:
    ray = pytest.importorskip("ray.scripts.scripts", reason='Ray is missing: pip install ".[ray]"')
    from ray.scripts.symmetric_run import symmetric_run

    path = EXAMPLES / "ray-slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^srun .*", text, re.MULTILINE)
    words = shlex.split(line)
    separator = words.index("--")
    command = parse(words[separator + 1 :])
    check_shared(command, "$shared/")
    known = {
        option
        for each in (symmetric_run, ray.start)
        for param in each.params
        for option in param.opts
    }
    start = words.index("symmetric-run")
    given = [word for word in words[start:separator] if word.startswith("--")]
    assert "--min-nodes" in given and set(given) <= known
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    workers = command.cluster.open()
    assert workers is not None and workers.address == "auto"
    count = int(asked["gpus-per-node"]) / workers.gpus
    assert count * workers.cpus <= int(asked["cpus-per-task"])
    assert words[words.index("--num-gpus") + 1] == asked["gpus-per-node"]
