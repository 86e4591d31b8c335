import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl.layers import Dense, Dropout, pool_statistics, valid_steps

NUM_STEPS = np.array([12, 5, 1, 8])


def test_valid_steps_are_the_first_ones():
    np.testing.assert_array_equal(valid_steps(jnp.array([2, 0, 3]), 3), [[True, True, False], [False] * 3, [True] * 3])


def test_dense_is_flax_dense():
    x = np.random.default_rng(0).normal(size=(4, 12, 6)).astype(np.float32)
    variables = Dense(5).init(jax.random.key(0), x)
    np.testing.assert_allclose(Dense(5).apply(variables, x), nn.Dense(5).apply(variables, x), atol=1e-5)


def test_dropout_keeps_the_mean_and_the_rate_and_is_off_when_deterministic():
    x = jnp.full((200, 500), 2.0)
    dropped = Dropout(0.25).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(2.0, abs=0.02)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)


def test_what_is_dropped_of_a_step_does_not_depend_on_padding():
    x, key = jnp.ones((3, 12, 8)), jax.random.key(0)
    short, padded = (Dropout(0.5).apply({}, own, False, rngs={"dropout": key}) for own in (x, jnp.pad(x, [(0, 0), (0, 20), (0, 0)])))
    np.testing.assert_array_equal(short, padded[:, :12])
    assert len(np.unique(np.asarray(short).reshape(36, 8), axis=0)) > 20  # rows and steps drop what they like


def test_pooling_is_the_mean_and_deviation_over_valid_steps_of_every_layer():
    layers = np.random.default_rng(0).normal(1, 2, (3, 4, 12, 16)).astype(np.float32)
    pooled = np.asarray(pool_statistics(list(layers), NUM_STEPS))
    assert pooled.shape == (4, 2 * 3 * 16)
    for row, n in enumerate(NUM_STEPS):
        valid = np.concatenate(layers[:, row, :n], -1)
        expected = np.concatenate([valid.mean(0), np.sqrt(valid.var(0) + 1e-5)])
        np.testing.assert_allclose(pooled[row], expected, atol=1e-5)


def test_padding_never_changes_pooled_statistics():
    layer = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)
    noisy = np.where((np.arange(12) < NUM_STEPS[:, None])[..., None], layer, np.nan)
    np.testing.assert_array_equal(pool_statistics([noisy], NUM_STEPS), pool_statistics([layer], NUM_STEPS))
