"""The charts of a report, as JSON for plotly's script; the page adds the colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import bootstrap_class_intervals
from rimjax.types import BACKGROUND

_LEAST_SHARE = -4
"""The palest colour of the confusion matrix: this power of 10, 0.01 %."""


def sort_classes(evaluation: Evaluation) -> list[tuple[str, float, tuple[float, float]]]:
    """Return name, IoU and its 95 % interval of each class present, the best first."""
    ious = evaluation.counts.iou_per_class()
    bounds = bootstrap_class_intervals(evaluation.counts)
    rows = [
        (name, float(iou), (float(low), float(high)))
        for name, iou, (low, high) in zip(evaluation.names, ious, bounds, strict=True)
        if not np.isnan(iou) and (evaluation.background or name != BACKGROUND)
    ]
    return sorted(rows, key=lambda row: -row[1])


def draw_classes(evaluation: Evaluation) -> dict[str, Any]:
    """Draw the classes' IoU as bars with intervals, and the mIoU as a line."""
    names, ious, bounds = zip(*sort_classes(evaluation), strict=True)
    low, high = 100 * np.array(bounds).T
    values = 100 * np.array(ious)
    bars = go.Bar(
        x=values.tolist(),
        y=list(names),
        orientation="h",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.maximum(high - values, 0).tolist(),
            "arrayminus": np.maximum(values - low, 0).tolist(),
            "thickness": 1.5,
            "width": 4,
        },
        customdata=np.stack([low, high], axis=1).tolist(),
        hovertemplate="%{y}: IoU %{x:.1f} %<br>95 %: %{customdata[0]:.1f} to "
        "%{customdata[1]:.1f}<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.add_vline(
        x=100 * evaluation.miou,
        line={"dash": "dot", "width": 1.5},
        annotation={"text": f"mIoU {100 * evaluation.miou:.1f}", "yanchor": "bottom"},
        annotation_position="top",
    )
    figure.update_layout(
        height=70 + 26 * len(names),
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
    pixels, names = count_pixels(evaluation), list(evaluation.names)
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
        hoverongaps=False,
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
    """List the pairs of classes that are confused most, by the share of the true class's pixels."""
    pixels = count_pixels(evaluation)
    shares = share_pixels(pixels)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    pairs: Sequence[tuple[int, int]] = [divmod(int(index), len(shares)) for index in order]
    return [
        {
            "truth": truth,
            "prediction": prediction,
            "share": float(shares[truth, prediction]),
            "pixels": int(pixels[truth, prediction]),
        }
        for truth, prediction in pairs
        if shares[truth, prediction] > 0
    ]


def count_pixels(evaluation: Evaluation) -> np.ndarray:
    """Return the confusion matrix, int64[C, C]; without a background nothing is truly of it."""
    if evaluation.confusion is None:
        raise ValueError("evaluation must hold the confusion of all images, got counts only")
    return evaluation.confusion


def share_pixels(pixels: np.ndarray) -> np.ndarray:
    """Divide each row of a confusion matrix by its sum; a row of zeros stays."""
    return pixels / np.maximum(pixels.sum(1, keepdims=True), 1)


def _as_json(figure: go.Figure) -> dict[str, Any]:
    """Return a figure without plotly's own colours and fonts, as JSON content."""
    figure.update_layout(template="none")
    return json.loads(str(figure.to_json()))
