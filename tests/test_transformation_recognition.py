import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl import objectives
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders import conv_transformer, modalities, transformer
from jax_emossl.errors import UserError
from jax_emossl.objectives.transformation_recognition import TransformationRecognition

NAMES = ("original", "scaling", "negation", "inversion")
TRANSFORMATIONS = tuple((name, {"scaling": 2.0}.get(name)) for name in NAMES)
ALL = (("all", (0, 1, 2)),)
TWO = (("a", (0, 2)), ("b", (1,)))
STEPS = np.array([12, 5, 1, 8], np.int32)


def make(encoder=None, groups=ALL, binary=True, reads="encoder", stack=2):
    return TransformationRecognition(encoder, groups, stack, TRANSFORMATIONS, (0.4, 0.3, 0.2, 0.1), binary, reads, 8, 0.5)


def batch(length=12):
    rng = np.random.default_rng(0)
    features = np.pad(rng.normal(size=(4, 12, 6)), ((0, 0), (0, length - 12), (0, 0))).astype(np.float32)
    valid = np.arange(length) < STEPS[:, None]
    features = np.where(valid[..., None], features, 0)
    return {"features": features, "num_steps": STEPS, "weight": np.ones(4, np.float32), "segment": np.arange(4, dtype=np.int32)}


def test_a_row_is_shown_once_under_every_transformation_and_its_last_step_never():
    objective, row = make(), batch()["features"][0]
    shown, order, steps = jax.jit(objective.shown)(jax.random.key(0), row, 12)
    frames = row.reshape(24, 3)[:22]  # of 11 steps
    expected = dict(zip(NAMES, (frames, 2 * frames, -frames, frames[::-1]), strict=True))
    assert steps == 11 and sorted(order[:, 0].tolist()) == [0, 1, 2, 3]
    for own, name in zip(np.asarray(shown), np.array(NAMES)[order[:, 0]], strict=True):
        np.testing.assert_allclose(own.reshape(24, 3)[:22], expected[name], rtol=1e-6)
        assert not own.reshape(24, 3)[22:].any()


def test_a_step_of_one_frame_is_never_left_out():
    row = batch()["features"][0]
    *_, steps = make(groups=(("all", tuple(range(6))),), stack=1).shown(jax.random.key(0), row, 12)
    assert steps == 12


def test_every_group_of_features_has_transformations_of_its_own():
    objective, row = make(groups=TWO), batch()["features"][0]
    shown, order, _ = jax.vmap(objective.shown, (0, None, None))(jax.random.split(jax.random.key(0), 8), row, 12)
    assert order.shape == (8, 4, 2) and not (order[..., 0] == order[..., 1]).all()
    frames = row.reshape(24, 3)[:22]
    negated = np.asarray(shown).reshape(8, 4, 24, 3)[:, :, :22]
    for group, (_, places) in enumerate(TWO):
        expected = np.broadcast_to(-frames[:, list(places)], (8, 22, len(places)))
        np.testing.assert_allclose(negated[np.asarray(order)[..., group] == 2][..., list(places)], expected, rtol=1e-6)


def test_without_a_hint_losses_are_those_of_chance():
    order = jnp.array([[[0, 1], [1, 0], [2, 3], [3, 2]]])
    binary, softmax = make(groups=TWO), make(groups=TWO, binary=False)
    nothing = jnp.zeros((1, 4, 2, 4))
    assert binary._row_loss(nothing, order)[0] == pytest.approx(2 * math.log(2))  # two groups; the weights' sum is 1
    assert softmax._row_loss(nothing, order)[0] == pytest.approx(2 * math.log(4))
    certain = 50 * (jax.nn.one_hot(order, 4) - 0.5)
    assert binary._row_loss(certain, order)[0] == pytest.approx(0, abs=1e-6)
    assert softmax._row_loss(certain, order)[0] == pytest.approx(0, abs=1e-6)
    assert binary._row_loss(-certain, order)[0] == pytest.approx(2 * 25, rel=1e-3)


def test_accuracies_balance_rows_under_a_transformation_with_the_others():
    called = np.zeros((2, 1, 4, 4), bool)  # (B, G, undergone, called)
    called[:, 0] = np.eye(4)
    called[0, 0, 1] = [True, False, False, False]  # half of the scaled rows are taken for the original
    report, _ = make().evaluate({"loss": np.array([1.0, 3.0]), "called": called}, None, None)
    assert report["loss"] == 2.0
    assert report["accuracy_negation"] == report["accuracy_inversion"] == 1.0
    assert report["accuracy_scaling"] == 0.75 and report["accuracy_original"] == pytest.approx((1 + 5 / 6) / 2)
    assert report["accuracy"] == pytest.approx((2 + 0.75 + 11 / 12) / 4)
    assert report["accuracy_of_constant"] == report["accuracy_scaling_of_constant"] == 0.5


ENCODERS = {
    "heads": make(conv_transformer.ConvTransformer(8, 1, 2, 1, 3), reads="summary"),
    "softmax of groups": make(modalities.Modalities(TWO, 8, 1, 2, 1, 4, 3, 2.0, 8.0), TWO, binary=False),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_predictions_know_no_padding_and_the_loss_reaches_encoder_and_heads(name):
    objective = ENCODERS[name]
    params = jax.jit(objective.init)(jax.random.key(0), batch())
    made, longer = (jax.jit(objective.predict)({"params": params}, own) for own in (batch(), batch(19)))
    np.testing.assert_allclose(longer["loss"], made["loss"], rtol=1e-4)
    np.testing.assert_array_equal(longer["called"], made["called"])
    assert made["called"].shape == (4, len(objective.groups), 4, 4)

    @jax.jit
    @jax.grad
    def gradient(params):
        total, count, _ = objective.loss({"params": params}, batch(), jax.random.key(1))
        return total / count

    norms = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient(params))]
    assert np.isfinite(norms).all() and np.mean(np.array(norms) > 0) > 0.8


def test_heads_on_the_summary_of_an_encoder_without_one_are_refused():
    objective = make(transformer.Transformer(8, 1, 2), reads="summary")
    with pytest.raises(UserError, match="objective.reads is 'summary', but the encoder of model.name has none"):
        jax.eval_shape(objective.init, jax.random.key(0), batch())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pieces": 5000}, "objective.pieces is 5000, but the longest segment of demo has .* frames: lower it, or leave permutation out"),
        ({"warp_pieces": 5000}, "objective.warp_pieces is 5000, but the longest segment .* or leave time_warp out"),
        ({"weights": (1.0,)}, "objective.weights are .* for the 7 objective.transformations: give one for each"),
        ({"transformations": ("noise", "noise")}, "objective.transformations is .*: name at least two, each once"),
    ],
)
def test_transformations_that_cannot_be_are_refused(fields, sentence, demo_corpus):
    config = importlib.import_module("configs.sarkar2020").get_config()
    config.objective.update(fields)
    frontend = Frontend.make(config.data, demo_corpus)
    with pytest.raises(UserError, match=sentence):
        objectives.make(config.objective, transformer.Transformer(8, 1, 2), frontend, demo_corpus)
