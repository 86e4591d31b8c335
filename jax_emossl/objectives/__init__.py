"""What is learned: one file per objective, found by its name (`config.objective.name`).

A file `objectives/<name>.py` offers `make(config, encoder, frontend, corpus)`, where `config` has its fields; it returns an `Objective`,
an immutable, hashable value. Pretext tasks whose names are joined by + are learned together, by one encoder (`combined.py`).
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report

Params = dict[str, Any]
Variables = dict[str, Params]  # "params", which are trained, and "constants", which are not
Batch = dict[str, Float[Array, "b ..."]]
Outputs = dict[str, Float[Array, "b ..."]]


class Objective(Protocol):
    """All that the loop knows of what it trains.

    Attributes:
      selection: the validation metric by which steps are chosen.
      labelled: whether it is a `LabelledObjective`.
      reads_functionals: whether its batches hold the `functionals` of whole segments (B, Q).
      together: segments of one recording, where it has so many, that follow one another in batches.
      of_recordings: whether its constants belong to the recordings at hand, so that those of another corpus have none.
    """

    selection: str
    labelled: bool = False
    reads_functionals: bool = False
    together: int = 1
    of_recordings: bool = False

    def init(self, key: jax.Array, example: Batch) -> Params:
        """Random parameters for batches like `example`; the subtree `encoder` belongs to the shared encoder."""

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        """Sum of the training loss, its count, and further sums to log (each divided by the count); `progress` is the share of steps done."""

    def begin(self, params: Params, segments: Segments) -> Params:
        """The constants of a pretext task before its first step, from the initial parameters and all segments, the held-out ones too."""
        return {}

    def follow(self, variables: Variables, progress: Array) -> Params:
        """The constants after a step of the optimiser, which has moved the parameters only; they stay unless an objective says otherwise."""
        return variables["constants"]

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        """Outputs per row, independent of the other rows and of padding."""

    def finish(self, variables: Variables, outputs: Outputs, basis: Int[Array, "b 3"]) -> Outputs:
        """Outputs of a fold's segments from `predict`'s, where those of a recording have something in common; see `Segments.basis`."""
        return outputs

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: Any) -> Report:
        """Metrics over a whole fold; `<metric>_of_constant` is what ignoring the features reaches, where outputs alone tell that."""

    def illustrate(self, variables: Variables, batch: Batch) -> dict[str, np.ndarray]:
        """Arrays of a few rows for the figures of a report; nothing unless an objective says otherwise."""
        return {}


class LabelledObjective(Objective, Protocol):
    """An objective that answers about emotions, from one score per class.

    Its outputs hold `scores` (S, C) once they are finished. Its constants are made of what it predicts, which reads its parameters alone.

    Attributes:
      classes: what scores stand for.
      head: the kind of answer.
      standards_prior: segments of weight that the training fold has against a recording's own standards; infinite where it has none.
      reads: what heads, and beside them linear arms, read of the encoder, see `Encoded.read`.
    """

    classes: tuple[str, ...]
    head: str
    labelled: bool = True
    standards_prior: float = math.inf
    reads: str = "encoder"

    def constants(self, outputs: Outputs, basis: Int[np.ndarray, "b 3"]) -> Params:
        """What the loss needs of the encoder as it is, from `predict`'s outputs of some training segments.

        Filler rows, whose basis is -1 throughout, count for nothing.
        """

    def target(self, labels: np.ndarray) -> np.ndarray:
        """What scores are compared with."""

    @property
    def reference(self) -> dict:
        """What its scores are relative to, beside the classes, as JSON: it goes with the run to other corpora."""
        return {}

    def with_reference(self, reference: dict) -> Self:
        """The same, relative to another run's reference; KeyError, TypeError or ValueError where that is none."""
        return self

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> Any:
        """Whatever `evaluate` needs that must be chosen on the validation fold, as JSON."""

    def average(self, scores: Sequence[np.ndarray], calibrations: Sequence[Any]) -> np.ndarray:
        """The scores of several answers about the same segments, averaged; each has its own calibration."""

    def labels_of(self, scores: np.ndarray, calibration: Any) -> np.ndarray:
        """Labels (S, E) that agree with what is answered."""

    def decode(self, scores: np.ndarray, calibration: Any) -> dict[str, np.ndarray]:
        """All that intervals are computed from, per segment: the scores and what is read off them."""

    def answer(self, scores: Array, calibration: Any) -> dict[str, Array]:
        """What people read, per segment and class (S, C); in JAX, so that it can be exported."""

    def constant(self, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        """The metrics of the best predictor that ignores the features."""

    def read_out(self, strength: float) -> Any:
        """A scikit-learn model that reads fixed vectors out to `target`; `strength` is its inverse regularisation."""


@dataclasses.dataclass(frozen=True)
class Stepwise(Objective):
    """A pretext task whose loss is a mean over some steps of every row; what it says of a row is in `sums`."""

    encoder: nn.Module
    selection = "loss"

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b ..."]]:
        """Per row, as `summed` gives them: `loss`, whatever else is reported, and the number of `steps`.

        What is drawn for a row comes from its key, so that it depends on no other; without the key of `dropout` there is none. What has
        further axes is for evaluations alone.
        """

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        row_key, dropout = jax.random.split(key)
        keys = jax.random.split(row_key, len(batch["num_steps"]))
        own = self.sums(variables, batch, keys, dropout)
        sums = {name: jnp.sum(batch["weight"] * x) for name, x in own.items() if x.ndim == 1}
        return sums.pop("loss"), sums.pop("steps"), sums

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        return self.sums(variables, batch, fixed_keys(batch), None)

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """Means per step."""
        steps = outputs["steps"].sum()
        if not steps:
            raise UserError(f"No segment of a fold is long enough for {type(self).__name__}: correct the folds or its durations.")
        return {name: float(x.sum() / steps) for name, x in outputs.items() if x.ndim == 1 and name != "steps"}, {}


def summed(counted: Bool[Array, "b t"], **errors: Float[Array, "b t"]) -> dict[str, Float[Array, "b"]]:
    """Per row, errors summed over the steps that are counted, and the number of these, `steps`, unless it is given what each counts for."""
    own = {"steps": jnp.ones(counted.shape, jnp.float32)} | errors
    return {name: jnp.sum(jnp.where(counted, values, 0.0), 1) for name, values in own.items()}


def fixed_keys(batch: Batch) -> jax.Array:
    """What is drawn for a segment in evaluations depends on the segment alone, so that steps are compared on equal terms."""
    return jax.vmap(lambda segment: jax.random.fold_in(jax.random.key(0), segment))(batch["segment"])


def make(config: ml_collections.ConfigDict, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Objective:
    """The objective that `config.name` names; its fields are those of `config` or, where this lists several objectives, of its group."""
    name = "combined" if "+" in config.name else config.name
    return importlib.import_module(f"{__name__}.{name}").make(config.get(name, config), encoder, frontend, corpus)


def restore(config: ml_collections.ConfigDict, encoder: nn.Module, **card: Any) -> LabelledObjective:
    """The labelled objective of a run, from its config and what its `card` has of `emotions`, `head`, `classes` and `reference`."""
    return importlib.import_module(f"{__name__}.{config.name}").restore(config, encoder, **card)


def assess(objective: Objective, outputs: Outputs, labels: np.ndarray) -> tuple[float, Any, dict]:
    """On the validation fold: the value by which steps are chosen (UserError where undefined), what was calibrated, and all metrics."""
    calibration = objective.calibrate(outputs, labels) if objective.labelled else None
    report, _ = objective.evaluate(outputs, labels, calibration)
    value = report[objective.selection]
    if value is None:
        raise UserError(f"The validation fold does not define {objective.selection}: choose another objective.selection.")
    return value, calibration, report


def regression_loss(name: str) -> Callable[[Float[Array, "*s"], Float[Array, "*s"]], Float[Array, "*s"]]:
    """Elementwise 'l1', 'l2' (squared error) or 'huber' loss of a prediction and its target."""
    return {"l1": lambda predicted, target: jnp.abs(predicted - target), "l2": optax.squared_error, "huber": optax.huber_loss}[name]
