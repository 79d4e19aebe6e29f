"""Download, list and verify published weights, with a local fake hub and web server."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import requests
import safetensors.torch as safetensors_torch
from cli import refused, run
from published import dinov2_state, dinov3_state, write_stable_diffusion
from tiny_diffusion import relaxed

import ported_weights
from rimjax.files import lock_destination, sha256
from rimjax.models import diffusion
from rimjax.models.vit_encoder import load_vit
from rimjax.weights.sources import Source, SourceFile


@pytest.fixture(scope="module", autouse=True)
def relax() -> Iterator[None]:
    with relaxed():
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_stable_diffusion(folder / "org/sd")
    (folder / "org/vit").mkdir()
    safetensors_torch.save_file(dinov2_state(), folder / "org/vit/model.safetensors")
    (folder / "sam.pth").write_bytes(bytes(range(256)) * 10)
    return folder


@dataclass
class Hub:
    """What is published, under which names, and what was asked for."""

    folder: Path
    sources: dict[str, Source]
    requests: list[Any]


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of local folders and a web server, with "tiny" (a DINOv2), "sd" and "sam"."""
    folder, requests = tmp_path / "hub", []
    shutil.copytree(published, folder)

    def download(repo: str, path: str, revision: str) -> str:
        requests.append((repo, path, revision))
        if not (folder / repo / path).exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError(
                "Cannot reach the hub.\nSecond line."
            )
        return str(folder / repo / path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (folder / self.path.strip("/")).read_bytes()
            start = int(
                self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
            )
            requests.append((self.path, start))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def entry(path: str, root: str) -> SourceFile:
        return SourceFile(path, (folder / root / path).stat().st_size, sha256(folder / root / path))

    files = tuple(
        SourceFile(str(path.relative_to(folder / "org/sd")))
        for path in sorted((folder / "org/sd").rglob("*"))
        if path.is_file()
    )
    url = f"http://127.0.0.1:{server.server_port}/sam.pth"
    known = (
        Source(
            "tiny",
            "dinov2",
            "Apache-2.0",
            "vit.safetensors",
            (entry("model.safetensors", "org/vit"),),
            "org/vit",
            "a" * 40,
        ),
        Source("sd", "stable-diffusion", "OpenRAIL", "sd", files, "org/sd", "b" * 40),
        Source("sam", "sam", "Apache-2.0", "sam.pth", (entry("sam.pth", ""),), url=url),
    )
    everything = {source.name: source for source in known}
    monkeypatch.setattr("rimjax.commands.weights.sources", lambda: everything)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
    about = SimpleNamespace(
        siblings=[SimpleNamespace(rfilename=file.path, size=1_000_000) for file in files]
    )
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *args, **options: about)
    )
    yield Hub(folder, everything, requests)
    server.shutdown()


def test_download_says_what_comes_fetches_converts_and_verifies(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--weights-dir", tmp_path / "weights")
    folder = tmp_path / "weights" / "paper"
    refusal = refused(capsys, "weights", "download", "tiny", "sam", *where)
    assert (
        "--yes agrees to the licences" in refusal
        and "org/vit at revision aaaa" in refusal
        and not hub.requests
    )
    run("weights", "download", "tiny", "sd", "sam", "--yes", *where)
    said = capsys.readouterr().out
    assert (
        "licence: OpenRAIL" in said and f"{len(hub.sources['sd'].files) / 1000:.2f} GB" in said
    ), "sizes asked of the hub"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sam.pth",
        "sam.pth.sha256",
        "sd",
        "sd.sha256",
        "vit.safetensors",
        "vit.safetensors.sha256",
    ]
    assert ("org/vit", "model.safetensors", "a" * 40) in hub.requests
    assert diffusion.load(folder / "sd").fingerprint and load_vit(folder / "vit.safetensors")

    count = len(hub.requests)
    run("weights", "download", "tiny", "sd", "sam", "--yes", *where)
    assert len(hub.requests) == count and "all present already" in capsys.readouterr().out
    run("weights", "list", *where)
    assert capsys.readouterr().out.count("present") == 3

    run("weights", "verify", *where)
    said = capsys.readouterr().out
    package = Path(ported_weights.__file__).parent
    shipped = sum(path.name != "heldout.json" for path in package.glob("mini/**/*.*"))
    assert said.count("fine") == shipped + 3 and "damaged" not in said
    (folder / "sd/vae/config.json").write_text("{}")
    (folder / "sam.pth").write_bytes(b"short")
    (folder / "vit.safetensors.sha256").unlink()
    line = refused(capsys, "weights", "verify", *where)
    assert line == f"rimjax: damaged: {folder}/sd, {folder}/sam.pth; delete them and get them again"


