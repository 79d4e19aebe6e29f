"""The page itself, in Gradio: what is on it, and which answer belongs to which event."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio

from rimjax.app import answers
from rimjax.app.session import Session
from rimjax.show import draw

MAX_UPLOAD = "20mb"
_FONTS = ["system-ui", "sans-serif"]
_CSS = """
#regions table, #scores table { width: 100%; max-width: 40rem; }
#regions :is(th, td), #scores :is(th, td) {
  padding: 0.25rem 0.5rem; border: 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: right; font-variant-numeric: tabular-nums;
}
#regions :is(th, td):nth-child(-n + 2), #scores :is(th, td):first-child { text-align: left; }
#regions p { margin-top: 0.5rem; font-size: 0.85rem; color: var(--body-text-color-subdued); }
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
        OSError: the port is taken or not allowed, or none is free.
    """
    theme = gradio.themes.Soft(font=_FONTS, font_mono=["monospace"])
    try:
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
    except OSError as error:  # Gradio's advice is an environment variable and an argument
        if port is None:
            raise OSError(f"no port from 7860 on is free on {host}; give one: --port") from error
        raise OSError(
            f"port must be free, got {port}, which is taken or not allowed on {host}; give "
            "another, or leave it out"
        ) from error
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
    sessions: MutableMapping[str | None, Session] = (
        WeakValueDictionary()
    )  # by Gradio's session hash

    def start_work(session: Session, image: answers.Upload, request: gradio.Request) -> Any:
        sessions[request.session_hash] = session
        return answers.start(session, image)

    def leave(request: gradio.Request) -> None:
        if (session := sessions.get(request.session_hash)) is not None:
            session.cancel()

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
                message = gradio.HTML(answers.WAITING, elem_id="message")
                overlay = gradio.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    elem_id="overlay",
                    buttons=["download", "fullscreen"],
                )
                opacity = gradio.Slider(0, 1, draw.OPACITY, label="Opacity", elem_id="opacity")
                table = gradio.HTML("", elem_id="regions")
        why = gradio.HTML("", elem_id="why")
        picture = gradio.Image(
            show_label=False,
            interactive=False,
            format="png",
            elem_id="explanation",
            buttons=["download", "fullscreen"],
            visible="hidden",
        )
        scores = gradio.HTML("", elem_id="scores")
        explanation = [why, picture, scores]
        shown = [message, overlay, table, *explanation]
        at_once: dict[str, Any] = dict(queue=False, show_progress="hidden")
        image.change(answers.choose, [state, image], shown, preprocess=False, **at_once)
        start.click(start_work, [state, image], shown, preprocess=False, **at_once).then(
            answers.segment,
            [state, image, names, opacity],
            shown,
            show_progress_on=overlay,
            preprocess=False,
        )
        stop.click(answers.cancel, state, message, **at_once)
        opacity.change(
            lambda session, opacity: session.draw_overlay(opacity),
            [state, opacity],
            overlay,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        overlay.select(answers.explain, state, explanation, show_progress_on=why)
        page.unload(leave)
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
        note = gradio.HTML("", elem_id="own-message")
        gallery = gradio.Gallery(
            show_label=False,
            columns=4,
            fit_columns=False,
            height=180,
            interactive=False,
            object_fit="contain",
            buttons=["fullscreen"],
            elem_id="gallery",
        )
        photograph.change(
            answers.show_photograph, photograph, [marked, chosen, note], preprocess=False
        )
        marked.select(answers.mark, photograph, [marked, chosen], preprocess=False)
        add.click(answers.add, [state, name, photograph, chosen], [gallery, note], preprocess=False)
        clear.click(answers.clear, state, [gallery, note])


def _add_upload(**options: Any) -> gradio.Image:
    """Add an image that a visitor uploads; what takes it must be listened to without preprocess."""
    return gradio.Image(type="filepath", sources=["upload", "clipboard"], **options)
