"""Wrong calls: each is refused by a ValueError that names the argument and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from fakes import fake_models
from scenes import make_scene

import rimjax
from ported_weights.vit import ViTConfig
from rimjax import datasets
from rimjax.evaluation import evaluate, metrics
from rimjax.images import read_image
from rimjax.match import (
    match,
    permutation_probabilities,
    permutation_similarity,
    relation_aware_similarity,
)
from rimjax.models.random_weights import make_vit
from rimjax.models.stable_diffusion import DiffusionConfig
from rimjax.models.vit_encoder import ViTEncoder
from rimjax.pipeline import name_regions
from rimjax.settings import ReferenceSettings, SegmentSettings
from rimjax.steps.assemble import paint, vote
from rimjax.steps.cluster import cluster_prototypes
from rimjax.steps.whiten import fit_whitening
from rimjax.types import ReferenceBank, Regions, Whitening, pad_regions

Call = Callable[[], object]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def without_type_checks() -> Iterator[None]:
    """Switch jaxtyping's checks off, as they are for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def bank() -> ReferenceBank:
    return ReferenceBank.create(np.eye(4), np.arange(4), np.eye(4), ("background", "a", "b", "c"))


ROWS = np.eye(4, dtype=np.float32)[:2]


def count_nothing() -> metrics.Counts:
    return metrics.Counts.from_confusions(np.zeros((1, 2, 2), int))


MASKS = np.ones((2, 3, 5), bool)
IMAGE = make_scene()[0]


def settings(kind: Any, **values: Any) -> list[tuple[Call, str]]:
    """One call for each value of each field."""
    return [
        (lambda name=name, value=value: kind(**{name: value}), rf"^{name} must .*got")
        for name, listed in values.items()
        for value in listed
    ]


def calls(function: Any, *arguments: Any, **wrong: Any) -> list[tuple[Call, str]]:
    """One call for each wrong value of each keyword; the message begins with the keyword."""
    return [
        (
            lambda name=name, value=value: function(*arguments, **{name: value}),
            rf"^(--)?{name} must ",
        )
        for name, listed in wrong.items()
        for value in listed
    ]


def bank_parts(**changes: Any) -> ReferenceBank:
    names = ("background", "a", "b", "c")
    parts: dict[str, Any] = dict(prototypes=np.eye(4), owners=range(4), classes=np.eye(4))
    return ReferenceBank.create(**{**parts, "owners": np.arange(4), "names": names, **changes})


def build(**options: Any) -> object:
    """Build a bank in the test's own cache: names and models that fit, with some options."""
    options = {"names": ["apple"], **options}
    return rimjax.build_bank(options.pop("names"), fake_models(), **options)


SETTINGS = [
    *settings(
        ReferenceSettings,
        num_images=(0, -1, NAN, "2", 2.5, 2.0, True, None),
        threshold=(-0.1, 1, 1.5, NAN, "0.7", None, True),
        num_points=(0, -3, 1.5, "5"),
        num_subcategories=(0, -1, 1.5, None),
        foreground_mask=("no", 0, None),
        background_mask=("", 1),
        background_subcategories=(0, -2, 1.5, "1", True),
        centre=(-0.1, 1.1, NAN, "0", None),
        whiten=(-1, NAN, INF, None, "1", True, np.ones(1)),
        seed=(-1, 2**32, 10**20, 1.5, "1", None, True),
    ),
    *settings(
        SegmentSettings,
        num_agents=(0, -1, NAN),
        score_map=("exp2", "", None),
        temperature=(0, -1, NAN),
        measure=("dot", ""),
        similarity=("relations", "", None),
        relation_weight=(-0.1, NAN),
        class_score=("median", ""),
        candidates=("some", ""),
        agent_policy=("best", ""),
        agent_source=("class", ""),
        seed=(-1, 2**32, 1.5, "1", None),
        assembly=("draw", "", None),
        on_top=("size", "", None),
    ),
    *settings(
        DiffusionConfig,
        steps=(0, -1),
        batch_size=(0, -4),
        template=("a photo", "{} {}", ""),
        scheduler=("euler", ""),
        normalise=("all", ""),
        dtype=("float64", "int8"),
        precision=("low", ""),
    ),
    *settings(
        ViTConfig,
        hidden_size=(770,),
        image_size=(500,),
        activation=("relu", ""),
        position_rule=("none", ""),
        dtype=("float16",),
        precision=("low",),
    ),
]

