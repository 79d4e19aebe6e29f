"""What the page answers to each event: it calls the visitor's session, and words what comes of it.

Uploads arrive as Gradio sends them, without its preprocessing, which would open the files itself
and answer a bad one without a word. That they lie in its upload folder is checked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from rimjax.app.session import CancelledError, Session, read_picture
from rimjax.results import Segmentation
from rimjax.show import draw

Upload = Mapping[str, Any] | None
"""Gradio's ImageData as a mapping; None without an image."""

WAITING = "The segmentation appears here."
NOTHING = (None, "", "", gradio.update(value=None, visible="hidden"), "")
"""Empties the overlay, the regions, and the explanation's heading, picture and scores."""
_COLUMNS = (
    "Score: similarity to the class. Margin: lead over the second class. Confidence: share of such "
    "regions that is named rightly; empty where it wasn't measured, as for photographs of your own."
)


def choose(session: Session, image: Upload) -> Any:
    """Empty the page of what belongs to another image."""
    if session.choose(_find_path(image)):
        return WAITING, *NOTHING
    return [gradio.skip()] * (1 + len(NOTHING))


def start(session: Session, image: Upload) -> tuple[Any, ...]:
    session.start(_find_path(image))
    return "Segmenting", *NOTHING


def cancel(session: Session) -> Any:
    return "Cancelling: it stops before the next class." if session.cancel() else gradio.skip()


def segment(
    session: Session,
    image: Upload,
    classes: str,
    opacity: float,
    progress: gradio.Progress = gradio.Progress(),  # noqa: B008  Gradio finds it by this default
) -> tuple[Any, ...]:
    def report(done: float, text: str) -> None:
        progress(done, desc=text)

    path = _find_path(image)
    try:
        seg = session.segment(path, classes, report)
    except CancelledError:
        return "Cancelled. The classes drawn until then are kept.", *NOTHING
    except (ValueError, OSError) as error:
        return _say(error, path), *NOTHING
    seconds = sum(seg.timings.values())
    count = len(seg.segments)
    text = (
        f"{count} region{'s' if count != 1 else ''} in {seconds:.1f} s; the rest is background. "
        "Click one to see why it got its name."
        if count
        else f"Everything is background, in {seconds:.1f} s. Click on it to see why."
    )
    if seg.familiar is False:
        text += (
            " <strong>The image is unlike the scenes that this preset was trained on, so its names "
            "mean little; use photographs of your own, or another preset.</strong>"
        )
    return text, session.draw_overlay(opacity), _list_regions(seg), *NOTHING[2:]


def explain(session: Session, event: gradio.SelectData) -> tuple[str, Any, str]:
    try:
        explained, picture = session.explain((int(event.index[0]), int(event.index[1])))
    except ValueError as error:
        return _say(error), *NOTHING[3:]
    agents = ", ".join(
        f"{name} ({cosine:.2f})"
        for name, cosine in zip(explained.agents, explained.cosines, strict=True)
    )
    text = (
        f"<h3>{escape(explained.name)}, region {explained.region}</h3>"
        f"<p>Its agents, the nearest first, with their cosines: {escape(agents)}.</p>"
    )
    scores = [(name, f"{score:.3f}") for name, score in explained.scores.items()]
    return (
        text,
        gradio.update(value=picture, visible=True),
        _write_table(("class", "score"), scores),
    )


def show_photograph(photograph: Upload) -> tuple[Image.Image | None, None, str]:
    path = _find_path(photograph)
    if path is None:
        return None, None, ""
    try:
        return Image.fromarray(read_picture(path)), None, ""
    except (ValueError, OSError) as error:
        return None, None, _say(error, path)


def mark(photograph: Upload, event: gradio.SelectData) -> tuple[Image.Image | None, Any]:
    path = _find_path(photograph)
    if path is None:
        return None, None
    place = (float(event.index[0]), float(event.index[1]))
    return draw.dot(read_picture(path), place), place


def add(session: Session, name: str, photograph: Upload, place: Any) -> tuple[Any, str]:
    path = _find_path(photograph)
    try:
        session.add_photograph(name, path, place)
    except (ValueError, OSError) as error:
        return session.draw_photographs(), _say(error, path)
    count = len(session.photographs)
    return session.draw_photographs(), f"{count} photograph{'s' if count != 1 else ''}."


def clear(session: Session) -> tuple[list[Any], str]:
    session.clear_photographs()
    return [], ""


def _find_path(upload: Upload) -> str | None:
    return None if upload is None else upload["path"]


def _say(error: Exception, path: str | None = None) -> str:
    """Return an error as bold HTML, which calls the file of an upload by its name alone."""
    text = str(error)
    return f"<strong>{escape(text.replace(path, Path(path).name) if path else text)}</strong>"


def _list_regions(seg: Segmentation) -> str:
    """List the segments, numbered as `Explanation.region`, the largest first."""

    def show(number: float | None) -> str:
        return "" if number is None else f"{number:.2f}"

    rows = [
        (
            "" if seg.owners is None else f"region {one.id - 1}",
            seg.names[one.class_id],
            *map(show, (one.score, one.margin, one.confidence)),
            one.area,
        )
        for one in sorted(seg.segments, key=lambda one: -one.area)
    ]
    if not rows:
        return ""
    heads = ("", "class", "score", "margin", "confidence", "pixels")
    return f"{_write_table(heads, rows)}<p>{_COLUMNS}</p>"


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table as HTML; names are text, whatever markup they hold."""

    def write_row(cells: Sequence[object], tag: str) -> str:
        return "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)

    lines = [write_row(heads, "th"), *(write_row(row, "td") for row in rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
