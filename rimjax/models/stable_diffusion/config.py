"""How Stable Diffusion draws images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ported_weights.choices import check_choices


@dataclass(frozen=True)
class DiffusionConfig:
    """How images are drawn. The paper gives the model and the template; the rest is our choice.

    Attributes:
        steps: steps of the sampler.
        guidance: scale of classifier-free guidance; the unconditional prompt is empty.
        template: the prompt, with `{}` for the class name.
        image_size: side of the images, pixels; None: the model's native size.
        attention_resolutions: average only the maps of these side lengths, e.g. (16, 32); None:
            every cross-attention layer (Eq. 3).
        batch_size: images drawn at once, fewer where memory runs out.
        scheduler: "dpmsolver++" is DPM-Solver++(2M); "ddim" its first order, which is DDIM; "pndm"
            is Stable Diffusion's own, meant for 50 steps: of N, it does the second twice.
        normalise: what is divided by its maximum in a layer (Eq. 3): the mean map of the "name", or
            each "token"'s map before their mean. A name of one token has the same map either way.
        vocabulary: the class names that the model was trained on, lower case; others are refused.
            None: any name that the tokenizer knows.
        dtype: of weights and activations; latents and attention are always float32.
        precision: of float32 matrix products; "highest" avoids TF32 and bfloat16 passes.
    """

    steps: int = 30
    guidance: float = 7.5
    template: str = "a photo of {}"
    image_size: int | None = None
    attention_resolutions: tuple[int, ...] | None = None
    batch_size: int = 8
    scheduler: Literal["dpmsolver++", "ddim", "pndm"] = "dpmsolver++"
    normalise: Literal["name", "token"] = "name"
    vocabulary: tuple[str, ...] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.template.count("{}") != 1:
            expected = "template must hold a single {} for the class name"
            raise ValueError(f"{expected}, got {self.template!r}")


def list_drawing_settings(config: DiffusionConfig) -> dict[str, Any]:
    """Return the settings that images depend on: all but the batch size.

    The default of `normalise` is left out, so that drawings from before it existed serve on.
    """
    ignored = {"batch_size"} | ({"normalise"} if config.normalise == "name" else set())
    return {name: value for name, value in asdict(config).items() if name not in ignored}
