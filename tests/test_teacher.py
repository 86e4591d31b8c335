import dataclasses
import functools
import itertools
import types

import jax
import ml_collections
import numpy as np
import pytest
from conftest import same

from jax_emossl import checkpoint, encoders, preemption
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.loop import fit
from jax_emossl.objectives import teacher
from jax_emossl.objectives.teacher import Teacher, over_time

ENCODER = Transformer(width=16, layers=2, heads=2)
OBJECTIVE = Teacher(ENCODER, ratio=0.5, span=2, layers=2, decay=0.9, final_decay=0.99, loss_name="l2")
NUM_STEPS = np.array([20, 9, 1, 14], np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]


def batch():
    features = np.random.default_rng(0).normal(size=(4, 20, 6)).astype(np.float32)
    return {
        "features": np.where(VALID[..., None], features, 0), "num_steps": NUM_STEPS,
        "weight": np.ones(4, np.float32), "segment": np.arange(4, dtype=np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def variables():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())
    other = jax.jit(OBJECTIVE.init)(jax.random.key(1), batch())
    return {"params": params, "constants": OBJECTIVE.begin(other, None)}


@jax.jit
def predict(variables, batch):
    return OBJECTIVE.predict(variables, batch)


def test_the_teacher_receives_no_gradient_and_the_encoder_does(variables):
    gradient = jax.jit(jax.grad(lambda v: OBJECTIVE.loss(v, batch(), jax.random.key(2))[0]))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["constants"]))
    assert np.any(gradient["params"]["encoder"]["projection"]["kernel"])


def test_it_begins_as_the_encoder_and_follows_it_ever_more_slowly(variables):
    params = variables["params"]
    same(OBJECTIVE.begin(params, None)["teacher"], params["encoder"])
    for progress, kept in ((0.0, 0.9), (0.5, 0.945), (1.0, 0.99)):
        followed = OBJECTIVE.follow(variables, progress)["teacher"]
        jax.tree.map(
            lambda made, old, new, kept=kept: np.testing.assert_allclose(made, kept * old + (1 - kept) * new, atol=1e-6),
            followed, variables["constants"]["teacher"], params["encoder"],
        )  # fmt: skip


def test_the_target_is_the_mean_of_the_teachers_top_layers_over_the_whole_segment(variables):
    layers = jax.jit(ENCODER.apply)({"params": variables["constants"]["teacher"]}, batch()["features"], NUM_STEPS).layers
    target = jax.jit(OBJECTIVE.target)(variables, batch())
    for row, n in enumerate(NUM_STEPS):
        own = [np.asarray(layer[row, :n]) for layer in layers[1:]]
        expected = np.mean([(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in own], 0)
        np.testing.assert_allclose(target[row, :n], expected, atol=1e-3)


def test_a_teacher_that_says_the_same_of_all_steps_says_nothing():
    constant = np.broadcast_to(np.arange(4.0, dtype=np.float32), (2, 7, 4))
    np.testing.assert_allclose(over_time(constant, np.array([7, 3])), 0, atol=1e-3)


def test_padding_and_the_other_rows_never_change_an_output(variables):
    together = predict(variables, batch())
    longer = predict(variables, batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)})
    turned = predict(variables, {name: array[::-1] for name, array in batch().items()})
    for name, own in together.items():
        np.testing.assert_allclose(longer[name], own, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(turned[name][::-1], own, rtol=1e-4, atol=1e-4)
    assert set(together) == {"loss", "loss_of_constant", "steps"}


def snapshots(config, seeds=(0,), interrupted=0, monkeypatch=None, folder=None):
    """How trainings end, stopped and resumed on the way where that is asked for: their variables at the best step."""
    experiment = build(config)
    member = experiment.member(experiment.training_segments(), experiment.segments("valid"), experiment.segments("train"))
    members = [dataclasses.replace(member, seed=seed) for seed in seeds]
    run = functools.partial(fit, experiment.objective, members, config)
    if not interrupted:
        return run()
    checkpoints, steps = checkpoint.Checkpoints(folder), itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "requested", lambda: next(steps) == interrupted)
        with pytest.raises(preemption.Preempted):
            run(checkpoints=checkpoints)
    ended = run(checkpoints=checkpoints)
    checkpoints.close()
    return ended


def test_a_moving_teacher_is_resumed_and_trained_among_others_bit_by_bit(tiny_config, monkeypatch, tmp_path):
    config = tiny_config("teacher", {"train.learning_rate": 1e-2})
    (alone,) = snapshots(config)
    (resumed,) = snapshots(config, interrupted=3, monkeypatch=monkeypatch, folder=tmp_path)
    together = snapshots(config, seeds=(0, 1))
    for other in (resumed, together[0]):
        same(alone.variables, other.variables)
        assert (alone.step, alone.value) == (other.step, other.value)
    taught, first = alone.variables["constants"]["teacher"], build(config).params()["encoder"]
    moved = np.abs(taught["projection"]["kernel"] - first["projection"]["kernel"]).max()
    assert 0 < moved < np.abs(alone.variables["params"]["encoder"]["projection"]["kernel"] - first["projection"]["kernel"]).max()


def test_a_teacher_that_would_speed_up_is_refused():
    config = ml_collections.ConfigDict({"ratio": 0.5, "span": 0.08, "layers": 2, "decay": 0.9, "final_decay": 0.99, "loss": "l2"})
    frontend = Frontend(("a", "b"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    assert teacher.make(config, ENCODER, frontend, types.SimpleNamespace()) == OBJECTIVE
    config.final_decay = 0.5
    with pytest.raises(UserError, match="final_decay of teacher is 0.5, below its decay of 0.9"):
        teacher.make(config, ENCODER, frontend, types.SimpleNamespace())


def test_layers_that_the_encoder_lacks_are_refused():
    config = ml_collections.ConfigDict({"ratio": 0.5, "span": 0.08, "layers": 9, "decay": 0.9, "final_decay": 0.99, "loss": "l2"})
    frontend = Frontend(("a", "b"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    with pytest.raises(UserError, match=r"objective.layers of teacher is 9, but the encoder of model.name gives \d: average fewer"):
        teacher.make(config, ENCODER, frontend, types.SimpleNamespace())


def test_layers_of_several_widths_have_no_mean():
    config = ml_collections.ConfigDict({"ratio": 0.5, "span": 0.08, "layers": 2, "decay": 0.9, "final_decay": 0.99, "loss": "l2"})
    frontend = Frontend(("a", "b"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    widening = encoders.make(ml_collections.ConfigDict({"name": "temporal_conv", "width": 4, "layers": 2, "kernel": 3}), 0.0, frontend)
    with pytest.raises(UserError, match="objective.layers of teacher is 2, but these layers of the encoder differ in width"):
        teacher.make(config, widening, frontend, types.SimpleNamespace())
