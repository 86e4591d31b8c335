import jax
import numpy as np

from jax_emossl.encoders.temporal_conv import TemporalConv, pool


def test_the_trunk_is_the_papers():
    encoder = TemporalConv(width=32, layers=3, kernel=32)
    features = np.zeros((1, 40, 5), np.float32)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), features, np.array([40])))["params"]
    kernels = [shapes[f"Convolution_{i}"]["Conv_0"]["kernel"].shape for i in range(6)]
    assert kernels == [(32, 5, 32), (32, 32, 32), (16, 32, 64), (16, 64, 64), (8, 64, 128), (8, 128, 128)]


def test_pooling_takes_the_largest_valid_value_near_every_second_step():
    x = np.arange(12.0, dtype=np.float32)[None, :, None]
    pooled = pool(x, np.arange(12)[None] < 7)[0, :, 0]
    np.testing.assert_array_equal(pooled[:4], [4, 6, 6, 6])  # windows from 3 steps before to 4 after


def test_rows_shorter_than_the_pooling_have_finite_representations_and_gradients():
    encoder, num_steps = TemporalConv(width=4, layers=3, kernel=8), np.array([1, 2, 3])
    features = np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)
    params = jax.jit(encoder.init)(jax.random.key(0), features, num_steps)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: encoder.apply(p, features, num_steps).pooled().sum()))(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_summary_is_the_largest_value_of_the_last_block():
    encoder, num_steps = TemporalConv(width=4, layers=2, kernel=4), np.array([9, 5])
    features = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    encoded, _ = jax.jit(encoder.init_with_output)(jax.random.key(0), features, num_steps)
    assert [layer.shape for layer in encoded.layers] == [(2, 9, 4), (2, 9, 8)]
    for row, number in enumerate(num_steps):
        np.testing.assert_allclose(encoded.summary[row], encoded.layers[-1][row, :number].max(0), rtol=1e-6)
