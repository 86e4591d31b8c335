import jax
import numpy as np
import pytest

from jax_emossl.data import functionals


def of_one(frames):
    return functionals.of_segments(frames[None], np.array([len(frames)]))[0]


def test_known_answers():
    ramp = np.linspace(0, 10, 11)[:, None]
    mean, deviation, p5, p25, p50, p75, p95, slope, size, spread, duration = of_one(ramp)
    assert (mean, p5, p25, p50, p75, p95) == pytest.approx((5, 0.5, 2.5, 5, 7.5, 9.5))
    assert deviation == pytest.approx(np.sqrt(10)) and slope == pytest.approx(10)  # per duration of the segment
    assert size == pytest.approx(1) and spread == pytest.approx(0, abs=1e-12) and duration == pytest.approx(np.log(11))


def test_percentiles_and_deviations_are_numpys():
    frames = np.random.default_rng(0).normal(size=(37, 3))
    made = of_one(frames).tolist()
    assert made[6:21] == pytest.approx(np.percentile(frames, (5, 25, 50, 75, 95), axis=0).ravel())
    assert made[3:6] == pytest.approx(frames.std(0)) and made[27:30] == pytest.approx(np.diff(frames, axis=0).std(0))


def test_one_frame_has_functionals_too():
    made = of_one(np.array([[2.0, -1.0]]))
    assert np.isfinite(made).all() and made[:2].tolist() == [2.0, -1.0]
    assert len(made) == functionals.number(2)


def test_padding_never_matters_and_jax_says_the_same():
    rng, counts = np.random.default_rng(0), np.array([9, 1, 14])
    frames = rng.normal(size=(3, 14, 2)).astype(np.float32)
    alone = [of_one(own[:count]) for own, count in zip(frames, counts, strict=True)]
    for fill in (0, 1e6, np.nan):
        rows = np.where((np.arange(14) < counts[:, None])[..., None], frames, fill)
        np.testing.assert_allclose(functionals.of_segments(rows, counts), alone, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(functionals.of_segments)(rows, counts), alone, rtol=1e-4, atol=1e-5)
