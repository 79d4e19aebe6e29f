"""Settings and configs refuse what they don't know, whatever the type checker is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jaxtyping
import pytest

from rimjax.models.diffusion import DiffusionConfig
from rimjax.models.vit import ViTConfig
from rimjax.models.vit_encoder import ViTEncoder
from rimjax.settings import (
    CONFIGURATIONS,
    MatchSettings,
    ReferenceSettings,
    SegmentSettings,
    name_configuration,
)


@pytest.fixture(autouse=True)
def without_type_checks() -> Iterator[None]:
    """Switch jaxtyping's checks off: these tests pass wrong values on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (SegmentSettings, "assembly", "foo"),
        (SegmentSettings, "on_top", "order"),
        (SegmentSettings, "similarity", "l2"),
        (SegmentSettings, "candidates", "some"),
        (MatchSettings, "score_map", "log"),
        (MatchSettings, "agent_policy", "best"),
        (MatchSettings, "num_agents", 0),
        (MatchSettings, "temperature", 0.0),
        (MatchSettings, "seed", 2**32),
        (ReferenceSettings, "num_images", 0),
        (ReferenceSettings, "threshold", 1.0),
        (ReferenceSettings, "whiten", -1),
        (ReferenceSettings, "seed", -1),
        (DiffusionConfig, "scheduler", "euler"),
        (DiffusionConfig, "normalise", "step"),
        (DiffusionConfig, "dtype", "int8"),
        (DiffusionConfig, "precision", "low"),
        (partial(ViTEncoder, {}, ViTConfig()), "resize", "crop"),
        (ViTConfig, "activation", "relu"),
        (ViTConfig, "position_rule", "timm"),
        (ViTConfig, "dtype", "float64"),
    ],
)
def test_values_out_of_range_are_refused(
    kind: Callable[..., object], name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}|got '{value}'"):
        kind(**{name: value})


def test_configurations_adjust_reference_settings() -> None:
    settings = CONFIGURATIONS["rimjax"].adjust(ReferenceSettings(num_images=3))
    assert (settings.num_images, settings.num_subcategories, settings.whiten) == (3, 1, 1.0)
    assert settings.centre == 0.5
    assert CONFIGURATIONS["paper"].segmentation == SegmentSettings()


def test_settings_are_named_by_their_configuration() -> None:
    for name in ("rimjax", "printed"):
        configuration = CONFIGURATIONS[name]
        adjusted = configuration.adjust(ReferenceSettings(num_images=3))
        assert name_configuration(adjusted, configuration.segmentation) == name
    own = SegmentSettings(num_agents=3)
    assert name_configuration(ReferenceSettings(), own) == "custom"
    assert CONFIGURATIONS["paper"] == CONFIGURATIONS["printed"]
