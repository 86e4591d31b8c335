"""Linear read-outs of fixed vectors per segment: what a frozen encoder, or functionals, know of emotion."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from jax_emossl import metrics
from jax_emossl.objectives import assess
from jax_emossl.objectives.emotion import Category, Intensity

_STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # scikit-learn's C
_ABSENT = -1e3  # log probability of a class without a label


@dataclasses.dataclass(frozen=True)
class Probe:
    """Logistic regression onto categories or ridge regression onto intensities; `strength` and `value` are validation's choice."""

    weights: Float[np.ndarray, "p c"]
    bias: Float[np.ndarray, "c"]
    strength: float
    value: float
    calibration: Any

    def scores(self, vectors: Float[np.ndarray, "s p"]) -> Float[np.ndarray, "s c"]:
        return vectors @ self.weights + self.bias


def fit(
    objective: Category | Intensity,
    train: tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n e"]],
    valid: tuple[Float[np.ndarray, "s p"], Float[np.ndarray, "s e"]],
) -> Probe:
    """Fits vectors to labels; the inverse regularisation strength is the best on `valid` by the objective's selection metric."""
    best = None
    for strength in _STRENGTHS:
        weights, bias = _linear(objective, *train, strength)
        value, calibration, _ = assess(objective, {"scores": valid[0] @ weights + bias}, valid[1])
        if best is None or metrics.better(objective.selection, value, best.value):
            best = Probe(weights, bias, strength, value, calibration)
    return best


def _linear(objective: Category | Intensity, vectors: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (P, C) and bias (C,)."""
    target = objective.target(labels)
    if isinstance(objective, Intensity):
        model = Ridge(alpha=1 / strength).fit(vectors, target)
        return model.coef_.T, model.intercept_
    weights, bias = np.zeros((vectors.shape[1], len(objective.classes))), np.full(len(objective.classes), _ABSENT)
    known = np.unique(target)
    if len(known) == 1:
        bias[known] = 0
        return weights, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a probe do not matter
        model = LogisticRegression(C=strength, max_iter=300).fit(vectors, target)
    if len(known) == 2:  # scikit-learn gives the second class's score only
        weights[:, known[1]], bias[known] = model.coef_[0], [0, model.intercept_[0]]
    else:
        weights[:, known], bias[known] = model.coef_.T, model.intercept_
    return weights, bias
