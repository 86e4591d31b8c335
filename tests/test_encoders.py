import types

import jax
import jax.export
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jax_emossl import encoders
from jax_emossl.encoders import Encoded
from jax_emossl.encoders.conv_transformer import ConvTransformer
from jax_emossl.encoders.modalities import Modalities
from jax_emossl.encoders.temporal_conv import TemporalConv
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.layers import pool_statistics
from jax_emossl.objectives.emotion import Intensity
from jax_emossl.objectives.masked_timesteps import MaskedTimesteps
from jax_emossl.ordinal import Levels

RECURRENT = '''
"""A new encoder: a recurrent network, whose last state sums up a row."""
import flax.linen as nn

from jax_emossl.encoders import Encoded


class Recurrent(nn.Module):
    width: int

    @nn.compact
    def __call__(self, features, num_steps, masked=None, deterministic=True):
        if masked is not None:
            features = features * ~masked[..., None]
        state, outputs = nn.RNN(nn.SimpleCell(self.width), return_carry=True)(features, seq_lengths=num_steps)
        return Encoded((outputs,), num_steps, state)


def make(model, dropout, frontend):
    return Recurrent(model.width)
'''
MODEL = ml_collections.ConfigDict(
    {
        "name": "transformer", "width": 16, "layers": 2, "heads": 4, "near": 0.1, "far": 0.4, "dtype": "bfloat16", "remat": True,
        "causal": False,
    }
)  # fmt: skip


@pytest.fixture
def recurrent(tmp_path, monkeypatch):
    (tmp_path / "recurrent.py").write_text(RECURRENT)
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(tmp_path)])
    return encoders.make(ml_collections.ConfigDict({"name": "recurrent", "width": 8}), 0.0, None)


def batch():
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(4, 12, 6)).astype(np.float32), "num_steps": np.array([12, 5, 1, 8], np.int32),
        "num_frames": np.array([12, 5, 1, 8], np.int32),
        "labels": rng.integers(0, 4, (4, 2)).astype(np.float32), "weight": np.ones(4, np.float32),
        "segment": np.arange(4, dtype=np.int32), "basis": np.array([[i, 0, 4] for i in range(4)], np.int32),
    }  # fmt: skip


def test_the_config_names_the_encoder():
    frontend = types.SimpleNamespace(step_seconds=0.05)
    assert encoders.make(MODEL, 0.1, frontend) == Transformer(16, 2, 4, 2.0, 8.0, 0.1, "bfloat16", True)


def test_an_encoder_that_sees_ahead_is_refused_where_it_should_not(recurrent):
    frontend = types.SimpleNamespace(step_seconds=0.05)
    assert encoders.make(ml_collections.ConfigDict({**MODEL, "causal": True}), 0.0, frontend).causal
    asked = ml_collections.ConfigDict({"name": "recurrent", "width": 8, "causal": True})
    with pytest.raises(UserError, match="model.causal is True, but the encoder recurrent always sees ahead: choose another model.name"):
        encoders.make(asked, 0.0, frontend)


def test_heads_read_every_layers_statistics_and_the_summary_where_there_is_one():
    layers = tuple(np.random.default_rng(0).normal(size=(2, 3, 7, 4)).astype(np.float32))
    num_steps, summary = np.array([7, 2, 4]), np.ones((3, 5), np.float32)
    statistics = pool_statistics(layers, num_steps)
    np.testing.assert_array_equal(Encoded(layers, num_steps).pooled(), statistics)
    np.testing.assert_array_equal(Encoded(layers, num_steps, summary).pooled(), np.concatenate([statistics, summary], 1))


def test_a_new_encoder_is_one_new_file_for_every_objective(recurrent):
    pooled = 2 * 8 + 8  # of its one layer, and its summary
    intensity = Intensity(recurrent, ("happy", "sad"), ("happy", "sad"), 0.0, "auroc", Levels.of(np.eye(2)), standards_prior=20.0)
    overall = {"location": np.zeros(pooled, np.float32), "scale": np.ones(pooled, np.float32)}
    standards = {"overall": overall, "vectors": np.ones((3, pooled), np.float32), "order": np.arange(3)}
    for objective, constants in ((MaskedTimesteps(recurrent, 6, 0.5, 3, "l1", 1.0), {}), (intensity, standards)):
        params = jax.jit(objective.init)(jax.random.key(0), batch())
        variables = {"params": params, "constants": constants}
        gradient = jax.jit(
            jax.grad(lambda p, o=objective, c=constants: o.loss({"params": p, "constants": c}, batch(), jax.random.key(1))[0])
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))
        assert all(len(values) == 4 for values in jax.jit(objective.predict)(variables, batch()).values())
    assert params["head"]["readout"]["kernel"].shape == (pooled, 2)


# What every encoder holds to

