"""What docs/architecture.md promises under "To add X, write Y": X is used by a real run once Y is there, and nothing else changes."""

import importlib
import json

import ml_collections
import pytest

from jax_emossl import arms, encoders, objectives, results, workdir
from jax_emossl import config as fields
from jax_emossl.data import corpora

PRETEXT = '''
"""A pretext task: to tell how loud a crop is, from the pooled encoder."""
import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jax_emossl.objectives import Objective


class Model(nn.Module):
    encoder: nn.Module

    @nn.compact
    def __call__(self, features, num_steps):
        return nn.Dense(1)(self.encoder(features, num_steps).pooled())[:, 0]


@dataclasses.dataclass(frozen=True)
class Loudness(Objective):
    encoder: nn.Module
    selection: str = "loss"

    def init(self, key, example):
        return Model(self.encoder).init(key, example["features"], example["num_steps"])["params"]

    def _errors(self, variables, batch):
        told = Model(self.encoder).apply({"params": variables["params"]}, batch["features"], batch["num_steps"])
        return (told - batch["features"].mean((1, 2))) ** 2

    def loss(self, variables, batch, key, progress):
        return jnp.sum(batch["weight"] * self._errors(variables, batch)), batch["weight"].sum(), {}

    def predict(self, variables, batch):
        return {"error": self._errors(variables, batch)}

    def evaluate(self, outputs, labels, calibration):
        return {"loss": float(outputs["error"].mean()), "loss_of_constant": 1.0}, {}


def make(config, encoder, frontend, corpus):
    return Loudness(encoder)
'''
LABELLED = '''
"""A task with labels: whether a segment carries any emotion at all."""
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from sklearn.linear_model import LogisticRegression

from jax_emossl import metrics
from jax_emossl.objectives import LabelledObjective


class Model(nn.Module):
    encoder: nn.Module

    @nn.compact
    def __call__(self, features, num_steps):
        return nn.Dense(2, name="head")(self.encoder(features, num_steps).pooled())


@dataclasses.dataclass(frozen=True)
class Moved(LabelledObjective):
    encoder: nn.Module
    classes: tuple = ("calm", "moved")
    head: str = "moved"
    selection: str = "uar"

    def init(self, key, example):
        return Model(self.encoder).init(key, example["features"], example["num_steps"])["params"]

    def _scores(self, variables, batch):
        return Model(self.encoder).apply({"params": variables["params"]}, batch["features"], batch["num_steps"])

    def target(self, labels):
        return labels.any(-1).astype(int)

    def loss(self, variables, batch, key, progress):
        errors = optax.softmax_cross_entropy_with_integer_labels(self._scores(variables, batch), self.target(batch["labels"]))
        return jnp.sum(batch["weight"] * errors), batch["weight"].sum(), {}

    def constants(self, outputs, recordings):
        return {}

    def predict(self, variables, batch):
        return {"scores": self._scores(variables, batch)}

    def calibrate(self, outputs, labels):
        return None

    def evaluate(self, outputs, labels, calibration):
        return metrics.category_report(outputs["scores"], self.target(labels), self.classes)

    def constant(self, labels, train_labels):
        return metrics.constant_category_report(self.target(labels), self.target(train_labels), self.classes)

    reference = {}

    def average(self, scores, calibrations):
        return sum(scores) / len(scores)

    def with_reference(self, reference):
        return self

    def decode(self, scores, calibration):
        return {"scores": scores}

    def read_out(self, strength):
        return LogisticRegression(C=strength)


def make(config, encoder, frontend, corpus):
    return Moved(encoder)
'''
ENCODER = '''
"""An encoder: a convolution over time, with the last valid step as its summary."""
import flax.linen as nn
import jax.numpy as jnp

from jax_emossl.encoders import Encoded
from jax_emossl.layers import valid_steps


class Convolution(nn.Module):
    width: int

    @nn.compact
    def __call__(self, features, num_steps, masked=None, deterministic=True):
        valid = valid_steps(num_steps, features.shape[1])
        kept = valid if masked is None else valid & ~masked
        hidden = nn.Conv(self.width, (3,))(jnp.where(kept[..., None], features, 0))
        last = jnp.take_along_axis(hidden, num_steps[:, None, None] - 1, 1)[:, 0]
        return Encoded((hidden,), num_steps, last)


def make(model, dropout, frontend):
    return Convolution(model.width)
'''
CORPUS = '''
"""A corpus: beeps of eight people, at 50 frames a second, joyful, cross or neither."""
from pathlib import Path

import json
import numpy as np

from jax_emossl.data import csd
from jax_emossl.data.corpora import Files, cache_dir

SETTINGS = {
    "data.stack": 0.16, "data.bucket_growth": 8.0, "model.width": 8, "model.layers": 1, "model.heads": 2,
    "finetune.train.steps": 4, "finetune.train.epochs": 0.0, "finetune.train.eval_every": 2, "finetune.train.batch_size": 4, "finetune.train.probe_steps": 2,
}


def files():
    folder = cache_dir() / "beeps"
    return Files(str(folder / "beeps.csd"), str(folder / "labels.csd"), str(folder / "folds.json"), create=lambda: create(folder))


def create(folder):
    folder.mkdir(parents=True)
    rng, times = np.random.default_rng(0), np.arange(151) / 50
    people = {"train": ["a", "b", "c", "d"], "valid": ["e", "f"], "test": ["g", "h"]}
    beeps = [(p, rng.normal(size=(150, 2)), np.column_stack([times[:-1], times[1:]])) for p in sum(people.values(), [])]
    spans, labels = np.array([[0, 1], [1, 2], [2, 3]]), np.array([[3, 0], [0, 3], [0, 0]])
    csd.write(folder / "beeps.csd", "beeps", beeps, {"dimension names": ["pitch", "loudness"]})
    csd.write(folder / "labels.csd", "labels", [(p, labels, spans) for p, *_ in beeps], {"dimension names": ["joy", "anger"]})
    (folder / "folds.json").write_text(json.dumps(people))
'''


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts a file beside those of a package, from outside."""

    def write(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    return write


@pytest.fixture
def run(tmp_path):
    """Does with a config what the command line does with one whose fields are the file's own; returns workdir and rows."""

    def do(config, name="run"):
        folder = tmp_path / name
        fields.resolve(config)
        fields.check(config)
        workdir.enter(folder, config)
        return folder, importlib.import_module(f"jax_emossl.tasks.{config.task}").run(config, folder)

    return do


