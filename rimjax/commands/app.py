"""`rimjax app`."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from PIL import Image

from rimjax import datasets
from rimjax.commands.console import keep_compilations
from rimjax.commands.options import CACHE_DEFAULT, ModelOptions, default
from rimjax.presets import PRESETS
from rimjax.references import store

EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class App:
    """Serve a web page that segments images and shows why a region got its name.

    It is served to this machine alone unless --host says otherwise; there is no public link,
    nothing is sent anywhere, and uploaded files are removed when it ends.

    Example: rimjax app
    Example: rimjax app --preset paper --port 8080

    Attributes:
        host: Address to serve on; 0.0.0.0 is every network of this machine.
        port: Port to serve on.
        cache_dir: Folder that keeps banks.
    """

    host: str = "127.0.0.1"
    port: Annotated[int | None, default("the first free port from 7860 on")] = None
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
        with _temporary_folder() as folder:
            try:
                self._serve(folder)
            except KeyboardInterrupt:
                print("ended")

    def _serve(self, folder: Path) -> None:
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ImportError('app needs Gradio: pip install ".[app]"') from None
        import jax

        from rimjax.app.page import build_page, launch
        from rimjax.app.session import Session
        from rimjax.app.warm_up import warm_up

        warnings.filterwarnings("ignore", module="gradio")  # Starlette's, of names that it renames
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the page has its limit
        cache = store.locate_cache(self.cache_dir)
        models = self.models.load()
        keep_compilations(cache)
        # Explanations take many small programs, together seconds; kept, they take a fifth of that.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        examples = _write_examples(folder) if self.models.preset == "mini" else []
        classes = PRESETS[self.models.preset].diffusion.vocabulary or ()
        make_session = partial(Session, models, cache)
        explaining = [  # once the first page has come, which it would slow down
            threading.Timer(2, warm_up(make_session(), classes, path)) for path in examples[:1]
        ]
        page = build_page(make_session, ", ".join(classes), examples)
        address = launch(page, self.host, self.port, prevent_thread_lock=True)
        print(f"open {address} (Ctrl-C ends it)", flush=True)
        for thread in explaining:
            thread.start()
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)
            for thread in explaining:
                thread.cancel()
                thread.join()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Keep all temporary files, Gradio's uploads included, in a folder removed at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="rimjax-app-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder  # before Gradio is imported
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
            del os.environ["GRADIO_TEMP_DIR"]


def _write_examples(folder: Path) -> list[Path]:
    """Write the first scenes of mini's own data set as images."""
    paths = []
    for index, item in enumerate(datasets.load("fashion-scenes").items[:EXAMPLES]):
        paths.append(folder / f"scene-{index}.png")
        Image.fromarray(item.image()).save(paths[-1])
    return paths
