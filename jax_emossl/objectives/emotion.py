"""Fine-tuning on emotion labels: an intensity per emotion, or one category per segment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_emossl import metrics
from jax_emossl.data.batches import Segments
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.model import SegmentHead, TransformerEncoder, pool_statistics
from jax_emossl.objectives import Batch, Outputs, Params, check_choice, regression_loss

NEUTRAL = "neutral"
_SMALLEST_SCALE = 1e-3


def category_names(labels: Float[np.ndarray, "s e"], emotions: Sequence[str]) -> list[str]:
    """Each segment's category: its strongest emotion, or neutral where all intensities are 0."""
    return [emotions[row.argmax()] if row.any() else NEUTRAL for row in labels]


def resolve_head(head: str, labels: Float[np.ndarray, "s e"]) -> str:
    """'auto' becomes 'category' when no segment carries two emotions, else 'intensity'."""
    check_choice("objective.head", head, ("auto", "intensity", "category"))
    if head != "auto":
        return head
    return "category" if ((labels > 0).sum(1) <= 1).all() else "intensity"


def standardised(
    vectors: Float[np.ndarray, "s p"], segments: Segments, toward: dict[str, Float[np.ndarray, "p"]]
) -> Float[np.ndarray, "s p"]:
    """Vectors of a fold's segments less the location of their recording, over its scale (see `standards`)."""
    location, scale = standards(vectors, segments, toward)
    return (vectors - location) / scale


def standards(
    pooled: Float[np.ndarray, "s p"], segments: Segments, toward: dict[str, Float[np.ndarray, "p"]]
) -> tuple[Float[np.ndarray, "s p"], Float[np.ndarray, "s p"]]:
    """Per segment, the location and scale of its recording's pooled statistics, shrunk `toward` the training fold's."""
    toward_location, toward_scale = np.asarray(toward["location"]), np.asarray(toward["scale"])
    location, scale = np.empty_like(pooled), np.empty_like(pooled)
    for recording in np.unique(segments.recordings.astype(str)):
        rows = segments.recordings == recording
        weight = float(segments.reliance[rows][0])
        location[rows] = weight * pooled[rows].mean(0) + (1 - weight) * toward_location
        scale[rows] = np.sqrt(weight * pooled[rows].var(0) + (1 - weight) * toward_scale**2) + _SMALLEST_SCALE
    return location, scale


class _Model(nn.Module):
    encoder: TransformerEncoder
    outputs: int
    dropout: float

    def setup(self):
        self.head = SegmentHead(self.outputs, self.dropout)

    def __call__(self, features, num_frames, location, scale, deterministic):
        return self.head((self.pool(features, num_frames, deterministic) - location) / scale, deterministic)

    def pool(self, features, num_frames, deterministic):
        return pool_statistics(self.encoder(features, num_frames, None, deterministic), num_frames)


@dataclasses.dataclass(frozen=True)
class _Emotion:
    """What both heads share; see `objectives.Objective`.

    The head reads the encoder's pooled statistics, standardised like the features: by the mean and the
    deviation over the recording's segments, shrunk toward the training fold's with the weight that the
    frontend's prior gives the recording. Speakers then differ less, and one learning rate suits every encoder.
    Training keeps the standards of the initial encoder; a fold is predicted with those of the current one.
    """

    encoder: TransformerEncoder
    emotions: tuple[str, ...]
    classes: tuple[str, ...]
    dropout: float
    loss_name: str
    selection: str

    @property
    def _model(self) -> _Model:
        return _Model(self.encoder, len(self.classes), self.dropout)

    def init(self, key: jax.Array, batch: Batch, encoder: Params | None = None) -> Params:
        params = self._model.init(key, batch["features"][:1], batch["num_frames"][:1], 0.0, 1.0, True)["params"]
        params = params if encoder is None else {**params, "encoder": encoder}
        pooled = self.predict(params, batch)["pooled"]
        # Constants: no gradient reaches them, and only matrices are decayed.
        return {**params, "standard": {"location": pooled.mean(0), "scale": pooled.std(0) + _SMALLEST_SCALE}}

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[Array, Array, dict[str, Array]]:
        inputs = (batch[name] for name in ("features", "num_frames", "location", "scale"))
        scores = self._model.apply({"params": params}, *inputs, False, rngs={"dropout": key})
        weight = batch["weight"]
        return jnp.sum(weight * self._row_loss(scores, batch["labels"])), weight.sum(), {}

    def predict(self, params: Params, batch: Batch) -> Outputs:
        inputs = batch["features"], batch["num_frames"]
        return {"pooled": self._model.apply({"params": params}, *inputs, True, method=_Model.pool)}

    def finish(self, params: Params, outputs: Outputs, segments: Segments) -> Outputs:
        inputs = standardised(outputs["pooled"], segments, params["standard"])
        readout = {name: np.asarray(array) for name, array in params["head"]["readout"].items()}
        return {"scores": inputs @ readout["kernel"] + readout["bias"], "standardised": inputs, **outputs}

    def extra(
        self, params: Params, train: Segments, background: Segments, predict: Callable[[], Outputs]
    ) -> dict[str, Float[np.ndarray, "s p"]]:
        location, scale = standards(predict()["pooled"], background, params["standard"])
        first = {recording: i for i, recording in reversed(list(enumerate(background.recordings)))}
        rows = [first[recording] for recording in train.recordings]
        return {"location": location[rows], "scale": scale[rows]}

    def _row_loss(self, scores: Float[Array, "b c"], labels: Float[Array, "b e"]) -> Float[Array, "b"]:
        raise NotImplementedError


