"""Intensities as distributions over ordered levels: one score per emotion moves the training fold's own distribution up or down.

The cumulative logit model (McCullagh 1980, JRSS B 42): P(y > level) = sigmoid(score + log odds of it in the training fold), so that
a score of 0 says what the fold says. Losses are those of its thresholds, each a logistic loss (Rennie & Srebro 2005, IJCAI workshop on
preference handling). Shapes: S segments, E emotions, L levels.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize, special

from jax_emossl.metrics import Intensities, choose_scale, four_class

_MOST_LEVELS = 32
_SMOOTHING = 0.5  # segments that are added on either side of every threshold
_MOST_SCALE = 4.0
_TOLERANCE = 1e-7  # of a read-out's loss, relative; float32 does not tell smaller steps

Scores = Float[np.ndarray, "s e"]


@dataclasses.dataclass(frozen=True)
class Levels:
    """The levels of a training fold and how often its emotions lie above them.

    Attributes:
      values: ascending, the least one first.
      odds: per emotion, the log odds of lying above each level but the last.
    """

    values: tuple[float, ...]
    odds: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, labels: Float[np.ndarray, "n e"]) -> Self:
        """Those of a training fold; where intensities take more than 32 values, quantiles stand for them."""
        values = np.unique(np.append(labels, 0))
        if len(values) > _MOST_LEVELS:
            values = np.unique(np.append(np.quantile(labels[labels > 0], np.linspace(0, 1, _MOST_LEVELS - 1), method="nearest"), 0))
        above = (labels[..., None] > values[:-1]).sum(0)
        odds = np.log(above + _SMOOTHING) - np.log(len(labels) - above + _SMOOTHING)
        return cls(tuple(map(float, values)), tuple(tuple(map(float, own)) for own in odds))

    def to_json(self) -> dict[str, list]:
        return {"values": list(self.values), "odds": [list(own) for own in self.odds]}

    @classmethod
    def from_json(cls, table: dict, emotions: int) -> Self:
        """Raises KeyError, TypeError or ValueError on anything but what `to_json` writes of so many emotions."""
        values, odds = np.array(table["values"], np.float64), np.array(table["odds"], np.float64)
        if odds.shape != (emotions, len(values) - 1) or not np.all(np.diff(values) > 0) or not np.isfinite(odds).all():
            raise ValueError("levels and odds do not fit")
        return cls(tuple(values.tolist()), tuple(map(tuple, odds.tolist())))

    def loss(self, scores: Float[Array, "*s e"], labels: Float[Array, "*s e"]) -> Float[Array, "*s e"]:
        """The logistic losses of all thresholds, summed."""
        above = labels[..., None] > jnp.array(self.values[:-1], jnp.float32)
        logits = scores[..., None] + jnp.array(self.odds, jnp.float32)
        return jax.nn.softplus(jnp.where(above, -logits, logits)).sum(-1)

    def scale(self, scores: Scores, labels: Scores) -> list[float]:
        """Per emotion, the factor of its scores, 0 or above, that makes these labels likeliest."""

        def loss(scale, e):
            logits = scale * scores[:, e, None].astype(np.float64) + np.array(self.odds[e])
            return np.logaddexp(0, np.where(above[:, e], -logits, logits)).sum()

        above = labels[..., None] > np.array(self.values[:-1])
        return [choose_scale(functools.partial(loss, e=e), _MOST_SCALE) for e in range(scores.shape[1])]

    def answer(self, scores: Float[Array, "s e"], scale: Sequence[float]) -> dict[str, Float[Array, "s e"]]:
        """For people: median and mean intensity, and the probability that the emotion is there at all (JAX)."""
        values = jnp.array(self.values, jnp.float32)
        above = jax.nn.sigmoid(scores[..., None] * jnp.array(scale)[:, None] + jnp.array(self.odds, jnp.float32))
        mean = values[0] + above @ jnp.diff(values)
        return {"intensity": values[(above > 0.5).sum(-1)], "mean": mean, "probability": above[..., 0]}

    def decode(self, scores: Scores, scale: Sequence[float]) -> Intensities:
        """For each metric what it asks for: median, likeliest of the four classes, mean, and the median if the emotion is there."""
        values = np.array(self.values)
        above = special.expit(scores[..., None] * np.array(scale)[:, None] + np.array(self.odds))  # (S, E, L - 1)
        edge = np.concatenate([np.ones_like(above[..., :1]), above, np.zeros_like(above[..., :1])], -1)
        probability = edge[..., :-1] - edge[..., 1:]
        classes = np.stack([probability[..., four_class(values) == c].sum(-1) for c in range(4)], -1)
        there = above[..., :1]  # half of what lies above 0
        return Intensities(
            scores,
            values[(above > 0.5).sum(-1)],
            classes.argmax(-1),
            probability @ values,
            values[1:][(above[..., 1:] > there / 2).sum(-1)],
        )


@dataclasses.dataclass
class ReadOut:
    """Scores that are linear in fixed vectors, as a scikit-learn model; `strength` is the inverse of the ridge's weight."""

    levels: Levels
    strength: float

    def fit(self, vectors: Float[np.ndarray, "n p"], labels: Float[np.ndarray, "n e"]) -> Self:
        """In the vectors' own precision; the loss is that of `Levels`, with one exponential for itself and its slope."""
        x = self._with_one(vectors)
        odds = np.array(self.levels.odds, x.dtype)
        above = labels[..., None] > np.array(self.levels.values[:-1])
        passed, constant = above.sum(-1).astype(x.dtype), (above * odds).sum(dtype=float)

        def loss(flat):
            scores = x @ flat.reshape(x.shape[1], -1).astype(x.dtype)
            logits = scores[..., None] + odds
            small = np.exp(-np.abs(logits))
            total = (np.maximum(logits, 0) + np.log1p(small)).sum(dtype=float) - (passed * scores).sum(dtype=float) - constant
            slope = (np.where(logits > 0, 1, small) / (1 + small)).sum(-1) - passed
            return total + (flat @ flat) / (2 * self.strength), (x.T @ slope).ravel() + flat / self.strength

        start, options = np.zeros(x.shape[1] * labels.shape[1]), {"maxiter": 300, "ftol": _TOLERANCE}
        weights = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
        self._weights = weights.reshape(x.shape[1], -1).astype(x.dtype)
        return self

    def predict(self, vectors: Float[np.ndarray, "s p"]) -> Scores:
        return self._with_one(vectors) @ self._weights

    @staticmethod
    def _with_one(vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([vectors, np.ones((len(vectors), 1), vectors.dtype)], 1)
