"""Regions on several devices: the same call and answers, and nothing is sent."""

from eight_devices import run_on_eight_devices

SHARDED = """
import re, jax, numpy as np
from dataclasses import replace
from jax.sharding import NamedSharding, PartitionSpec
from oracle import features, make_bank, make_whitening
from rimjax import match as m
from rimjax.match.classify import MatchOptions, Scalars, classify_regions, compare_regions
from rimjax.match.tiling import COLUMNS, Tiling, shard_map
from rimjax.types import Regions
bank = make_bank(1, classes=12)
rows, valid, allowed = features(2, 64)[0], np.arange(64) % 7 != 3, np.arange(12) % 3 != 0
whitened = replace(bank, whitening=make_whitening(4, 16))
def check(devices, explicit=False, bank=bank, **settings):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("regions",))
    if explicit:
        mesh = jax.make_mesh((devices,), ("regions",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = lambda array: jax.device_put(array, NamedSharding(mesh, PartitionSpec("regions")))
    plain = m.match(Regions(rows, None, valid), bank, **settings)
    sharded = m.match(Regions(place(rows), None, place(valid)), bank, **settings)
    np.testing.assert_array_equal(sharded.labels, plain.labels)
    np.testing.assert_array_equal(sharded.agents, plain.agents)
    np.testing.assert_allclose(sharded.scores, plain.scores, atol=1e-6)
    similarity = m.relation_aware_similarity(place(rows), bank.prototypes, bank.classes)
    expected = m.relation_aware_similarity(rows, bank.prototypes, bank.classes)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    for array in (sharded.labels, sharded.scores, similarity):
        assert len(array.sharding.device_set) == devices
        assert array.addressable_shards[0].data.shape[0] == 64 // devices
    if explicit:
        return
    chosen = dict(options=MatchOptions(), tiling=Tiling(mesh=mesh, axes="regions"))
    arguments = [place(rows), bank.prototypes, bank.classes, Scalars()]
    program = compare_regions.lower(*arguments, **chosen).compile().as_text()
    arguments = [place(rows), place(valid), bank, allowed, Scalars()]
    program += classify_regions.lower(*arguments, **chosen).compile().as_text()
    assert f"f32[{64 // devices},16]" in program
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program)
for devices in (1, 2, 4, 8):
    check(devices)
check(8, top_k=3, agent_policy="random", key=jax.random.key(0))
check(8, num_agents=7)
check(8, similarity="combined", class_score="max")
check(8, similarity="weighted", agent_source="prototypes", background_agent=False)
check(8, allowed=allowed, candidates="agents")
check(8, allowed=allowed, top_k=5)
check(8, bank=whitened)
check(8, explicit=True)
mesh8, split = jax.sharding.Mesh(np.array(jax.devices()), ("regions",)), PartitionSpec("regions")
put = lambda array: jax.device_put(array, NamedSharding(mesh8, split))
check(8, explicit=True, top_k=3, agent_policy="random", key=jax.random.key(0))
many = make_bank(3, classes=12, per_class=175)  # more prototypes than a block holds
assert len(many.prototypes) > COLUMNS
for settings in (
    {},
    dict(top_k=3),
    dict(similarity="cosine"),
    dict(similarity="combined"),
    dict(similarity="combined", class_score="max"),
    dict(agent_source="prototypes"),
    dict(max_bytes=50_000),
):
    whole = m.match(rows, many, **settings)
    np.testing.assert_allclose(m.match(put(rows), many, **settings).scores, whole.scores, atol=1e-5)
    one_device = lambda a, b: m.match(a, b, **settings).scores
    inside = shard_map(one_device, mesh=mesh8, in_specs=(split, PartitionSpec()), out_specs=split)
    np.testing.assert_allclose(jax.jit(inside)(put(rows), many), whole.scores, atol=1e-5)
similarity = m.relation_aware_similarity(put(rows), many.prototypes, many.classes)
expected = m.relation_aware_similarity(rows, many.prototypes, many.classes)
np.testing.assert_allclose(similarity, expected, atol=1e-5)
assert m.match(put(rows[:0]), bank).labels.shape == (0,)
print("equal on", len(jax.devices()))
"""


def test_regions_sharded_over_eight_devices():
    """Labels equal a single device's, devices keep their own regions, and nothing is sent."""
    assert run_on_eight_devices(SHARDED) == "equal on 8"
