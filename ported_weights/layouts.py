"""Where the published state dicts of ViTs keep their weights: a `Layout` gives the config and the rule table of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ported_weights.rules import Rule, apply, convolution, first, linear
from rimjax.models.vit import ViTConfig, param_shapes


@dataclass(frozen=True)
class Layout:
    """The names of one source's ViT. A name "a" stands for the keys "a.weight" and "a.bias" unless said otherwise.

    Attributes:
        class_token: whole key.
        position_embedding: whole key, [1, 1 + N, D] or [1 + N, D], the class token's first.
        patch_embedding: a convolution, with a bias unless `settings` say `patch_bias=False`.
        layers: what comes before a layer's number, with the dot; the other names below are those within a layer.
        norms: before the attention and before the MLP.
        attention: query, key and value; or one text, which with "weight" and "bias" behind it is the key of all three fused.
        out: after the attention.
        mlp: the two layers.
        scales: whole keys of the two LayerScales, where there are any.
        pre_norm: a LayerNorm before the first layer, where there is one.
        token: transform of the class token to [1, D].
        settings: of the `ViTConfig`, what the shapes don't tell.
        extra: rules for what only this source has.
        unused: patterns of keys that the keys of the last layer don't depend on, besides those within the layers.
    """

    class_token: str
    position_embedding: str
    patch_embedding: str
    layers: str
    norms: tuple[str, str]
    attention: tuple[str, str, str] | str
    out: str
    mlp: tuple[str, str]
    scales: tuple[str, str] | None = None
    pre_norm: str | None = None
    token: Callable[[np.ndarray], Sequence[np.ndarray]] = first
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[Rule, ...] = ()
    unused: tuple[str, ...] = ()


def seen(layouts: Sequence[Layout], state_dict: Mapping[str, Any]) -> Layout:
    """The layout that names the most layers' keys of a state dict; the first where none does."""
    return max(layouts, key=lambda layout: sum(key.startswith(layout.layers) for key in state_dict))


def config(layout: Layout, state_dict: Mapping[str, Any], num_heads: int | None, expected: str) -> ViTConfig:
    """The config that the shapes in a state dict tell of.

    Args:
        layout: that of the state dict.
        state_dict: arrays or tensors.
        num_heads: default: one for every 64 features.
        expected: in words, for the message where the state dict is something else.

    Raises:
        ValueError: a key that decides is missing or has the wrong number of axes, or num_heads must be given or doesn't
            fit.
    """
    patch_key = f"{layout.patch_embedding}.weight"
    fc1_key = f"{layout.layers}0.{layout.mlp[0]}.weight"
    absent = [key for key in (patch_key, layout.position_embedding, f"{layout.layers}0.{layout.norms[0]}.weight") if key not in state_dict]
    if absent:
        raise ValueError(f"state_dict: expected {expected}; missing: {', '.join(absent)}")
    hidden, _, _, patch = shape_of(state_dict, patch_key, 4)
    if num_heads is None and hidden % 64:
        raise ValueError(f"num_heads: must be given where the hidden size ({hidden}) is no multiple of 64")
    positions = max(shape_of(state_dict, layout.position_embedding, 2, 3)[-2] - 1, 1)
    mlp = shape_of(state_dict, fc1_key, 2)[0] if fc1_key in state_dict else 4 * hidden
    numbers = [int(match[1]) for key in state_dict if (match := re.match(re.escape(layout.layers) + r"(\d+)\.", key))]
    settings = {"layer_scale": layout.scales is not None, "pre_norm": layout.pre_norm is not None, **layout.settings}
    try:
        return ViTConfig(
            hidden_size=hidden,
            num_layers=1 + max(numbers),
            num_heads=num_heads or hidden // 64,
            mlp_ratio=mlp / hidden,
            patch_size=patch,
            image_size=round(positions**0.5) * patch,
            **settings,
        )
    except ValueError as error:
        raise ValueError(f"state_dict: {patch_key} has {hidden} features, and {error}") from error


