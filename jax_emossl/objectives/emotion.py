"""Fine-tuning on emotion labels: an intensity per emotion, or one category per segment."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy import special
from sklearn.linear_model import LogisticRegression, Ridge

from jax_emossl import metrics, standards
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import Dense, Dropout
from jax_emossl.metrics import Intensities, Report
from jax_emossl.objectives import Batch, LabelledObjective, Outputs, Params, Variables, regression_loss
from jax_emossl.ordinal import Levels, ReadOut
from jax_emossl.representation import Representation

NEUTRAL = "neutral"
_MOST_SCALE = 10.0


def category_names(labels: Float[np.ndarray, "s e"], emotions: Sequence[str]) -> list[str]:
    """Each segment's category: its strongest emotion, or neutral where all intensities are 0."""
    return [emotions[row.argmax()] if row.any() else NEUTRAL for row in labels]


class SegmentHead(nn.Module):
    """Linear read-out of standardised vectors; it starts at 0."""

    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, standardised: Float[Array, "b p"], deterministic: bool = True) -> Float[Array, "b o"]:
        x = Dropout(self.dropout)(standardised, deterministic)
        return Dense(self.outputs, kernel_init=nn.initializers.zeros, name="readout")(x)


class _Model(nn.Module):
    encoder: nn.Module
    outputs: int
    dropout: float
    reads: str

    def setup(self):
        self.head = SegmentHead(self.outputs, self.dropout)

    def __call__(self, features, num_steps, functionals, location, scale, deterministic):
        pooled = _beside(self.encoder(features, num_steps, None, deterministic).read(self.reads), functionals)
        return self.head((pooled - location) / scale, deterministic)

    def read(self, standardised):
        return self.head(standardised)


def _beside(pooled: Float[Array, "b p"], functionals: Float[Array, "b q"] | None) -> Float[Array, "b p+q"]:
    return pooled if functionals is None else jnp.concatenate([pooled, functionals], -1)


@dataclasses.dataclass(frozen=True)
class _Emotion(Representation, LabelledObjective):
    """What both heads share.

    The head reads the encoder's pooled representation (or its summary alone) less the location of its recording, over its scale, which
    the other segments tell. These standards are those of the encoder as it was at the last evaluation, in training and in prediction
    alike. Speakers then differ less, and one learning rate suits every encoder. The functionals of the whole segment, where the head
    reads them too, stand beside it and are standardised alike.
    """

    emotions: tuple[str, ...]
    classes: tuple[str, ...]
    dropout: float
    selection: str
    standards_prior: float = dataclasses.field(kw_only=True)
    reads_functionals: bool = dataclasses.field(default=False, kw_only=True)

    def init(self, key: jax.Array, example: Batch) -> Params:
        return self._model.init(key, *self._inputs(example), 0.0, 1.0, True)["params"]

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        known = variables["constants"]
        own = standards.of_segments(batch["basis"], known["vectors"], known["order"], known["overall"], self.standards_prior)
        inputs = *self._inputs(batch), own["location"], own["scale"], False
        scores = self._model.apply({"params": variables["params"]}, *inputs, rngs={"dropout": key})
        weight = batch["weight"]
        return jnp.sum(weight * self._row_loss(scores, batch["labels"])), weight.sum(), {}

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        return {"pooled": _beside(super().predict(variables, batch)["pooled"], self._inputs(batch)[-1])}

    def constants(self, outputs: Outputs, basis: Int[np.ndarray, "b 3"]) -> Params:
        overall = standards.overall(outputs["pooled"][basis[:, 1] >= 0])
        return {"overall": overall, "vectors": outputs["pooled"], "order": basis[:, 0]}

    def finish(self, variables: Variables, outputs: Outputs, basis: Int[Array, "b 3"]) -> Outputs:
        inputs = standards.standardised(outputs["pooled"], basis, variables["constants"]["overall"], self.standards_prior)
        return {"scores": self._model.apply({"params": variables["params"]}, inputs, method=_Model.read)}

    def _inputs(self, batch: Batch) -> tuple[Array, Array, Array | None]:
        return batch["features"], batch["num_steps"], batch["functionals"] if self.reads_functionals else None

    @property
    def _model(self) -> _Model:
        return _Model(self.encoder, len(self.classes), self.dropout, self.reads)


