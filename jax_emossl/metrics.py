"""Metrics of emotion recognition: pure functions of NumPy arrays.

A metric that a fold cannot define (AUROC of an emotion that never occurs in it, say) is None, and the
reason stands in `undefined`. Shapes: S segments, E emotions, C classes.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize
from sklearn import metrics as sklearn_metrics

from jax_emossl.data.labels import MAX_INTENSITY

LOWER_IS_BETTER = frozenset({"loss", "total_loss", "mae", "mae_positive"})
FULL_NAMES = {
    "mae": "mean absolute error",
    "auroc": "AUROC (mean over emotions)",
    "uar": "unweighted average recall",
    "accuracy4": "4-class accuracy",
    "f1_macro": "macro F1",
    "accuracy": "accuracy",
}
UNSEEN = -1  # category, like all below it, of a class that the training fold does not have

Report = tuple[dict, dict[str, str]]
"""Metrics (numbers, None, or nested per emotion) and, for every None, the reason under its name."""


class Intensities(NamedTuple):
    """What is said of every segment and emotion, in the form that each metric asks for; all are (S, E).

    Attributes:
      scores: they rank segments (AUROC), and are held against thresholds (balanced accuracy, F1).
      median: for mean absolute errors.
      four_class: one of the classes 0..3.
      mean: for concordance.
      present: for the mean absolute error where the emotion is there.
    """

    scores: Float[np.ndarray, "s e"]
    median: Float[np.ndarray, "s e"]
    four_class: Int[np.ndarray, "s e"]
    mean: Float[np.ndarray, "s e"]
    present: Float[np.ndarray, "s e"]

    @classmethod
    def of(cls, scores: Float[np.ndarray, "s e"]) -> Self:
        """Predicted intensities, clipped to [0, 3] but for ranks."""
        clipped = np.clip(scores, 0, MAX_INTENSITY)
        return cls(scores, clipped, four_class(scores), clipped, clipped)


def better(name: str, value: float, than: float | None) -> bool:
    """Whether `value` of metric `name` beats `than`."""
    return than is None or (value < than if name in LOWER_IS_BETTER else value > than)


def four_class(intensity: Float[np.ndarray, "*s"]) -> Int[np.ndarray, "*s"]:
    """Intensity as one of the classes 0..3: clipped to [0, 3], halves rounded up."""
    return np.floor(np.clip(intensity, 0, MAX_INTENSITY) + 0.5).astype(int)


def concordance(predicted: Float[np.ndarray, "s"], true: Float[np.ndarray, "s"]) -> float | None:
    """Lin's concordance correlation coefficient (Lin 1989, Biometrics 45); None where both are one constant."""
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    denominator = predicted.var() + true.var() + (predicted.mean() - true.mean()) ** 2
    if denominator == 0:
        return None
    return float(2 * np.mean((predicted - predicted.mean()) * (true - true.mean())) / denominator)


def choose_thresholds(scores: Float[np.ndarray, "s e"], labels: Float[np.ndarray, "s e"]) -> list[float | None]:
    """Per emotion, the score at and above which it is called present: the best balanced accuracy.

    None where the emotion is always or never present. Call with the validation fold.
    """
    thresholds: list[float | None] = []
    for score, present in zip(scores.T.astype(np.float64), labels.T > 0, strict=True):
        if present.all() or not present.any():
            thresholds.append(None)
            continue
        false_positive, true_positive, cut = sklearn_metrics.roc_curve(present, score)
        best = np.argmax(true_positive - false_positive)
        # Half-way to the next lower score, so that rounding does not flip a segment; inf means "never".
        lower = score[score < cut[best]]
        thresholds.append(float((cut[best] + lower.max()) / 2) if np.isfinite(cut[best]) and len(lower) else float(min(cut[best], 1e9)))
    return thresholds


def choose_scale(loss: Callable[[float], float], most: float) -> float:
    """The factor of scores, from 0 to `most`, at which their loss is least. Call with that of the validation fold."""
    return float(optimize.minimize_scalar(loss, bounds=(0, most), method="bounded").x)


def intensity_report(
    predicted: Intensities, labels: Float[np.ndarray, "s e"], emotions: Sequence[str], thresholds: Sequence[float | None]
) -> Report:
    """Metrics of predicted intensities.

    Args:
      labels: intensities in [0, 3].
      thresholds: of the scores, from `choose_thresholds` on the validation fold.
    """
    undefined: dict[str, str] = {}
    per_emotion = {}
    for e, emotion in enumerate(emotions):
        per_emotion[emotion], reasons = _emotion_report(Intensities(*(own[:, e] for own in predicted)), labels[:, e], thresholds[e])
        undefined |= {f"per_emotion.{emotion}.{name}": reason for name, reason in reasons.items()}
    return _over_emotions(per_emotion, labels, undefined)


def _over_emotions(per_emotion: dict[str, dict], labels: Float[np.ndarray, "s e"], undefined: dict[str, str]) -> Report:
    """Adds to the metrics per emotion their means: over positive cells for mae_positive, else over the emotions that define them."""
    report: dict = {}
    for name in next(iter(per_emotion.values())):
        values = [row[name] for row in per_emotion.values()]
        weight = (labels > 0).sum(0) if name == "mae_positive" else np.ones(len(values))
        defined = [i for i, value in enumerate(values) if value is not None]
        report[name] = float(np.average([values[i] for i in defined], weights=weight[defined])) if defined else None
        if not defined:
            undefined[name] = "undefined for every emotion"
    return report | {"per_emotion": per_emotion}, undefined