def fill(layout: Layout, state_dict: Mapping[str, Any], config: ViTConfig, *, widen: bool = False) -> dict[str, Any]:
    """The parameters of a ViT from a state dict of the layout, as `rules.apply` takes and refuses it.

    Most of the last layer isn't used, so no leaf tells whether it is whole: it must have what the first has.
    """
    params = apply(rules(layout, config.num_layers - 1), state_dict, param_shapes(config), widen=widen)
    opening, closing = f"{layout.layers}0.", f"{layout.layers}{config.num_layers - 1}."
    problems = []
    for key in (key for key in state_dict if key.startswith(opening)):
        wanted, other = list(state_dict[key].shape), closing + key.removeprefix(opening)
        found = list(state_dict[other].shape) if other in state_dict else "missing"
        if found != wanted:
            problems.append(f"{other}: {found}, expected {wanted} as in the first layer")
    if problems:
        raise ValueError("state_dict: doesn't fit the model:\n  " + "\n  ".join(problems))
    return params


def shape_of(state_dict: Mapping[str, Any], key: str, *axes: int) -> tuple[int, ...]:
    shape = tuple(state_dict[key].shape)
    if len(shape) not in axes or 0 in shape:
        raise ValueError(f"state_dict: {key}: expected {' or '.join(map(str, axes))} axes, none of length 0, got shape {list(shape)}")
    return shape


def rules(layout: Layout, last: int) -> list[Rule]:
    """The rule table of a layout whose last layer has the number `last`; of that layer only what its keys need is used."""
    name = re.escape
    every, late = rf"{name(layout.layers)}(\d+)\.", rf"{name(layout.layers)}({last})\."
    early = rf"{name(layout.layers)}(?!{last}\.)(\d+)\."
    table = [
        Rule(name(layout.class_token), ("class_token",), layout.token),
        Rule(name(layout.position_embedding), ("position_embedding",), first),
        Rule(rf"{name(layout.patch_embedding)}\.weight", ("patch_embedding/kernel",), convolution),
        *_norm(every + name(layout.norms[0]), r"layers_\1/norm1"),
        *_norm(early + name(layout.norms[1]), r"layers_\1/norm2"),
        *_dense(early + name(layout.out), r"layers_\1/out"),
        *_dense(early + name(layout.mlp[0]), r"layers_\1/fc1"),
        *_dense(early + name(layout.mlp[1]), r"layers_\1/fc2"),
        *layout.extra,
        # Not used: what comes after the last layer's keys, and what the source's other parts need.
        *(Rule(rf"{late}{name(part)}\.(weight|bias)") for part in (layout.out, layout.norms[1], *layout.mlp)),
        *(Rule(pattern) for pattern in layout.unused),
    ]
    if layout.settings.get("patch_bias", True):
        table.append(Rule(rf"{name(layout.patch_embedding)}\.bias", ("patch_embedding/bias",)))
    if layout.pre_norm is not None:
        table += _norm(name(layout.pre_norm), "pre_norm")
    for number, scale in enumerate(layout.scales or (), 1):
        table += [Rule(early + name(scale), (rf"layers_\1/scale{number}",)), Rule(late + name(scale))]
    if isinstance(layout.attention, str):
        fused = name(layout.attention)
        for source, leaf in (("weight", "kernel"), ("bias", "bias")):
            targets = tuple(rf"layers_\1/{part}/{leaf}" for part in ("query", "key", "value"))
            table += [Rule(early + fused + source, targets, _thirds), Rule(late + fused + source, targets[1:2], _middle_third)]
    else:
        query, key, value = map(name, layout.attention)
        table += [*_dense(early + query, r"layers_\1/query"), *_dense(early + value, r"layers_\1/value")]
        table += [*_dense(every + key, r"layers_\1/key"), Rule(rf"{late}({query}|{value})\.(weight|bias)")]
    return table


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(source + r"\.weight", (f"{target}/scale",)), Rule(source + r"\.bias", (f"{target}/bias",))]


def _dense(source: str, target: str) -> list[Rule]:
    return [Rule(source + r"\.weight", (f"{target}/kernel",), linear), Rule(source + r"\.bias", (f"{target}/bias",))]


def _thirds(array: np.ndarray) -> Sequence[np.ndarray]:
    return [third.T for third in np.split(array, 3)]


def _middle_third(array: np.ndarray) -> Sequence[np.ndarray]:
    return (np.split(array, 3)[1].T,)


# facebookresearch's models, and timm's: DINOv2 and MAE add their own.
FACEBOOK_RESEARCH = Layout(
    class_token="cls_token",
    position_embedding="pos_embed",
    patch_embedding="patch_embed.proj",
    layers="blocks.",
    norms=("norm1", "norm2"),
    attention="attn.qkv.",
    out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    unused=(r"mask_token", r"norm\.(weight|bias)"),
)
