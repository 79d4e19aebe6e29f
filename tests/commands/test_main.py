"""Help, version, doctor, progress and errors of the command line."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from cli import refused, run

import rimjax
from rimjax.commands import console, main
from rimjax.commands.evaluate import Evaluate
from rimjax.commands.options import WatchedModel

COMMANDS = (
    *("", "demo", "segment", "bank", "bank build", "bank show", "bank add", "bank pack"),
    *("evaluate", "evaluate merge", "convert-coco", "weights", "weights list", "weights download"),
    *("weights port", "weights verify", "doctor", "bench"),
)
PROGRAMS = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*command.split(), "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "(default: None)" not in text and "None|" not in text
    if command not in ("", "bank", "weights"):  # these only list their commands
        assert "Example: rimjax" in text


@pytest.mark.parametrize("command", ["segment", "bank build", "evaluate", "demo"])
def test_a_commands_own_options_come_before_the_models(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit):
        run(*command.split(), "--help")
    text = capsys.readouterr().out
    own = {"segment": "--classes", "bank build": "--classes", "evaluate": "--dataset"}
    assert text.index(own.get(command, "--scenes")) < text.index("--configuration")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys).strip() == f"rimjax {metadata.version('rimjax')}"
    assert rimjax.__version__ == metadata.version("rimjax")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", ["weights list", "evaluate --help", "--version"])
def test_a_reader_that_stops_early_is_no_error(words: str, buffered: bool) -> None:
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    process = subprocess.run(
        f"set -o pipefail; rimjax {words} | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        env={
            **os.environ,
            **unbuffered,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert process.stdout == "0\n" and not process.stderr


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("doctor", "--json", tmp_path / "doctor.json", capsys=capsys)
    assert "segment-anything" in printed and "sam_vit_b_01ec64.pth" in printed
    weights = json.loads((tmp_path / "doctor.json").read_text())["weights"]
    assert [file["state"] for file in weights["mini"]] == ["present"] * 3
    assert [file["state"] for file in weights["paper"]] == ["missing"] * 3


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("doctor", "--json"), "mine.json"),
        (("bench", "match", "--quick", "--json"), "mine.json"),
        (("bench", "encode", "--small", "--json"), "mine.json"),
        (("bench", "propose", "--model", "mini", "--json"), "mine.json"),
        (("demo", "--scenes", 1, "--output"), "results.json"),
        (("demo", "--scenes", 1, "--output"), "scene-00.png"),
        (("demo", "--scenes", 1, "--output"), "references.png"),
    ],
)
def test_no_command_replaces_a_file_of_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], name: str
) -> None:
    mine = tmp_path / name
    mine.write_text('{"mine": 1}')
    output = tmp_path if words[0] == "demo" else mine
    assert f"{name}: exists, and rimjax didn't write it" in refused(capsys, *words, output)
    assert mine.read_text() == '{"mine": 1}' and list(tmp_path.iterdir()) == [mine]


def test_a_missing_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['tyro'] = None; sys.argv = ['rimjax', 'doctor']; "
        "from rimjax.__main__ import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert 'pip install "rimjax[pipeline]"' in done.stderr


def test_help_does_not_load_the_model_libraries() -> None:
    script = (
        "import sys; sys.argv = ['rimjax', '--version']; import rimjax.commands.main as m; "
        "m.main(); print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_ray_is_imported_for_its_option_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from rimjax.commands import main as m; "
        f"sys.argv = 'rimjax regions build --limit 1 --cache-dir'.split() + [{str(tmp_path)!r}]; "
        "m.main(); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"JAX_COMPILATION_CACHE_DIR": "programs"},
        {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    ],
)
def test_compiled_programs_are_kept_in_the_cache_or_where_jax_is_told(
    told: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys, jax; from rimjax.commands import main as m; "
        "sys.argv = 'rimjax regions build --limit 1 --cache-dir cache'.split(); m.main(); "
        "print(jax.config.jax_compilation_cache_dir); "
        "print(jax.config.jax_persistent_cache_min_compile_time_secs)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in PROGRAMS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, **told},
        cwd=tmp_path,
    )
    folder, seconds = (told.get(name) for name in PROGRAMS)
    expected = [folder or str(tmp_path / "cache/jit"), str(float(seconds or 0.3))]
    assert done.stdout.splitlines()[-2:] == expected, done.stderr
    kept = list((tmp_path / expected[0]).glob("jit_*"))
    assert kept or seconds is None  # on a fast machine nothing may take 0.3 s


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "[::1]:{}", "auto", "no-such-host.invalid:{}"])
def test_a_cluster_that_does_not_answer_is_refused_soon(
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    build = ("bank", "build", "--classes", "bag,coat", "--cache-dir", tmp_path)
    start = time.monotonic()
    line = refused(capsys, *build, "--ray", address.format(port))
    assert "where nothing answers" in line and "ray start --head" in line and "bag" not in line
    assert time.monotonic() - start < 60  # Ray takes two minutes


def test_a_cluster_has_a_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')
    build = ("bank", "build", "--classes", "bag,coat", "--cache-dir", tmp_path, "--ray")
    for port in ("0", "70000"):
        line = refused(capsys, *build, f"127.0.0.1:{port}")
        assert "--ray must be HOST:PORT with a port from 1 to 65535" in line
    assert "address HOST:PORT, auto or local" in refused(capsys, *build, "127.0.0.1")


def test_only_the_command_line_names_flags() -> None:
    command = Evaluate(dataset="voc")
    assert console.name_flag("num_agents must be 1", command) == "--num-agents must be 1"
    assert console.name_flag("preset must be mini", command) == "--preset must be mini"
    assert console.name_flag("image must be RGB", command) == "image must be RGB"
    assert console.name_flag("x.png: preset must be", command) == "x.png: preset must be"
    rooms = Path(main.__file__).parents[1]
    for path in sorted(rooms.rglob("*.py")):
        if path.parent.name != "commands":
            lines = [line for line in path.read_text().splitlines() if "raise" in line]
            assert not [line for line in lines if '"--' in line], path


@pytest.mark.parametrize("count", [1, 40, 3000])
@pytest.mark.parametrize(("step", "rate"), [(0.25, "images/s"), (1, " s per image")])
def test_progress_in_a_log_is_a_line_at_most_every_30_seconds(
    count: int, step: float, rate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = io.StringIO(), itertools.count(0, step)
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))  # of each element
    assert list(console.progress(range(count), "segment", "image")) == list(range(count))
    lines = log.getvalue().splitlines()
    assert len(lines) <= 1 + (count + 2) // console.LOG_SECONDS and "\r" not in log.getvalue()
    assert lines[-1].startswith(f"segment: {count} of {count}")
    assert all(rate in line for line in lines) or count == 1


def test_a_watched_model_survives_pickling(capsys: pytest.CaptureFixture[str]) -> None:
    model = pickle.loads(pickle.dumps(WatchedModel("text", io.StringIO("words"))))
    assert model.read() == "words" and "self-test: text.read: " in capsys.readouterr().err


def test_an_error_of_many_lines_is_shortened() -> None:
    error = ValueError(
        "state dict must fit:\n  a: missing\n  b: missing\n  c: missing\n  d: missing"
    )
    assert console.shorten(error).endswith("a: missing; b: missing; c: missing; and 1 more")
    assert console.shorten(ValueError()) == "ValueError"
