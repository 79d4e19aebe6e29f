"""Errors that name the argument, say what came and how to go on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from oracle import features, make_bank

from rimjax import match as m
from rimjax.types import ReferenceBank, Regions, Whitening


@pytest.fixture(autouse=True)
def without_type_checks() -> Iterator[None]:
    """Switch jaxtyping's checks off: these tests pass wrong types on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def call(regions=None, prototypes=None, classes=None, **settings):
    default = features(0, 2, 5, 4)
    given = [
        d if a is None else a for a, d in zip((regions, prototypes, classes), default, strict=True)
    ]
    return m.relation_aware_similarity(*given, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_agents=0), "num_agents must be in"),
        (dict(num_agents=17), "num_agents must be in"),
        (dict(num_agents=9, method="enumerate"), "num_agents must be in .1, 8. .*lattice"),
        (dict(method="exact"), "method must be one of lattice, enumerate"),
        (dict(score_map="softmax"), "score_map must be one of"),
        (dict(measure="euclid"), "measure must be one of cosine, bhattacharyya, pearson, kl"),
        (dict(num_agents=2.0), "num_agents must be an integer"),
        (dict(num_agents=True), "num_agents must be an integer"),
        (dict(agent_policy="best"), "agent_policy must be one of"),
        (dict(agent_policy="random"), "key must be a single random key"),
        (dict(temperature=0.0), "temperature must be a positive"),
        (dict(temperature=-0.1), "temperature must be a positive"),
        (dict(temperature=np.ones(2)), "temperature must be a positive"),
        (dict(temperature=float("nan")), "temperature must be a positive"),
        (dict(regions=np.ones(16)), "regions must have shape"),
        (dict(prototypes=np.ones((3, 7))), "prototypes must have the feature size"),
        (dict(classes=np.ones((3, 7))), "classes must have the feature size"),
        (dict(classes=np.ones((0, 16))), "classes must have shape"),
        (dict(regions=np.ones((2, 16), int)), "regions must hold floats, got int64"),
        (dict(prototypes=np.ones((2, 16), bool)), "prototypes must hold floats, got bool"),
        (dict(regions=np.ones((3, 2, 16))), "regions must have shape"),
        (dict(regions=np.full((2, 16), np.nan)), "regions must be finite"),
        (dict(prototypes=np.full((2, 16), np.inf)), "prototypes must be finite"),
        (dict(classes=jnp.full((2, 16), jnp.nan)), "classes must be finite"),
        (dict(max_bytes=100), "max_bytes must be at least .* P=2 regions, R=5 prototypes and C=4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_too_much_memory_is_refused_before_it_is_taken():
    huge = np.broadcast_to(np.float32(1), (2**21, 1))  # its own memory: four bytes
    with pytest.raises(
        ValueError, match=r"max_bytes must be at least 137,4.* P=2097152 regions, R=16384 "
    ):
        m.relation_aware_similarity(huge, huge[: 2**14], np.ones((2, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(similarity="dot"), "similarity must be one of"),
        (dict(candidates="top"), "candidates must be one of"),
        (dict(num_agents=0), "num_agents"),
        (dict(max_bytes=10), "max_bytes must be at least .* P=2 regions"),
        (dict(top_k=0), "top_k must be None or an integer"),
        (dict(top_k=2.5), "top_k must be None or an integer"),
    ],
)
def test_match_names_its_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        m.match(features(0, 2)[0], make_bank(), **arguments)


def test_parts_that_dont_fit_each_other_are_named():
    rows, bank = features(0, 3)[0], make_bank()
    for valid in (np.ones(2, bool), np.ones(3), np.ones((3, 1), bool)):
        with pytest.raises(ValueError, match=r"regions.valid must hold one bool per region, P=3"):
            m.match(Regions(rows, None, valid), bank)
    for owners in (np.zeros(4, int), np.zeros(18), np.zeros((18, 1), int)):
        with pytest.raises(
            ValueError, match=r"bank.owners must hold one integer per prototype, R=18"
        ):
            m.match(rows, ReferenceBank(bank.prototypes, owners, bank.classes, ()))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "bad", [[np.nan, 1], [np.inf, 1], [-0.1, 1], [[1.0, 2.0]], [], np.ones(17)]
)
def test_bad_weights_are_named(bad):
    with pytest.raises(ValueError, match=r"\bs\b"):
        m.permutation_similarity(np.array(bad), np.ones(2))
    with pytest.raises(ValueError, match="scores"):
        m.permutation_probabilities(np.array(bad))