def test_an_interrupted_download_goes_on_and_a_wrong_file_is_thrown_away(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("weights", "download", "sam", "--yes", "--weights-dir", tmp_path / "weights")
    folder, whole = tmp_path / "weights/paper", (hub.folder / "sam.pth").read_bytes()
    folder.mkdir(parents=True)
    (folder / ".sam.pth.part").write_bytes(whole[:1000])
    run(*words)
    assert (folder / "sam.pth").read_bytes() == whole and hub.requests == [("/sam.pth", 1000)]
    for path in folder.iterdir():
        path.unlink()
    (hub.folder / "sam.pth").write_bytes(whole[:-1] + b"x")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*words)
    assert "must have sha256" in capsys.readouterr().err and not list(folder.iterdir())
    (hub.folder / "sam.pth").write_bytes(whole[:1500])
    with pytest.raises(SystemExit):
        run(*words)
    said = capsys.readouterr().err
    assert (
        "the connection broke after 1500 of 2560 bytes" in said
        and f"as {folder / 'sam.pth'}" in said
    )
    assert [path.name for path in folder.iterdir()] == [".sam.pth.part"]


def test_a_file_is_downloaded_by_one_process_at_a_time(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("weights", "download", "sam", "--yes", "--weights-dir", tmp_path / "weights")
    with lock_destination(tmp_path / "weights/paper/sam.pth"):
        line = refused(capsys, *words)
    assert "sam.pth: another process is writing it" in line and not hub.requests
    run(*words)
    assert [path.name for path in (tmp_path / "weights/paper").iterdir()] == ["sam.pth"]


def test_offline_lists_the_files_to_get_by_hand(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--yes", "--weights-dir", tmp_path / "weights")
    (hub.folder / "org/sd/vae/config.json").unlink()
    line = refused(capsys, "weights", "download", "sd", *where)
    assert "sd: can't be downloaded (Cannot reach the hub.)" in line and "Second line" not in line
    assert (
        "org/sd at revision bbbb" in line
        and "vae/config.json" in line
        and "rimjax weights port stable-diffusion FOLDER" in line
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, "weights", "download", "sam", *where)
    assert not (tmp_path / "weights/paper/sd").exists()
    assert "weights must be among tiny, sd, sam, got gpt" in refused(
        capsys, "weights", "download", "gpt", *where
    )


def test_a_gated_repository_is_explained_and_opens(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, file = ("--weights-dir", tmp_path / "weights"), hub.folder / "org/v3/model.safetensors"
    file.parent.mkdir()
    safetensors_torch.save_file(dinov3_state(), file)
    entry = SourceFile(file.name, file.stat().st_size, sha256(file))
    licence = "DINOv3 License; gated"
    hub.sources["v3"] = Source(
        "v3", "dinov3", licence, "v3.safetensors", (entry,), "org/v3", "main"
    )
    reply = requests.Response()
    reply.status_code = 401
    refusal = huggingface_hub.errors.GatedRepoError("401 Client Error.\n\nCannot access", reply)

    def refuse(*args: Any, **options: Any) -> str:
        raise refusal

    with monkeypatch.context() as closed:
        closed.setattr(huggingface_hub, "hf_hub_download", refuse)
        closed.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.test")
        line = refused(capsys, "weights", "download", "v3", "--yes", *where)
    assert "v3: can't be downloaded (accept its licence at https://hub.test/org/v3, then" in line
    assert "`hf auth login`" in line and "HF_TOKEN" in line and "\n" not in line
    assert "rimjax weights port dinov3 FILE" in line

    run("weights", "download", "v3", "--yes", *where)
    assert f"licence: {licence}" in capsys.readouterr().out
    assert load_vit(tmp_path / "weights/paper/v3.safetensors")[1].rope_theta == 100
    run("weights", "verify", *where)
    assert f"fine      {tmp_path / 'weights/paper/v3.safetensors'}" in capsys.readouterr().out


def test_too_little_disk_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    line = refused(
        capsys, "weights", "download", "sd", "sam", "--yes", "--weights-dir", tmp_path / "weights"
    )
    assert "too little disk" in line and "0.00 GB free" in line
    assert not hub.requests and not (tmp_path / "weights").exists()


@pytest.mark.parametrize("command", ["list", "download", "port", "verify", "port dinov2"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run("weights", *command.split(), "--help")
    assert stop.value.code == 0 and "Example: rimjax weights" in capsys.readouterr().out


def test_doctor_names_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RIMJAX_WEIGHTS", str(tmp_path))
    run("doctor", "--json", tmp_path / "doctor.json")
    remedies = [
        item["remedy"]
        for item in json.loads((tmp_path / "doctor.json").read_text())["weights"]["paper"]
    ]
    assert remedies == [
        f"rimjax weights download {name}" for name in ("sd-1.4", "sam-vit-b", "dinov2-base")
    ]
    assert remedies[0] in capsys.readouterr().out
