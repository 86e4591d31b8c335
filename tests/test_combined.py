import functools
import types

import jax
import ml_collections
import numpy as np
import pytest

from jax_emossl import objectives
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError

ENCODER = Transformer(width=16, layers=1, heads=2)
FRONTEND = Frontend(("a", "b", "c"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
CONFIG = ml_collections.ConfigDict(
    {
        "name": "masked_timesteps+agreement+teacher",
        "masked_timesteps": {"weight": 1.0, "ratio": 0.5, "span": 0.08, "loss": "l1", "statistics_weight": 0.0, "decoder_width": 0},
        "agreement": {"weight": 0.3, "ratio": 0.5, "span": 0.08, "temperature": 0.1, "together": 4},
        "teacher": {"weight": 2.0, "ratio": 0.5, "span": 0.08, "layers": 1, "decay": 0.9, "final_decay": 0.9, "loss": "l2"},
    }
)
WEIGHTS = {"masked_timesteps": 1.0, "agreement": 0.3, "teacher": 2.0}
OBJECTIVE = objectives.make(CONFIG, ENCODER, FRONTEND, types.SimpleNamespace())
PARTS = {name: part for name, _, part in OBJECTIVE.parts}
NUM_STEPS = np.array([12, 9, 5, 12], np.int32)
BASIS = np.array([[0, 0, 2], [1, 0, 2], [2, 2, 4], [3, 2, 4]], np.int32)


def batch():
    return {
        "features": np.random.default_rng(0).normal(size=(4, 12, 6)).astype(np.float32), "num_steps": NUM_STEPS,
        "num_frames": 2 * NUM_STEPS, "basis": BASIS, "weight": np.array([1, 1, 1, 0], np.float32), "segment": np.arange(4, dtype=np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def variables():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())
    segments = types.SimpleNamespace(basis=BASIS)
    return {"params": params, "constants": OBJECTIVE.begin(params, segments)}


def of(variables, name):
    params = variables["params"]
    return {"params": {"encoder": params["encoder"], **params[name]}, "constants": variables["constants"].get(name, {})}


def test_parts_and_weights_are_the_configs():
    assert {name: weight for name, weight, _ in OBJECTIVE.parts} == WEIGHTS
    assert PARTS["agreement"] == objectives.make(
        ml_collections.ConfigDict({"name": "agreement", **CONFIG.agreement}), ENCODER, FRONTEND, types.SimpleNamespace()
    )
    assert OBJECTIVE.together == 4 and OBJECTIVE.selection == "total_loss" and not OBJECTIVE.labelled


def test_one_of_several_that_are_listed_is_that_one_alone():
    own = CONFIG.copy_and_resolve_references()
    own.name = "teacher"
    assert objectives.make(own, ENCODER, FRONTEND, types.SimpleNamespace()) == PARTS["teacher"]


def test_one_encoder_serves_all_parts(variables):
    params = variables["params"]
    assert set(params) == {"encoder", *WEIGHTS} and not any("encoder" in params[name] for name in WEIGHTS)
    gradient = jax.jit(jax.grad(lambda p: OBJECTIVE.loss({**variables, "params": p}, batch(), jax.random.key(1))[0]))(params)
    for name in ("encoder", *WEIGHTS):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient[name]))


def test_the_loss_is_the_weighted_sum_of_the_parts_means(variables):
    total, rows, sums = jax.jit(OBJECTIVE.loss)(variables, batch(), jax.random.key(1))
    assert rows == 3
    expected = 0.0
    for i, (name, part) in enumerate(PARTS.items()):
        own, count, scalars = jax.jit(part.loss)(of(variables, name), batch(), jax.random.fold_in(jax.random.key(1), i))
        expected += WEIGHTS[name] * float(own / count)
        for what, value in {"loss": own, **scalars}.items():
            assert sums[f"{name}.{what}"] / rows == pytest.approx(float(value / count), rel=1e-5)
    assert total / rows == pytest.approx(expected, rel=1e-5)


def test_an_evaluation_reports_all_parts_and_chooses_by_the_weighted_total(variables):
    outputs = OBJECTIVE.finish(variables, jax.jit(OBJECTIVE.predict)(variables, batch()), BASIS)
    report, undefined = OBJECTIVE.evaluate(outputs, None, None)
    expected = 0.0
    for name, part in PARTS.items():
        made = part.finish(of(variables, name), jax.jit(part.predict)(of(variables, name), batch()), BASIS)
        own, _ = part.evaluate(made, None, None)
        for what, value in own.items():
            assert report[f"{name}.{what}"] == pytest.approx(value, rel=1e-4)
        expected += WEIGHTS[name] * own[part.selection]
    assert report["total_loss"] == pytest.approx(expected, rel=1e-4) and undefined == {}
    assert "masked" in OBJECTIVE.illustrate(variables, batch())


def test_what_moves_in_a_part_moves(variables):
    own = {**variables, "params": {**variables["params"], "encoder": jax.tree.map(lambda x: x + 1, variables["params"]["encoder"])}}
    moved = OBJECTIVE.follow(own, 0.5)
    alone = PARTS["teacher"].follow(of(own, "teacher"), 0.5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), moved["teacher"], alone)
    assert set(moved) == set(variables["constants"]) == {"teacher"}


def test_what_learns_of_labels_is_combined_with_nothing(demo_corpus):
    own = CONFIG.copy_and_resolve_references()
    own.name = "agreement+emotion"
    own.emotion = {
        "weight": 1.0,
        "head": "auto",
        "loss": "ordinal",
        "reads": "encoder",
        "dropout": 0.0,
        "standards_prior": 40.0,
        "selection": "",
    }
    with pytest.raises(UserError, match=r"'agreement\+emotion', but emotion learns of labels: combine pretext tasks only"):
        objectives.make(own, ENCODER, FRONTEND, demo_corpus)


def test_a_combination_is_trained_and_judged_by_a_command(tiny_config, trained):
    fields = {"objective.name": "teacher+agreement", "objective.agreement.weight": 0.5, "objective.teacher.weight": 1.0}
    _, rows = trained(tiny_config("combined", fields))
    metrics = rows[0]["metrics"]
    assert rows[0]["selection"]["metric"] == "total_loss" and {"agreement.accuracy", "teacher.loss"} < set(metrics)
    assert metrics["total_loss"] == pytest.approx(metrics["teacher.loss"] + 0.5 * metrics["agreement.loss"])
    assert rows[1]["metrics"]["agreement.accuracy"] < 0.5  # of guessing
