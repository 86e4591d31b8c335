"""How the answers of a trained arm come about; trainings themselves are tested with the comparison."""

import types

import ml_collections
import numpy as np
import pytest

from jax_emossl import tuned
from jax_emossl.loop import Fitted
from jax_emossl.study import Answer, Cell


@pytest.mark.parametrize(("functionals", "expected"), [(False, ("random",)), (True, ("random", "functionals"))])
def test_the_linear_strategy_reads_what_the_head_reads(functionals, expected, monkeypatch):
    read = []
    monkeypatch.setattr(tuned.linear, "answer", lambda study, cell, reads: read.append(reads) or Answer(None, None, None, 0.5, None, {}))
    monkeypatch.setattr(tuned, "alike", lambda objective, made, valid: made)
    monkeypatch.setattr(tuned, "averaged", lambda objective, made, valid: made[0])
    study = types.SimpleNamespace(
        experiment=types.SimpleNamespace(objective=types.SimpleNamespace(reads_functionals=functionals), sizes=(8, 2.0)),
        config=ml_collections.ConfigDict({"compare": {"strategies": ("linear",)}}),
        split=lambda cell: (None, None),
        reported=None,
    )
    list(tuned._answers(study, [Cell("scratch", 12, 0)], [[]]))
    assert read == [expected]


def test_only_what_validation_keeps_reads_the_reported_fold(monkeypatch):
    """Of two cells with two trainings each, the first keeps its second and the other both."""
    asked = []

    def predict(objective, variables, parts, *sizes, resident, over):
        asked.append((list(parts), list(over)))
        return [{"scores": np.full(1, own)} for own in variables]

    monkeypatch.setattr(tuned, "predict", predict)
    monkeypatch.setattr(tuned, "alike", lambda objective, made, valid: [own for own in made if own.value > 0.5])
    monkeypatch.setattr(tuned, "averaged", lambda objective, kept, valid: [own.scores for own in kept])
    training = types.SimpleNamespace(config=types.SimpleNamespace(train=types.SimpleNamespace(strategy="full", learning_rate=1.0)))
    values = [(1, 0.1), (2, 0.9)], [(3, 0.9), (4, 0.9)]
    grids = [[(training, Fitted(i, 1, value, None, "", outputs={"scores": np.full(1, i)})) for i, value in grid] for grid in values]
    study = types.SimpleNamespace(
        experiment=types.SimpleNamespace(objective=types.SimpleNamespace(reads_functionals=False), sizes=()),
        config=ml_collections.ConfigDict({"compare": {"strategies": ("full",)}}),
        split=lambda cell: (None, f"valid {cell.seed}"),
        reported="reported",
        resident=None,
    )
    made = list(tuned._answers(study, [Cell("scratch", 12, seed) for seed in (0, 1)], grids))
    assert made == [[2], [3, 4]]
    assert asked == [(["reported"] * 4, [True, False, False, False])]


@pytest.mark.parametrize(("cells", "most", "expected"), [(10, 8, [16, 4]), (10, 20, [20]), (13, 5, [10, 10, 6]), (1, 0, [2])])
def test_as_many_cells_of_a_label_count_as_fit_are_trained_at_once_and_then_the_rest(cells, most, expected, monkeypatch):
    """Two trainings to a cell. Full groups keep every device busy, and what is left after an interruption makes the same groups."""
    made = []
    monkeypatch.setattr(tuned, "_grid", lambda study, cell: [None] * 2)
    monkeypatch.setattr(tuned, "_members_at_once", lambda study, training: 2 * most)
    monkeypatch.setattr(tuned, "_together", lambda study, own, *_: made.append((own[0].budget, 2 * len(own))) or [None])
    list(tuned.answers(None, [Cell("scratch", budget, seed) for budget in (0, 12) for seed in range(cells)], None, "", None))
    assert made == [(budget, size) for budget in (0, 12) for size in expected]
