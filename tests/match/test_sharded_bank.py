"""A bank whose classes lie on several devices: the same call and answers, and little is sent."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import run_on_eight_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from oracle import assert_same, features, make_bank

from rimjax import match as m
from rimjax.match.placement import share_out

START = """
from jaxtyping import install_import_hook
install_import_hook(["rimjax"], "typecheck.check")
import re, jax, jax.numpy as jnp, numpy as np
from dataclasses import replace
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from oracle import features, make_bank, make_whitening
from rimjax import match as m
from rimjax.types import ReferenceBank, Regions
devices = np.array(jax.devices())
line, grid = Mesh(devices, ("classes",)), Mesh(devices.reshape(2, 4), ("regions", "classes"))
"""

COMPARED = """
rng = np.random.default_rng(0)
owners = rng.permutation(np.repeat(np.arange(37), rng.integers(1, 9, 37)))  # in no order
rows, (classes, spread) = features(2, 48)[0], features(3, 37, len(owners))
names = ("background", *map(str, range(1, 37)))
bank = ReferenceBank.create(classes[owners] + 0.5 * spread, owners, classes, names)
valid, allowed = np.arange(48) % 7 != 3, np.arange(37) % 3 != 0
whitened = replace(bank, whitening=make_whitening(4, 16))
key = jax.random.key(0)

def check(mesh, bank=bank, place=lambda array: array, atol=1e-6, **settings):
    settings = {"num_agents": 3} | settings
    plain = m.match(Regions(rows, None, valid), bank, **settings)
    regions = Regions(place(rows), None, place(valid))
    result = m.match(regions, m.shard_bank(bank, mesh, "classes"), **settings)
    np.testing.assert_array_equal(result.labels, plain.labels)
    np.testing.assert_array_equal(result.agents, plain.agents)
    np.testing.assert_allclose(result.scores, plain.scores, atol=atol)
    assert (result.classes is None) == (plain.classes is None)
    if plain.classes is not None:
        np.testing.assert_array_equal(result.classes, plain.classes)
    return result
"""

SETTINGS = """
check(line, top_k=50, allowed=allowed)  # more than may win, so that those come last
check(line, candidates="agents", agent_source="prototypes", background_agent=False)
check(line, agent_policy="random", key=key, background_agent=False, candidates="agents")
check(line, agent_policy="random", key=key, agent_source="prototypes", similarity="weighted")
check(line, class_score="sum", allowed=allowed, measure="bhattacharyya", atol=8e-6)  # sums of 8
check(line, class_score="max", similarity="combined", score_map="exp", top_k=1)
check(line, similarity="cosine", bank=whitened)
many = make_bank(3, classes=12, per_class=175)  # in blocks of regions and of prototypes
check(line, bank=many, max_bytes=100_000, num_agents=6)
check(line, bank=many, max_bytes=100_000, class_score="max", top_k=3)
few = make_bank(5, classes=3)  # some devices hold no class
check(line, bank=few, num_agents=8, background_agent=False, top_k=3)
print("equal")
"""

MESHES = """
for count in (2, 4, 8):
    check(Mesh(devices[:count], ("classes",)))
whole, split = PartitionSpec(), PartitionSpec("regions")
put = lambda spec: lambda array: jax.device_put(array, NamedSharding(grid, spec))
check(grid, place=put(whole))
assert check(grid, place=put(split)).labels.sharding.spec == split
check(grid, place=put(split), top_k=3, agent_policy="random", key=key)
explicit = jax.make_mesh((2, 4), grid.axis_names, axis_types=(jax.sharding.AxisType.Explicit,) * 2)
check(explicit, place=lambda array: jax.device_put(array, NamedSharding(explicit, split)))

even = make_bank(1, classes=16)
result = check(grid, bank=even, place=put(split))
assert result.scores.sharding.spec == PartitionSpec("regions", "classes")
sharded = m.shard_bank(even, line, "classes")
assert sharded.prototypes.addressable_shards[3].data.shape == (6, 16)
def compute_loss(rows, bank):
    return (m.match(rows, bank).scores ** 2).sum()
expected = jax.grad(compute_loss)(rows, even)
np.testing.assert_allclose(jax.jit(jax.grad(compute_loss))(rows, sharded), expected, atol=1e-4)
print("equal")
"""

TIES = """
def turn(gap):  # a vector whose cosine to the first axis is 1 - gap
    return [1 - gap, np.sqrt(1 - (1 - gap) ** 2)]

def name(**gaps):
    rows = np.array([turn(gaps.get(f"class{i}", 0.5)) for i in range(16)], np.float32)
    bank = ReferenceBank.create(rows, np.arange(16), rows, ("background", *map(str, range(1, 16))))
    sharded, regions = m.shard_bank(bank, line, "classes"), np.array([[1, 0]], np.float32)
    one, many = (m.match(regions, b, similarity="cosine", top_k=3) for b in (bank, sharded))
    assert many.labels.tolist() == one.labels.tolist()
    assert many.classes.tolist() == one.classes.tolist()
    whole = m.match(regions, sharded, similarity="cosine")
    assert whole.labels.tolist() == many.labels.tolist()
    return many.classes[0].tolist()

