import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from jax_emossl import metrics

EMOTIONS = ("happy", "sad", "anger")


def intensities(seed, segments=60, emotions=3):
    """Scores and mostly-zero labels in steps of 1/3, every emotion present and absent somewhere."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((segments, emotions)) < 0.6, 0, rng.integers(1, 10, (segments, emotions)) / 3)
    labels[0], labels[1] = 0, 1
    return (labels + rng.normal(0, 1, labels.shape)).astype(np.float32), labels.astype(np.float32)


def report(scores, labels, thresholds=None, emotions=EMOTIONS):
    thresholds = [0.5] * labels.shape[1] if thresholds is None else thresholds
    return metrics.intensity_report(metrics.Intensities.of(scores), labels, emotions, thresholds)


def one_emotion(scores, labels, threshold=0.5):
    scores, labels = (np.array(x, np.float32)[:, None] for x in (scores, labels))
    values, undefined = report(scores, labels, [threshold], ("sad",))
    return values, undefined


# Intensity


def test_four_classes_round_halves_up_and_clip():
    intensity = np.array([-1, 0, 0.49, 0.5, 1.49, 1.5, 2.5, 3, 7])
    np.testing.assert_array_equal(metrics.four_class(intensity), [0, 0, 0, 1, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(metrics.four_class(np.array([1, 2, 4, 5, 7, 8], np.float32) / 3), [0, 1, 1, 2, 2, 3])


def test_hand_computed_intensity_metrics():
    values, undefined = one_emotion(scores=[-0.4, 1.0, 1.5, 5.0], labels=[0, 0, 2, 2])
    assert values["mae"] == pytest.approx((0 + 1 + 0.5 + 1) / 4)  # clipped to [0, 3]
    assert values["mae_positive"] == pytest.approx((0.5 + 1) / 2)
    assert values["accuracy4"] == pytest.approx(2 / 4)  # 0 and 1.5, which rounds up to 2
    assert values["auroc"] == 1
    assert values["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    predicted, true = np.array([0, 1, 1.5, 3]), np.array([0, 0, 2, 2])
    covariance = np.mean((predicted - predicted.mean()) * (true - true.mean()))
    concordance = 2 * covariance / (predicted.var() + true.var() + (predicted.mean() - true.mean()) ** 2)
    assert values["concordance"] == pytest.approx(concordance) == pytest.approx(2 * 0.875 / (1.171875 + 1 + 0.375**2))
    assert undefined == {}


def test_concordance_knows_scale_and_shift_where_correlation_does_not():
    x = np.array([0.0, 1, 2, 3])
    assert metrics.concordance(x, x) == 1
    assert metrics.concordance(-x, x) < 0
    assert metrics.concordance(x / 2, x) == pytest.approx(2 * 0.625 / (0.3125 + 1.25 + 0.5625))
    assert metrics.concordance(np.full(4, 1.0), x) == 0
    assert metrics.concordance(np.full(4, 1.0), np.full(4, 1.0)) is None


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_intensity_metrics_equal_scikit_learn(seed):
    scores, labels = intensities(seed)
    thresholds = metrics.choose_thresholds(scores, labels)
    values, undefined = report(scores, labels, thresholds)
    clipped, present, called = np.clip(scores, 0, 3), labels > 0, scores >= thresholds
    assert undefined == {}
    assert values["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(labels, clipped))
    assert values["mae_positive"] == pytest.approx(sklearn_metrics.mean_absolute_error(labels[present], clipped[present]))
    assert values["accuracy4"] == pytest.approx(np.mean(metrics.four_class(scores) == metrics.four_class(labels)))
    assert values["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(present, scores, average="macro"))
    for e, emotion in enumerate(EMOTIONS):
        row = values["per_emotion"][emotion]
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(labels[:, e], clipped[:, e]),
            "accuracy4": sklearn_metrics.accuracy_score(metrics.four_class(labels[:, e]), metrics.four_class(scores[:, e])),
            "mae_positive": np.abs(labels - clipped)[present[:, e], e].mean(),
            "auroc": sklearn_metrics.roc_auc_score(present[:, e], scores[:, e]),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(present[:, e], called[:, e]),
            "f1_weighted": sklearn_metrics.f1_score(present[:, e], called[:, e], average="weighted"),
            "f1_macro": sklearn_metrics.f1_score(present[:, e], called[:, e], average="macro"),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    for name in ("balanced_accuracy", "f1_weighted", "f1_macro", "concordance"):
        assert values[name] == pytest.approx(np.mean([row[name] for row in values["per_emotion"].values()]))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_thresholds_give_the_best_balanced_accuracy_there_is(seed, ties):
    scores, labels = intensities(seed, segments=25)
    scores = np.round(scores) if ties else scores
    for score, label, threshold in zip(scores.T, labels.T, metrics.choose_thresholds(scores, labels), strict=True):
        present = label > 0
        reached = sklearn_metrics.balanced_accuracy_score(present, score >= threshold)
        cuts = [*score, np.inf]
        assert reached == pytest.approx(max(sklearn_metrics.balanced_accuracy_score(present, score >= cut) for cut in cuts))


def test_the_threshold_is_the_validation_folds_not_the_evaluated_folds():
    values, _ = one_emotion(scores=[0.1, 0.2, 0.3, 0.4], labels=[0, 0, 1, 1], threshold=0.35)
    assert values["balanced_accuracy"] == pytest.approx(0.75)  # 0.25 would give 1


@pytest.mark.parametrize(("labels", "reason"), [([0, 0, 0], "no segment has the emotion"), ([1, 2, 3], "every segment has the emotion")])
def test_what_a_fold_cannot_define_is_none_with_its_reason(labels, reason):
    values, undefined = one_emotion([0.2, 0.4, 0.6], labels)
    for name in ("auroc", "balanced_accuracy"):
        assert values["per_emotion"]["sad"][name] is None
        assert undefined[f"per_emotion.sad.{name}"] == reason
        assert values[name] is None
        assert undefined[name] == "undefined for every emotion"
    assert (values["mae_positive"] is None) == (reason.startswith("no "))


def test_an_emotion_without_threshold_has_no_presence_metrics():
    values, undefined = one_emotion([0.2, 0.4, 0.6], [0, 1, 1], threshold=None)
    for name in ("balanced_accuracy", "f1_weighted", "f1_macro"):
        assert values[name] is None and "validation fold" in undefined[f"per_emotion.sad.{name}"]
    assert values["auroc"] == 1
    scores = np.array([[0.1, 0.5], [0.2, 0.6]], np.float32)
    assert metrics.choose_thresholds(scores, np.array([[0, 1], [0, 2]], np.float32)) == [None, None]


def test_concordance_of_two_equal_constants_is_undefined():
    values, undefined = one_emotion([-1, -2, 0], [0, 0, 0])
    assert values["concordance"] is None and "per_emotion.sad.concordance" in undefined


def test_means_over_emotions_leave_out_the_undefined():
    scores, labels = intensities(0)
    labels[:, 1] = 0
    values, undefined = report(scores, labels)
    defined = [values["per_emotion"][e]["auroc"] for e in ("happy", "anger")]
    assert values["auroc"] == pytest.approx(np.mean(defined))
    assert "auroc" not in undefined and "per_emotion.sad.auroc" in undefined


def test_every_none_has_a_reason_and_every_reason_a_none():
    scores, labels = intensities(1)
    labels[:, 0], labels[:, 2] = 0, 1
    values, undefined = report(scores, labels, [None, 0.5, 0.5])
    nones = {name for name, value in values.items() if value is None}
    nones |= {f"per_emotion.{e}.{name}" for e, row in values["per_emotion"].items() for name, value in row.items() if value is None}
    assert nones == set(undefined)


# Constant predictor


@pytest.mark.parametrize("seed", range(3))
def test_the_constant_predictor_is_the_training_folds_best(seed):
    _, train = intensities(seed, segments=101, emotions=1)
    values, _ = metrics.constant_intensity_report(train, train, ("sad",))
    label = train[:, 0]
    grid = np.concatenate([np.unique(label), np.linspace(0, 3, 91)])
    assert values["mae"] == pytest.approx(min(np.abs(label - c).mean() for c in grid))
    assert values["mae_positive"] == pytest.approx(min(np.abs(label[label > 0] - c).mean() for c in grid))
    assert values["accuracy4"] == pytest.approx(max(np.mean(metrics.four_class(label) == c) for c in range(4)))
    for average in ("weighted", "macro"):
        f1 = [sklearn_metrics.f1_score(label > 0, np.full(101, c), average=average, zero_division=0) for c in (False, True)]
        assert values[f"f1_{average}"] == pytest.approx(max(f1))


def test_the_constant_predictor_is_chosen_on_the_training_fold_alone():
    train = np.array([[0], [0], [0], [2], [2]], np.float32)
    test = np.array([[3], [3], [3], [0]], np.float32)
    values, _ = metrics.constant_intensity_report(test, train, ("sad",))
    assert values["mae"] == pytest.approx(9 / 4)  # median 0
    assert values["mae_positive"] == pytest.approx(1)  # median of the positive, 2
    assert values["accuracy4"] == pytest.approx(1 / 4)  # class 0
    assert values["f1_macro"] == pytest.approx(0.5 * 2 * 0.25 / 1.25)  # never


def test_a_constant_ranks_nothing():
    _, labels = intensities(0)
    values, _ = metrics.constant_intensity_report(labels, labels, EMOTIONS)
    assert values["auroc"] == 0.5 and values["balanced_accuracy"] == 0.5 and values["concordance"] == 0


def test_the_constant_predictor_of_a_fold_without_an_emotion_is_undefined_not_zero():
    labels = np.zeros((4, 1), np.float32)
    values, undefined = metrics.constant_intensity_report(labels, np.array([[0], [0], [1]], np.float32), ("sad",))
    for name in ("auroc", "balanced_accuracy", "mae_positive"):
        assert values[name] is None and undefined[f"per_emotion.sad.{name}"]


# Category

CLASSES = ("neutral", "happy", "sad")


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), classes_in_fold=st.integers(1, 3))
def test_category_metrics_equal_scikit_learn(seed, classes_in_fold):
    rng = np.random.default_rng(seed)
    target, scores = rng.integers(0, classes_in_fold, 40), rng.normal(size=(40, 3))
    values, _ = metrics.category_report(scores, target, CLASSES)
    predicted, present = scores.argmax(1), np.unique(target)
    recall = sklearn_metrics.recall_score(target, predicted, labels=present, average="macro", zero_division=0)
    assert values["uar"] == pytest.approx(recall)
    assert values["f1_macro"] == pytest.approx(
        sklearn_metrics.f1_score(target, predicted, labels=present, average="macro", zero_division=0)
    )
    assert values["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(target, predicted))
    matrix = sklearn_metrics.confusion_matrix(target, predicted, labels=range(3))
    assert values["confusion"] == {"classes": list(CLASSES), "matrix": matrix.tolist()}
    for c in present:
        assert values["per_emotion"][CLASSES[c]]["recall"] == pytest.approx(matrix[c, c] / matrix[c].sum())


def test_a_class_that_the_fold_lacks_has_no_recall_and_does_not_count():
    scores = np.eye(3)[[0, 1, 2, 1]]
    values, undefined = metrics.category_report(scores, np.array([0, 1, 1, 1]), CLASSES)
    assert values["uar"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["per_emotion"]["sad"]["recall"] is None
    assert undefined == {"per_emotion.sad.recall": "no segment of the fold has the class"}


def test_a_class_that_training_never_saw_counts_as_missed():
    scores = np.eye(3)[[0, 1, 2, 1]]
    values, _ = metrics.category_report(scores, np.array([0, 1, metrics.UNSEEN, 1]), CLASSES)
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["uar"] == pytest.approx(2 / 3)
    assert np.sum(values["confusion"]["matrix"]) == 3


@pytest.mark.parametrize("seed", range(3))
def test_the_constant_category_is_the_training_folds_best(seed):
    train = np.random.default_rng(seed).choice(3, 50, p=[0.2, 0.5, 0.3])
    values, _ = metrics.constant_category_report(train, train, CLASSES)
    for name in ("uar", "f1_macro", "accuracy"):
        every = [metrics.category_report(np.tile(np.eye(3)[c], (50, 1)), train, CLASSES)[0][name] for c in range(3)]
        assert values[name] == pytest.approx(max(every))


@pytest.mark.parametrize(("name", "a", "b"), [("mae", 0.2, 0.3), ("total_loss", 0.2, 0.3), ("uar", 0.3, 0.2), ("auroc", 0.3, 0.2)])
def test_better_knows_which_way_a_metric_points(name, a, b):
    assert metrics.better(name, a, b) and not metrics.better(name, b, a) and not metrics.better(name, a, a)
    assert metrics.better(name, a, None)
