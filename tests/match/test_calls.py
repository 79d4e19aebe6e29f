"""How the kernels are called: padding, tracing, memory, and the user's stricter types."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import TOLERANCE, assert_same, count_compilations, features, make_bank, make_whitening

from rimjax import match as m
from rimjax.types import ReferenceBank, Regions, bucket_size, pad_regions


def test_padded_and_unpadded_give_the_same():
    bank = make_bank(19)
    (rows,) = features(20, 5)
    plain = m.match(rows, bank)
    padded = m.match(pad_regions(Regions(rows, None, np.ones(5, bool)), 16), bank)
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
    assert_same(
        *(jax.tree.map(lambda leaf: np.asarray(leaf)[valid], result) for result in (got, expected))
    )


def test_no_regions_give_empty_results():
    got = m.match(np.zeros((0, 16), np.float32), make_bank())
    assert got.labels.shape == (0,) and got.scores.shape == (0, 6) and got.agents.shape == (0, 4)


def test_many_images_compile_a_handful_of_times():
    rng = np.random.default_rng(0)
    before = count_compilations()
    for seed, count in enumerate(rng.integers(1, 33, 40)):
        bank = make_bank(23, dim=5)
        renamed = ReferenceBank(
            bank.prototypes,
            bank.owners,
            bank.classes,
            ("background", *(f"{seed} {name}" for name in bank.names[1:])),
            str(seed),
        )
        m.match(
            rng.normal(size=(count, 5)).astype(np.float32),
            renamed,
            num_agents=2,
            temperature=0.1 + seed,
        )
    assert count_compilations() - before == 3  # 8, 16, 32


def test_bucket_sizes():
    counts = (0, 1, 8, 9, 100, 1024, 1025, 5000)
    assert [bucket_size(n) for n in counts] == [8, 8, 8, 16, 128, 1024, 2048, 5120]
    assert all(bucket_size(bucket_size(n)) == bucket_size(n) for n in counts)


def test_padding_appends_invalid_features_and_leaves_the_masks():
    masks = np.ones((3, 4, 5), bool)
    regions = Regions(np.ones((3, 2), np.float32), masks, np.ones(3, bool))
    padded = pad_regions(regions)
    assert padded.features.shape == (8, 2) and padded.masks is masks
    assert padded.valid.tolist() == [True] * 3 + [False] * 5 and not padded.features[3:].any()
    assert padded.features.dtype == np.float32 and padded.valid.dtype == bool
    assert pad_regions(padded) is padded
    with pytest.raises(ValueError, match="size must be at least P=3, got 2; "):
        pad_regions(regions, 2)


def test_padded_regions_are_not_padded_again(monkeypatch):
    """Extraction pads the features; `match` compares them as they are."""
    bank, (rows,) = make_bank(19), features(20, 5)
    masks = np.ones((5, 2, 2), bool)
    padded = pad_regions(Regions(rows, masks, np.ones(5, bool)))
    monkeypatch.setattr(m, "pad_rows", None)
    padded_match = m.match(padded, bank)
    assert padded_match.labels.shape == (8,) and (np.asarray(padded_match.labels)[5:] == -1).all()


def test_jit_equals_no_jit():
    bank = make_bank(24)
    (rows,) = features(25, 7)
    regions = Regions(rows, None, np.arange(7) != 2)
    assert_same(
        jax.jit(lambda regions, bank: m.match(regions, bank, num_agents=3))(regions, bank),
        m.match(regions, bank, num_agents=3),
    )
    s, r = rows[:2, :3] ** 2
    with jax.disable_jit():
        eager = m.permutation_similarity(s, r)
    np.testing.assert_allclose(jax.jit(m.permutation_similarity)(s, r), eager, atol=TOLERANCE)


def test_vmap_equals_loop():
    bank = make_bank(26)
    images = np.stack(features(27, 5, 5, 5))
    mapped = jax.vmap(lambda rows: m.match(rows, bank, num_agents=3))(images)
    for i, rows in enumerate(images):
        assert_same(
            jax.tree.map(lambda leaf, i=i: leaf[i], mapped), m.match(rows, bank, num_agents=3)
        )
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_agents": 7},
        {"top_k": 3},
        {"similarity": "cosine"},
        {"measure": "kl", "score_map": "exp"},
    ],
)
def test_it_lowers_for_gpu_and_tpu(settings):
    bank = make_bank(30, classes=9)
    exported = jax.export.export(
        jax.jit(lambda rows: m.match(rows, bank, **settings).labels), platforms=("cuda", "tpu")
    )(jnp.ones((40, 16)))
    assert [(leaf.shape, leaf.dtype) for leaf in exported.out_avals] == [((40,), jnp.int32)]


@pytest.mark.parametrize("similarity", ["relation", "cosine"])
def test_it_lowers_at_the_size_of_coco(similarity):
    def describe(count):
        return jax.ShapeDtypeStruct((count, 768), jnp.float32)

    def run(rows, valid, prototypes, owners, classes, allowed):
        bank = ReferenceBank(prototypes, owners, classes, ())
        return m.match(Regions(rows, None, valid), bank, similarity=similarity, allowed=allowed)

    flags, owners = jax.ShapeDtypeStruct((256,), bool), jax.ShapeDtypeStruct((648,), jnp.int32)
    allowed = jax.ShapeDtypeStruct((81,), bool)
    arguments = (describe(256), flags, describe(648), owners, describe(81), allowed)
    exported = jax.export.export(jax.jit(run), platforms=("cuda", "tpu"))(*arguments)
    shapes = [(str(leaf.dtype), leaf.shape) for leaf in exported.out_avals]
    assert shapes == [("int32", (256,)), ("float32", (256, 81)), ("int32", (256, 4))]


def test_a_bank_and_regions_are_pytrees():
    bank = make_bank()
    doubled = jax.tree.map(lambda leaf: leaf * 2, bank)
    assert (
        isinstance(doubled, ReferenceBank)
        and doubled.names == bank.names
        and len(jax.tree.leaves(bank)) == 3
    )


def test_nan_raises_in_match_and_passes_through_a_trace():
    rows = features(0, 2)[0]
    rows[0, 0] = np.nan
    for broken in (rows, jnp.asarray(rows), jnp.asarray(rows, jnp.bfloat16)):
        with pytest.raises(ValueError, match="regions must be finite"):
            m.match(broken, make_bank())
    traced = jax.jit(lambda rows: m.match(rows, make_bank(), num_agents=1, similarity="cosine"))(
        rows
    )
    assert np.isnan(traced.scores[0]).all() and np.isfinite(traced.scores[1]).all()
    assert traced.labels[0] == -1 and traced.labels[1] >= 0


def test_importing_match_loads_no_model_library():
    heavy = ("torch", "diffusers", "transformers", "flax", "sklearn", "PIL")
    code = f"import sys, rimjax.match; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_plain_regions_work_while_something_else_is_traced():
    """The bank, a temperature or a key may be what is transformed, whatever P is."""
    bank, rows = make_bank(), features(2, 5)[0]
    plain = m.match(rows, bank, score_map="exp")
    np.testing.assert_array_equal(
        jax.jit(lambda bank: m.match(rows, bank, score_map="exp").labels)(bank), plain.labels
    )
    traced = jax.jit(lambda t: m.match(rows, bank, score_map="exp", temperature=t).scores)(0.1)
    np.testing.assert_allclose(traced, plain.scores, atol=1e-6)
    slope = jax.grad(
        lambda classes: m.match(rows, replace(bank, classes=classes), score_map="exp").scores.sum()
    )(bank.classes)
    assert slope.shape == bank.classes.shape and np.abs(slope).max() > 0
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.vmap(lambda key: m.match(rows, bank, agent_policy="random", key=key).labels)(keys)
    np.testing.assert_array_equal(
        drawn[1], m.match(rows, bank, agent_policy="random", key=keys[1]).labels
    )


def test_no_regions_give_no_similarities():
    none, prototypes, classes = features(0, 1, 5, 4)
    for call in (m.relation_aware_similarity, jax.jit(m.relation_aware_similarity)):
        assert call(none[:0], prototypes, classes).shape == (0, 5)
    assert jax.jit(lambda rows: m.match(rows, make_bank()).labels)(
        jnp.asarray(features(0, 1)[0][:0])
    ).shape == (0,)


def test_numpys_integers_are_integers():
    bank, rows = make_bank(), features(2, 5)[0]
    few = m.match(rows, bank, top_k=np.int32(2), num_agents=np.int8(3))
    np.testing.assert_array_equal(few.classes, m.match(rows, bank, top_k=2, num_agents=3).classes)


if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before JAX 0.8
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def stricter(setting):
    """Switch on settings of JAX that belong to the user."""
    promotions = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with promotions[0], promotions[1], enable_x64(setting == "x64"):
        yield


@pytest.mark.parametrize("setting", ["promotion", "x64"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(max_bytes=40_000),
        dict(top_k=2),
        dict(num_agents=7),
        dict(score_map="exp", measure="kl"),
        dict(similarity="cosine"),
        dict(score_map="shift", measure="pearson", candidates="agents", allowed=np.arange(6) != 0),
        dict(agent_policy="random", key=jax.random.PRNGKey(0)),
    ],
)
def test_stricter_types_change_nothing(settings, setting):
    """Banks with fewer and with more prototypes than a block holds."""
    rows, banks = features(2, 64)[0], (make_bank(), make_bank(3, per_class=400))
    plain = [m.match(rows, bank, **settings) for bank in banks]
    with stricter(setting):
        for bank, expected in zip(banks, plain, strict=True):
            result = m.match(rows, bank, **settings)
            np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-6, atol=1e-6)
            assert result.scores.dtype == np.float32


@pytest.mark.parametrize("setting", ["promotion", "x64"])
def test_stricter_types_everywhere_else(setting):
    arrays, whitening = features(2, 16, 2400, 6), make_whitening(4, 16)
    s, r = np.random.default_rng(5).uniform(0.1, 1, (2, 4))
    with stricter(setting):
        assert m.relation_aware_similarity(*arrays).dtype == np.float32
        bank = replace(make_bank(), whitening=whitening)
        assert m.match(arrays[0], bank, similarity="cosine").scores.dtype == np.float32
        for measure in m.CHOICES["measure"]:
            for method in m.CHOICES["method"]:
                similarity = m.permutation_similarity(s, r, method, measure=measure)  # pyright: ignore[reportArgumentType]
                assert similarity.shape == () and similarity.dtype == np.float32
        assert m.permutation_probabilities(s).dtype == np.float32
        slope = jax.grad(lambda rows: m.relation_aware_similarity(rows, *arrays[1:]).sum())
        assert slope(jnp.asarray(arrays[0])).shape == (16, 16)
