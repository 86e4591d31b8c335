"""Which segments make a batch: coverage, purity, padding, crops, shards."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_emossl.data.indices import Sampler, in_order, padded_length

_LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80).map(np.array)


def epoch(sampler: Sampler, seed: int, number: int = 0) -> list:
    first = number * sampler.steps_per_epoch
    return [sampler.indices(seed, step) for step in range(first, first + sampler.steps_per_epoch)]


@settings(max_examples=50, deadline=None)
@given(_LENGTHS, st.integers(1, 16), st.sampled_from([0, 20]), st.integers(0, 3))
def test_an_epoch_holds_every_segment_once(lengths, batch_size, crop, number):
    sampler = Sampler(lengths, batch_size, crop)
    selections = epoch(sampler, 5, number)
    shown = np.concatenate([s.segments[s.weight > 0] for s in selections])
    assert sorted(shown) == list(range(len(lengths)))
    for selection in selections:
        assert len(selection.segments) == len(selection.starts) == len(selection.weight) == batch_size
        assert set(selection.weight) <= {0, 1}


@settings(max_examples=50, deadline=None)
@given(_LENGTHS, st.integers(1, 16))
def test_nothing_is_cut_without_a_crop(lengths, batch_size):
    sampler = Sampler(lengths, batch_size)
    for selection in [*epoch(sampler, 0), *(own for (own,) in in_order([lengths], batch_size, 1.25))]:
        assert np.all(lengths[selection.segments] <= selection.length)
        assert not selection.starts.any()


@settings(max_examples=50, deadline=None)
@given(_LENGTHS, _LENGTHS, st.integers(1, 16), st.integers(1, 4))
def test_evaluation_shows_every_segment_of_each_part_once(lengths, others, batch_size, devices):
    turns = list(in_order([lengths, others], batch_size, 1.25, devices))
    for own, selections in zip((lengths, others), zip(*turns, strict=True), strict=True):
        shown = np.concatenate([s.segments[s.weight > 0] for s in selections])
        assert sorted(shown) == list(range(len(own)))
    for one, other in turns:
        assert (one.length, len(one.segments)) == (other.length, len(other.segments))
        assert len(one.segments) % devices == 0 and not one.starts.any()


def test_batches_of_an_evaluation_have_one_area():
    lengths = np.concatenate([np.full(500, 20), np.full(100, 64), np.full(40, 1500), [2735]])
    turns = [own for (own,) in in_order([lengths], 32, 1.25)]
    assert max(len(own.segments) * own.length for own in turns if len(own.segments) > 1) <= 32 * 64
    assert {len(own.segments) for own in turns if own.length > 1500} == {1}
    assert len({(len(own.segments), own.length) for own in turns}) == len({own.length for own in turns}) == 4  # few shapes
    assert sum(len(own.segments) * own.length for own in turns) < 1.35 * lengths.sum()


def test_crops_lie_inside_and_move():
    lengths = np.array([5, 50, 51, 200])
    sampler = Sampler(lengths, 4, crop=50)
    selections = [sampler.indices(0, step) for step in range(200)]
    starts = np.array([s.starts[np.argsort(s.segments)] for s in selections])
    assert all(s.length == 50 for s in selections)
    assert starts.min(0).tolist() == [0, 0, 0, starts[:, 3].min()]
    assert starts.max(0).tolist()[:3] == [0, 0, 1]
    assert starts[:, 3].max() <= 150
    assert len(set(starts[:, 3])) > 50


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array), st.integers(2, 6))
def test_segments_of_a_recording_come_together(recordings, together):
    sampler = Sampler(np.full(len(recordings), 30), 7, crop=20, recordings=recordings, together=together)
    shown = np.concatenate([s.segments[s.weight > 0] for s in sorted(epoch(sampler, 3), key=lambda s: -s.weight.sum())])
    assert sorted(shown) == list(range(len(recordings)))  # still every segment once
    order, _ = sampler._epoch(3, 0)
    for recording in np.unique(recordings):
        places = np.flatnonzero(recordings[order] == recording)
        for first in range(0, len(places), together):  # groups of neighbours, but for what is left over
            group = places[first : first + together]
            assert np.ptp(group) == len(group) - 1


def test_a_batch_is_a_pure_function_of_seed_and_step():
    lengths = np.random.default_rng(0).integers(1, 300, 100)
    steps = [7, 3, 1000, 3, 0]
    one, other = Sampler(lengths, 8, crop=64), Sampler(lengths, 8, crop=64)
    for step in steps:
        a, b = one.indices(1, step), other.indices(1, step)
        np.testing.assert_array_equal(a.segments, b.segments)
        np.testing.assert_array_equal(a.starts, b.starts)
    assert one.indices(1, 3).segments.tolist() != one.indices(2, 3).segments.tolist()


def test_epochs_differ():
    sampler = Sampler(np.full(64, 10), 8)
    assert epoch(sampler, 0, 0)[0].segments.tolist() != epoch(sampler, 0, 1)[0].segments.tolist()


def test_a_far_step_costs_no_more_than_a_near_one():
    sampler = Sampler(np.full(64, 10), 8)
    assert len(sampler.indices(0, 10**12).segments) == 8


@settings(max_examples=50, deadline=None)
@given(_LENGTHS, st.integers(1, 16), st.integers(1, 400))
def test_a_cropped_batch_is_padded_to_its_bucket_and_never_beyond_the_crop(lengths, batch_size, crop):
    for selection in epoch(Sampler(lengths, batch_size, crop), 1):
        longest = int(lengths[selection.segments].max())
        assert selection.length == min(crop, padded_length(longest, 1.25)) >= min(crop, longest)


@pytest.mark.parametrize("growth", [1.05, 1.25, 2.0])
def test_padded_lengths_hold_and_grow(growth):
    lengths = [padded_length(n, growth) for n in range(1, 500)]
    assert all(n <= length <= max(8, growth * n + 1) for n, length in enumerate(lengths, 1))
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("folds", [{"train"}, {"train", "valid", "test", ""}], ids=["train", "all"])
def test_padding_of_the_real_cmu_mosei_wastes_less_than_15_percent(folds):
    if "EMOSSL_DATA" not in os.environ:
        pytest.skip("EMOSSL_DATA is not set: the segments of CMU-MOSEI are not at hand")
    with open(Path(os.environ["EMOSSL_DATA"]) / "mosei" / "segments.csv", newline="") as file:
        seconds = np.array([float(r["end"]) - float(r["start"]) for r in csv.DictReader(file) if r["fold"] in folds])
    lengths = np.ceil(seconds * 25).astype(int)
    sampler = Sampler(lengths, 32)
    for selections in (epoch(sampler, 0), [own for (own,) in in_order([lengths], 32, 1.25)]):
        padded = sum(len(s.segments) * s.length for s in selections)
        assert 1 - lengths.sum() / padded < 0.15


def test_samplers_that_take_turns_draw_each_epoch_once(monkeypatch):
    drawn, draw = [], Sampler._drawn
    monkeypatch.setattr(Sampler, "_drawn", lambda self, seed, number: drawn.append((id(self), number)) or draw(self, seed, number))
    samplers = [Sampler(np.full(20, 9), 4) for _ in range(5)]
    for step in range(10):
        for sampler in samplers:
            sampler.indices(0, step)
    assert len(drawn) == len(set(drawn)) == 5 * 2
