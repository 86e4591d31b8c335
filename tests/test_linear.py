import numpy as np
import pytest

from jax_emossl import probe
from jax_emossl.experiment import build


@pytest.fixture(scope="module", params=["category", "intensity"])
def objective(request, tiny_config):
    return build(tiny_config("scratch", {"objective.head": request.param})).objective


def separable(objective, rng, count):
    """Vectors that tell the labels, with three that tell nothing."""
    known = [i for i, emotion in enumerate(objective.emotions) if emotion in objective.classes]
    labels = np.eye(len(objective.emotions), dtype=np.float32)[rng.choice(known, count)] * 3
    return np.concatenate([labels, rng.normal(size=(count, 3))], 1).astype(np.float32), labels


def test_what_can_be_told_linearly_is_told(objective):
    rng = np.random.default_rng(0)
    fitted = probe.fit(objective, separable(objective, rng, 200), separable(objective, rng, 100))
    vectors, labels = separable(objective, rng, 50)
    report, _ = objective.metrics({"scores": fitted.scores(vectors)}, labels, fitted.calibration)
    assert report[objective.selection] > 0.99 and fitted.value > 0.99


def test_regularisation_is_chosen_on_validation(objective, monkeypatch):
    rng = np.random.default_rng(1)
    train = (rng.normal(size=(40, 30)).astype(np.float32), separable(objective, rng, 40)[1])
    valid = (rng.normal(size=(60, 30)).astype(np.float32), separable(objective, rng, 60)[1])
    chosen = probe.fit(objective, train, valid)
    values = []
    for strength in probe._STRENGTHS:
        monkeypatch.setattr(probe, "_STRENGTHS", (strength,))
        values.append(probe.fit(objective, train, valid).value)
    assert chosen.value == max(values)


@pytest.mark.parametrize("known", [1, 2])
def test_classes_without_a_label_are_never_answered(tiny_config, known):
    objective = build(tiny_config("scratch", {"objective.head": "category"})).objective
    rng = np.random.default_rng(2)
    vectors, labels = separable(objective, rng, 120)
    few = labels[:, :known].any(1)
    fitted = probe.fit(objective, (vectors[few], labels[few]), (vectors, labels))
    answered = {objective.classes[i] for i in fitted.scores(vectors).argmax(1)}
    assert answered <= set(objective.emotions[:known])
    report, _ = objective.metrics({"scores": fitted.scores(vectors[few])}, labels[few], None)
    assert report["accuracy"] > 0.99
