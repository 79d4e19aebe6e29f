"""SAM's mask decoder over many points of one image, without projecting the image for each point.

segment-anything decodes a point as if its image tokens were its own: it projects all L = 4096 of
them to keys, values and queries in every layer, though only a handful of prompt tokens face them.
Here, with X the image tokens of a point [L, C], E their positional encoding, t prompt tokens and
heads h of size d:

Tokens attend to the image. The key's projection folds into the queries, and the value's projection
moves behind the weighted sum, since attention is linear in both:

    scores = q_h ((X + E) W_k + b_k)_h^T = (q_h W_k,h^T) X^T + q_h (E W_k + b_k)_h^T
    output = softmax(scores) (X W_v + b_v)_h = (softmax(scores) X) W_v,h + b_v,h

so that X is multiplied by t * heads rows of size C instead of two C x C/2 matrices; E W_k + b_k is
the same for every point. The image attends to tokens in the same way: q's projection folds into the
keys, and the output's projection into the values.

    scores = X (W_q,h k_h^T) + (E W_q + b_q)_h k_h^T
    output = sum over h of softmax(scores_h) (v_h W_o,h) + b_o

In the first layer X is the same for every point, so its keys, values and queries are projected once
an image.

Masks. The predicted IoUs come from tokens alone, so only points with a mask that passes are
upscaled. The two transposed convolutions have stride and kernel 2: each is a matrix product of
every token, here on channels-last tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Bytes of the image's tokens, and of upscaled tokens, held at once on a CPU: a cache's size.
MAX_DECODED, MAX_UPSCALED = 1 << 24, 1 << 23


class Decoded(NamedTuple):
    """What the decoder makes of B prompts before any mask.

    Attributes:
        tokens: of the four masks, [B, 4, C]: the single mask, then the three of "multimask".
        image: the image's tokens, [B, L, C].
        ious: predicted IoUs, float32[B, 4].
    """

    tokens: Tensor
    image: Tensor
    ious: Tensor


class ImageDecoder:
    """The mask decoder of one image.

    Args:
        model: segment-anything's `Sam`.
        embedding: of the image, from its encoder: [1, C, h, w].
    """

    def __init__(self, model: Any, embedding: Tensor) -> None:
        self._prompts, self._decoder = model.prompt_encoder, model.mask_decoder
        self._transformer = model.mask_decoder.transformer
        grid = embedding.shape[-2:]
        dense = self._prompts.no_mask_embed.weight.reshape(1, -1, 1, 1).to(embedding.dtype)
        self._tokens = _flatten(embedding + dense)[0]
        self._grid = grid
        position = _flatten(self._prompts.get_dense_pe())[0].to(embedding.dtype)
        layers = self._transformer.layers
        keyed = self._tokens + position
        first = layers[0].cross_attn_token_to_image
        self._first_keys = _transpose(first.k_proj(keyed), first.num_heads)
        self._first_values = _split(first.v_proj(self._tokens)[None], first.num_heads)[0]
        later = [layer.cross_attn_token_to_image for layer in layers[1:]]
        self._position_keys = [
            _transpose(attention.k_proj(position), attention.num_heads)
            for attention in (*later, self._transformer.final_attn_token_to_image)
        ]
        # Of the image itself in the first layer, and of its positions alone in the others.
        backward = [layer.cross_attn_image_to_token for layer in layers]
        self._queries = [
            _transpose(attention.q_proj(position if index else keyed), attention.num_heads)
            for index, attention in enumerate(backward)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self._tokens.dtype

    def choose_batch(self) -> int:
        """Return how many points to decode at once.

        On a CPU as many as have their tokens in its cache; elsewhere up to 64, as many as a GPU's
        free memory holds 16 times the tokens of.
        """
        each, device = self._tokens.numel() * self._tokens.element_size(), self._tokens.device
        if device.type == "cpu":
            return max(1, MAX_DECODED // each)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 64 * 16 * each
        return max(1, min(64, free // (16 * each)))

    def decode(self, points: Tensor, labels: Tensor, boxes: Tensor | None = None) -> Decoded:
        """Decode prompts as far as the predicted IoUs.

        Args:
            points: [B, n, 2], x and y in pixels of the resized image; n may be 0 with boxes.
            labels: [B, n], 1 for points on the object.
            boxes: [B, 4], x0, y0, x1, y1 in pixels of the resized image; None: points alone.
        """
        given = (points, labels) if points.shape[1] else None
        sparse = self._prompts(points=given, boxes=boxes, masks=None)[0]
        sparse = sparse.to(self._tokens.dtype)
        decoder = self._decoder
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        prompt = torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)
        queries, image = prompt, self._tokens
        for index, layer in enumerate(self._transformer.layers):
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(q=queries, k=queries, v=queries)
            else:
                q = queries + prompt
                queries = queries + layer.self_attn(q=q, k=q, v=queries)
            queries = layer.norm1(queries)
            attention = layer.cross_attn_token_to_image
            if index == 0:
                attended = self._attend_first(attention, queries + prompt)
            else:
                position = self._position_keys[index - 1]
                attended = _attend_to_image(attention, queries + prompt, image, position)
            queries = layer.norm2(queries + attended)
            queries = layer.norm3(queries + layer.mlp(queries))
            attention = layer.cross_attn_image_to_token
            position = self._queries[index]
            image = _attend_to_tokens(attention, image, position, queries + prompt, queries, index)
            image = layer.norm4(image)
        attention = self._transformer.final_attn_token_to_image
        attended = _attend_to_image(attention, queries + prompt, image, self._position_keys[-1])
        queries = self._transformer.norm_final_attn(queries + attended)
        ious = decoder.iou_prediction_head(queries[:, 0])
        return Decoded(queries[:, 1 : 1 + decoder.num_mask_tokens], image, ious.float())

    def upscale(self, decoded: Decoded, wanted: Tensor) -> Tensor:
        """Compute the wanted masks' logits at a quarter of the resized image's size.

        Args:
            decoded: from `decode`.
            wanted: bool[B, 4].

        Returns:
            float32[M, 4 h, 4 w], the wanted masks in order.
        """
        tokens, image, _ = decoded
        first, norm, activate, second, activate_last = self._decoder.output_upscaling
        heads, (height, width) = self._decoder.output_hypernetworks_mlps, self._grid
        chosen = wanted.any(dim=1).nonzero()[:, 0]
        if not len(chosen):
            return tokens.new_zeros(0, 4 * height, 4 * width, dtype=torch.float32)
        together = len(chosen)
        if image.device.type == "cpu":
            together = max(1, MAX_UPSCALED // (2 * image[0].numel() * image.element_size()))
        masks = []
        for points in chosen.split(together):
            # Rows are tokens, then quarters of tokens, then quarters of these: every step is
            # pointwise, so only the masks are put in the order of pixels.
            x = _deconvolve(first, image[points].flatten(0, 1))
            x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
            x = activate_last(_deconvolve(second, activate(x)))
            x = x.unflatten(0, (len(points), -1)).transpose(1, 2)
            own = [head(tokens[points, mask]) for mask, head in enumerate(heads)]
            parts = (torch.stack(own, dim=1) @ x)[wanted[points]]
            parts = parts.reshape(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
            masks.append(parts.reshape(-1, 4 * height, 4 * width).float())
        return torch.cat(masks)

    def _attend_first(self, attention: Any, q: Tensor) -> Tensor:
        """Tokens attend to the image of the first layer, which all points share."""
        heads = attention.num_heads
        q = _split(attention.q_proj(q), heads)
        size = q.shape[-1]
        scores = (q / size**0.5) @ self._first_keys
        return attention.out_proj(_join(scores.softmax(-1) @ self._first_values))


def _attend_to_image(attention: Any, q: Tensor, image: Tensor, position: Tensor) -> Tensor:
    heads = attention.num_heads
    q = _split(attention.q_proj(q), heads)
    q = q / q.shape[-1] ** 0.5
    batch, _, tokens, _ = q.shape
    folded = q @ attention.k_proj.weight.reshape(heads, -1, image.shape[-1])
    scores = (q @ position).flatten(1, 2)
    scores.baddbmm_(folded.flatten(1, 2), image.transpose(-1, -2))
    mean = (scores.softmax(-1) @ image).reshape(batch, heads, tokens, -1)
    values = mean @ attention.v_proj.weight.reshape(heads, -1, image.shape[-1]).transpose(-1, -2)
    return attention.out_proj(_join(values) + attention.v_proj.bias)


def _attend_to_tokens(
    attention: Any, image: Tensor, position: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    """Return the image's tokens with what they attend to added, past the first layer in place."""
    heads = attention.num_heads
    keys, values = (
        _split(project(x), heads) for project, x in ((attention.k_proj, k), (attention.v_proj, v))
    )
    keys = keys / keys.shape[-1] ** 0.5
    scores = (keys @ position).flatten(1, 2)  # [B, heads * t, L]
    if layer:
        folded = keys @ attention.q_proj.weight.reshape(heads, -1, image.shape[-1])
        scores.baddbmm_(folded.flatten(1, 2), image.transpose(-1, -2))
    weights = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
    output = attention.out_proj.weight.T.reshape(heads, -1, attention.out_proj.out_features)
    # The weights of a head add up to 1: its share of the bias goes into its values.
    moved = (values @ output + attention.out_proj.bias / heads).flatten(1, 2)
    if layer:
        return image.baddbmm_(weights.transpose(-1, -2), moved)
    return torch.baddbmm(image.expand(len(moved), -1, -1), weights.transpose(-1, -2), moved)


def _deconvolve(layer: Any, x: Tensor) -> Tensor:
    """Apply a transposed convolution of kernel and stride 2 to tokens [n, C]: [4 n, C']."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, layer.bias.repeat(4)).reshape(4 * len(x), -1)


def _flatten(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _transpose(x: Tensor, heads: int) -> Tensor:
    """Return tokens [L, heads * d] as [heads, d, L], laid out for products from the left."""
    return x.unflatten(-1, (heads, -1)).permute(1, 2, 0).contiguous()


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
