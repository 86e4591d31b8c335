import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl.encoders import Encoded, transformer
from jax_emossl.encoders.transformer import Attention, Layer, Transformer, attend, locality, rotate, slopes
from jax_emossl.masking import pack, packed, unpacked

ENCODER = Transformer(width=16, layers=2, heads=2)
NUM_STEPS = np.array([12, 5, 1, 8])
VALID = np.arange(12) < NUM_STEPS[:, None]


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(4, 12, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def params(features):
    return ENCODER.init(jax.random.key(0), features, NUM_STEPS)


@jax.jit
def encode(params, features, num_steps, masked=None):
    return jnp.stack(ENCODER.apply(params, features, num_steps, masked).layers)


def test_encoder_returns_the_projection_and_every_layer(features, params):
    encoded = jax.jit(ENCODER.apply)(params, features, NUM_STEPS)
    assert jnp.stack(encoded.layers).shape == (3, 4, 12, 16)
    np.testing.assert_array_equal(encoded.num_steps, NUM_STEPS)
    assert encoded.summary is None


def test_padding_never_changes_an_encoding(features, params):
    padding = np.where(VALID[..., None], features, 1e3)
    longer = np.pad(features, ((0, 0), (0, 7), (0, 0)), constant_values=-50.0)
    expected = np.asarray(encode(params, features, NUM_STEPS))[:, VALID]
    np.testing.assert_allclose(np.asarray(encode(params, padding, NUM_STEPS))[:, VALID], expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(encode(params, longer, NUM_STEPS))[:, :, :12][:, VALID], expected, atol=1e-5)


def test_the_other_rows_never_change_an_encoding(features, params):
    together = np.asarray(encode(params, features, NUM_STEPS))
    for row in range(4):
        alone = np.asarray(encode(params, features[row : row + 1], NUM_STEPS[row : row + 1]))
        np.testing.assert_allclose(alone[:, 0, VALID[row]], together[:, row, VALID[row]], atol=1e-5)


def test_masked_steps_cannot_leak_into_the_encoder(features, params):
    masked = np.random.default_rng(1).random((4, 12)) < 0.5
    poisoned = np.where(masked[..., None], np.nan, features)
    encoded = np.asarray(encode(params, features, NUM_STEPS, masked))
    np.testing.assert_array_equal(np.asarray(encode(params, poisoned, NUM_STEPS, masked)), encoded)
    assert not np.allclose(encoded, encode(params, features, NUM_STEPS))


def test_every_visible_valid_step_reaches_the_outputs(features, params):
    masked = np.random.default_rng(1).random((4, 12)) < 0.5

    def total(features):
        return jnp.sum(jnp.where(VALID[..., None], encode(params, features, NUM_STEPS, masked)[-1], 0) ** 2)

    reached = np.abs(jax.grad(total)(features)).max(-1) > 0
    np.testing.assert_array_equal(reached, VALID & ~masked)


def test_encoder_hears_the_order_of_steps(features, params):
    pooled = [Encoded(tuple(encode(params, x, NUM_STEPS[:1])), NUM_STEPS[:1]).pooled() for x in (features[:1], features[:1, ::-1])]
    forward, backward = pooled
    assert np.abs(forward - backward).max() > 1e-3


def test_rotary_positions_are_relative():
    query, key = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    score = jnp.einsum("qk,sk->qs", *(rotate(jnp.tile(x, (1, 10, 1, 1)), jnp.arange(10)[None])[0, :, 0] for x in (query, key)))
    for distance in (-3, 0, 4):
        np.testing.assert_allclose(np.diagonal(score, distance), score[5, 5 + distance], atol=1e-5)
    assert abs(score[5, 8] - score[5, 2]) > 1e-3


def test_heads_lean_toward_near_steps_behind_or_ahead():
    back, ahead, far_back, far_ahead = locality(np.arange(-4, 5)[None], slopes(4, 2, 8))[:, 0]  # what the middle step hears
    np.testing.assert_array_equal(back[:5], [-2, -1.5, -1, -0.5, 0])
    assert (back[5:] < back[:4][::-1] - 3).all()  # the wrong way
    np.testing.assert_array_equal(ahead, back[::-1])
    np.testing.assert_array_equal(far_back[:5], back[:5] / 4)
    np.testing.assert_array_equal(far_ahead, far_back[::-1])


def test_time_scales_are_geometric_and_shared_by_pairs():
    np.testing.assert_allclose(1 / np.array(slopes(6, 1.5, 24)), [1.5, 1.5, 6, 6, 24, 24])
    np.testing.assert_allclose(1 / np.array(slopes(2, 1.5, 24)), [1.5, 1.5])
    np.testing.assert_allclose(slopes(3, 2, 8), [0.5, 0.5, 0.125])


@pytest.mark.parametrize("length", [96, 101])
def test_the_band_says_what_the_full_product_says(length, monkeypatch):
    """Of four heads two have chunks of 8 steps and read a band, two have chunks of 32 and read all, as rows hold but three of them.

    The scores have a standard deviation of 2; that of pretrained encoders was 1.5 to 1.8.
    """
    rng = np.random.default_rng(0)
    scale = np.array([2 / 8**0.5, 1, 1], np.float32)[:, None, None, None, None]
    arrays = scale * rng.normal(size=(3, 2, length, 4, 8)).astype(np.float32)
    valid = np.arange(length) < np.array([length, 41])[:, None]
    read = []
    monkeypatch.setattr(transformer, "_mix", lambda *own, mix=transformer._mix: read.append(own[1].shape[-3]) or mix(*own))

    def outputs_and_gradients():
        def attended(*inputs):
            return jnp.where(valid[..., None, None], attend(*inputs, valid, np.arange(length)[None], slopes(4, 1 / 3, 4 / 3)), 0)

        return jax.jit(attended)(*arrays), jax.jit(jax.grad(lambda *inputs: jnp.sum(attended(*inputs) ** 2), (0, 1, 2)))(*arrays)

    banded = outputs_and_gradients()
    monkeypatch.setattr(transformer, "_FEWEST_CHUNKS", 1000)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), banded, outputs_and_gradients())
    assert read == [24, length, 24, length, length, length]