def test_enumeration_refuses_nine_items():
    with pytest.raises(ValueError, match="lattice"):
        m.permutation_similarity(np.ones(9), np.ones(9), "enumerate")
    with pytest.raises(ValueError, match="same agents"):
        m.permutation_similarity(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prototypes=np.ones(4)), "prototypes must have shape"),
        (dict(prototypes=np.ones((3, 5))), "classes must have the feature size"),
        (dict(prototypes=np.full((3, 4), np.nan)), "prototypes must be finite"),
        (dict(classes=np.full((2, 4), np.inf)), "classes must be finite"),
        (dict(owners=[0, 1]), "owners must hold one integer"),
        (dict(owners=[0.0, 1.0, 1.0]), "owners must hold one integer"),
        (dict(owners=[0, 1, 2]), "owners must lie in"),
        (dict(owners=[0, 0, 0]), "owners must give every class a prototype, got none for .*cat"),
        (dict(names=("background",)), "names must hold C=2 names, got 1"),
        (dict(names=("cat", "background")), r"names\[0\]"),
        (dict(names=("background", "background")), "names must differ"),
    ],
)
def test_a_bank_checks_its_parts(arguments, message):
    parts: dict[str, Any] = dict(
        prototypes=np.ones((3, 4)),
        owners=[0, 1, 1],
        classes=np.ones((2, 4)),
        names=("background", "cat"),
    )
    ReferenceBank.create(**parts)
    with pytest.raises(ValueError, match=message):
        ReferenceBank.create(**parts | arguments)


@pytest.mark.parametrize(
    "temperature", [1e-46, 1e39, -1.0, 0.0, np.nan, "a", None, 1j, True, [0.1]]
)
def test_temperatures_that_float32_cannot_use_are_refused(temperature):
    with pytest.raises(
        ValueError, match="temperature must be a positive number in float32's range"
    ):
        m.match(features(2, 5)[0], make_bank(), score_map="exp", temperature=temperature)


def test_what_is_no_array_or_bank_is_named():
    rows, bank = features(2, 5)[0], make_bank()
    with pytest.raises(ValueError, match="regions must be an array of floats, got a list"):
        m.match(rows.tolist(), bank)
    with pytest.raises(ValueError, match="bank must be a ReferenceBank, got a tuple"):
        m.match(rows, (bank.prototypes, bank.classes))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"bank.owners must lie in \[0, C="):
        m.match(rows, replace(bank, owners=bank.owners - 1))
    for weights in (np.array([1 + 1j, 2]), np.array([True, False])):
        with pytest.raises(ValueError, match="s must hold real numbers"):
            m.permutation_similarity(weights, np.array([1.0, 2.0]))
    for most in (np.nan, None, "a", -1):
        with pytest.raises(ValueError, match="max_bytes must be a positive number of bytes"):
            m.match(rows, bank, max_bytes=most)  # pyright: ignore[reportArgumentType]
    flags: Any = [True] * 5
    assert m.match(Regions(rows, None, flags), bank).labels.shape == (5,)


@pytest.mark.parametrize(
    "key", [None, 0, "a", np.zeros(3, np.uint32), jax.random.split(jax.random.key(0), 3)]
)
def test_what_is_no_random_key_is_named(key):
    with pytest.raises(ValueError, match=r"^key must be a single random key .*got [^\n]*$"):
        m.match(features(2, 5)[0], make_bank(), agent_policy="random", key=key)
    assert m.match(features(2, 5)[0], make_bank(), key=key).labels.shape == (5,)  # not looked at


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (np.zeros(6, bool), "allowed must be True for at least one class, got False for all 6; "),
        (np.ones(5, bool), r"allowed must hold one bool per class, C=6, got bool\[5\]; "),
        (np.ones((6, 1), bool), r"allowed must hold one bool per class, C=6, got bool\[6, 1\]; "),
        (np.ones(6), r"allowed must hold one bool per class, C=6, got float64\[6\]; "),
        (jnp.zeros(6, bool), "allowed must be True for at least one class"),
        ([1, 2, 3], r"allowed must hold one bool per class, C=6, got int64\[3\]; "),
    ],
)
def test_masks_that_allow_nothing_or_dont_fit_are_named(allowed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        m.match(features(2, 5)[0], make_bank(), allowed=allowed)
    flags: Any = [True] * 6
    assert m.match(features(2, 5)[0], make_bank(), allowed=flags).labels.shape == (5,)


MEAN, MATRIX = np.zeros(16, np.float32), np.eye(16, dtype=np.float32)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((MEAN[:3], MATRIX), r"bank.whitening.mean must have shape \[16\]"),
        ((MEAN, MATRIX[:3]), r"bank.whitening.matrix must have shape \[16, 16\]"),
        ((MEAN, MATRIX * np.nan), "bank.whitening.matrix must be finite"),
        ((MEAN + np.inf, MATRIX), "bank.whitening.mean must be finite"),
    ],
)
def test_whitenings_that_dont_fit_are_named(parts, message):
    rows, bank, whitening = features(2, 5)[0], make_bank(), Whitening(*parts)
    with pytest.raises(ValueError, match=message):
        m.match(rows, replace(bank, whitening=whitening))
    with pytest.raises(ValueError, match=r"^whitening must .*; "):
        ReferenceBank.create(
            bank.prototypes, bank.owners, bank.classes, bank.names, whitening=whitening
        )
    with pytest.raises(ValueError, match=r"bank.whitening must be None or a Whitening, got a tup"):
        m.match(rows, replace(bank, whitening=parts))
