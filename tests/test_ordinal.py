import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from jax_emossl.metrics import four_class
from jax_emossl.ordinal import Levels, ReadOut

RNG = np.random.default_rng(0)
THIRDS = np.where(RNG.random((200, 2)) < [0.4, 0.7], 0, RNG.integers(1, 10, (200, 2)) / 3).astype(np.float32)
LEVELS = Levels.of(THIRDS)


def fold_probabilities(labels, e):
    """Of each level in the training fold, smoothed as `Levels` smooths the shares above the levels."""
    above = [(np.sum(labels[:, e] > level) + 0.5) / (len(labels) + 1) for level in LEVELS.values[:-1]]
    return -np.diff([1, *above, 0])


def test_levels_are_those_of_the_fold():
    np.testing.assert_allclose(LEVELS.values, np.arange(10) / 3, rtol=1e-6)
    assert Levels.of(np.full((5, 1), 2.0)).values == (0, 2)  # 0 is always possible


def test_many_values_are_stood_for_by_quantiles():
    labels = np.random.default_rng(1).uniform(0, 3, (1000, 1)) * (np.arange(1000)[:, None] % 2)
    levels = Levels.of(labels)
    assert len(levels.values) == 32 and levels.values[0] == 0 and levels.values[-1] == labels.max()
    shares = np.histogram(labels[labels > 0], levels.values[1:])[0]
    assert shares.max() < 2 * shares.min()


def test_a_score_of_0_says_what_the_fold_says():
    """Medians, classes and means of the training fold: the best constant of every metric."""
    made = LEVELS.decode(np.zeros((1, 2)), [1.0, 1.0])
    for e in range(2):
        label = THIRDS[:, e]
        assert made.median[0, e] == pytest.approx(np.median(label))
        assert made.present[0, e] == pytest.approx(np.median(label[label > 0]))
        assert made.four_class[0, e] == np.bincount(four_class(label)).argmax()
        assert made.mean[0, e] == pytest.approx(fold_probabilities(THIRDS, e) @ LEVELS.values)


def test_what_is_decoded_is_of_the_distribution():
    """Against scipy's discrete distributions, for scores of any size."""
    scores = np.random.default_rng(2).normal(0, 3, (50, 2))
    made = LEVELS.decode(scores, [0.5, 2.0])
    for s, e in np.ndindex(scores.shape):
        odds = np.log([(np.sum(THIRDS[:, e] > v) + 0.5) / (np.sum(THIRDS[:, e] <= v) + 0.5) for v in LEVELS.values[:-1]])
        above = special.expit([0.5, 2.0][e] * scores[s, e] + odds)
        own = stats.rv_discrete(values=(range(10), -np.diff([1, *above, 0])))
        assert made.median[s, e] == pytest.approx(LEVELS.values[int(own.median())])
        assert made.mean[s, e] == pytest.approx(own.expect(lambda level: np.array(LEVELS.values)[level.astype(int)]))
        classes = [own.pmf([0, 1]).sum(), own.pmf([2, 3, 4]).sum(), own.pmf([5, 6, 7]).sum(), own.pmf([8, 9]).sum()]
        assert made.four_class[s, e] == np.argmax(classes)
        given = own.pmf(range(1, 10)).cumsum() / own.pmf(range(1, 10)).sum()
        assert made.present[s, e] == pytest.approx(LEVELS.values[1 + np.searchsorted(given, 0.5)])


def test_a_higher_score_never_lowers_what_is_said():
    made = LEVELS.decode(np.linspace(-40, 40, 500)[:, None] * np.ones(2), [1.0, 1.0])
    for values in (made.median, made.four_class, made.mean, made.present):
        assert np.all(np.diff(values, axis=0) >= -1e-12) and np.isfinite(values).all()
    assert made.median[0, 0] == 0 and made.median[-1, 0] == pytest.approx(3)


def test_the_loss_is_that_of_a_logistic_regression_at_every_threshold():
    scores = np.random.default_rng(3).normal(size=THIRDS.shape).astype(np.float32)
    expected = np.zeros(THIRDS.shape)
    for e, odds in enumerate(LEVELS.odds):
        for level, bias in zip(LEVELS.values, odds, strict=False):
            p = special.expit(scores[:, e] + bias)
            expected[:, e] -= np.log(np.where(THIRDS[:, e] > level, p, 1 - p))
    np.testing.assert_allclose(LEVELS.loss(scores, THIRDS), expected, rtol=1e-4, atol=1e-5)


def test_scores_that_say_nothing_are_scaled_away_and_those_that_undersell_are_scaled_up():
    rng = np.random.default_rng(4)
    noise, told = rng.normal(0, 5, (200, 1)), THIRDS[:, 1:] - THIRDS[:, 1:].mean()
    scale = LEVELS.scale(np.concatenate([noise, told], 1), THIRDS)
    assert scale[0] < 0.05 and scale[1] > 1
    total = [sum(np.asarray(LEVELS.loss(s * told * [0, 1], THIRDS))[:, 1].sum() for s in (own,)) for own in (scale[1], 0.9 * scale[1])]
    assert total[0] < total[1]


def test_the_linear_read_out_is_scikit_learns_where_there_is_one_threshold():
    """Two levels make it a logistic regression whose bias is ridged like any other weight."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(100, 4))
    labels = (vectors[:, :1] + rng.normal(size=(100, 1)) > 0).astype(float) * 2
    levels = Levels((0.0, 2.0), ((0.0,),))
    own = ReadOut(levels, 0.1).fit(vectors, labels).predict(vectors)[:, 0]
    other = LogisticRegression(C=0.1, fit_intercept=False, tol=1e-8).fit(np.c_[vectors, np.ones(100)], labels[:, 0] > 0)
    np.testing.assert_allclose(own, other.decision_function(np.c_[vectors, np.ones(100)]), atol=1e-3)


def test_a_read_out_makes_its_labels_likeliest_in_either_precision():
    """The loss is that of the levels, and no small change of the weights makes it less."""
    rng = np.random.default_rng(7)
    vectors = np.concatenate([THIRDS, rng.normal(size=(200, 6))], 1)
    fine, coarse = (ReadOut(LEVELS, 0.1).fit(vectors.astype(kind), THIRDS) for kind in (np.float64, np.float32))
    x, weights = np.c_[vectors, np.ones(200)], fine._weights

    def loss(w):
        return float(np.asarray(LEVELS.loss(jnp.array(x @ w, jnp.float32), THIRDS)).sum(dtype=float)) + (w**2).sum() / 0.2

    moved = [loss(weights + 0.02 * sign * np.eye(weights.size)[i].reshape(weights.shape)) for i in range(weights.size) for sign in (-1, 1)]
    assert loss(weights) < min(moved)
    assert coarse.predict(vectors.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(coarse.predict(vectors.astype(np.float32)), fine.predict(vectors), atol=0.02)


def test_a_read_out_of_nothing_is_the_constant():
    read = ReadOut(LEVELS, 1e-9).fit(np.random.default_rng(6).normal(size=(200, 3)), THIRDS)
    np.testing.assert_allclose(read.predict(np.ones((4, 3))), 0, atol=1e-5)
