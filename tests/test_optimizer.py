import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jax_emossl.optimizer import Optimizer, Rates

OPTIMIZER = Optimizer(b2=0.98, weight_decay=0.1, clip_norm=1.0, warmup_steps=4, steps=20)


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder": {"kernel": jnp.array(rng.normal(size=(3, 2)), jnp.float32), "bias": jnp.array(rng.normal(size=2), jnp.float32)},
        "head": {"kernel": jnp.array(rng.normal(size=(2, 2)), jnp.float32)},
    }


def rates(strategy="full", learning_rate=0.1, probe_steps=0):
    return Rates.make(ml_collections.ConfigDict({"strategy": strategy, "learning_rate": learning_rate, "probe_steps": probe_steps}))


def train(rates, steps, optimizer=OPTIMIZER, gradients=lambda step: params(step + 1)):
    now = params()
    state = optimizer.transformation().init(now)
    for step in range(steps):
        now, state = _apply(optimizer, gradients(step), state, now, rates, step)
    return now


@functools.partial(jax.jit, static_argnames="optimizer")
def _apply(optimizer, gradients, state, params, rates, step):
    return optimizer.apply(gradients, state, params, rates, step)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_rate_warms_up_linearly_and_decays_to_zero():
    sizes = np.array([OPTIMIZER.step_sizes(rates(), jnp.int32(step))[1] for step in range(20)])
    np.testing.assert_allclose(sizes[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-5)
    assert (np.diff(sizes[3:]) < 0).all()
    assert sizes[11] == pytest.approx(0.05, rel=0.01)  # half-way through the cosine
    assert sizes[-1] == pytest.approx(0, abs=1e-7)


def test_full_training_is_optax_adamw():
    schedule = optax.cosine_decay_schedule(0.1, 20)
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda count: schedule(count + 1), b2=0.98, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    now = params()
    state = adamw.init(now)
    for step in range(6):
        updates, state = jax.jit(adamw.update)(params(step + 1), state, now)
        now = optax.apply_updates(now, updates)
    ours = train(rates(), 6, dataclasses.replace(OPTIMIZER, warmup_steps=0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, now)


def test_weight_decay_spares_vectors():
    after = train(rates(), 4, gradients=lambda _: jax.tree.map(jnp.zeros_like, params()))
    assert_equal(after["encoder"]["bias"], params()["encoder"]["bias"])
    assert (np.abs(after["encoder"]["kernel"]) < np.abs(params()["encoder"]["kernel"])).all()


def test_a_huge_gradient_is_clipped():
    clipped, plain = (train(rates(), 1, gradients=lambda _, k=k: jax.tree.map(lambda x: k * x, params(1))) for k in (1e6, 1e3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), clipped, plain)


def test_a_probe_leaves_the_encoder_bit_identical_and_trains_the_head():
    after = train(rates("probe"), 10)
    assert_equal(after["encoder"], params()["encoder"])
    assert np.abs(after["head"]["kernel"] - params()["head"]["kernel"]).min() > 0.01


def test_probe_then_full_thaws_the_encoder_after_the_probe_with_a_warm_up_of_its_own():
    plan = rates("probe-then-full", probe_steps=5)
    assert_equal(train(plan, 5)["encoder"], params()["encoder"])
    assert_equal(train(plan, 5)["head"], train(rates("probe"), 5)["head"])
    assert np.abs(train(plan, 6)["encoder"]["kernel"] - params()["encoder"]["kernel"]).max() > 1e-3
    sizes = [OPTIMIZER.step_sizes(plan, jnp.int32(step)) for step in range(10)]
    np.testing.assert_allclose([encoder / head for encoder, head in sizes], [0] * 5 + [0.25, 0.5, 0.75, 1, 1], rtol=1e-5)


def test_full_ignores_the_probe_steps():
    assert_equal(train(rates("full", probe_steps=5), 3), train(rates("full"), 3))


def test_a_pretraining_has_no_strategy_and_trains_everything():
    pretraining = Rates.make(ml_collections.ConfigDict({"learning_rate": 0.1}))
    assert_equal(pretraining, rates("full"))


def test_settings_are_those_of_the_config():
    settings = dataclasses.asdict(OPTIMIZER) | {"learning_rate": 0.1, "batch_size": 8}
    assert Optimizer.make(ml_collections.ConfigDict(settings)) == OPTIMIZER


def test_a_frozen_encoder_does_not_count_in_the_norm_that_is_clipped():
    """The head moves as it would beside an encoder without a gradient."""

    def gradients(step, factor):
        own = params(step + 1)
        return {**own, "encoder": jax.tree.map(lambda x: factor * x, own["encoder"])}

    loud, quiet = (train(rates("probe"), 5, gradients=lambda step, f=factor: gradients(step, f)) for factor in (1e3, 0.0))
    assert_equal(loud["head"], quiet["head"])


def test_biases_do_not_decay_whatever_their_axes():
    now = {"attention": {"query": {"kernel": jnp.ones((2, 2, 2)), "bias": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}}}
    direction, _ = OPTIMIZER.transformation().update(jax.tree.map(jnp.zeros_like, now), OPTIMIZER.transformation().init(now), now)
    assert float(direction["attention"]["query"]["kernel"].min()) > 0
    assert not direction["attention"]["query"]["bias"].any() and not direction["attention"]["norm"]["scale"].any()
