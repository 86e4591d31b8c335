import pytest

from jax_emossl import objectives
from jax_emossl.experiment import build

LOUDNESS = '''
"""A new objective: the mean of the features, learned with one number."""
import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Loudness:
    selection: str = "loss"

    def init(self, key, batch, encoder=None):
        return {"encoder": {}, "level": jnp.zeros(())}

    def _errors(self, params, batch):
        return jnp.abs(batch["features"].mean((1, 2)) + 1 - params["level"])

    def loss(self, params, batch, key):
        return jnp.sum(batch["weight"] * self._errors(params, batch)), batch["weight"].sum(), {}

    def predict(self, params, batch):
        return {"error": self._errors(params, batch)}

    def finish(self, params, outputs, segments):
        return outputs

    def extra(self, params, train, background, predict):
        return {}

    def calibrate(self, outputs, labels):
        return None

    def metrics(self, outputs, labels, calibration):
        return {"loss": float(outputs["error"].mean())}, {}

    def constant(self, outputs, labels, train_labels):
        return {"loss": 1.0}, {}


def make(config, corpus, encoder, dimension):
    return Loudness()
'''


@pytest.fixture
def loudness(tmp_path, monkeypatch):
    (tmp_path / "loudness.py").write_text(LOUDNESS)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])


def test_a_new_objective_is_one_new_file_that_the_loop_trains(loudness, tiny_config, trained):
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


def test_without_its_file_the_objective_is_refused_by_name(tiny_config):
    with pytest.raises(objectives.UserError, match="objective.name is 'loudness': choose one of emotion, masked_timesteps"):
        build(tiny_config("pretrain", {"objective.name": "loudness"}))
