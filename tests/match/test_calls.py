"""How the kernels are called: padding, tracing, and errors that name the argument."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import TOLERANCE, assert_same, features, make_bank

from rimjax import match as m
from rimjax.match import blocks
from rimjax.types import ReferenceBank, Regions


def test_padded_and_unpadded_give_the_same():
    bank = make_bank(19)
    (rows,) = features(20, 5)
    plain = m.match(rows, bank)
    padded = m.match(m.pad_regions(Regions(rows, None, np.ones(5, bool)), 16), bank)
    assert_same(plain, jax.tree.map(lambda leaf: leaf[:5], padded))
    assert (np.asarray(padded.labels)[5:] == -1).all() and not np.asarray(padded.scores)[5:].any()


@pytest.mark.parametrize("count", [3, 8])
def test_invalid_regions_get_no_label_whatever_they_hold(count):
    bank = make_bank(21)
    (rows,) = features(22, count)
    broken, valid = rows.copy(), np.ones(count, bool)
    broken[1], valid[1] = np.nan, False
    got, expected = m.match(Regions(broken, None, valid), bank), m.match(rows, bank)
    assert got.labels[1] == -1 and not np.asarray(got.scores[1]).any()
    assert_same(*(jax.tree.map(lambda leaf: np.asarray(leaf)[valid], result) for result in (got, expected)))


def test_no_regions_give_empty_results():
    got = m.match(np.zeros((0, 16), np.float32), make_bank())
    assert got.labels.shape == (0,) and got.scores.shape == (0, 6) and got.agents.shape == (0, 4)


def test_many_images_compile_a_handful_of_times():
    rng, compilations = np.random.default_rng(0), blocks.match_regions._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = compilations()
    for seed, count in enumerate(rng.integers(1, 33, 40)):
        bank = make_bank(23, dim=5)
        renamed = ReferenceBank(
            bank.prototypes, bank.owners, bank.classes, ("background", *(f"{seed} {name}" for name in bank.names[1:])), str(seed)
        )
        m.match(rng.normal(size=(count, 5)).astype(np.float32), renamed, num_agents=2, temperature=0.1 + seed)
    assert compilations() - before == 3  # 8, 16, 32


def test_bucket_sizes():
    assert [m.bucket_size(n) for n in (0, 1, 8, 9, 100, 1024, 1025, 5000)] == [8, 8, 8, 16, 128, 1024, 2048, 5120]


def test_padding_keeps_masks_and_refuses_to_shrink():
    regions = Regions(np.ones((3, 2), np.float32), np.ones((3, 4, 5), bool), np.ones(3, bool))
    padded = m.pad_regions(regions)
    assert padded.features.shape == (8, 2) and padded.masks is not None and padded.masks.shape == (8, 4, 5)
    assert padded.valid.tolist() == [True] * 3 + [False] * 5 and not padded.masks[3:].any()
    with pytest.raises(ValueError, match="size"):
        m.pad_regions(regions, 2)


def test_jit_equals_no_jit():
    bank = make_bank(24)
    (rows,) = features(25, 7)
    regions = Regions(rows, None, np.arange(7) != 2)
    assert_same(jax.jit(lambda regions, bank: m.match(regions, bank, num_agents=3))(regions, bank), m.match(regions, bank, num_agents=3))
    s, r = rows[:2, :3] ** 2
    with jax.disable_jit():
        eager = m.permutation_similarity(s, r)
    np.testing.assert_allclose(jax.jit(m.permutation_similarity)(s, r), eager, atol=TOLERANCE)


def test_vmap_equals_loop():
    bank = make_bank(26)
    images = np.stack(features(27, 5, 5, 5))
    mapped = jax.vmap(lambda rows: m.match(rows, bank, num_agents=3))(images)
    for i, rows in enumerate(images):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), m.match(rows, bank, num_agents=3))
    s, r = np.random.default_rng(0).uniform(0.1, 1, (2, 6, 3))
    looped = [m.permutation_similarity(a, b) for a, b in zip(s, r, strict=True)]
    np.testing.assert_allclose(jax.vmap(m.permutation_similarity)(s, r), looped, atol=TOLERANCE)


def test_a_devices_array_gives_what_numpys_does():
    bank = make_bank(28)
    (rows,) = features(29, 11)
    valid = np.arange(11) != 4
    rows[4] = np.nan
    plain = m.match(Regions(rows, None, valid), bank)
    assert_same(m.match(Regions(jnp.asarray(rows), None, jnp.asarray(valid)), bank), plain)
    assert plain.labels.shape == (11,)


@pytest.mark.parametrize("settings", [{}, {"num_agents": 7}, {"top_k": 3}, {"similarity": "cosine"}, {"measure": "kl", "score_map": "exp"}])
def test_it_lowers_for_gpu_and_tpu(settings):
    bank = make_bank(30, classes=9)
    exported = jax.export.export(jax.jit(lambda rows: m.match(rows, bank, **settings).labels), platforms=("cuda", "tpu"))(
        jnp.ones((40, 16))
    )
    assert [(leaf.shape, leaf.dtype) for leaf in exported.out_avals] == [((40,), jnp.int32)]


def test_a_bank_and_regions_are_pytrees():
    bank = make_bank()
    doubled = jax.tree.map(lambda leaf: leaf * 2, bank)
    assert isinstance(doubled, ReferenceBank) and doubled.names == bank.names and len(jax.tree.leaves(bank)) == 3


# ---- errors


def call(regions=None, prototypes=None, classes=None, **settings):
    default = features(0, 2, 5, 4)
    given = [d if a is None else a for a, d in zip((regions, prototypes, classes), default, strict=True)]
    return m.relation_aware_similarity(*given, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_agents=0), "num_agents must be in"),
        (dict(num_agents=17), "num_agents must be in"),
        (dict(num_agents=9, method="enumerate"), "num_agents must be at most 8 .*lattice"),
        (dict(method="exact"), "method must be one of lattice, enumerate"),
        (dict(score_map="softmax"), "score_map must be one of"),
        (dict(measure="euclid"), "measure must be one of cosine, bhattacharyya, pearson, kl"),
        (dict(num_agents=2.0), "num_agents must be an integer"),
        (dict(num_agents=True), "num_agents must be an integer"),
        (dict(agent_policy="best"), "agent_policy must be one of"),
        (dict(agent_policy="random"), "key must be one random key"),
        (dict(temperature=0.0), "temperature must be one positive"),
        (dict(temperature=-0.1), "temperature must be one positive"),
        (dict(temperature=np.ones(2)), "temperature must be one positive"),
        (dict(temperature=float("nan")), "temperature must be one positive"),
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
        (dict(max_bytes=100), "max_bytes: P=2 regions x R=5 prototypes x C=4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_too_much_memory_is_refused_before_it_is_taken():
    huge = np.broadcast_to(np.float32(1), (2**21, 1))  # its own memory: four bytes
    with pytest.raises(ValueError, match=r"max_bytes: P=2097152 regions x R=16384 .* need 137,4"):
        m.relation_aware_similarity(huge, huge[: 2**14], np.ones((2, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(similarity="dot"), "similarity must be one of"),
        (dict(candidates="top"), "candidates must be one of"),
        (dict(num_agents=0), "num_agents"),
        (dict(max_bytes=10), "max_bytes: P=8 regions"),
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
        with pytest.raises(ValueError, match=r"bank.owners must hold one integer per prototype, R=18"):
            m.match(rows, ReferenceBank(bank.prototypes, owners, bank.classes, ()))  # pyright: ignore[reportArgumentType]


def test_nan_raises_in_match_and_passes_through_a_trace():
    rows = features(0, 2)[0]
    rows[0, 0] = np.nan
    for broken in (rows, jnp.asarray(rows), jnp.asarray(rows, jnp.bfloat16)):
        with pytest.raises(ValueError, match="regions must be finite"):
            m.match(broken, make_bank())
    traced = jax.jit(lambda rows: m.match(rows, make_bank(), num_agents=1, similarity="cosine"))(rows)
    assert np.isnan(traced.scores[0]).all() and np.isfinite(traced.scores[1]).all()
    assert traced.labels[0] == -1 and traced.labels[1] >= 0


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-0.1, 1], [[1.0, 2.0]], [], np.ones(17)])
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
        (dict(prototypes=np.ones((3, 5))), "same feature size"),
        (dict(prototypes=np.full((3, 4), np.nan)), "prototypes must be finite"),
        (dict(classes=np.full((2, 4), np.inf)), "classes must be finite"),
        (dict(owners=[0, 1]), "owners must hold one integer"),
        (dict(owners=[0.0, 1.0, 1.0]), "owners must hold one integer"),
        (dict(owners=[0, 1, 2]), "owners must lie in"),
        (dict(owners=[0, 0, 0]), "owners must give every class a prototype, none for .*cat"),
        (dict(names=("background",)), "names must hold one name"),
        (dict(names=("cat", "background")), r"names\[0\]"),
        (dict(names=("background", "background")), "names must differ"),
    ],
)
def test_a_bank_checks_its_parts(arguments, message):
    parts: dict[str, Any] = dict(prototypes=np.ones((3, 4)), owners=[0, 1, 1], classes=np.ones((2, 4)), names=("background", "cat"))
    ReferenceBank.create(**parts)
    with pytest.raises(ValueError, match=message):
        ReferenceBank.create(**parts | arguments)


def test_importing_match_loads_no_model_library():
    heavy = ("torch", "diffusers", "transformers", "flax", "sklearn", "PIL")
    code = f"import sys, rimjax.match; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_plain_regions_work_while_something_else_is_traced():
    """The bank, a temperature or a key may be what is transformed, whatever P is."""
    bank, rows = make_bank(), features(2, 5)[0]
    plain = m.match(rows, bank, score_map="exp")
    np.testing.assert_array_equal(jax.jit(lambda bank: m.match(rows, bank, score_map="exp").labels)(bank), plain.labels)
    traced = jax.jit(lambda t: m.match(rows, bank, score_map="exp", temperature=t).scores)(0.1)
    np.testing.assert_allclose(traced, plain.scores, atol=1e-6)
    slope = jax.grad(lambda classes: m.match(rows, replace(bank, classes=classes), score_map="exp").scores.sum())(bank.classes)
    assert slope.shape == bank.classes.shape and np.abs(slope).max() > 0
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.vmap(lambda key: m.match(rows, bank, agent_policy="random", key=key).labels)(keys)
    np.testing.assert_array_equal(drawn[1], m.match(rows, bank, agent_policy="random", key=keys[1]).labels)


def test_no_regions_give_no_similarities():
    none, prototypes, classes = features(0, 1, 5, 4)
    for call in (m.relation_aware_similarity, jax.jit(m.relation_aware_similarity)):
        assert call(none[:0], prototypes, classes).shape == (0, 5)
    assert jax.jit(lambda rows: m.match(rows, make_bank()).labels)(jnp.asarray(features(0, 1)[0][:0])).shape == (0,)


def test_numpys_integers_are_integers():
    bank, rows = make_bank(), features(2, 5)[0]
    few = m.match(rows, bank, top_k=np.int32(2), num_agents=np.int8(3))
    np.testing.assert_array_equal(few.classes, m.match(rows, bank, top_k=2, num_agents=3).classes)


class Measured(Exception):
    """Instead of a result: bytes of temporary arrays, as compiled."""


@pytest.mark.parametrize(
    ("settings", "times"),
    # What XLA fuses is its own, hence the factors; level by level every member's array is gathered anew.
    [(dict(num_agents=4), 2), (dict(num_agents=7), 3), (dict(num_agents=12), 3), (dict(similarity="cosine"), 2)],
)
def test_temporary_arrays_keep_to_max_bytes(settings, times, monkeypatch):
    prototypes, classes, rows = (jnp.asarray(part) for part in features(3, 4000, 20, 64))
    bank = replace(make_bank(classes=20), prototypes=prototypes, classes=classes, owners=jnp.arange(4000, dtype=jnp.int32) % 20)
    limit, original = 1_000_000, blocks.match_regions

    def measured(*arguments):
        raise Measured(original.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)

    monkeypatch.setattr(m, "match_regions", measured)
    with pytest.raises(Measured) as found:
        m.match(rows, bank, max_bytes=limit, **settings)
    assert 0 < found.value.args[0] <= times * limit


@pytest.mark.parametrize("temperature", [1e-46, 1e39, -1.0, 0.0, np.nan, "a", None, 1j, True, [0.1]])
def test_temperatures_that_float32_cannot_use_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be one positive number in float32's range"):
        m.match(features(2, 5)[0], make_bank(), score_map="exp", temperature=temperature)


def test_what_is_no_array_or_bank_is_named():
    rows, bank = features(2, 5)[0], make_bank()
    with pytest.raises(ValueError, match="regions must be an array of floats, got a list"):
        m.match(rows.tolist(), bank)
    with pytest.raises(ValueError, match="bank must be a ReferenceBank, got a tuple"):
        m.match(rows, (bank.prototypes, bank.classes))
    with pytest.raises(ValueError, match=r"bank.owners must lie in \[0, C="):
        m.match(rows, replace(bank, owners=bank.owners - 1))
    for weights in (np.array([1 + 1j, 2]), np.array([True, False])):
        with pytest.raises(ValueError, match="s must hold real numbers"):
            m.permutation_similarity(weights, np.array([1.0, 2.0]))
    for most in (np.nan, None, "a", -1):
        with pytest.raises(ValueError, match="max_bytes must be a positive number of bytes"):
            m.match(rows, bank, max_bytes=most)
    assert m.match(Regions(rows, None, [True] * 5), bank).labels.shape == (5,)


def test_a_class_that_may_not_win_never_does():
    """A class without prototypes has no score; where it is the region's only agent nobody wins."""
    rows = np.eye(3, 8, dtype=np.float32)
    bank = ReferenceBank(np.repeat(rows[1:], 2, axis=0), np.array([1, 1, 2, 2]), rows, ())
    won = m.match(rows, bank, candidates="agents", num_agents=1)
    np.testing.assert_array_equal(won.labels, [-1, 1, 2])
    np.testing.assert_array_equal(won.scores[0], [-1, -1, -1])


