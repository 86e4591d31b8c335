"""What is learned: one file per objective, found by its name (`config.objective.name`).

A file `objectives/<name>.py` offers `make(config, corpus, encoder, dimension)`, where `config` is
`config.objective` and `dimension` the width of a model step; it returns an `Objective`, an immutable, hashable value.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from jax_emossl.data.batches import Segments
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.model import TransformerEncoder

Params = dict[str, Any]
Batch = dict[str, Float[Array, "b ..."]]
Outputs = dict[str, Float[Array, "b ..."]]


class Objective(Protocol):
    """All that the train loop knows of what it trains.

    The parameters are a dict whose subtree `encoder` belongs to the shared encoder.

    Attributes:
      selection: the validation metric by which steps are chosen.
    """

    selection: str

    def init(self, key: jax.Array, batch: Batch, encoder: Params | None = None) -> Params:
        """Initial parameters; `encoder` takes the place of a random one. `batch` is unlabelled training data."""

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[Array, Array, dict[str, Array]]:
        """Sum of the training loss, its count, and further sums to log (each divided by the count)."""

    def predict(self, params: Params, batch: Batch) -> Outputs:
        """Outputs per row, independent of the other rows and of padding."""

    def finish(self, params: Params, outputs: Outputs, segments: Segments) -> Outputs:
        """Final outputs of a whole fold from `predict`'s, with what its recordings have in common."""

    def extra(self, params: Params, train: Segments, background: Segments, predict: Callable[[], Outputs]) -> dict[str, np.ndarray]:
        """Arrays (S, ...) per segment of `train` that `loss` reads from its batches besides the features.

        `background` are all segments of the training fold; `predict` makes their outputs under the initial `params`.
        """

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> Any:
        """Whatever `metrics` needs that must be chosen on the validation fold, as JSON."""

    def metrics(self, outputs: Outputs, labels: np.ndarray, calibration: Any) -> Report:
        """Metrics over a whole fold."""

    def constant(self, outputs: Outputs, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        """The same metrics for the best predictor that ignores the features."""


def make(config: ml_collections.ConfigDict, corpus: Corpus, encoder: TransformerEncoder, dimension: int) -> Objective:
    """The objective that `config.name` names.

    Raises:
      UserError: there is no such objective.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if config.name not in names:
        raise UserError(f"objective.name is '{config.name}': choose one of {', '.join(names)}.")
    return importlib.import_module(f"{__name__}.{config.name}").make(config, corpus, encoder, dimension)


def assess(objective: Objective, outputs: Outputs, labels: np.ndarray) -> tuple[float, Any, dict]:
    """On the validation fold: the value by which steps are chosen, what was calibrated there, and all metrics.

    Raises:
      UserError: the fold does not define the metric.
    """
    calibration = objective.calibrate(outputs, labels)
    report, _ = objective.metrics(outputs, labels, calibration)
    value = report[objective.selection]
    if value is None:
        raise UserError(f"The validation fold does not define {objective.selection}: choose another objective.selection.")
    return value, calibration, report


def regression_loss(name: str, predicted: Float[Array, "*s"], target: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Elementwise 'l1', 'l2' (squared error) or 'huber' loss."""
    losses = {"l1": lambda p, t: jnp.abs(p - t), "l2": optax.squared_error, "huber": optax.huber_loss}
    return losses[name](predicted, target)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, if it is one of the choices of config field `field`."""
    if value not in choices:
        raise UserError(f"{field} is '{value}': choose one of {', '.join(choices)}.")
    return value