NUM_STEPS = np.array([12, 5, 1, 8], np.int32)
VALID = np.arange(12) < NUM_STEPS[:, None]
ENCODERS = {
    "transformer": Transformer(width=8, layers=1, heads=2),
    "conv_transformer": ConvTransformer(width=8, layers=1, heads=2, conv_layers=2, kernel=4),
    "temporal_conv": TemporalConv(width=4, layers=3, kernel=6),
    "modalities": Modalities(
        (("a", (0, 2)), ("b", (1,))), width=8, layers=1, heads=2, conv_layers=2, channels=4, kernel=4, near=2.0, far=8.0
    ),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encode(request):
    """Says of features (B, T, 6) all that an encoder does: layers (B, T, ...) side by side, what heads read, and the summary or none."""
    encoder = ENCODERS[request.param]
    params = jax.jit(encoder.init)(jax.random.key(0), batch()["features"], NUM_STEPS)

    @jax.jit
    def apply(features, num_steps, masked):
        encoded = encoder.apply(params, features, num_steps, masked)
        return jnp.concatenate(encoded.layers, -1), encoded.pooled(), encoded.summary

    return lambda features, num_steps=NUM_STEPS, masked=None: apply(features, num_steps, masked)


def close(said, expected):
    """Asserts that the valid steps, what is pooled of them and the summary agree; `said` may have longer padding."""
    np.testing.assert_allclose(np.asarray(said[0])[:, :12][VALID], np.asarray(expected[0])[VALID], atol=2e-5)
    for own, other in zip(said[1:], expected[1:], strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            np.testing.assert_allclose(own, other, atol=2e-5)


def test_padding_never_changes_what_an_encoder_says(encode):
    features = batch()["features"]
    expected = encode(features)
    close(encode(np.where(VALID[..., None], features, 1e3)), expected)
    close(encode(np.pad(features, ((0, 0), (0, 7), (0, 0)), constant_values=-50.0)), expected)


def test_other_rows_never_change_what_an_encoder_says(encode):
    features = batch()["features"]
    together, alone = encode(features), encode(features[1:2], NUM_STEPS[1:2])
    np.testing.assert_allclose(np.asarray(alone[0])[0, :5], np.asarray(together[0])[1, :5], atol=2e-5)
    np.testing.assert_allclose(alone[1][0], together[1][1], atol=2e-5)


def test_masked_steps_never_reach_an_encoder(encode):
    features, masked = batch()["features"], np.random.default_rng(1).random((4, 12)) < 0.5
    expected = encode(features, masked=masked)
    for own, other in zip(encode(np.where(masked[..., None], np.nan, features), masked=masked), expected, strict=True):
        np.testing.assert_array_equal(own, other)
    assert not np.allclose(encode(features)[1], expected[1])


def test_every_valid_step_reaches_what_an_encoder_says_and_order_counts(encode):
    features = batch()["features"]
    for step in (0, 6, 11):
        changed = features.copy()
        changed[0, step] += 3.0
        assert not np.allclose(encode(changed)[1][0], encode(features)[1][0], atol=1e-4)
    assert not np.allclose(encode(features[:, ::-1].copy(), np.full(4, 12))[1], encode(features, np.full(4, 12))[1], atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_can_be_exported_for_any_number_of_rows_and_steps(name):
    encoder, rows = ENCODERS[name], batch()["features"]
    params = jax.eval_shape(encoder.init, jax.random.key(0), rows, NUM_STEPS)
    b, t = jax.export.symbolic_shape("b, t")
    features, steps = jax.ShapeDtypeStruct((b, t, 6), np.float32), jax.ShapeDtypeStruct((b,), np.int32)
    exported = jax.export.export(jax.jit(lambda *own: encoder.apply(*own).pooled()))(params, features, steps)
    pooled = jax.eval_shape(lambda *own: encoder.apply(*own).pooled(), params, rows, NUM_STEPS)
    assert exported.out_avals[0].shape == (b, pooled.shape[1])


def test_dropout_acts_in_training_only():
    features = batch()["features"]
    for encoder in (
        ConvTransformer(8, 1, 2, 1, 3, 0.5),
        TemporalConv(8, 2, 4, 0.5),
        Modalities((("a", (0, 1, 2)),), 8, 1, 2, 1, 4, 3, 2.0, 8.0, 0.5),
    ):

        @jax.jit
        def trained(params, key, encoder=encoder):
            return encoder.apply(params, features, NUM_STEPS, None, False, rngs={"dropout": key}).layers[-1]

        params = jax.jit(encoder.init)(jax.random.key(0), features, NUM_STEPS)  # needs no key of dropout
        assert not np.allclose(trained(params, jax.random.key(1)), trained(params, jax.random.key(2)))


def test_a_head_on_the_summary_of_an_encoder_without_one_is_refused():
    layers, summary = (np.ones((2, 3, 4), np.float32),), np.ones((2, 5), np.float32)
    assert Encoded(layers, np.array([3, 2]), summary).read("summary") is summary
    with pytest.raises(UserError, match="objective.reads is 'summary', but the encoder of model.name has none: choose"):
        Encoded(layers, np.array([3, 2])).read("summary")


def test_the_parts_of_a_representation_lie_side_by_side():
    layer = np.arange(12.0, dtype=np.float32).reshape(1, 2, 6)
    part = Encoded((layer, layer), np.array([2]), layer[:, 0]).part(1, 3)
    assert len(part.layers) == 2
    np.testing.assert_array_equal(part.layers[0], layer[..., 2:4])
    np.testing.assert_array_equal(part.summary, layer[:, 0, 2:4])
