"""The page itself, in Gradio: what is on it, and which of the session's methods each part calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from rimjax.app.session import CancelledError, Session, limit_size
from rimjax.images import read_image
from rimjax.results import Segmentation
from rimjax.show import draw

MAX_UPLOAD = "20mb"
_FONTS = ["system-ui", "sans-serif"]
_CSS = """
#regions table, #scores table { width: 100%; max-width: 40rem; }
#regions :is(th, td), #scores :is(th, td) {
  padding: 0.25rem 0.5rem; border: 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: right; font-variant-numeric: tabular-nums;
}
#regions :is(th, td):first-child, #scores :is(th, td):first-child { text-align: left; }
@media (max-width: 640px) {
  #explanation .image-container { overflow-x: auto; }
  #explanation .image-container > button { width: 880px; }
  #regions :is(th, td) { padding: 0.25rem; font-size: 0.85rem; }
}
"""
"""Tables; on a phone the explanation is scrolled sideways, so that its letters can be read."""


def launch(page: gradio.Blocks, host: str, port: int | None, **options: Any) -> str:
    """Serve a page, without a public link, and return its address.

    Raises:
        OSError: the port is taken.
    """
    theme = gradio.themes.Soft(font=_FONTS, font_mono=["monospace"])
    _, address, _ = page.queue(default_concurrency_limit=1, max_size=20).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        theme=theme,
        css=_CSS,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        ssr_mode=False,
        **options,
    )
    return address


def build_page(
    make_session: Callable[[], Session], classes: str, examples: Sequence[Path]
) -> gradio.Blocks:
    """Build the page.

    Args:
        make_session: called for each visitor.
        classes: class names to begin with, comma-separated.
        examples: image files to pick from.
    """
    page = gradio.Blocks(title="rimjax", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        state = gradio.State(make_session)
        gradio.Markdown(
            "# rimjax\nChoose an image, name classes, and segment it. Then click a region: the "
            "page shows how it ranks the classes, and whose references rank them alike."
        )
        with gradio.Row():
            with gradio.Column():
                image = _add_upload(
                    label="Image",
                    height=320,
                    elem_id="image",
                )
                if examples:
                    gradio.Examples(
                        [[str(path)] for path in examples],
                        image,
                        label="Examples",
                        elem_id="examples",
                    )
                names = gradio.Textbox(
                    classes,
                    label="Classes to draw, comma-separated",
                    elem_id="classes",
                )
                _add_photographs(state)
                with gradio.Row():
                    start = gradio.Button("Segment", variant="primary", elem_id="segment")
                    stop = gradio.Button("Cancel", elem_id="cancel")
            with gradio.Column():
                message = gradio.Markdown("The segmentation appears here.", elem_id="message")
                overlay = gradio.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    elem_id="overlay",
                    buttons=["download", "fullscreen"],
                )
                opacity = gradio.Slider(0, 1, draw.OPACITY, label="Opacity", elem_id="opacity")
                table = gradio.HTML("", elem_id="regions")
        why = gradio.Markdown("", elem_id="why")
        picture = gradio.Image(
            show_label=False,
            interactive=False,
            format="png",
            elem_id="explanation",
            buttons=["download", "fullscreen"],
            visible="hidden",
        )
        scores = gradio.HTML("", elem_id="scores")
        cleared = [why, picture, scores]
        start.click(
            _segment,
            [state, image, names, opacity],
            [message, overlay, table, *cleared],
            show_progress_on=overlay,
        )
        stop.click(lambda session: session.cancel(), state, queue=False)
        opacity.change(
            lambda session, opacity: session.draw_overlay(opacity),
            [state, opacity],
            overlay,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        overlay.select(_explain, state, cleared, show_progress_on=why)
    return page


def _add_photographs(state: gradio.State) -> None:
    """Add the part in which a visitor gives photographs of classes of their own."""
    with gradio.Accordion("References from photographs of your own", open=False, elem_id="own"):
        gradio.Markdown("Drop a photograph, click on the object, name its class, and add it.")
        chosen = gradio.State(None)
        photograph = _add_upload(
            label="Photograph",
            height=260,
            elem_id="photograph",
        )
        marked = gradio.Image(
            label="Click on the object",
            interactive=False,
            format="png",
            height=260,
            elem_id="marked",
            buttons=[],
        )
        name = gradio.Textbox(label="Its class", elem_id="own-class")
        with gradio.Row():
            add = gradio.Button("Add", elem_id="add")
            clear = gradio.Button("Clear", elem_id="clear")
        note = gradio.Markdown("", elem_id="own-message")
        gallery = gradio.Gallery(
            label="Photographs",
            columns=4,
            height=180,
            interactive=False,
            object_fit="contain",
            buttons=["fullscreen"],
            elem_id="gallery",
        )
        photograph.change(_show_photograph, photograph, [marked, chosen, note])
        marked.select(_mark, photograph, [marked, chosen])
        add.click(_add, [state, name, photograph, chosen], [gallery, note])
        clear.click(_clear, state, [gallery, note])


def _add_upload(**options: Any) -> gradio.Image:
    """Add an image that a visitor uploads, as its path."""
    upload = gradio.Image(type="filepath", sources=["upload", "clipboard"], **options)
    # Gradio would open the file, and answer a bad one without a word. A class of our own would do,
    # but Gradio writes a stub beside the module of each.
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload


def _say(error: Exception, path: str | None = None) -> str:
    """Return an error as bold text, which calls the file of an upload by its name alone."""
    text = str(error)
    return f"**{text.replace(path, Path(path).name) if path else text}**"


def _segment(
    session: Session,
    image: str | None,
    classes: str,
    opacity: float,
    progress: gradio.Progress = gradio.Progress(),  # noqa: B008  Gradio finds it by this default
) -> tuple[Any, ...]:
    nothing = ("", _show(None), "")

    def report(done: float, text: str) -> None:
        progress(done, desc=text)

    try:
        seg = session.segment(image, classes, report)
    except CancelledError:
        return "Cancelled. What was drawn is kept.", None, "", *nothing
    except (ValueError, OSError) as error:
        return _say(error, image), None, "", *nothing
    seconds = sum(seg.timings.values())
    count = len(seg.segments)
    text = (
        f"{count} region{'s' if count != 1 else ''} in {seconds:.1f} s; the rest is background. "
        "Click one to see why it got its name."
    )
    if seg.familiar is False:
        text += (
            " **The image is unlike the scenes that this preset was trained on, so its names mean "
            "little; use photographs of your own, or another preset.**"
        )
    return text, session.draw_overlay(opacity), _list_regions(seg), *nothing


def _show(picture: Image.Image | None) -> Any:
    """Show a picture in its part of the page, which is hidden without one."""
    return gradio.update(value=picture, visible="hidden" if picture is None else True)


def _list_regions(seg: Segmentation) -> str:
    def show(number: float | None) -> str:
        return "" if number is None else f"{number:.2f}"

    rows = [
        (seg.names[one.class_id], *map(show, (one.score, one.margin, one.confidence)), one.area)
        for one in sorted(seg.segments, key=lambda one: -one.area)
    ]
    return _write_table(("class", "score", "margin", "confidence", "pixels"), rows)


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table as HTML; names are text, whatever markup they hold."""

    def write_row(cells: Sequence[object], tag: str) -> str:
        return "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)

    lines = [write_row(heads, "th"), *(write_row(row, "td") for row in rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _explain(session: Session, event: gradio.SelectData) -> tuple[str, Any, str]:
    try:
        explained, picture = session.explain((int(event.index[0]), int(event.index[1])))
    except ValueError as error:
        return _say(error), _show(None), ""
    agents = ", ".join(
        f"{name} ({cosine:.2f})"
        for name, cosine in zip(explained.agents, explained.cosines, strict=True)
    )
    text = f"### {explained.name}\nIts agents, the nearest first, with their cosines: {agents}."
    scores = [(name, f"{score:.3f}") for name, score in explained.scores.items()]
    return text, _show(picture), _write_table(("class", "score"), scores)


def _show_photograph(path: str | None) -> tuple[Image.Image | None, None, str]:
    if path is None:
        return None, None, ""
    try:
        return Image.fromarray(limit_size(read_image(path))), None, ""
    except (ValueError, OSError) as error:
        return None, None, _say(error, path)


def _mark(path: str | None, event: gradio.SelectData) -> tuple[Image.Image | None, Any]:
    if path is None:
        return None, None
    place = (float(event.index[0]), float(event.index[1]))
    return draw.dot(limit_size(read_image(path)), place), place


def _add(session: Session, name: str, path: str | None, place: Any) -> tuple[Any, str]:
    try:
        session.add_photograph(name, path, place)
    except (ValueError, OSError) as error:
        return session.draw_photographs(), _say(error, path)
    count = len(session.photographs)
    return session.draw_photographs(), f"{count} photograph{'s' if count != 1 else ''}."


def _clear(session: Session) -> tuple[list[Any], str]:
    session.clear_photographs()
    return [], ""
