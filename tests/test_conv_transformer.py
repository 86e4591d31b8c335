import jax
import numpy as np

from jax_emossl.encoders.conv_transformer import ConvTransformer, positions

ENCODER = ConvTransformer(width=16, layers=2, heads=2, conv_layers=2, kernel=5)
NUM_STEPS = np.array([40, 7])


FEATURES = np.random.default_rng(0).normal(size=(2, 40, 6)).astype(np.float32)


def test_steps_and_cls_come_out_apart():
    said, params = jax.jit(ENCODER.init_with_output)(jax.random.key(0), FEATURES, NUM_STEPS)
    assert [layer.shape for layer in said.layers] == [(2, 40, 16)] * 3 and said.summary.shape == (2, 16)
    assert params["params"]["stem_0"]["Conv_0"]["kernel"].shape == (5, 6, 16) and params["params"]["cls"].shape == (16,)


def test_cls_hears_steps_of_the_whole_row_and_none_beyond():
    params = jax.jit(ENCODER.init)(jax.random.key(0), FEATURES, NUM_STEPS)
    reached = jax.jit(jax.grad(lambda x: (ENCODER.apply(params, x, NUM_STEPS).summary ** 3).sum()))(FEATURES)
    heard = np.abs(reached).max(-1) > 0
    np.testing.assert_array_equal(heard, np.arange(40) < NUM_STEPS[:, None])
    assert np.abs(reached[0, -5:]).max() > 0.01 * np.abs(reached[0]).max()


def test_positions_are_told_apart():
    told = positions(50, 16)
    assert told.shape == (50, 16) and np.abs(told).max() <= 1
    distance = np.linalg.norm(told[:, None] - told[None], axis=-1) + 10 * np.eye(50)
    assert distance.min() > 0.1
