"""Write a report as one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rimjax.evaluation import Evaluation
from rimjax.files import write_text
from rimjax.show import draw
from rimjax.show.report import charts
from rimjax.show.report.classes import count_pixels, list_classes
from rimjax.show.report.contents import Contents
from rimjax.show.report.pictures import (
    IMAGE_BYTES,
    encode_image,
    encode_references,
    find_examples,
    find_mistake,
    order_images,
)

_LONGEST_LIST = 12
"""Of more classes, the table and each class's references are shown only when they are opened."""


def write_report(contents: Contents, path: Path) -> list[str]:
    """Write a report.

    Args:
        contents: what it shows.
        path: the HTML file; it is replaced if it exists.

    Returns:
        What the report lacks, and why, a line each.

    Raises:
        ValueError: no image could be used, or every pixel is ignored.
        WriteError: the file can't be written.
    """
    text, missing = render_report(contents)
    write_text(path, text)
    return missing


def render_report(contents: Contents) -> tuple[str, list[str]]:
    """Return a report as HTML, and what it lacks; raises ValueError as `write_report`."""
    evaluation = contents.summarise()
    environment = Environment(
        loader=PackageLoader("rimjax.show.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    low, high = evaluation.estimate_interval()
    pixels = count_pixels(evaluation)
    classes = list_classes(evaluation, [contents.results[name] for name in contents.images])
    pictures, data = _collect_pictures(contents, evaluation)
    references = _collect_references(contents)
    confusions = charts.list_confusions(evaluation)
    text = template.render(
        description=contents.description,
        names=evaluation.names,
        miou=evaluation.miou,
        low=low,
        high=high,
        accuracy=np.trace(pixels) / pixels.sum(),
        num_images=len(evaluation.counts),
        num_classes=len(evaluation.per_class),
        bad=evaluation.bad,
        classes=classes,
        weakest=[each for each in classes if each.pixels][::-1][:3],
        untrue=[each for each in classes if not each.pixels],
        confusions=confusions,
        absent=[name for name, iou in evaluation.per_class.items() if iou is None],
        timings=evaluation.timings,
        slow_start=evaluation.slow_start,
        settings=dict(_flatten(contents.description.get("settings", {}))),
        pictures=pictures,
        references=references,
        is_short=len(contents.names) <= _LONGEST_LIST,
        data={
            **data,
            "names": evaluation.names,
            "colours": [_name_colour(rgb) for rgb in draw.pick_colours(len(contents.names))],
            "charts": {
                "classes": charts.draw_classes(classes, evaluation.miou),
                "confusion": charts.draw_confusion(evaluation),
            },
            "first": [confusions[0]["truth"], confusions[0]["prediction"]] if confusions else [],
        },
        plotly=Markup(get_plotlyjs()),
    )
    return text, _list_missing(pictures, references)


def _list_missing(pictures: Mapping[str, Any], references: Mapping[str, Any]) -> list[str]:
    """List what a report lacks, and why, a line each."""
    unreadable = pictures["unreadable"]
    lines = [f"no pictures: {pictures['reason']}"] if pictures["reason"] else []
    if unreadable and not lines:
        count = f"{len(unreadable)} image{'s' if len(unreadable) > 1 else ''}"
        lines.append(f"no picture of {count}: {unreadable[0]}")
    if references["reason"]:
        lines.append(f"no references: {references['reason']}")
    return lines


def _collect_pictures(
    contents: Contents, evaluation: Evaluation
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encode images; return what the page says about them, and the data of its script."""
    images, scores = contents.images, contents.score_images(evaluation)
    examples = find_examples(contents.results, images)
    worst, best, order = order_images(images, scores, examples)
    encoded: dict[str, Any] = {}
    unreadable: list[str] = []
    left, ious = IMAGE_BYTES, dict(zip(images, scores, strict=True))
    read, reason = contents.read, ""
    if isinstance(read, str):
        order, reason = [], read
    for name in order:
        assert not isinstance(read, str)
        try:
            labelled = read(name)
            content = encode_image(name, labelled, contents.names)
        except (ValueError, OSError) as error:
            unreadable.append(" ".join(str(error).split()))
            continue
        left -= sum(len(text) for text in content.values() if isinstance(text, str))
        if left < 0:
            break
        iou = ious[name]
        encoded[name] = {**content, "iou": None if np.isnan(iou) else round(float(iou), 4)}
        mistake = find_mistake(labelled) if name in worst else None
        if mistake is not None:
            true_class, named, point = mistake
            encoded[name]["mistake"] = [true_class, named]
            encoded[name]["command"] = contents.write_explain_command(name, point)
    if unreadable and not encoded:
        reason = f"no image can be read: {unreadable[0]}"
    said = {
        "reason": reason,
        "count": len(encoded),
        "sampled": len(encoded) + len(unreadable) < len(images),
        "unreadable": unreadable,
        "without_files": [name for name in worst if name in encoded and name not in contents.files],
        "has_best": any(name in encoded for name in best),
    }
    return said, {
        "images": encoded,
        "worst": [name for name in worst if name in encoded],
        "best": [name for name in best if name in encoded],
        "cells": {f"{truth},{guess}": found for (truth, guess), found in examples.items()},
    }


def _collect_references(contents: Contents) -> dict[str, Any]:
    if isinstance(contents.references, str):
        return {"reason": contents.references, "classes": []}
    try:
        classes = encode_references(contents.references, len(contents.names))
    except (ValueError, OSError) as error:
        return {"reason": f"the bank can't be read: {error}", "classes": []}
    return {"reason": "", "classes": classes}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _name_colour(rgb: np.ndarray) -> str:
    red, green, blue = rgb.tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