def _emotion_report(predicted: Intensities, label: Float[np.ndarray, "s"], threshold: float | None) -> Report:
    """Metrics of one emotion; all that is predicted of it is (S,)."""
    present, score = label > 0, predicted.scores
    one_class = f"{'every' if present.all() else 'no'} segment has the emotion" if present.all() or not present.any() else ""
    row = {
        "mae": float(np.abs(predicted.median - label).mean()),
        "accuracy4": float(np.mean(predicted.four_class == four_class(label))),
        "mae_positive": float(np.abs(predicted.present - label)[present].mean()) if present.any() else None,
        "concordance": concordance(predicted.mean, label),
        "balanced_accuracy": None,
        "f1_weighted": None,
        "f1_macro": None,
        "auroc": None if one_class else float(sklearn_metrics.roc_auc_score(present, score)),
    }
    why = dict.fromkeys(row, one_class) | {"concordance": "predictions and labels are the same constant"}
    if threshold is None:
        why |= dict.fromkeys(("balanced_accuracy", "f1_weighted", "f1_macro"), "the validation fold gives no threshold")
    else:
        called = score >= threshold
        if not one_class:
            row["balanced_accuracy"] = float(sklearn_metrics.balanced_accuracy_score(present, called))
        for average in ("weighted", "macro"):
            row[f"f1_{average}"] = float(sklearn_metrics.f1_score(present, called, average=average, labels=[False, True], zero_division=0))
    return row, {name: why[name] for name, value in row.items() if value is None}


def constant_intensity_report(labels: Float[np.ndarray, "s e"], train_labels: Float[np.ndarray, "n e"], emotions: Sequence[str]) -> Report:
    """What the training fold's best constant per emotion and metric reaches; no features are looked at.

    Median for MAE (of the positive labels for theirs), commonest class for accuracy, always or never for F1; none ranks segments.
    """
    undefined: dict[str, str] = {}
    per_emotion = {}
    for emotion, label, train in zip(emotions, labels.T, train_labels.T, strict=True):
        positive, report = train[train > 0], functools.cache(functools.partial(_constant_report, label))
        never, always = (_constant_report(train, 0, called)[0] for called in (False, True))
        constants = {  # the value, and whether the emotion is called present
            "mae": (np.median(train), False),
            "accuracy4": (np.bincount(four_class(train)).argmax(), False),
            "mae_positive": (np.median(positive) if len(positive) else 0, False),
            "concordance": (train.mean(), False),
            "balanced_accuracy": (0, False),
            "auroc": (0, False),
            "f1_weighted": (0, always["f1_weighted"] > never["f1_weighted"]),
            "f1_macro": (0, always["f1_macro"] > never["f1_macro"]),
        }
        per_emotion[emotion] = {}
        for name, (constant, called) in constants.items():
            values, reasons = report(float(constant), called)
            per_emotion[emotion][name] = values[name]
            undefined |= {f"per_emotion.{emotion}.{name}": reasons[name]} if name in reasons else {}
    return _over_emotions(per_emotion, labels, undefined)


def _constant_report(label: Float[np.ndarray, "s"], constant: float, always: bool) -> Report:
    predicted = Intensities.of(np.full(len(label), constant))
    return _emotion_report(predicted, label, threshold=-1.0 if always else MAX_INTENSITY + 1.0)


def category_report(scores: Float[np.ndarray, "s c"], target: Int[np.ndarray, "s"], classes: Sequence[str]) -> Report:
    """Metrics of predicted categories.

    Args:
      scores: logits or probabilities; the prediction is their argmax.
      target: positions in `classes`; `UNSEEN` or below for others, which no prediction matches.

    Recall and F1 are averaged over the classes present in the fold; `confusion` has true classes in rows.
    """
    predicted = scores.argmax(1)
    present = np.unique(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is never predicted has precision 0, as meant
        recall = sklearn_metrics.recall_score(target, predicted, labels=present, average=None, zero_division=0)
        f1 = sklearn_metrics.f1_score(target, predicted, labels=present, average="macro", zero_division=0)
    per_emotion = {classes[c]: {"recall": float(r)} for c, r in zip(present, recall, strict=True) if c > UNSEEN}
    undefined = {}
    for name in classes:
        if name not in per_emotion:
            per_emotion[name] = {"recall": None}
            undefined[f"per_emotion.{name}.recall"] = "no segment of the fold has the class"
    known = target > UNSEEN
    confusion = sklearn_metrics.confusion_matrix(target[known], predicted[known], labels=range(len(classes))) if known.any() else None
    if confusion is None:
        undefined["confusion"] = "no segment of the fold has a class of the training fold"
    report = {
        "uar": float(recall.mean()),
        "f1_macro": float(f1),
        "accuracy": float(np.mean(predicted == target)),
        "confusion": None if confusion is None else {"classes": list(classes), "matrix": confusion.tolist()},
        "per_emotion": per_emotion,
    }
    return report, undefined


def constant_category_report(target: Int[np.ndarray, "s"], train_target: Int[np.ndarray, "n"], classes: Sequence[str]) -> Report:
    """What always answering the training fold's commonest class reaches: the best constant for all metrics."""
    commonest = np.bincount(train_target, minlength=len(classes)).argmax()
    return category_report(np.tile(np.eye(len(classes))[commonest], (len(target), 1)), target, classes)
