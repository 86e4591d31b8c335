import types

import ml_collections
import numpy as np
import pytest

from jax_emossl import linear
from jax_emossl.objectives import emotion
from jax_emossl.study import Cell

EMOTIONS = ("happy", "sad", "anger")


def make(head):
    config = ml_collections.ConfigDict(
        {"head": head, "loss": "ordinal", "reads": "encoder", "dropout": 0.3, "standards_prior": 40.0, "selection": ""}
    )
    labels = np.concatenate([3 * np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    corpus = types.SimpleNamespace(emotions=EMOTIONS, fold={"train": types.SimpleNamespace(labels=labels)}.__getitem__)
    return emotion.make(config, None, None, corpus)


@pytest.fixture(params=["category", "intensity"])
def objective(request):
    return make(request.param)


def separable(rng, count):
    """Vectors that tell the labels, with three that tell nothing."""
    labels = np.eye(3, dtype=np.float32)[rng.choice(3, count)] * 3
    return np.concatenate([labels, rng.normal(size=(count, 3))], 1).astype(np.float32), labels


def test_what_can_be_told_linearly_is_told(objective):
    rng = np.random.default_rng(0)
    read = linear.read_out(objective, *separable(rng, 200), 0.1)
    (valid, known), (vectors, labels) = separable(rng, 100), separable(rng, 50)
    report, _ = objective.evaluate({"scores": read(vectors)}, labels, objective.calibrate({"scores": read(valid)}, known))
    assert report[objective.selection] > 0.99


@pytest.mark.parametrize("known", [1, 2])
def test_classes_without_a_label_are_never_answered(known):
    objective, rng = make("category"), np.random.default_rng(2)
    vectors, labels = separable(rng, 120)
    few = labels[:, :known].any(1)
    read = linear.read_out(objective, vectors[few], labels[few], 0.1)
    scores = read(vectors)
    assert {objective.classes[i] for i in scores.argmax(1)} <= set(EMOTIONS[:known])
    report, _ = objective.evaluate({"scores": scores[few]}, labels[few], {"scale": 1.0})
    assert report["accuracy"] > 0.99
    assert objective.calibrate({"scores": scores}, labels)["scale"] > 0.02  # though validation has classes that it cannot tell


@pytest.mark.parametrize("loss", ["ordinal", "l2"])
def test_one_emotion_is_a_column_too(loss):
    config = ml_collections.ConfigDict(
        {"head": "intensity", "loss": loss, "reads": "encoder", "dropout": 0.3, "standards_prior": 40.0, "selection": ""}
    )
    (vectors, labels) = separable(np.random.default_rng(6), 60)
    corpus = types.SimpleNamespace(emotions=("happy",), fold={"train": types.SimpleNamespace(labels=labels[:, :1])}.__getitem__)
    objective = emotion.make(config, None, None, corpus)
    scores = linear.read_out(objective, vectors, labels[:, :1], 0.1)(vectors)
    assert scores.shape == (60, 1)
    report, _ = objective.evaluate({"scores": scores}, labels[:, :1], objective.calibrate({"scores": scores}, labels[:, :1]))
    assert report["auroc"] > 0.99


class Study:
    """Takes the place of a comparison: vectors of two sources, the random one's by seed."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.made = {fold: separable(rng, 60) for fold in ("train", "valid", "test")}
        recordings = np.repeat(["a", "b", "c"], 20)
        self.segments = {fold: types.SimpleNamespace(labels=labels, recordings=recordings) for fold, (_, labels) in self.made.items()}
        self.read = {}
        self.experiment = types.SimpleNamespace(objective=make("intensity"))  # the quicker
        self.config = types.SimpleNamespace(compare=types.SimpleNamespace(fold="test", validation="fold", regularisations=(1e-2, 1e-1)))
        self.asked = []

    def positions(self, cell):
        rng = np.random.default_rng(cell.seed)
        return rng.permutation(60)[: int(cell.budget) or 60]

    def origin(self, source, seed):
        return seed if source == "random" else 0

    def split(self, cell):
        return self._part("train", self.positions(cell)), self._part("valid", np.arange(60))

    def _part(self, fold, positions):
        own = self.segments[fold]
        return types.SimpleNamespace(fold=fold, positions=positions, labels=own.labels[positions], recordings=own.recordings[positions])

    def of(self, part, vectors):
        return vectors[part.fold][part.positions]

    def side_by_side(self, reads, seed):
        self.asked.append((reads, seed))
        noise = np.random.default_rng(seed if "random" in reads else 0)
        return {fold: vectors + 0.1 * noise.normal(size=vectors.shape) for fold, (vectors, _) in self.made.items()}


def test_cells_that_differ_in_nothing_that_matters_are_read_out_once():
    study = Study()
    cells = [Cell(arm, budget, seed) for arm in ("frozen", "random") for budget in (20, 0) for seed in (0, 1)]
    answers = [pair for pairs in linear.answers(study, cells) for pair in pairs]
    assert [cell for cell, _ in answers] == cells
    # With all labels the seed does not matter to a pretrained encoder; a random one is another for every seed.
    assert [reads[0] for reads, _ in study.asked] == ["pretrained"] * 3 + ["random"] * 4
    assert answers[2][1] is answers[3][1] and answers[6][1] is not answers[7][1]


def test_an_answer_scores_the_reported_fold_and_says_what_validation_chose():
    study, cell = Study(), Cell("frozen", 0, 0)
    objective, answer = study.experiment.objective, linear.answer(study, cell, ("pretrained",))
    assert answer.scores.shape == (60, len(objective.classes)) and answer.step is None
    assert answer.details["strategy"] == "linear" and answer.details["regularisation"] in (1e-2, 1e-1)
    assert 1 <= answer.details["averaged"] <= 2
    report, _ = objective.evaluate({"scores": answer.scores}, study.segments["test"].labels, answer.calibration)
    assert report[objective.selection] > 0.9 and answer.value > 0.9


@pytest.mark.parametrize("head", ["category", "intensity"])
def test_pseudo_labels_use_the_unlabelled_training_segments(head):
    """Few labels and one informative direction among many: what the read-out says of the others sharpens it, and only self-training sees them."""
    study, cell = Study(), Cell("pseudo-labels", 6, 0)
    study.experiment.objective = make(head)
    plain, taught = (linear.answer(study, cell, ("functionals",), own) for own in (False, True))
    assert not np.allclose(plain.scores, taught.scores)
    rest = np.delete(np.arange(60), study.positions(cell))
    study.read.clear()
    study.made["train"][0][rest] = np.random.default_rng(5).normal(size=(len(rest), 6))  # other speech without labels
    other = [linear.answer(study, cell, ("functionals",), own) for own in (False, True)]
    np.testing.assert_array_equal(other[0].scores, plain.scores)
    assert not np.allclose(other[1].scores, taught.scores)
