import functools

import jax
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from jax_emossl import transformations
from jax_emossl.transformations import TRANSFORMATIONS

STRENGTHS = {
    "original": None, "noise": 15.0, "scaling": 1.1, "negation": None, "inversion": None, "permutation": 20, "time_warp": (9, 1.05),
    "crop_and_resize": 0.7, "magnitude_warp": 0.2,
}  # fmt: skip
NUMBER = 60
ROW = np.pad(np.cumsum(np.random.default_rng(0).normal(size=(NUMBER, 3)), 0), ((0, 20), (0, 0))).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("name", "strength"))
def apply(name, key, row, number, strength):
    return TRANSFORMATIONS[name](key, row, number, strength)


def transformed(name, strength=None, row=ROW, number=NUMBER, seed=1):
    strength = STRENGTHS[name] if strength is None else strength
    return np.asarray(apply(name, jax.random.key(seed), row, np.int32(number), strength))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_padding_changes_nothing_and_stays_0(name):
    expected = transformed(name)
    assert not expected[NUMBER:].any() and np.isfinite(expected).all()
    filled = np.where(np.arange(80)[:, None] < NUMBER, ROW, np.nan).astype(np.float32)
    np.testing.assert_array_equal(transformed(name, row=filled), expected)
    np.testing.assert_allclose(transformed(name, row=ROW[:NUMBER]), expected[:NUMBER], atol=1e-6)
    for number in (1, 2, 7):  # shorter than the pieces
        assert np.isfinite(transformed(name, number=number)).all()


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_chance_comes_from_the_key_alone(name):
    np.testing.assert_array_equal(transformed(name), transformed(name))
    by_chance = name in ("noise", "permutation", "time_warp", "crop_and_resize", "magnitude_warp")
    assert np.array_equal(transformed(name), transformed(name, seed=2)) != by_chance


@pytest.mark.parametrize("name", ["negation", "inversion"])
def test_what_is_done_twice_is_undone(name):
    assert np.abs(transformed(name) - ROW).max() > 1
    np.testing.assert_array_equal(transformed(name, row=transformed(name)), ROW)


def test_known_answers():
    np.testing.assert_array_equal(transformed("original"), ROW)
    np.testing.assert_allclose(transformed("scaling"), 1.1 * ROW, rtol=1e-6)
    np.testing.assert_allclose(transformed("scaling", 1 / 1.1, transformed("scaling")), ROW, rtol=1e-6)
    np.testing.assert_array_equal(transformed("inversion")[:NUMBER], ROW[:NUMBER][::-1])


@pytest.mark.parametrize("name", ["time_warp", "crop_and_resize", "magnitude_warp", "permutation"])
def test_without_strength_nothing_happens(name):
    nothing = {"time_warp": (9, 1.0), "crop_and_resize": 1.0, "magnitude_warp": 0.0, "permutation": 1}
    np.testing.assert_allclose(transformed(name, nothing[name]), ROW, atol=1e-4)


def test_noise_has_the_ratio_asked_for_in_every_feature():
    rng = np.random.default_rng(0)
    row = (rng.normal(size=(20_000, 2)) * [1, 30]).astype(np.float32)
    noise = transformed("noise", 15.0, row, len(row)) - row
    np.testing.assert_allclose(10 * np.log10((row**2).mean(0) / (noise**2).mean(0)), 15, atol=0.2)
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.03


def test_permutation_moves_whole_pieces_and_loses_none():
    row = np.pad(np.arange(1.0, NUMBER + 1, dtype=np.float32)[:, None], ((0, 20), (0, 0)))
    made = transformed("permutation", 20, row)[:NUMBER, 0]
    np.testing.assert_array_equal(np.sort(made), row[:NUMBER, 0])
    pieces = made.reshape(20, 3)
    np.testing.assert_array_equal(np.diff(pieces, axis=1), 1)
    assert (np.diff(pieces[:, 0]) != 3).sum() > 10
    np.testing.assert_array_equal(np.sort(transformed("permutation", 20, row, 7)[:7, 0]), np.arange(1, 8))


def test_warping_stretches_half_of_the_pieces_and_squeezes_the_others():
    time = np.arange(901, dtype=np.float32)[:, None]
    made = transformed("time_warp", (9, 1.5), time, 901)[:, 0]
    whole = 4 * 1.5 + 5 / 1.5  # 9 pieces last as long as so many
    slow, fast = whole / 9 / 1.5, whole / 9 * 1.5  # frames of the row per frame of the result
    speed = np.diff(made)
    assert (made[0], made[-1]) == (0, pytest.approx(900, abs=0.1))
    assert np.mean(np.abs(speed - slow) < 0.01) == pytest.approx(4 * 1.5 / whole, abs=0.02)
    assert np.mean(np.abs(speed - fast) < 0.01) == pytest.approx(5 / 1.5 / whole, abs=0.02)


def test_cropping_keeps_the_share_asked_for_at_a_random_place():
    time = np.arange(101, dtype=np.float32)[:, None]
    made = [transformed("crop_and_resize", 0.7, time, 101, seed)[:, 0] for seed in range(20)]
    np.testing.assert_allclose([own[-1] - own[0] for own in made], 70, atol=1e-3)
    starts = [own[0] for own in made]
    assert 0 <= min(starts) < 8 and 22 < max(starts) <= 30


def test_magnitudes_are_warped_by_a_natural_spline_of_the_deviation_asked_for():
    values = np.random.default_rng(0).normal(size=(6, 2))
    x = np.linspace(0, 5, 40)
    expected = CubicSpline(np.arange(6), values, bc_type="natural")(x)
    np.testing.assert_allclose(jax.jit(transformations.spline)(values.astype(np.float32), x), expected, atol=1e-5)
    factors = transformed("magnitude_warp", 0.2, np.ones((NUMBER, 3000), np.float32))
    assert factors.mean() == pytest.approx(1, abs=0.01) and factors[0].std() == pytest.approx(0.2, rel=0.1)