MATCHING = [
    *calls(
        match,
        ROWS,
        bank(),
        num_agents=(0, -1, 2.5, "4", 99),
        score_map=("exp2", None),
        temperature=(0, -1, NAN, INF, "1"),
        similarity=("dot",),
        relation_weight=(-1, NAN),
        measure=("dot",),
        class_score=("median",),
        candidates=("top",),
        method=("slow",),
        agent_policy=("best",),
        agent_source=("class",),
        background_agent=("yes", 2),
        top_k=(0, -1, 2.5, "3"),
        max_bytes=(0, -1, 10, "1 GB", NAN),
        allowed=(np.ones(3, bool), np.zeros(4, bool), np.ones(4)),
    ),
    (lambda: match(ROWS[:, :3], bank()), "must have the feature size"),
    (lambda: match(ROWS[0], bank()), "^regions must have shape"),
    (lambda: match(ROWS.astype(int), bank()), "^regions must hold floats"),
    (lambda: match([[1.0, 2.0]], bank()), "^regions must be an array"),  # pyright: ignore[reportArgumentType]
    (lambda: match(ROWS * NAN, bank()), "^regions must be finite"),
    (lambda: match(np.full_like(ROWS, INF), bank()), "^regions must be finite"),
    (lambda: match(ROWS, None), "^bank must be a ReferenceBank"),  # pyright: ignore[reportArgumentType]
    (lambda: match(ROWS, ROWS), "^bank must be a ReferenceBank"),  # pyright: ignore[reportArgumentType]
    (lambda: match(Regions(ROWS, None, np.ones(3, bool)), bank()), "^regions.valid must hold"),
    (lambda: match(Regions(ROWS, None, np.ones(2)), bank()), "^regions.valid must hold"),
    (lambda: match(ROWS, bank(), agent_policy="random"), "^key must be a single random key"),
    (lambda: match(ROWS, bank(), agent_policy="random", key=3), "^key must be"),  # pyright: ignore[reportArgumentType]
    *calls(
        relation_aware_similarity,
        *(ROWS, np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)),
        num_agents=(0, 99),
        score_map=("exp2",),
        measure=("dot",),
        method=("slow",),
        max_bytes=(0, 10),
    ),
    *(
        (lambda bad=bad: permutation_similarity(np.array(bad), np.ones(2)), r"\bs must")
        for bad in ([NAN, 1], [INF, 1], [-0.1, 1], [[1.0, 2.0]], [], np.ones(17))
    ),
    *(
        (lambda bad=bad: permutation_probabilities(np.array(bad)), r"\bscores must")
        for bad in ([NAN, 1], [-0.1, 1], [[1.0, 2.0]], np.ones(17))
    ),
]

BANKS = [
    *calls(
        bank_parts,
        prototypes=(np.ones(4), np.full((4, 4), NAN), np.zeros((0, 4))),
        classes=(np.ones(4), np.full((4, 4), INF), np.ones((4, 3))),
        owners=([0, 1], [0.0, 1.0, 2.0, 3.0], [0, 1, 2, 4], [-1, 1, 2, 3], [0, 0, 1, 2]),
        names=(("background",), ("background", "a", "a", "b")),
    ),
    (lambda: bank_parts(names=("a", "background", "b", "c")), r"^names\[0\] must be"),
    (
        lambda: bank_parts(whitening=Whitening(np.zeros(3), np.eye(4))),
        "^whitening must have a mean of shape",
    ),
    (
        lambda: bank_parts(whitening=Whitening(np.zeros(4), np.full((4, 4), NAN))),
        "^whitening must be finite",
    ),
    (lambda: pad_regions(Regions(ROWS, None, np.ones(2, bool)), 1), "^size must be at least"),
    (lambda: build(names=[]), "^classes must hold at least one"),
    (lambda: build(names=[" "]), "^classes must not hold a blank name"),
    (lambda: build(names=["a", "A "]), "^class names must differ"),
    (lambda: build(names=["background"]), "^classes must not hold"),
    (lambda: build(names=["_background_"]), "^classes must not hold"),
    (lambda: build(names=["__ignore__"]), "^classes must not hold"),
    (lambda: build(names=["unknowable"]), "^class_name must be known"),
    (lambda: build(names="apple"), "^names must be a list"),
    (lambda: build(references={"Apple": [IMAGE]}), "^class names must differ"),
    (lambda: build(references={"x": [rimjax.Reference(3)]}), "^image must be a path, file"),  # pyright: ignore[reportArgumentType]
    (lambda: build(references={"x": [IMAGE], "x ": [IMAGE]}), "^references must name each class"),
    (lambda: build(points={"mug": [(1, 1)]}), "^points must name classes of references"),
    (
        lambda: build(references={"mug": [IMAGE]}, points={"mug": [], "mug ": []}),
        "^points must name each class once",
    ),
    (lambda: build(references={"mug": []}), "^references must hold at least one photograph"),
    (
        lambda: build(references={"mug": [IMAGE]}, points={"mug": [(1, 1), (2, 2)]}),
        "^points must hold one point for each",
    ),
    (
        lambda: build(references={"mug": [IMAGE]}, points={"mug": [(-1, 5)]}),
        "^points must lie in the 60x40 image",
    ),
]