def test_padding_never_changes_what_the_band_says():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 96, 2, 8)).astype(np.float32) for _ in range(3)]
    longer = [np.pad(x, ((0, 0), (0, 20), (0, 0), (0, 0)), constant_values=50.0) for x in arrays]
    steps = np.arange(116)[None]
    whole = attend(*arrays, np.ones((1, 96), bool), steps[:, :96], slopes(2, 1 / 3, 1))
    np.testing.assert_allclose(attend(*longer, steps < 96, steps, slopes(2, 1 / 3, 1))[:, :96], whole, atol=1e-5)


@pytest.mark.parametrize("near", [2.0, 1 / 3])  # steps: rows are read whole, and in bands
@pytest.mark.parametrize("causal", [False, True])
def test_steps_encoded_alone_are_as_where_the_others_stand_but_are_not_attended_to(near, causal):
    rng = np.random.default_rng(0)
    x, num_steps = rng.normal(size=(3, 240, 6)).astype(np.float32), np.array([240, 130, 9])
    visible = (rng.random((3, 240)) < 0.5) & (np.arange(240) < num_steps[:, None])
    encoder = Transformer(16, 2, 2, near, near, causal=causal)
    params = jax.jit(encoder.init)(jax.random.key(0), x, num_steps)
    positions, number = pack(visible, 150)

    @jax.jit
    def alone(x):
        return [unpacked(y, positions, 240) for y in encoder.apply(params, packed(x, positions), number, None, True, positions).layers]

    attention = functools.partial(Attention, slopes(2, near, near, causal), causal=causal)
    own = params["params"]
    expected = [x @ own["projection"]["kernel"] + own["projection"]["bias"]]
    for i in range(2):
        expected.append(Layer(attention, 0.0).apply({"params": own[f"layer_{i}"]}, expected[-1], visible, True))
    for said, there in zip(alone(x), expected, strict=True):
        np.testing.assert_allclose(np.asarray(said)[visible], np.asarray(there)[visible], rtol=1e-4, atol=1e-4)
    hidden = np.where(visible[..., None], x, np.nan)
    jax.tree.map(np.testing.assert_array_equal, alone(hidden), alone(x))


