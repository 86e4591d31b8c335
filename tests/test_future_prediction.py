import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.objectives import future_prediction
from jax_emossl.objectives.future_prediction import FuturePrediction

ENCODER = Transformer(width=16, layers=1, heads=2, causal=True)
OBJECTIVE = FuturePrediction(ENCODER, dimension=6, ahead=3, loss_name="l1")
QUANTISED = dataclasses.replace(OBJECTIVE, codes=8)
NUM_STEPS = np.array([20, 9, 3, 14], np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]


def batch():
    features = np.random.default_rng(0).normal(size=(4, 20, 6)).astype(np.float32)
    return {
        "features": np.where(VALID[..., None], features, 0), "num_steps": NUM_STEPS,
        "weight": np.ones(4, np.float32), "segment": np.arange(4, dtype=np.int32),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="objective")
def init(objective):
    return objective.init(jax.random.key(0), batch())


@functools.partial(jax.jit, static_argnames="objective")
def predict(objective, params, batch):
    return objective.predict({"params": params, "constants": {}}, batch)


def test_the_loss_is_that_of_the_steps_ahead():
    params = init(OBJECTIVE)
    params = {**params, "head": {"kernel": jnp.zeros((16, 6)), "bias": jnp.arange(6.0)}}  # always predicts 0 to 5
    outputs = predict(OBJECTIVE, params, batch())
    for row, (features, n) in enumerate(zip(batch()["features"], NUM_STEPS, strict=True)):
        future, present = features[3:n], features[: max(n - 3, 0)]
        assert outputs["steps"][row] == max(n - 3, 0)
        for name, guess in (("loss", np.arange(6.0)), ("loss_of_constant", 0), ("loss_of_copy", present)):
            assert outputs[name][row] == pytest.approx(np.abs(future - guess).mean(-1).sum(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("objective", [OBJECTIVE, QUANTISED], ids=["APC", "VQ-APC"])
def test_what_is_predicted_cannot_be_seen(objective):
    """Only the steps that are predicted tell of a change from step 12 on: predictions from the steps before it stay as they were."""
    params = init(objective)
    model, inputs = objective._model, (NUM_STEPS[:1], True, 0.0)
    changed = batch()["features"][:1].copy()
    changed[:, 12:] += 100
    apply = jax.jit(lambda x: model.apply({"params": params}, x, *inputs)[0])
    before, after = apply(batch()["features"][:1]), apply(changed)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert not np.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("objective", [OBJECTIVE, QUANTISED], ids=["APC", "VQ-APC"])
def test_padding_never_changes_an_output(objective):
    params, longer = init(objective), np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)
    together = predict(objective, params, batch())
    padded = predict(objective, params, batch() | {"features": longer})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), together, padded)


def test_codes_are_counted_and_their_perplexity_told():
    outputs = predict(QUANTISED, init(QUANTISED), batch())
    np.testing.assert_array_equal(outputs["codes"].sum(1), outputs["steps"])  # one for each step that is judged
    known = {"loss": np.ones(2), "steps": np.array([3.0, 1.0]), "codes": np.array([[2.0, 0, 1], [0, 0, 1]])}
    assert QUANTISED.evaluate(known, None, None)[0] == {"loss": 0.5, "perplexity": pytest.approx(2.0)}


def test_training_lowers_the_loss_and_uses_more_than_one_code():
    waves = np.sin(np.arange(20)[:, None] * np.array([0.3, 0.5, 0.7]) + np.arange(16)[:, None, None])
    own = {"features": np.concatenate([waves, waves], -1).astype(np.float32), "num_steps": np.full(16, 20, np.int32)}
    own |= {"weight": np.ones(16, np.float32), "segment": np.arange(16, dtype=np.int32)}
    objective, optimizer = dataclasses.replace(QUANTISED, ahead=1), optax.adam(3e-2)

    @jax.jit
    def step(params, state, key):
        def mean_loss(params):
            total, count, _ = objective.loss({"params": params, "constants": {}}, own, key)
            return total / count

        updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = init(objective)
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), 50):
        params, state = step(params, state, key)
    report, _ = objective.evaluate(predict(objective, params, own), None, None)
    assert report["perplexity"] > 2 and report["loss"] < 0.8 * report["loss_of_constant"]


def test_segments_that_are_all_too_short_are_refused():
    outputs = predict(OBJECTIVE, init(OBJECTIVE), {name: value[2:3] for name, value in batch().items()})
    with pytest.raises(UserError, match="No segment of a fold is long enough for FuturePrediction"):
        OBJECTIVE.evaluate(outputs, None, None)


def test_an_encoder_that_sees_ahead_is_refused():
    config = ml_collections.ConfigDict({"ahead": 0.2, "loss": "l2", "codes": 4})
    frontend = Frontend(("a", "b", "c"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    made = future_prediction.make(config, ENCODER, frontend, types.SimpleNamespace())
    assert made == FuturePrediction(ENCODER, 6, 5, "l2", 4)
    with pytest.raises(UserError, match="future_prediction, but the encoder sees what it should predict: give --config.model.causal=True"):
        future_prediction.make(config, dataclasses.replace(ENCODER, causal=False), frontend, types.SimpleNamespace())
