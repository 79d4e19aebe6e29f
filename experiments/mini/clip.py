"""Train the mini CLIP, whose text tower Stable Diffusion reads, by contrast on captioned images.

Command:  python experiments/mini/clip.py
Hardware: 2 CPU cores, about 6 minutes
Data:     Fashion-MNIST's training split on textured grounds: half single items, half pairs of items
          of different classes. Captions such as "a photo on striped ground of red sneaker of bag".
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Losses, parse_arguments, scale_pixels, train
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from rimjax.datasets import fashion_mnist, fashion_scenes

LENGTH = 14
BATCH = 64
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "projection_dim": 64,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer of the captions' words, which pads on the left.

    There is no end token: the last word of a caption, which ends with the class name, stands for
    the sentence. With an end token and padding on the right, the causal text encoder wrote the
    class into those tokens, the UNet attended to them, and attention to the class name was flat.
    """
    words = ["a", "photo", "of", "on", "ground", *fashion_scenes.TINTS, *fashion_scenes.GROUNDS]
    words += [word for name in fashion_mnist.CLASSES for word in name.split()]
    tokens = ["<start>", "<pad>", "<unknown>", *dict.fromkeys(words)]
    vocabulary = {word: index for index, word in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<start>",
        unk_token="<unknown>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=LENGTH,
    )


def build() -> CLIPModel:
    text = {
        "vocab_size": len(make_tokenizer()),
        "max_position_embeddings": LENGTH,
        "num_hidden_layers": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {"image_size": 64, "patch_size": 8, "num_hidden_layers": 3}
    config = CLIPConfig(
        text_config={**TOWER, **text}, vision_config={**TOWER, **vision}, projection_dim=64
    )
    return CLIPModel(config)


def render_captioned(
    rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, count: int
) -> tuple[fashion_scenes.Scene, str]:
    """Render an item, or two items of different classes, with the caption."""
    items = tuple(int(item) for item in rng.integers(len(photos), size=count))
    while count == 2 and classes[items[0]] == classes[items[1]]:
        items = tuple(int(item) for item in rng.integers(len(photos), size=count))
    return fashion_scenes.render_captioned(rng, photos, classes, items)


def compute_contrast(model: CLIPModel, pairs: list[tuple[np.ndarray, str]]) -> Losses:
    """Compute CLIP's loss, and how often an image's own caption is the nearest.

    Args:
        model: the CLIP.
        pairs: images uint8[64, 64, 3] with their captions.
    """
    captions = [caption for _, caption in pairs]
    tokens = make_tokenizer()(captions, padding="max_length", return_tensors="pt")
    pixels: Any = scale_pixels(np.stack([image for image, _ in pairs]))
    image = F.normalize(model.get_image_features(pixel_values=pixels), dim=1)
    last = model.text_model(input_ids=tokens["input_ids"]).last_hidden_state[:, -1]
    text = F.normalize(model.text_projection(last), dim=1)
    similarity = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(pairs))
    both = F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)
    return {"loss": both / 2, "top1": (similarity.argmax(1) == target).float().mean()}


def main() -> None:
    options = parse_arguments(__doc__, steps=1200)
    photos, classes = fashion_mnist.read_idx("train", options.data)
    torch.manual_seed(options.seed)
    model = build()

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        pairs = [render_captioned(rng, photos, classes, 1 + index % 2) for index in range(BATCH)]
        return compute_contrast(model, [(scene.image, caption) for scene, caption in pairs])

    train("clip", model, compute_losses, options, learning_rate=1e-3)


if __name__ == "__main__":
    main()
