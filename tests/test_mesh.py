import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl import mesh as meshes
from jax_emossl.errors import UserError

ON_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax_emossl import mesh as meshes

def function(shared, own):
    return {"y": jnp.tanh(own["x"] @ shared).sum(), "n": own["n"] + 1}

shapes, agree = [], []
for members in (1, 2, 3, 4, 5):
    mesh = meshes.make(members)
    shapes.append([mesh.shape["members"], mesh.shape["data"]])
    own = [{"x": np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32), "n": np.int32(i)} for i in range(members)]
    padded = meshes.padded(own, mesh)
    placed = meshes.place_members(meshes.stack(padded), mesh)
    made = jax.jit(meshes.each(function, mesh))(jnp.ones((3, 2)), placed)
    plain = [function(jnp.ones((3, 2)), one) for one in padded]
    rows = np.asarray(meshes.place_rows({"rows": np.arange(len(padded) * 8).reshape(-1, 8)}, mesh)["rows"])
    agree.append(all(np.allclose(made[name], [one[name] for one in plain], rtol=1e-5) for name in made) and rows.size == len(padded) * 8)
print(json.dumps([shapes, agree]))
"""


def python(script, flags):
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("flags", "expected"), [("", "2"), ("--xla_force_host_platform_device_count=3", "3")])
def test_on_a_cpu_every_core_is_a_device_as_far_as_batches_divide(flags, expected):
    script = (
        "import os; os.sched_getaffinity = lambda _: {0, 1, 2}\n"
        "from jax_emossl import mesh; mesh.use_cpu_cores((32, 64))\n"
        "import jax; print(jax.device_count()); mesh.use_cpu_cores((3,)); print(jax.device_count())"
    )
    assert python(script, flags).split() == [expected, expected]  # once JAX has started, nothing changes


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, [[1, 1]] * 5),
        (2, [[1, 2], [2, 1], [2, 1], [2, 1], [2, 1]]),
        (4, [[1, 4], [2, 2], [2, 2], [4, 1], [4, 1]]),
    ],
)
def test_devices_go_to_members_then_to_rows_and_answer_as_a_plain_loop(devices, expected):
    """Shapes of the mesh for 1 to 5 members, and what `each` makes of them."""
    shapes, agree = json.loads(python(ON_DEVICES, f"--xla_force_host_platform_device_count={devices}"))
    assert shapes == expected
    assert agree == [True] * 5


def share(platform, members=1):
    """What `each` looks at, of one device that has all members."""
    return types.SimpleNamespace(shape={"members": members}, devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("replaced", [0, 1])
def test_each_is_a_plain_loop_whether_members_take_turns_or_not(platform, members, replaced):
    def function(shared, own, more):
        return own @ shared, {"sum": own.sum() + more["a"], "count": more["a"] * 2}

    rng = np.random.default_rng(0)
    own, more = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(members)], [{"a": np.float32(i)} for i in range(members)]
    stacked = meshes.stack(own), meshes.stack(more)
    made = jax.jit(meshes.each(function, share(platform), replaced))(jnp.ones((3, 3)), *stacked)
    for i in range(members):
        expected = function(jnp.ones((3, 3)), own[i], more[i])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), meshes.member(made, i), expected)


def test_members_that_take_turns_are_replaced_where_they_lie():
    state, x = np.ones((50, 100, 100), np.float32), np.ones(50, np.float32)

    def further(replaced):
        each = jax.jit(meshes.each(lambda _, state, x: (jnp.tanh(state) * x, x), share("cpu"), replaced), donate_argnums=1)
        return each.lower((), state, x).compile().memory_analysis().temp_size_in_bytes

    assert further(replaced=1) < state.nbytes / 10 < state.nbytes <= further(replaced=0)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_members_that_are_over_stay_as_they_are_and_cost_nothing_where_they_take_turns(platform):
    asked = []

    def member(_, over, state, x):
        def step():
            jax.debug.callback(lambda: asked.append(True))
            return state + x, {"loss": x * 2}

        return meshes.unless(over, step, state)

    state, x = np.array([10.0, 20.0, 30.0]), np.array([1.0, 2.0, 3.0])
    each = jax.jit(meshes.each(member, share(platform)))
    made, sums = each((), np.array([False, True, False]), state, x)
    jax.effects_barrier()
    np.testing.assert_array_equal(made, [11, 20, 33])
    np.testing.assert_array_equal(sums["loss"], [2, 0, 6])
    assert len(asked) == 2 or platform == "gpu"
    np.testing.assert_array_equal(each((), None, state, x)[0], [11, 22, 33])


def test_members_are_padded_with_the_first_until_the_devices_share_them_equally():
    for members, expected in (("abc", "abca"), ("abcd", "abcd"), ("a", "aa")):
        assert meshes.padded(members, share("cpu", 2)) == list(expected)
    assert meshes.padded("abcde", share("cpu", 4)) == list("abcdeaaa")
    assert meshes.padded("abc", share("cpu", 1)) == list("abc")


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_members_come_out_of_a_stack_as_they_went_in(array):
    trees = [{"a": array([i, i + 1]), "b": {"c": array(2.0 * i)}} for i in range(3)]
    stacked = meshes.stack(trees)
    assert type(stacked["a"]) is type(trees[0]["a"]) and stacked["a"].shape == (3, 2)
    for i, tree in enumerate(trees):
        jax.tree.map(np.testing.assert_array_equal, meshes.member(stacked, i), tree)


@pytest.mark.parametrize("size", [7, 0, -8])
def test_a_batch_that_the_devices_cannot_share_is_refused(size):
    mesh = types.SimpleNamespace(shape={"members": 2, "data": 4})
    with pytest.raises(UserError, match=f"train.batch_size is {size}, but must be a positive multiple of the 4 devices"):
        meshes.check_batch_size(size, mesh)
    meshes.check_batch_size(8, mesh)
    with pytest.raises(
        UserError, match="train.batch_size is 8, but must be a positive multiple of the 4 devices times the 3 parts of train"
    ):
        meshes.check_batch_size(8, mesh, 3)
    meshes.check_batch_size(24, mesh, 3)
    with pytest.raises(UserError, match="times the 3 parts of train.accumulate, and of the 8 segments of objective.together times"):
        meshes.check_batch_size(36, mesh, 3, 8)
    meshes.check_batch_size(24, mesh, 3, 8)
    meshes.check_batch_size(12, mesh, 1, 8)
