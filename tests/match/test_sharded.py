"""Regions on several devices: the same call, the same answers, nothing sent."""

import os
import subprocess
import sys
from pathlib import Path

SHARDED = """
import re, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from oracle import features, make_bank
from rimjax import match as m
from rimjax.match import blocks
from rimjax.match.arguments import Settings
from rimjax.types import Regions
bank = make_bank(1, classes=12)
rows, valid = features(2, 64)[0], np.arange(64) % 7 != 3
def check(devices, explicit=False, **settings):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("regions",))
    if explicit:
        mesh = jax.make_mesh((devices,), ("regions",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = lambda array: jax.device_put(array, NamedSharding(mesh, PartitionSpec("regions")))
    plain, sharded = (m.match(Regions(f(rows), None, f(valid)), bank, **settings) for f in (np.asarray, place))
    np.testing.assert_array_equal(sharded.labels, plain.labels)
    np.testing.assert_array_equal(sharded.agents, plain.agents)
    np.testing.assert_allclose(sharded.scores, plain.scores, atol=1e-6)
    similarity = m.relation_aware_similarity(place(rows), bank.prototypes, bank.classes)
    np.testing.assert_allclose(similarity, m.relation_aware_similarity(rows, bank.prototypes, bank.classes), atol=1e-6)
    for array in (sharded.labels, sharded.scores, similarity):
        assert len(array.sharding.device_set) == devices and array.addressable_shards[0].data.shape[0] == 64 // devices
    if explicit:
        return
    chosen = Settings(4, "cosine", "lattice", "clip", "top", mesh=mesh, axes="regions")
    arguments = [place(rows), bank.prototypes, bank.classes, 0.1, None]
    program = blocks.relation_matrix.lower(*arguments, settings=chosen).compile().as_text()
    program += blocks.match_regions.lower(arguments[0], place(valid), bank, 0.1, None, settings=chosen).compile().as_text()
    assert f"f32[{64 // devices},16]" in program
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program)
for devices in (1, 2, 4, 8):
    check(devices)
check(8, top_k=3, agent_policy="random", key=jax.random.key(0))
check(8, num_agents=7)
check(8, explicit=True)
mesh8, split = jax.sharding.Mesh(np.array(jax.devices()), ("regions",)), PartitionSpec("regions")
put = lambda array: jax.device_put(array, NamedSharding(mesh8, split))
check(8, explicit=True, top_k=3, agent_policy="random", key=jax.random.key(0))
many = make_bank(3, classes=12, per_class=175)  # more prototypes than a block holds
assert len(many.prototypes) > blocks._COLUMNS
for settings in ({}, dict(top_k=3), dict(similarity="cosine"), dict(max_bytes=50_000)):
    whole = m.match(rows, many, **settings)
    np.testing.assert_allclose(m.match(put(rows), many, **settings).scores, whole.scores, atol=1e-5)
    inside = jax.shard_map(lambda a, b: m.match(a, b, **settings).scores, mesh=mesh8, in_specs=(split, PartitionSpec()), out_specs=split)
    np.testing.assert_allclose(jax.jit(inside)(put(rows), many), whole.scores, atol=1e-5)
similarity = m.relation_aware_similarity(put(rows), many.prototypes, many.classes)
np.testing.assert_allclose(similarity, m.relation_aware_similarity(rows, many.prototypes, many.classes), atol=1e-5)
none = jax.device_put(rows[:0], NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("regions",)), PartitionSpec("regions")))
assert m.match(none, bank).labels.shape == (0,)
print("equal on", len(jax.devices()))
"""


def test_regions_sharded_over_eight_devices():
    """Labels are those of one device, each device keeps its own regions, and the compiled program sends nothing."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal on 8"
