"""Train the mini CLIP whose text tower Stable Diffusion reads, by contrast on (image, caption) pairs.

Command:  python experiments/mini/clip.py       Hardware: 2 CPU cores, about 6 minutes.
Data:     Fashion-MNIST's training split on textured grounds, half of it single items and half pairs of unlike ones, captions such as
          "a photo on striped ground of red sneaker of bag".
"""

import numpy as np
import torch
from common import arguments, pixels, train
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from rimjax.datasets import fashion_scenes

LENGTH = 14
BATCH = 64
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, over exactly the words of the captions, which end with the class name; padded on the left.

    There is no end token: the caption's last word takes its place as the sum of the sentence. With an end token and padding on the
    right the causal text encoder wrote the class into those, the UNet looked there, and attention to the class's own name was flat.
    """
    words = ["a", "photo", "of", "on", "ground", *fashion_scenes.TINTS, *fashion_scenes.GROUNDS]
    words += [word for name in fashion_scenes.CLASSES for word in name.split()]
    vocabulary = {word: index for index, word in enumerate(["<start>", "<pad>", "<unknown>", *dict.fromkeys(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<start>",
        unk_token="<unknown>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=LENGTH,
    )


def build() -> CLIPModel:
    text = {"vocab_size": len(tokenizer()), "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": 64, "patch_size": 8, "num_hidden_layers": 3}
    return CLIPModel(
        CLIPConfig(text_config={**TOWER, **text, "num_hidden_layers": 2}, vision_config={**TOWER, **vision}, projection_dim=64)
    )


def captioned(rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, count: int) -> tuple[fashion_scenes.Scene, str]:
    """A rendered image of one item, or of two of different classes, and its caption."""
    items = tuple(int(item) for item in rng.integers(len(photos), size=count))
    while count == 2 and classes[items[0]] == classes[items[1]]:
        items = tuple(int(item) for item in rng.integers(len(photos), size=count))
    return fashion_scenes.captioned(rng, photos, classes, items)


def contrast(model: CLIPModel, pairs: list[tuple[np.ndarray, str]]) -> dict[str, torch.Tensor]:
    """CLIP's loss on images uint8[64, 64, 3] and their captions, and how often an image's own caption is its nearest."""
    tokens = tokenizer()([caption for _, caption in pairs], padding="max_length", return_tensors="pt")
    image = torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels(np.stack([image for image, _ in pairs]))), dim=1)
    last = model.text_model(input_ids=tokens["input_ids"]).last_hidden_state[:, -1]
    similarity = model.logit_scale.exp() * image @ torch.nn.functional.normalize(model.text_projection(last), dim=1).T
    target = torch.arange(len(pairs))
    both = torch.nn.functional.cross_entropy(similarity, target) + torch.nn.functional.cross_entropy(similarity.T, target)
    return {"loss": both / 2, "top1": (similarity.argmax(1) == target).float().mean()}


def main() -> None:
    options = arguments(__doc__, steps=1200)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    torch.manual_seed(options.seed)
    model = build()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        pairs = [captioned(rng, photos, classes, 1 + index % 2) for index in range(BATCH)]
        return contrast(model, [(scene.image, caption) for scene, caption in pairs])

    train("clip", model, loss, options, learning_rate=1e-3)


if __name__ == "__main__":
    main()