@pytest.mark.parametrize("key", [None, 0, "a", np.zeros(3, np.uint32), jax.random.split(jax.random.key(0), 3)])
def test_what_is_no_random_key_is_named(key):
    with pytest.raises(ValueError, match=r"^key must be one random key .*got [^\n]*$"):
        m.match(features(2, 5)[0], make_bank(), agent_policy="random", key=key)
    assert m.match(features(2, 5)[0], make_bank(), key=key).labels.shape == (5,)  # not looked at


@pytest.mark.parametrize(
    "settings",
    [{}, dict(max_bytes=40_000), dict(top_k=2), dict(num_agents=7), dict(score_map="exp", measure="kl"), dict(similarity="cosine")],
)
def test_stricter_types_change_nothing(settings):
    """jax_numpy_dtype_promotion and jax_enable_x64 are the user's; more prototypes than a block holds among them."""
    rows, banks = features(2, 64)[0], (make_bank(), make_bank(3, per_class=400))
    plain = [m.match(rows, bank, **settings) for bank in banks]
    for setting in (jax.numpy_dtype_promotion("strict"), jax.enable_x64(True)):
        with setting:
            for bank, expected in zip(banks, plain, strict=True):
                found = m.match(rows, bank, **settings)
                np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
                assert found.scores.dtype == np.float32
            assert m.relation_aware_similarity(rows, banks[1].prototypes, banks[1].classes).dtype == np.float32
