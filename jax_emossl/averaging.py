"""What validation cannot tell from the best is averaged with it, not thrown away: one rule for every arm.

A few validation speakers rank settings by chance. So the answers whose value there lies within one standard error of the best one's are
averaged (the margin of Breiman et al. 1984, Classification and Regression Trees). It is an error over recordings, since the next speaker is
another; one recording alone says nothing of others, so that every answer is kept.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from jax_emossl import metrics
from jax_emossl.data.batches import Segments
from jax_emossl.objectives import LabelledObjective, assess
from jax_emossl.study import Answer

_GROUPS = 10


def alike(objective: LabelledObjective, answers: Sequence[Answer], valid: Segments) -> list[Answer]:
    """The best answer on the validation fold and those that it cannot tell from it; what they say of other folds is not asked."""
    best = _best(objective, answers)
    margin = standard_error(objective, best, valid)
    return [answer for answer in answers if abs(answer.value - best.value) <= margin]


def averaged(objective: LabelledObjective, kept: Sequence[Answer], valid: Segments) -> Answer:
    """The mean of answers that are `alike`; step and details are the best one's."""
    best, calibrations = _best(objective, kept), [answer.calibration for answer in kept]
    on_valid = objective.average([answer.valid for answer in kept], calibrations)
    value, calibration, _ = assess(objective, {"scores": on_valid}, valid.labels)
    scores = objective.average([answer.scores for answer in kept], calibrations)
    evaluations = [own for answer in kept for own in answer.evaluations]
    return Answer(scores, on_valid, best.step, value, calibration, {**best.details, "averaged": len(kept)}, evaluations)


def _best(objective: LabelledObjective, answers: Sequence[Answer]) -> Answer:
    """The first of the best by validation."""
    best = answers[0]
    for answer in answers[1:]:
        if metrics.better(objective.selection, answer.value, best.value):
            best = answer
    return best


def standard_error(objective: LabelledObjective, answer: Answer, valid: Segments) -> float:
    """Of the selection metric over validation recordings: a jackknife that leaves out one, or a tenth of them, widened as Student's t is.

    Infinite with one recording, or where leaving one out leaves the metric undefined.
    """
    _, recording = np.unique(valid.recordings, return_inverse=True)
    groups = (np.random.default_rng(0).permutation(recording.max() + 1) % _GROUPS)[recording]
    values = []
    for kept in (groups != g for g in np.unique(groups)):
        if not kept.any():
            return np.inf
        report, _ = objective.evaluate({"scores": answer.valid[kept]}, valid.labels[kept], answer.calibration)
        values.append(report[objective.selection])
    if None in values:
        return np.inf
    return float(np.std(values) * np.sqrt(len(values) - 1) * stats.t.ppf(stats.norm.cdf(1), len(values) - 1))