# Classes 2i and 2i + 1 lie on one device.
assert name(class3=5e-7, class12=0, class9=1e-2) == [3, 12, 9]  # a tie goes to the lower class
assert name(class3=1e-4, class12=0, class9=1e-2) == [12, 3, 9]  # and this is none
# Class 2 ties with 3 but not with the best of all, class 12.
assert name(class2=1.6e-6, class3=8e-7, class12=0) == [3, 12, 2]
assert name(class4=0, class5=0, class7=0) == [4, 5, 7]
print("equal")
"""

SENT = """
def compile(classes, per_class, **settings):
    bank = m.shard_bank(make_bank(1, classes=classes, per_class=per_class, dim=64), line, "classes")
    function = jax.jit(lambda rows, bank: m.match(rows, bank, **settings))
    rows = jax.ShapeDtypeStruct((8, 64), jnp.float32)
    return function.lower(rows, bank).compile().as_text()

def list_sent(program):
    collective = r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    lines = re.findall(collective + r"(?:-start)?\\(", program)
    return sorted(shape for line in lines for shape in re.findall(r"\\w+\\[[\\d,]*\\]", line))

def count_elements(shape):
    return np.prod([int(size) for size in re.findall(r"\\d+", shape[shape.index("["):])], dtype=int)

for settings in ({}, {"top_k": 3}, {"top_k": 3, "agent_source": "prototypes"}):
    small, large = compile(64, 4, **settings), compile(640, 12, **settings)
    assert list_sent(small) == list_sent(large), (list_sent(small), list_sent(large))
    # The features of eight regions' agents, and the four best of each of eight devices.
    assert f"f32[{8 * 4},64]" in list_sent(large) and "f32[8,8,4]" in list_sent(large)
    assert max(map(count_elements, list_sent(large))) == 8 * 4 * 64
    largest = max(map(count_elements, re.findall(r"\\w+\\[[\\d,]+\\]", large)))
    assert largest < 2 * 640 * 12 * 64 // 8  # not much more than a device's own prototypes
print("little")
"""


@pytest.mark.parametrize("script", [SETTINGS, MESHES], ids=["settings", "meshes"])
def test_equal_to_one_device(script):
    """Labels, agents and scores equal one device's, whatever the settings and the mesh."""
    assert run_on_eight_devices(START + COMPARED + script) == "equal"


def test_ties_across_devices():
    """Scores within the tolerance of the best of all devices tie."""
    assert run_on_eight_devices(START + TIES) == "equal"


def test_what_is_sent_does_not_grow_with_the_classes():
    """Ten times the classes, thirty times the prototypes: what devices exchange stays the same."""
    assert run_on_eight_devices(START + SENT) == "little"


@pytest.mark.parametrize(
    "sizes", [[4] * 16, [1], [0, 0, 5], [50, 1, 1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9] * 9]
)
def test_runs_are_balanced(sizes):
    starts = share_out(np.array(sizes), 8)
    assert (starts[0], starts[-1], len(starts)) == (0, len(sizes), 9)
    loads = [sum(sizes[a:b]) for a, b in pairwise(starts)]
    assert sum(loads) == sum(sizes) and np.diff(starts).min() >= 0
    assert max(loads) <= sum(sizes) / 8 + max(sizes)


MESH = Mesh(np.array(jax.devices()[:1]), ("classes",))


def test_one_device_and_half_precision():
    bank, rows = make_bank(1), features(2, 10)[0]
    half = m.ReferenceBank(
        *(np.asarray(bank.prototypes, jnp.bfloat16), bank.owners),
        *(np.asarray(bank.classes, jnp.bfloat16), bank.names),
    )
    sharded = m.shard_bank(half, MESH, "classes")
    assert sharded.prototypes.dtype == jnp.bfloat16 and sharded.names == bank.names
    assert_same(m.match(rows, sharded), m.match(rows, half))


@pytest.mark.parametrize("spec, mesh", [(("classes",), MESH), (("x",), Mesh(MESH.devices, ("x",)))])
def test_refuses_regions_on_the_axis_of_the_bank_and_on_another_mesh(spec, mesh):
    bank = m.shard_bank(make_bank(1), MESH, "classes")
    rows = jax.device_put(features(2, 8)[0], NamedSharding(mesh, PartitionSpec(*spec)))
    with pytest.raises(ValueError, match=r"^regions must be whole .*; pass them unsharded"):
        m.match(rows, bank)


def test_refuses_what_cannot_be_placed():
    bank = make_bank(1)
    with pytest.raises(ValueError, match=r"^axis must be an axis of mesh.*'rows'"):
        m.shard_bank(bank, MESH, "rows")
    broken = m.ReferenceBank(bank.prototypes * jnp.inf, bank.owners, bank.classes, bank.names)
    with pytest.raises(ValueError, match=r"^prototypes must be finite"):
        m.shard_bank(broken, MESH, "classes")
    sharded = m.shard_bank(bank, MESH, "classes")
    with pytest.raises(ValueError, match=r"^max_bytes must be at least"):
        m.match(features(2, 8)[0], sharded, max_bytes=100)
    with pytest.raises(ValueError, match=r"^allowed must hold one bool per class, C=6"):
        m.match(features(2, 8)[0], sharded, allowed=np.ones(5, bool))
    with pytest.raises(ValueError, match=r"^regions must be finite"):
        m.match(features(2, 8)[0] * np.nan, sharded)
