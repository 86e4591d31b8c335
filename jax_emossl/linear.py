"""Linear arms: fixed vectors per segment, read out by logistic or ridge regression; what a frozen encoder, or functionals, know."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning

from jax_emossl import metrics
from jax_emossl.arms import ARMS
from jax_emossl.objectives import LabelledObjective, assess
from jax_emossl.study import Answer, Cell, Study

_STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # scikit-learn's C
_ABSENT = -1e3  # log probability of a class without a label

Vectors = Float[np.ndarray, "s p"]
Labels = Float[np.ndarray, "s e"]


def answers(study: Study, cells: Sequence[Cell], folder: Path, words: str) -> Iterator[list[tuple[Cell, Answer]]]:
    """The cells' answers, one by one; those that differ in nothing that matters (all labels, say) are read out once.

    What is under way is too short to be kept in `folder`, or described.
    """
    known: dict[tuple, Answer] = {}
    for cell in cells:
        reads = ARMS[cell.arm].reads
        key = (reads, np.sort(study.positions(cell)).tobytes(), cell.seed if "random" in reads else None)
        if key not in known:
            known[key] = answer(study, cell, reads)
        yield [(cell, known[key])]


def answer(study: Study, cell: Cell, reads: Sequence[str]) -> Answer:
    """The read-out of vectors from the sources `reads`."""
    x, chosen = study.side_by_side(reads, cell.seed), study.positions(cell)
    labels = {fold: own.labels for fold, own in study.segments.items()}
    folds = (x["train"][chosen], labels["train"][chosen]), (x["valid"], labels["valid"])
    read, strength, value, calibration = fit(study.experiment.objective, *folds)
    return Answer(read(x[study.config.compare.fold]), None, value, calibration, {"strategy": "linear", "regularisation": strength})


def fit(objective: LabelledObjective, train: tuple[Vectors, Labels], valid: tuple[Vectors, Labels]) -> tuple:
    """The read-out, vectors (S, P) to scores (S, C), and the regularisation best on `valid` with its value and calibration there."""
    best = None
    for strength in _STRENGTHS:
        read = _read_out(objective, *train, strength)
        value, calibration, _ = assess(objective, {"scores": read(valid[0])}, valid[1])
        if best is None or metrics.better(objective.selection, value, best[2]):
            best = read, strength, value, calibration
    return best


def _read_out(objective: LabelledObjective, vectors: Vectors, labels: Labels, strength: float) -> Callable[[Vectors], np.ndarray]:
    target, model = objective.target(labels), objective.read_out(strength)
    if target.ndim == 2:
        return model.fit(vectors, target).predict
    known = np.unique(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a probe do not matter
        log_probability = model.fit(vectors, target).predict_log_proba if len(known) > 1 else lambda x: 0

    def scores(x: Vectors) -> np.ndarray:
        made = np.full((len(x), len(objective.classes)), _ABSENT)
        made[:, known] = log_probability(x)
        return made

    return scores
