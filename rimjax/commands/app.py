"""`rimjax app`."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from PIL import Image

from rimjax import datasets
from rimjax.commands.console import keep_compilations
from rimjax.commands.options import CACHE_DEFAULT, ModelOptions, default
from rimjax.images import read_image
from rimjax.presets import PRESETS
from rimjax.references import store
from rimjax.references.one_class import references_key
from rimjax.regions.extract import extract

if TYPE_CHECKING:
    from rimjax.app.session import Session

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
        explaining = _warm_up(make_session(), classes, examples)
        page = build_page(make_session, ", ".join(classes), examples)
        address = launch(page, self.host, self.port, prevent_thread_lock=True)
        print(f"open {address} (Ctrl-C ends it)", flush=True)
        explaining.start()
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)
            explaining.join()


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


def _warm_up(
    session: Session, classes: Sequence[str], examples: Sequence[Path]
) -> threading.Thread:
    """Segment an example, so that the first visitor doesn't wait for what compiles.

    Without a bank of the classes, whose drawing takes minutes, only the encoder is compiled.

    Returns:
        A thread to start, which does the same for explanations.
    """

    def explain() -> None:
        with suppress(ValueError, OSError):  # a damaged bank, of which a visitor is told
            session.explain((0, 0))

    if examples and not _is_built(session, classes):
        extract(session.models, read_image(examples[0]))
    elif examples:
        with suppress(ValueError, OSError):
            session.segment(examples[0], ", ".join(classes))
    return threading.Thread(target=explain)


def _is_built(session: Session, classes: Sequence[str]) -> bool:
    """Return whether the cache has the references of all classes."""
    assert session.cache_dir is not None
    models, folders = session.models, []
    for name in classes:
        key = references_key(name, models, models.references)
        folders.append(store.locate_references(session.cache_dir, name, key))
    return all(folder.exists() for folder in folders)
