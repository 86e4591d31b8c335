import numpy as np
import pytest

from jax_emossl.data import functionals
from jax_emossl.data.frontend import Frontend


def test_known_answers():
    ramp = np.linspace(0, 10, 11)[:, None]
    mean, deviation, p5, p25, p50, p75, p95, slope, size, spread, duration = functionals.of_segment(ramp)
    assert (mean, p5, p25, p50, p75, p95) == pytest.approx((5, 0.5, 2.5, 5, 7.5, 9.5))
    assert deviation == pytest.approx(np.sqrt(10)) and slope == pytest.approx(10)  # per duration of the segment
    assert size == pytest.approx(1) and spread == pytest.approx(0, abs=1e-12) and duration == pytest.approx(np.log(11))


def test_one_frame_has_functionals_too():
    made = functionals.of_segment(np.array([[2.0, -1.0]]))
    assert np.isfinite(made).all() and made[:2].tolist() == [2.0, -1.0]


def test_a_fold_is_seen_unpooled_and_normalised(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, np.inf, 5.0, 2, 8, 0.01)
    made = functionals.of_fold(demo_corpus, "valid", frontend)
    fold = demo_corpus.fold("valid")
    assert made.shape == (len(fold), 10 * len(demo_corpus.features) + 1)
    np.testing.assert_allclose(made[:, -1], np.log(np.diff(fold.offsets)), rtol=1e-6)
    assert np.abs(made[:, : len(demo_corpus.features)]).max() <= 5
