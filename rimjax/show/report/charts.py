"""The charts of a report, as JSON for plotly's script; the page adds the colours."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rimjax.evaluation import Evaluation
from rimjax.show.report.classes import ClassFigures, count_pixels

_LEAST_SHARE = -4
"""The palest colour of the confusion matrix: this power of 10, 0.01 %."""


def draw_classes(classes: Sequence[ClassFigures], miou: float) -> dict[str, Any]:
    """Draw the classes' IoU as bars with intervals, and the mIoU as a line."""
    bars = go.Bar(
        x=[100 * each.iou for each in classes],
        y=[
            _escape(each.name) + ("" if each.pixels else "<br>(not in the truth)")
            for each in classes
        ],
        orientation="h",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [
                100 * max(each.interval[1] - each.iou, 0) if each.interval else None
                for each in classes
            ],
            "arrayminus": [
                100 * max(each.iou - each.interval[0], 0) if each.interval else None
                for each in classes
            ],
            "thickness": 1.5,
            "width": 4,
        },
        hovertext=[_describe_class(each) for each in classes],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.add_vline(
        x=100 * miou,
        line={"dash": "dot", "width": 1.5},
        annotation={"text": f"mIoU {100 * miou:.1f}", "yanchor": "bottom"},
        annotation_position="top",
    )
    figure.update_layout(
        height=70 + 26 * len(classes),
        margin={"l": 10, "r": 20, "t": 26, "b": 40},
        xaxis={"title": {"text": "IoU (%)"}, "range": [0, 100], "fixedrange": True},
        yaxis={
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "fixedrange": True,
            "dtick": 1,
        },
        bargap=0.35,
    )
    return _as_json(figure)


def draw_confusion(evaluation: Evaluation) -> dict[str, Any]:
    """Draw the share of each true class's pixels that each class got, in logarithmic colours."""
    pixels, names = count_pixels(evaluation), [_escape(name) for name in evaluation.names]
    start = 0 if evaluation.background else 1
    shares = share_pixels(pixels)
    with np.errstate(divide="ignore"):
        colours = np.maximum(np.log10(shares), _LEAST_SHARE)
    texts = [
        [
            f"{names[t]} named {names[p]}<br>{100 * shares[t, p]:.2g} % of {names[t]}, "
            f"{pixels[t, p]:,} pixels"
            if pixels[t, p]
            else f"{names[t]} named {names[p]}: never"
            for p in range(len(names))
        ]
        for t in range(len(names))
    ]
    blank = np.where(pixels > 0, colours, np.nan)[start:]
    ticks = list(range(_LEAST_SHARE, 1))
    heatmap = go.Heatmap(
        z=[[None if np.isnan(value) else round(float(value), 4) for value in row] for row in blank],
        x=names,
        y=names[start:],
        text=texts[start:],
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=True,  # without it a click on an empty cell is no event
        zmin=_LEAST_SHARE,
        zmax=0,
        xgap=1,
        ygap=1,
        colorbar={
            "tickvals": ticks,
            "ticktext": [f"{100 * 10.0**power:g} %" for power in ticks],
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    axis = {"type": "category", "automargin": True, "fixedrange": True, "dtick": 1}
    figure = go.Figure(heatmap)
    figure.update_layout(
        height=160 + max(16, min(38, 700 // len(names))) * len(names),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={**axis, "title": {"text": "predicted", "standoff": 12}, "tickangle": -45},
        yaxis={**axis, "title": {"text": "true", "standoff": 12}, "autorange": "reversed"},
        dragmode=False,
    )
    return _as_json(figure)


def list_confusions(evaluation: Evaluation, most: int = 10) -> list[dict[str, Any]]:
    """List the pairs of classes that are confused most, by pixels; a share is of the true class."""
    pixels = count_pixels(evaluation).copy()
    shares = share_pixels(pixels)
    np.fill_diagonal(pixels, 0)
    order = np.argsort(-pixels, axis=None, kind="stable")[:most]
    pairs: Sequence[tuple[int, int]] = [divmod(int(index), len(pixels)) for index in order]
    return [
        {
            "truth": truth,
            "prediction": prediction,
            "share": float(shares[truth, prediction]),
            "pixels": int(pixels[truth, prediction]),
        }
        for truth, prediction in pairs
        if pixels[truth, prediction] > 0
    ]


def share_pixels(pixels: np.ndarray) -> np.ndarray:
    """Divide each row of a confusion matrix by its sum; a row of zeros stays."""
    return pixels / np.maximum(pixels.sum(1, keepdims=True), 1)


def _describe_class(figures: ClassFigures) -> str:
    """Describe a class's bar in plotly's markup."""
    name = _escape(figures.name)
    if not figures.pixels:
        return f"{name}: not in the truth<br>{figures.named:,} pixels are named so"
    interval = figures.interval
    return "<br>".join(
        [
            f"{name}: IoU {100 * figures.iou:.1f} %",
            f"95 %: {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
            if interval
            else "no interval, since only one image has it",
            f"in the truth: {figures.pixels:,} pixels, "
            f"{figures.images:,} image{'s' if figures.images != 1 else ''}",
        ]
    )


def _escape(name: str) -> str:
    """Escape a name for plotly, which draws a few HTML tags and entities in any text."""
    return html.escape(name, quote=False)


def _as_json(figure: go.Figure) -> dict[str, Any]:
    """Return a figure without plotly's own colours and fonts, as JSON content."""
    figure.update_layout(template="none")
    return json.loads(str(figure.to_json()))
