import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl.model import Dense, Dropout, SegmentHead, TransformerEncoder, pool_statistics, rotate

ENCODER = TransformerEncoder(width=16, layers=2, heads=2)
NUM_FRAMES = np.array([12, 5, 1, 8])
VALID = np.arange(12) < NUM_FRAMES[:, None]


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(4, 12, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def params(features):
    return ENCODER.init(jax.random.key(0), features, NUM_FRAMES)


@jax.jit
def encode(params, features, num_frames, masked=None):
    return jnp.stack(ENCODER.apply(params, features, num_frames, masked))


def test_encoder_returns_the_projection_and_every_layer(features, params):
    assert encode(params, features, NUM_FRAMES).shape == (3, 4, 12, 16)


def test_padding_never_changes_an_encoding(features, params):
    padding = np.where(VALID[..., None], features, 1e3)
    longer = np.pad(features, ((0, 0), (0, 7), (0, 0)), constant_values=-50.0)
    expected = np.asarray(encode(params, features, NUM_FRAMES))[:, VALID]
    np.testing.assert_allclose(np.asarray(encode(params, padding, NUM_FRAMES))[:, VALID], expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(encode(params, longer, NUM_FRAMES))[:, :, :12][:, VALID], expected, atol=1e-5)


def test_the_other_rows_never_change_an_encoding(features, params):
    together = np.asarray(encode(params, features, NUM_FRAMES))
    for row in range(4):
        alone = np.asarray(encode(params, features[row : row + 1], NUM_FRAMES[row : row + 1]))
        np.testing.assert_allclose(alone[:, 0, VALID[row]], together[:, row, VALID[row]], atol=1e-5)


def test_masked_steps_cannot_leak_into_the_encoder(features, params):
    masked = np.random.default_rng(1).random((4, 12)) < 0.5
    poisoned = np.where(masked[..., None], np.nan, features)
    encoded = np.asarray(encode(params, features, NUM_FRAMES, masked))
    np.testing.assert_array_equal(np.asarray(encode(params, poisoned, NUM_FRAMES, masked)), encoded)
    assert not np.allclose(encoded, encode(params, features, NUM_FRAMES))


def test_every_visible_valid_step_reaches_the_outputs(features, params):
    masked = np.random.default_rng(1).random((4, 12)) < 0.5

    def total(features):
        return jnp.sum(jnp.where(VALID[..., None], encode(params, features, NUM_FRAMES, masked)[-1], 0) ** 2)

    reached = np.abs(jax.grad(total)(features)).max(-1) > 0
    np.testing.assert_array_equal(reached, VALID & ~masked)


def test_encoder_hears_the_order_of_steps(features, params):
    forward = pool_statistics(encode(params, features[:1], NUM_FRAMES[:1]), NUM_FRAMES[:1])
    backward = pool_statistics(encode(params, features[:1, ::-1], NUM_FRAMES[:1]), NUM_FRAMES[:1])
    assert np.abs(forward - backward).max() > 1e-3


def test_rotary_positions_are_relative():
    query, key = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    score = jnp.einsum("qk,sk->qs", *(rotate(jnp.tile(x, (1, 10, 1, 1)))[0, :, 0] for x in (query, key)))
    for distance in (-3, 0, 4):
        np.testing.assert_allclose(np.diagonal(score, distance), score[5, 5 + distance], atol=1e-5)
    assert abs(score[5, 8] - score[5, 2]) > 1e-3


def test_dense_is_flax_dense(features):
    variables = Dense(5).init(jax.random.key(0), features)
    np.testing.assert_allclose(Dense(5).apply(variables, features), nn.Dense(5).apply(variables, features), atol=1e-5)


def test_dropout_keeps_the_mean_and_the_rate_and_is_off_when_deterministic():
    x = jnp.full((200, 500), 2.0)
    dropped = Dropout(0.25).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(2.0, abs=0.02)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)


def test_pooling_is_the_mean_and_deviation_over_valid_steps_of_every_layer(features, params):
    outputs = encode(params, features, NUM_FRAMES)
    pooled = np.asarray(pool_statistics(list(outputs), NUM_FRAMES))
    assert pooled.shape == (4, 2 * 3 * 16)
    for row, n in enumerate(NUM_FRAMES):
        valid = np.concatenate(np.asarray(outputs)[:, row, :n], -1)
        expected = np.concatenate([valid.mean(0), np.sqrt(valid.var(0) + 1e-5)])
        np.testing.assert_allclose(pooled[row], expected, atol=1e-5)


def test_the_head_is_linear_and_starts_at_zero():
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    variables = SegmentHead(3).init(jax.random.key(0), x)
    assert not SegmentHead(3).apply(variables, x).any()
    (kernel,) = (leaf for leaf in jax.tree.leaves(variables) if leaf.ndim > 1)
    learned = jax.tree.map(lambda leaf: leaf + 1.0, variables)
    assert kernel.shape == (7, 3)
    np.testing.assert_allclose(SegmentHead(3).apply(learned, x), np.tile(x.sum(1, keepdims=True) + 1, 3), rtol=1e-4, atol=1e-5)
