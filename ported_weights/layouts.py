"""How published ViT state dicts name their weights: a `Layout` yields config and rule table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ported_weights.rules import (
    Rule,
    apply,
    check_fit,
    take_first,
    transpose_convolution,
    transpose_linear,
)
from ported_weights.vit import ViTConfig, param_shapes


@dataclass(frozen=True)
class Layout:
    """The names of a source's ViT. A name "a" stands for the keys "a.weight" and "a.bias".

    Attributes:
        class_token: whole key.
        position_embedding: whole key; [1, 1 + N, D] or [1 + N, D], the class token's row first.
            None: positions are rotary.
        patch_embedding: a convolution, with a bias unless `settings` has `patch_bias=False`.
        layers: prefix of a layer's number, with the dot; the names below stand within a layer.
        norms: before the attention and before the MLP.
        attention: query, key and value; or a prefix that "weight" and "bias" complete to the keys
            of all three fused.
        out: after the attention.
        mlp: the two dense layers.
        scales: whole keys of the two LayerScales, if any.
        pre_norm: the LayerNorm before the first layer, if any.
        token: transform of the class token to [1, D].
        settings: fields of the `ViTConfig` that the shapes don't determine.
        extra: rules for weights that only this source has.
        unused: patterns of keys outside of the layers that the last layer's keys don't depend on.
    """

    class_token: str
    position_embedding: str | None
    patch_embedding: str
    layers: str
    norms: tuple[str, str]
    attention: tuple[str, str, str] | str
    out: str
    mlp: tuple[str, str]
    scales: tuple[str, str] | None = None
    pre_norm: str | None = None
    token: Callable[[np.ndarray], Sequence[np.ndarray]] = take_first
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[Rule, ...] = ()
    unused: tuple[str, ...] = ()


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
"""The layout of facebookresearch and timm; DINOv2 and MAE add to it."""


def detect_layout(layouts: Sequence[Layout], state_dict: Mapping[str, Any]) -> Layout:
    """Return the layout that names the most layers' keys of a state dict; of equals the first."""
    return max(layouts, key=lambda layout: sum(key.startswith(layout.layers) for key in state_dict))


def infer_config(
    layout: Layout, state_dict: Mapping[str, Any], num_heads: int | None, expected: str
) -> ViTConfig:
    """Infer the config from the shapes in a state dict.

    Args:
        layout: the state dict's layout.
        state_dict: arrays or tensors.
        num_heads: number of heads; default: a head for every 64 features.
        expected: the model in words, for the message if the state dict is something else.

    Raises:
        ValueError: a key that decides is missing or has the wrong number of axes, or `num_heads`
            is needed or doesn't fit.
    """
    patch_key = f"{layout.patch_embedding}.weight"
    fc1_key = f"{layout.layers}0.{layout.mlp[0]}.weight"
    norm_key = f"{layout.layers}0.{layout.norms[0]}.weight"
    needed = (patch_key, layout.position_embedding, norm_key)
    missing = [key for key in needed if key is not None and key not in state_dict]
    if missing:
        raise ValueError(f"state_dict must be {expected}, got one without {', '.join(missing)}")
    hidden, _, _, patch = get_shape(state_dict, patch_key, 4)
    if num_heads is None and hidden % 64:
        raise ValueError(f"num_heads must be given: {hidden} features aren't a multiple of 64")
    positions = 32**2  # without an embedding no size is special
    if layout.position_embedding is not None:
        positions = max(get_shape(state_dict, layout.position_embedding, 2, 3)[-2] - 1, 1)
    mlp = get_shape(state_dict, fc1_key, 2)[0] if fc1_key in state_dict else 4 * hidden
    number = re.compile(re.escape(layout.layers) + r"(\d+)\.")
    numbers = [int(match[1]) for key in state_dict if (match := number.match(key))]
    flags = {"layer_scale": layout.scales is not None, "pre_norm": layout.pre_norm is not None}
    try:
        return ViTConfig(
            hidden_size=hidden,
            num_layers=1 + max(numbers),
            num_heads=num_heads or hidden // 64,
            mlp_ratio=mlp / hidden,
            patch_size=patch,
            image_size=round(positions**0.5) * patch,
            **flags,
            **layout.settings,
        )
    except ValueError as error:
        raise ValueError(f"state_dict: {patch_key} gives a ViT whose {error}") from error


