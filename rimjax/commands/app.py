"""`rimjax app`."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ImportError('app needs Gradio: pip install ".[app]"') from None
        from rimjax.app.page import build_page, launch, temporary_files
        from rimjax.app.session import Session

        cache = store.locate_cache(self.cache_dir)
        models = self.models.load()
        keep_compilations(cache)
        vocabulary = PRESETS[self.models.preset].diffusion.vocabulary
        with TemporaryDirectory(prefix="rimjax-examples-") as folder, temporary_files():
            examples = _write_examples(Path(folder)) if self.models.preset == "mini" else []
            classes = ", ".join(vocabulary or ())
            page = build_page(partial(Session, models, cache), classes, examples)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
            address = launch(page, self.host, self.port, prevent_thread_lock=True)
            print(f"open {address} (Ctrl-C ends it)", flush=True)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                print("ended")
            finally:
                page.close(verbose=False)


def _write_examples(folder: Path) -> list[Path]:
    """Write the first scenes of mini's own data set as images."""
    paths = []
    for index, item in enumerate(datasets.load("fashion-scenes").items[:EXAMPLES]):
        paths.append(folder / f"scene-{index}.png")
        Image.fromarray(item.image()).save(paths[-1])
    return paths
