import ml_collections
import numpy as np
import pytest

from jax_emossl import objectives
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.loop import Member, fit
from jax_emossl.objectives.emotion import Intensity
from jax_emossl.optimizer import Rates
from jax_emossl.ordinal import Levels

LOUDNESS = '''
"""A new objective: the mean of the features, learned with one number."""
import dataclasses

import jax.numpy as jnp

from jax_emossl.objectives import Objective


@dataclasses.dataclass(frozen=True)
class Loudness(Objective):
    selection: str = "loss"

    def init(self, key, example):
        return {"encoder": {}, "level": jnp.zeros(())}

    def _errors(self, variables, batch):
        return jnp.abs(batch["features"].mean((1, 2)) + 1 - variables["params"]["level"])

    def loss(self, variables, batch, key, progress):
        return jnp.sum(batch["weight"] * self._errors(variables, batch)), batch["weight"].sum(), {}

    def predict(self, variables, batch):
        return {"error": self._errors(variables, batch)}

    def evaluate(self, outputs, labels, calibration):
        return {"loss": float(outputs["error"].mean()), "loss_of_constant": 1.0}, {}


def make(config, encoder, frontend, corpus):
    return Loudness()
'''
NAMED = ml_collections.ConfigDict({"name": "loudness"})
SETTINGS = {
    "steps": 20, "batch_size": 8, "accumulate": 1, "crop": 0.0, "learning_rate": 0.3, "warmup_steps": 2, "weight_decay": 0.0, "b2": 0.98,
    "clip_norm": 1.0, "eval_every": 5, "patience": 0, "log_every": 5,
}  # fmt: skip


@pytest.fixture
def loudness(tmp_path, monkeypatch):
    (tmp_path / "loudness.py").write_text(LOUDNESS)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])


def test_a_new_objective_is_one_new_file_that_a_command_trains_and_judges(loudness, tiny_config, trained):
    fields = {"objective.name": "loudness", "train.learning_rate": 0.3}
    assert type(build(tiny_config("pretrain", fields)).objective).__name__ == "Loudness"
    _, rows = trained(tiny_config("pretrain", fields))
    assert [(row["arm"], row["fold"]) for row in rows] == [
        ("pretrain", "valid"),
        ("constant", "valid"),
        ("pretrain", "test"),
        ("constant", "test"),
    ]
    assert rows[0]["step"] == 6 and rows[0]["metrics"]["loss"] < 0.6
    assert rows[1]["metrics"]["loss"] == 1.0


def test_four_methods_suffice_to_train_many_at_once(loudness, demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    objective = objectives.make(NAMED, None, frontend, demo_corpus)
    own = {name for name, value in vars(type(objective)).items() if callable(value) and not name.startswith("_")}
    assert own == {"init", "loss", "predict", "evaluate"} and not objective.labelled
    assert objective.illustrate({}, {}) == {} and objective.finish({}, {"error": 1}, None) == {"error": 1}
    config = ml_collections.ConfigDict({"data": {"loader": "memory", "bucket_growth": 8.0}, "train": SETTINGS})
    train, valid = (Segments(demo_corpus, [name], frontend) for name in ("train", "valid"))
    params = objective.init(None, None)
    members = [Member(seed, train, valid, None, params, Rates.make(config.train), 0) for seed in range(2)]
    for fitted in fit(objective, members, config):
        assert fitted.step in (5, 10, 15, 20) and fitted.value < 0.6 and fitted.calibration is None
        assert 0.5 < fitted.variables["params"]["level"] < 1.5 and fitted.variables["constants"] == {}


def intensity(selection):
    return Intensity(None, ("happy", "sad"), ("happy", "sad"), 0.0, selection, Levels.of(np.eye(2)), "huber", standards_prior=20.0)


def test_steps_are_judged_by_the_selection_metric_calibrated_on_validation():
    objective = intensity("mae")
    labels = np.array([[0, 2], [1, 0], [2, 0]], np.float32)
    value, calibration, report = objectives.assess(objective, {"scores": labels + 0.5}, labels)
    assert value == report["mae"] == pytest.approx(0.5)
    assert calibration == objective.calibrate({"scores": labels + 0.5}, labels)


def test_a_fold_that_does_not_define_the_selection_metric_is_refused():
    objective, labels = intensity("auroc"), np.zeros((3, 2), np.float32)
    with pytest.raises(UserError, match="The validation fold does not define auroc: choose another objective.selection"):
        objectives.assess(objective, {"scores": np.ones((3, 2))}, labels)


@pytest.mark.parametrize(("name", "expected"), [("l1", [0.5, 3]), ("l2", [0.25, 9]), ("huber", [0.125, 2.5])])
def test_regression_losses_are_the_textbooks(name, expected):
    np.testing.assert_allclose(objectives.regression_loss(name)(np.array([0.5, -1.0]), np.array([0.0, 2.0])), expected)