def port_state(
    layout: Layout, state_dict: Mapping[str, Any], config: ViTConfig, *, widen_halves: bool = False
) -> dict[str, Any]:
    """Return a ViT's parameters from a state dict in the layout; raises as `rules.apply`.

    Most of the last layer isn't used, so no parameter shows whether it is complete: it must have
    the keys and shapes of the first layer.
    """
    last = config.num_layers - 1
    rules = build_rules(layout, last)
    params = apply(rules, state_dict, param_shapes(config), widen_halves=widen_halves)
    first_prefix, last_prefix = f"{layout.layers}0.", f"{layout.layers}{last}."
    check_fit(
        {key: value for key, value in state_dict.items() if key.startswith(last_prefix)},
        {
            last_prefix + key.removeprefix(first_prefix): value
            for key, value in state_dict.items()
            if key.startswith(first_prefix)
        },
    )
    return params


def get_shape(state_dict: Mapping[str, Any], key: str, *axes: int) -> tuple[int, ...]:
    """Return a weight's shape; raise ValueError unless it has that many axes, none empty."""
    shape = tuple(state_dict[key].shape)
    if len(shape) not in axes or 0 in shape:
        expected = f"{' or '.join(map(str, axes))} axes, none of length 0"
        raise ValueError(f"state_dict: {key} must have {expected}, got {list(shape)}")
    return shape


def build_rules(layout: Layout, last: int) -> list[Rule]:
    """Return a layout's rule table; of the last layer only the weights that its keys need count.

    Args:
        layout: the source's names.
        last: number of the last layer.
    """
    escape = re.escape
    any_layer = rf"{escape(layout.layers)}(\d+)\."
    last_layer = rf"{escape(layout.layers)}({last})\."
    early_layer = rf"{escape(layout.layers)}(?!{last}\.)(\d+)\."
    table = [
        Rule(escape(layout.class_token), ("class_token",), layout.token),
        Rule(
            rf"{escape(layout.patch_embedding)}\.weight",
            ("patch_embedding/kernel",),
            transpose_convolution,
        ),
        *_map_norm(any_layer + escape(layout.norms[0]), r"layers_\1/norm1"),
        *_map_norm(early_layer + escape(layout.norms[1]), r"layers_\1/norm2"),
        *_map_dense(early_layer + escape(layout.out), r"layers_\1/out"),
        *_map_dense(early_layer + escape(layout.mlp[0]), r"layers_\1/fc1"),
        *_map_dense(early_layer + escape(layout.mlp[1]), r"layers_\1/fc2"),
        *layout.extra,
        *(
            Rule(rf"{last_layer}{escape(part)}\.(weight|bias)")
            for part in (layout.out, layout.norms[1], *layout.mlp)
        ),
        *map(Rule, layout.unused),
    ]
    if layout.position_embedding is not None:
        position = escape(layout.position_embedding)
        table.append(Rule(position, ("position_embedding",), take_first))
    if layout.settings.get("patch_bias", True):
        table.append(Rule(rf"{escape(layout.patch_embedding)}\.bias", ("patch_embedding/bias",)))
    if layout.pre_norm is not None:
        table += _map_norm(escape(layout.pre_norm), "pre_norm")
    for number, scale in enumerate(layout.scales or (), 1):
        table.append(Rule(early_layer + escape(scale), (rf"layers_\1/scale{number}",)))
        table.append(Rule(last_layer + escape(scale)))
    if isinstance(layout.attention, str):
        fused = escape(layout.attention)
        for source, leaf in (("weight", "kernel"), ("bias", "bias")):
            targets = tuple(rf"layers_\1/{part}/{leaf}" for part in ("query", "key", "value"))
            table.append(Rule(early_layer + fused + source, targets, _split_thirds))
            table.append(Rule(last_layer + fused + source, targets[1:2], _take_middle_third))
    else:
        query, key, value = map(escape, layout.attention)
        table += _map_dense(early_layer + query, r"layers_\1/query")
        table += _map_dense(early_layer + value, r"layers_\1/value")
        table += _map_dense(any_layer + key, r"layers_\1/key")
        table.append(Rule(rf"{last_layer}({query}|{value})\.(weight|bias)"))
    return table


def _map_norm(source: str, target: str) -> list[Rule]:
    bias = Rule(source + r"\.bias", (f"{target}/bias",))
    return [Rule(source + r"\.weight", (f"{target}/scale",)), bias]


def _map_dense(source: str, target: str) -> list[Rule]:
    bias = Rule(source + r"\.bias", (f"{target}/bias",))
    return [Rule(source + r"\.weight", (f"{target}/kernel",), transpose_linear), bias]


def _split_thirds(array: np.ndarray) -> Sequence[np.ndarray]:
    return [third.T for third in np.split(array, 3)]


def _take_middle_third(array: np.ndarray) -> Sequence[np.ndarray]:
    return (np.split(array, 3)[1].T,)
