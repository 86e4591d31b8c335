import types

import numpy as np
import pytest

from jax_emossl import metrics
from jax_emossl.averaging import alike, averaged, standard_error
from jax_emossl.study import Answer

RNG = np.random.default_rng(0)
TARGET = RNG.integers(0, 3, 120)


class Objective:
    """Categories whose scores are averaged as they are."""

    selection = "accuracy"

    def calibrate(self, outputs, labels):
        return len(labels)

    def evaluate(self, outputs, labels, calibration):
        return metrics.category_report(outputs["scores"], labels, ("a", "b", "c"))

    def average(self, scores, calibrations):
        return np.mean(scores, 0)

    labelled = True


def fold(recordings):
    return types.SimpleNamespace(labels=TARGET, recordings=np.repeat([f"r{i}" for i in range(recordings)], 120 // recordings))


def answer(skill, name, seed=1, moved=0.0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(120, 3)) + skill * np.eye(3)[TARGET]
    scores += moved * rng.normal(size=scores.shape)
    report, _ = Objective().evaluate({"scores": scores}, TARGET, None)
    return Answer(scores + 1, scores, 7, report["accuracy"], None, {"strategy": name}, [[(7, skill)]])


GOOD, LIKE_IT, BAD = answer(2.0, "good"), answer(2.0, "like it", moved=0.1), answer(0.0, "bad", 3)


def test_what_validation_cannot_tell_from_the_best_is_averaged_with_it():
    kept = alike(Objective(), [BAD, LIKE_IT, GOOD], fold(12))
    assert kept == [LIKE_IT, GOOD]
    made = averaged(Objective(), kept, fold(12))
    best = max((GOOD, LIKE_IT), key=lambda own: own.value)
    np.testing.assert_allclose(made.scores, (GOOD.scores + LIKE_IT.scores) / 2)
    np.testing.assert_allclose(made.valid, (GOOD.valid + LIKE_IT.valid) / 2)
    assert made.details == {"strategy": best.details["strategy"], "averaged": 2} and made.calibration == 120
    report, _ = Objective().evaluate({"scores": made.valid}, TARGET, None)
    assert made.value == report["accuracy"]
    assert made.evaluations == [[(7, 2.0)], [(7, 2.0)]]  # not those of the bad one


def test_one_recording_tells_nothing_of_others():
    assert standard_error(Objective(), GOOD, fold(1)) == np.inf
    assert alike(Objective(), [BAD, LIKE_IT, GOOD], fold(1)) == [BAD, LIKE_IT, GOOD]


@pytest.mark.parametrize("recordings", [4, 10])
def test_the_error_is_that_of_a_mean_over_recordings(recordings):
    """Of equal recordings' accuracies: their deviation over the root of their number, wider for few."""
    valid = fold(recordings)
    right = (GOOD.valid.argmax(1) == TARGET).reshape(recordings, -1).mean(1)
    expected = right.std(ddof=1) / np.sqrt(recordings)
    assert standard_error(Objective(), GOOD, valid) == pytest.approx(expected * {4: 1.197, 10: 1.059}[recordings], rel=1e-3)