@pytest.fixture
def small(comparison_config):
    """The tiny comparison with one cell per arm."""
    config = comparison_config.copy_and_resolve_references()
    config.compare.update({"label_counts": (12,), "seeds": 1, "strategies": ("full",)})
    return config


def test_an_objective_is_one_file(add, run, small):
    add(objectives, "loudness_of_crops", PRETEXT)
    add(objectives, "moved", LABELLED)
    small.pretrain.objective = ml_collections.ConfigDict({"name": "loudness_of_crops"})
    small.finetune.objective = ml_collections.ConfigDict({"name": "moved"})
    small.compare.arms = ("pretrained", "scratch", "random")
    folder, rows = run(small)
    pretraining = results.read(folder / "pretrain" / results.RESULTS_FILE)["runs"]
    assert pretraining[0]["arm"] == "pretrain" and pretraining[1]["metrics"] == {"loss": 1.0}
    assert {row["arm"] for row in rows} == {"constant", "pretrained", "scratch", "random"}
    assert all(row["classes"] == ["calm", "moved"] and 0 <= row["metrics"]["uar"] <= 1 for row in rows if row["arm"] != "constant")
    report = (folder / "report.md").read_text()
    assert "embedding_map" in report and "reconstruction" not in report  # which this objective cannot show


def test_an_encoder_is_one_file(add, run, tiny_config):
    add(encoders, "convolution", ENCODER)
    source, rows = run(tiny_config("pretrain", {"model.name": "convolution"}), "pretrain")
    assert rows[0]["arm"] == "pretrain" and rows[0]["step"] in (2, 4, 6)
    folder, rows = run(tiny_config("finetune", {"model.name": "convolution"}, init_from=str(source)), "finetune")
    assert rows[0]["arm"] == "pretrained" and rows[0]["metrics"]["mae"] > 0
    assert json.loads((folder / "card.json").read_text())["model"]["name"] == "convolution"


def test_an_arm_is_one_entry(run, small, monkeypatch):
    style = {"color": "#000000", "marker": "*", "linestyle": "-"}
    arm = arms.Arm("random+functionals", "linear", ("random", "functionals"), style)
    monkeypatch.setitem(arms.ARMS, arm.name, arm)
    small.compare.arms = ("random", arm.name)
    folder, rows = run(small)
    assert [row["arm"] for row in rows] == ["constant", "random", arm.name]
    assert rows[2]["selection"]["strategy"] == "linear" and rows[2]["metrics"] != rows[1]["metrics"]
    assert not (folder / "pretrain").exists()  # nothing that is compared reads it
    assert f"| {arm.name} " in (folder / "report.md").read_text()


def test_a_corpus_is_one_file(add, run):
    add(corpora, "beeps", CORPUS)
    config = importlib.import_module("configs.scratch").get_config("beeps")
    folder, rows = run(config)
    assert [(row["corpus"], row["arm"], row["num_labels"]) for row in rows[:2]] == [("beeps", "scratch", 12), ("beeps", "constant", 12)]
    assert (config.model.width, config.train.steps) == (8, 4)  # its settings
    card = json.loads((folder / "card.json").read_text())
    assert card["classes"] == ["neutral", "joy", "anger"] and card["frontend"]["names"] == ["pitch", "loudness"]
    assert (card["frontend"]["frame_seconds"], card["frontend"]["pool"], card["frontend"]["stack"]) == (pytest.approx(0.02), 1, 8)