@dataclasses.dataclass(frozen=True)
class Intensity(_Emotion):
    """An intensity in [0, 3] per emotion, several at once: the seed paper's setting.

    Attributes:
      loss_name: "ordinal", where a score is a place in the distribution over the `levels`, or a regression's loss, where it is an intensity.
    """

    levels: Levels
    loss_name: str = "ordinal"
    head: str = "intensity"

    def target(self, labels: Float[np.ndarray, "s e"]) -> Float[np.ndarray, "s e"]:
        """The intensities themselves."""
        return labels

    def _row_loss(self, scores: Float[Array, "b e"], labels: Float[Array, "b e"]) -> Float[Array, "b"]:
        loss = self.levels.loss if self.ordinal else regression_loss(self.loss_name)
        return loss(scores, labels).mean(-1)

    @property
    def ordinal(self) -> bool:
        return self.loss_name == "ordinal"

    @property
    def reference(self) -> dict[str, list]:
        return self.levels.to_json()

    def with_reference(self, reference: dict[str, list]) -> Self:
        return dataclasses.replace(self, levels=Levels.from_json(reference, len(self.emotions)))

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> dict[str, list]:
        """Per emotion, the threshold of presence and, of distributions, the scale of the scores."""
        scale = {"scale": self.levels.scale(outputs["scores"], labels)} if self.ordinal else {}
        return {"threshold": metrics.choose_thresholds(outputs["scores"], labels), **scale}

    def average(self, scores: Sequence[Float[np.ndarray, "s e"]], calibrations: Sequence[dict[str, list]]) -> Float[np.ndarray, "s e"]:
        """Of distributions, the mean of the scaled log odds; of intensities their mean."""
        scales = [calibration.get("scale", 1.0) for calibration in calibrations]
        return np.mean([np.asarray(scale) * own for scale, own in zip(scales, scores, strict=True)], 0)

    def decode(self, scores: Float[np.ndarray, "s e"], calibration: dict[str, list]) -> dict[str, np.ndarray]:
        made = self._decoded(scores, calibration)
        return {"scores": scores.astype(np.float32), "median": made.median.astype(np.float32), "four_class": made.four_class}

    def answer(self, scores: Float[Array, "s e"], calibration: dict[str, list]) -> dict[str, Array]:
        """Per emotion (S, E): median and mean intensity, whether it is called present and, of distributions, how probable that is."""
        threshold = jnp.array([jnp.nan if t is None else t for t in calibration["threshold"]])
        clipped = jnp.clip(scores, 0, metrics.MAX_INTENSITY)
        said = self.levels.answer(scores, calibration["scale"]) if self.ordinal else {"intensity": clipped, "mean": clipped}
        return {**said, "present": scores >= threshold}

    def labels_of(self, scores: Float[np.ndarray, "s e"], calibration: dict[str, list]) -> Float[np.ndarray, "s e"]:
        return self._decoded(scores, calibration).median.astype(np.float32)

    def _decoded(self, scores: Float[np.ndarray, "s e"], calibration: dict[str, list]) -> Intensities:
        return self.levels.decode(scores, calibration["scale"]) if self.ordinal else Intensities.of(scores)

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: dict[str, list]) -> Report:
        return metrics.intensity_report(self._decoded(outputs["scores"], calibration), labels, self.emotions, calibration["threshold"])

    def constant(self, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        return metrics.constant_intensity_report(labels, train_labels, self.emotions)

    def read_out(self, strength: float) -> ReadOut | Ridge:
        return ReadOut(self.levels, strength) if self.ordinal else Ridge(alpha=1 / strength)


@dataclasses.dataclass(frozen=True)
class Category(_Emotion):
    """Softmax over the classes of the training fold; neutral is the segment without any emotion."""

    head: str = "category"

    def target(self, labels: Float[np.ndarray, "s e"]) -> Int[np.ndarray, "s"]:
        """Each segment's place in `classes`; `metrics.UNSEEN` and below for classes that are not there."""
        unseen = [name for name in dict.fromkeys((NEUTRAL, *self.emotions)) if name not in self.classes]
        place = {name: i for i, name in enumerate(self.classes)} | {name: metrics.UNSEEN - i for i, name in enumerate(unseen)}
        return np.array([place[name] for name in category_names(labels, self.emotions)], int)

    def _row_loss(self, scores: Float[Array, "b c"], labels: Float[Array, "b e"]) -> Float[Array, "b"]:
        columns = jnp.array([self.classes.index(e) if e in self.classes else 0 for e in self.emotions])
        neutral = self.classes.index(NEUTRAL) if NEUTRAL in self.classes else 0
        target = jnp.where(labels.any(-1), columns[labels.argmax(-1)], neutral)
        return optax.softmax_cross_entropy_with_integer_labels(scores, target)

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> dict[str, float]:
        """The factor of the logits that makes these labels likeliest (temperature scaling, Guo et al. 2017, arXiv 1706.04599)."""
        target, scores = self.target(labels), outputs["scores"].astype(np.float64)
        known = np.flatnonzero(target > metrics.UNSEEN)

        def loss(scale):
            return -special.log_softmax(scale * scores[known], 1)[np.arange(len(known)), target[known]].sum()

        return {"scale": metrics.choose_scale(loss, _MOST_SCALE)}

    def average(self, scores: Sequence[Float[np.ndarray, "s c"]], calibrations: Sequence[dict[str, float]]) -> Float[np.ndarray, "s c"]:
        """The logarithm of the mean probability."""
        logits = [special.log_softmax(calibration["scale"] * own, 1) for own, calibration in zip(scores, calibrations, strict=True)]
        return special.logsumexp(logits, 0) - np.log(len(logits))

    def answer(self, scores: Float[Array, "s c"], calibration: dict[str, float]) -> dict[str, Array]:
        """Per class (S, C): its probability, and whether it is the likeliest."""
        probability = jax.nn.softmax(calibration["scale"] * scores)
        return {"probability": probability, "present": jnp.arange(len(self.classes)) == probability.argmax(-1)[:, None]}

    def labels_of(self, scores: Float[np.ndarray, "s c"], calibration: dict[str, float]) -> Float[np.ndarray, "s e"]:
        rows = [[metrics.MAX_INTENSITY * (emotion == name) for emotion in self.emotions] for name in self.classes]
        return np.array(rows, np.float32)[scores.argmax(1)]

    def decode(self, scores: Float[np.ndarray, "s c"], calibration: dict[str, float]) -> dict[str, np.ndarray]:
        return {"scores": scores.astype(np.float32)}

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: dict[str, float]) -> Report:
        return metrics.category_report(outputs["scores"], self.target(labels), self.classes)

    def constant(self, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        return metrics.constant_category_report(self.target(labels), self.target(train_labels), self.classes)

    def read_out(self, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300)


_SELECTION = {
    "category": ("uar", "f1_macro", "accuracy"),
    "intensity": ("auroc", "mae", "accuracy4", "mae_positive", "concordance", "balanced_accuracy", "f1_weighted", "f1_macro"),
}


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Intensity | Category:
    """The objective of `config.objective`, its classes those of the training fold; UserError where its head lacks `config.selection`."""
    if not corpus.emotions:
        raise UserError(f"{corpus.name} has no labels: it can be pretrained on, and nothing else.")
    labels = corpus.fold("train").labels
    head = config.head
    if head == "auto":
        head = "category" if ((labels > 0).sum(1) <= 1).all() else "intensity"
    metric = config.selection or _SELECTION[head][0]
    if metric not in _SELECTION[head]:
        raise UserError(f"objective.selection is '{metric}': choose one of {', '.join(_SELECTION[head])}.")
    levels = Levels.of(labels)
    if head == "intensity" and len(levels.values) == 1:
        raise UserError(f"Every intensity of the training fold of {corpus.name} is 0: correct its labels or folds.")
    present = set(category_names(labels, corpus.emotions))
    classes = tuple(name for name in dict.fromkeys((NEUTRAL, *corpus.emotions)) if name in present)
    if head == "category" and len(classes) < 2:
        raise UserError(f"Every segment of the training fold of {corpus.name} is {classes[0]}: correct its labels or folds.")
    own = (corpus.emotions, levels) if head == "intensity" else (classes, None)
    return _answering(config, encoder, corpus.emotions, head, metric, *own)


def restore(
    config, encoder: nn.Module, emotions: Sequence[str], head: str, classes: Sequence[str], reference: dict
) -> Intensity | Category:
    """The objective that a run's card tells of; KeyError, TypeError or ValueError where it is none of ours."""
    levels = Levels.from_json(reference, len(emotions)) if head == "intensity" else None
    return _answering(config, encoder, tuple(emotions), head, _SELECTION[head][0], tuple(classes), levels)


def _answering(config, encoder, emotions, head, metric, classes, levels) -> Intensity | Category:
    own = encoder, emotions, classes, config.dropout, metric
    reads, _, beside = config.reads.partition("+")
    read = {"standards_prior": config.standards_prior, "reads": reads, "reads_functionals": beside == "functionals"}
    if head == "intensity":
        return Intensity(*own, levels, config.loss, **read)
    return Category(*own, **read)