class Intensity(_Emotion):
    """Regression to an intensity in [0, 3] per emotion, several at once: the seed paper's setting."""

    def target(self, labels: Float[np.ndarray, "s e"]) -> Float[np.ndarray, "s e"]:
        """What scores are compared with: the intensities themselves."""
        return labels

    def _row_loss(self, scores, labels):
        return regression_loss(self.loss_name, scores, labels).mean(-1)

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> list[float | None]:
        """Presence thresholds per emotion."""
        return metrics.choose_thresholds(outputs["scores"], labels)

    def metrics(self, outputs: Outputs, labels: np.ndarray, calibration: list[float | None]) -> Report:
        return metrics.intensity_report(outputs["scores"], labels, self.emotions, calibration)

    def constant(self, outputs: Outputs, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        return metrics.constant_intensity_report(labels, train_labels, self.emotions)


class Category(_Emotion):
    """Softmax over the classes of the training fold; neutral is the segment without any emotion."""

    def target(self, labels: Float[np.ndarray, "s e"]) -> Int[np.ndarray, "s"]:
        """Each segment's place in `classes`; `metrics.UNSEEN` and below for classes that are not there."""
        unseen = [name for name in dict.fromkeys((NEUTRAL, *self.emotions)) if name not in self.classes]
        place = {name: i for i, name in enumerate(self.classes)} | {name: metrics.UNSEEN - i for i, name in enumerate(unseen)}
        return np.array([place[name] for name in category_names(labels, self.emotions)], int)

    def _row_loss(self, scores, labels):
        columns = jnp.array([self.classes.index(e) if e in self.classes else 0 for e in self.emotions])
        neutral = self.classes.index(NEUTRAL) if NEUTRAL in self.classes else 0
        target = jnp.where(labels.any(-1), columns[labels.argmax(-1)], neutral)
        return optax.softmax_cross_entropy_with_integer_labels(scores, target)

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> None:
        return None

    def metrics(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        return metrics.category_report(outputs["scores"], self.target(labels), self.classes)

    def constant(self, outputs: Outputs, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        return metrics.constant_category_report(self.target(labels), self.target(train_labels), self.classes)


def make(config, corpus: Corpus, encoder: TransformerEncoder, dimension: int) -> Intensity | Category:
    """The objective of `config.objective`, its classes those of the training fold."""
    labels = corpus.fold("train").labels
    head = resolve_head(config.head, labels)
    loss = check_choice("objective.loss", config.loss, ("l1", "l2", "huber"))
    metric = config.selection or {"category": "uar", "intensity": "auroc"}[head]
    if not 0 <= config.dropout <= 0.99:
        raise UserError(f"objective.dropout is {config.dropout}: give a share between 0 and 0.99.")
    if head == "intensity":
        check_choice(
            "objective.selection",
            metric,
            ("mae", "accuracy4", "mae_positive", "concordance", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc"),
        )
        return Intensity(encoder, corpus.emotions, corpus.emotions, config.dropout, loss, metric)
    check_choice("objective.selection", metric, ("uar", "f1_macro", "accuracy"))
    present = set(category_names(labels, corpus.emotions))
    classes = tuple(name for name in dict.fromkeys((NEUTRAL, *corpus.emotions)) if name in present)
    return Category(encoder, corpus.emotions, classes, config.dropout, loss, metric)