STEPS = [
    (lambda: paint(MASKS, [1], (3, 5)), "^labels must have shape"),
    (lambda: paint(MASKS, [1, 2], (3, 4)), "^masks must have shape"),
    (lambda: paint(MASKS, [1, 2], (3, 5), [1]), "^priorities must have shape"),
    (lambda: paint(MASKS, [1, 2], (3, 5), [1, NAN]), "^priorities must have shape"),
    (lambda: vote(MASKS, [1, 2], (3, 5)), "^scores must have shape"),
    (lambda: vote(MASKS, np.ones((3, 2)), (3, 5)), "^scores must have shape"),
    (lambda: vote(MASKS, np.full((2, 2), NAN), (3, 5)), "^scores must be finite"),
    (lambda: vote(MASKS, np.ones((2, 2)), (5, 3)), "^masks must have shape"),
    (lambda: cluster_prototypes(ROWS, 0, 0), "^num_clusters must be at least 1"),
    (lambda: cluster_prototypes(ROWS[:0], 1, 0), "^prototypes must have shape"),
    (lambda: cluster_prototypes(ROWS * NAN, 1, 0), "^prototypes must be finite"),
    (lambda: fit_whitening([ROWS], -1.0, 0.0), "^ridge must be at least 0"),
    (lambda: fit_whitening([ROWS], 1.0, 2.0), "^centre must be in"),
    (
        lambda: name_regions(Regions(ROWS, None, np.ones(2, bool)), bank(), SegmentSettings()),
        "^regions must have masks",
    ),
    (
        lambda: name_regions(
            Regions(ROWS, MASKS, np.ones(2, bool)),
            bank(),
            SegmentSettings(on_top="predicted_iou"),
        ),
        "^on_top must be",
    ),
    (lambda: rimjax.segment(IMAGE, bank(), fake_models()), "^bank must be built with"),
    (lambda: evaluate([], bank_parts(encoder="fake-encoder"), fake_models()), "^dataset must"),
    (
        lambda: metrics.confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 2, 255),
        "^prediction must have truth's shape",
    ),
    (
        lambda: metrics.confusion_matrix(np.zeros((2, 2)), np.zeros((2, 2), int), 2, 255),
        "^truth must hold integers",
    ),
    (
        lambda: metrics.confusion_matrix(np.full((2, 2), 7), np.zeros((2, 2), int), 2, 255),
        "^truth must lie in",
    ),
    (lambda: metrics.bootstrap_interval(count_nothing(), level=1.0), "^level must be"),
    (lambda: metrics.Counts.from_confusions(np.zeros((2, 2), int)), "^confusions must have shape"),
    (lambda: read_image(np.zeros((3, 3, 2), np.uint8)), "^image must be uint8"),
    (lambda: read_image(np.zeros((0, 3, 3), np.uint8)), "^image must not be empty"),
]


def encoder(**changes: Any) -> ViTEncoder:
    config = ViTConfig(hidden_size=8, num_layers=1, num_heads=1, patch_size=4, image_size=8)
    return ViTEncoder(make_vit(config), config, **{"input_size": 8, **changes})


MODELS = [
    *calls(
        rimjax.load_preset,
        "mini",
        generator=("sd-1.4",),
        masker=("sam-vit-b",),
        encoder=("dinov2-base", ""),
        proposer=("sam",),
        configuration=("best",),
        random_weights=(True,),
        scheduler=("euler",),
        steps=(0,),
        input_size=(100, 0),
        dtype=("float16",),
        encoder_dtype=("float16", "float64"),
        masker_dtype=("int8", "float64"),
    ),
    (lambda: rimjax.load_preset("maxi"), "^preset must be one of"),
    (lambda: rimjax.load_preset("paper", encoder="mini"), "^encoder must be one of"),
    *calls(encoder, input_size=(7, 0, -4), batch_size=(0,), resize=("crop",)),
    (lambda: encoder().encode(np.zeros((4, 4), np.uint8)), "^image must be uint8"),
    (lambda: encoder().encode(np.zeros((4, 4, 3))), "^image must be uint8"),
    (lambda: encoder().encode(np.zeros((0, 4, 3), np.uint8)), "^image must be uint8"),
    (lambda: encoder().encode_batch([]), "^images must hold at least one"),
    (lambda: datasets.load("voc"), "^data must be the folder"),
    (lambda: datasets.load("fashion-scenes", "data"), "^data must be given with"),
    (lambda: datasets.load("nowhere"), "^dataset must be"),
]

TABLE = [*SETTINGS, *MATCHING, *BANKS, *STEPS, *MODELS]


@pytest.mark.parametrize("index", range(len(TABLE)))
def test_a_wrong_call_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    call, message = TABLE[index]
    monkeypatch.setenv("RIMJAX_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message) as stop:
        call()
    assert "\n" not in str(stop.value)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 150