def test_positions_say_where_steps_lie_and_nothing_else(features, params):
    def at(positions):
        return jnp.stack(ENCODER.apply(params, features, NUM_STEPS, None, True, jnp.asarray(positions)).layers)

    steps = np.tile(np.arange(12), (4, 1))
    expected = np.asarray(encode(params, features, NUM_STEPS))
    np.testing.assert_allclose(at(steps), expected, atol=1e-6)  # as if none were given
    np.testing.assert_allclose(np.asarray(at(steps + 30))[:, VALID], expected[:, VALID], atol=1e-4)  # what counts is how far apart
    np.testing.assert_allclose(np.asarray(at(np.where(VALID, steps, 99)))[:, VALID], expected[:, VALID], atol=1e-5)  # not those of padding
    assert np.abs(np.asarray(at(3 * steps))[-1, 0] - expected[-1, 0]).max() > 1e-2


def test_a_causal_encoder_never_sees_ahead(features, params):
    causal = jax.jit(lambda x: jnp.stack(Transformer(width=16, layers=2, heads=2, causal=True).apply(params, x, NUM_STEPS).layers))
    before = np.asarray(causal(features))
    for step in (1, 4, 11):
        future = features.copy()
        future[:, step:] = 1e3
        after = np.asarray(causal(future))
        np.testing.assert_array_equal(after[:, :, :step], before[:, :, :step])
        assert np.abs(after - before)[:, :, step].min(-1).max() > 0
    assert not np.allclose(before, encode(params, features, NUM_STEPS))


def test_heads_of_a_causal_encoder_all_look_back_each_farther():
    distance = np.arange(-4, 5)[None]
    bias = np.asarray(locality(distance, slopes(4, 2, 16, causal=True), causal=True))[:, 0]
    np.testing.assert_allclose(bias[:, 3], [-0.5, -0.25, -0.125, -0.0625])
    assert (bias[:, 5:] < -1e8).all()


def test_dropout_acts_in_training_only(features, params):
    encoder = Transformer(width=16, layers=2, heads=2, dropout=0.5)

    @jax.jit
    def trained(key):
        return encoder.apply(params, features, NUM_STEPS, None, False, rngs={"dropout": key}).layers[-1]

    assert not np.allclose(trained(jax.random.key(1)), trained(jax.random.key(2)))
    np.testing.assert_allclose(encoder.apply(params, features, NUM_STEPS).layers[-1], encode(params, features, NUM_STEPS)[-1], atol=1e-5)


def gradients(encoder, params, features):
    def total(params):
        encoded = encoder.apply(params, features, NUM_STEPS, None, False, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(jnp.where(VALID[..., None], encoded.layers[-1], 0) ** 2)

    return jax.jit(jax.grad(total))(params)


def test_layers_computed_anew_give_the_same_gradients(features, params):
    plain, anew = (Transformer(width=16, layers=2, heads=2, dropout=0.5, remat=remat) for remat in (False, True))
    expected = gradients(plain, params, features)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients(anew, params, features), expected)


def test_in_bfloat16_products_are_short_and_all_else_is_float32(features, params):
    encoder = Transformer(width=16, layers=2, heads=2, dtype="bfloat16")
    encoded, exact = (jax.jit(own.apply)(params, features, NUM_STEPS) for own in (encoder, ENCODER))
    for short, long in zip(encoded.layers, exact.layers, strict=True):
        assert short.dtype == jnp.float32
        error = np.abs(short - long)[VALID].max() / np.abs(long)[VALID].max()
        assert 0 < error < 0.03
    own = gradients(encoder, params, features)
    assert {leaf.dtype for leaf in jax.tree.leaves((own, encoder.init(jax.random.key(0), features, NUM_STEPS)))} == {jnp.dtype("float32")}
    taken = {name: set() for name in ("dot_general", "exp", "reduce_sum")}
    for equation in equations(jax.make_jaxpr(encoder.apply)(params, features, NUM_STEPS).jaxpr):
        taken.get(equation.primitive.name, set()).update(str(variable.aval.dtype) for variable in equation.invars)
    assert taken == {"dot_general": {"bfloat16"}, "exp": {"float32"}, "reduce_sum": {"float32"}}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            yield from equations(inner.jaxpr) if hasattr(inner, "jaxpr") else ()
