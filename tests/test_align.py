"""The alignment rule, against its definition and against the CMU SDK itself."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_emossl.data import align, corpus, csd, prepared

# Times on and off a grid, so that boundaries coincide, nearly coincide and do not.
_TIMES = st.one_of(st.integers(-5, 40).map(lambda n: n / 10), st.floats(-0.5, 4), st.integers(0, 40).map(lambda n: n / 10 + 5e-6))
_INTERVALS = st.lists(st.tuples(_TIMES, _TIMES).map(sorted), max_size=12).map(lambda rows: np.array(rows, float).reshape(-1, 2))


@settings(max_examples=200, deadline=None)
@given(_INTERVALS, _INTERVALS)
def test_overlapping_is_the_rule(frames, segments):
    frames = frames[np.argsort(frames[:, 0], kind="stable")]
    found = align.overlapping(frames, segments)
    assert len(found) == len(segments)
    for (start, end), positions in zip(segments, found, strict=True):
        expected = [i for i, (s, e) in enumerate(frames) if min(e, end) - max(s, start) > align.EPSILON]
        assert positions.tolist() == expected


@settings(max_examples=200, deadline=None)
@given(_INTERVALS, _INTERVALS, st.integers(0, 1000), st.sampled_from([7, 2**22]))
def test_onto_is_the_mean_of_what_overlaps_weighed_by_how_long(frames, intervals, seed, together):
    """In blocks of any size, so that memory is bounded."""
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    rng = np.random.default_rng(seed)
    rows = np.where(rng.random((len(intervals), 2)) < 0.2, np.nan, rng.normal(size=(len(intervals), 2))).astype(np.float32)
    expected = np.full((len(frames), 2), np.nan)
    for f, (start, end) in enumerate(frames):
        for d in range(2):
            overlap = np.array([min(e, end) - max(s, start) for s, e in intervals])
            counts = (overlap > align.EPSILON) & np.isfinite(rows[:, d])
            if counts.any():
                expected[f, d] = np.average(rows[counts, d].astype(float), weights=overlap[counts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "_TOGETHER", together)
        made = align.onto(frames, rows, intervals)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_onto_repeats_a_long_row_to_the_bit():
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    frames = np.column_stack([np.arange(300), np.arange(1, 301)]) / 100
    made = align.onto(frames, rows, np.array([[0, 1], [1, 2], [2, 3]], float))
    np.testing.assert_array_equal(made, np.repeat(rows, 100, 0))


@settings(max_examples=100, deadline=None)
@given(_INTERVALS)
def test_covered_seconds_is_the_length_of_the_union(intervals):
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    bounds = np.unique(intervals)
    covered = sum(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True) if np.any((intervals[:, 0] <= a) & (intervals[:, 1] >= b)))
    assert align.covered_seconds(intervals) == pytest.approx(covered, abs=1e-6)


def test_sort_by_start_is_stable():
    intervals = np.array([[2, 3], [1, 2], [1, 1.5]], float)
    features, sorted_, moved = align.sort_by_start(np.array([[0], [1], [2]]), intervals)
    assert moved
    assert features[:, 0].tolist() == [1, 2, 0]
    assert sorted_[:, 0].tolist() == [1, 1, 2]


def test_outside_are_the_frames_of_no_segment():
    frames = np.column_stack([np.arange(6), np.arange(1, 7)]).astype(float)
    inside = align.overlapping(frames, np.array([[1, 2.5], [2, 3]]))
    assert align.outside(frames, inside).tolist() == [0, 3, 4, 5]


@pytest.mark.parametrize("positions", [[], [2], [1, 2, 3], [0, 2, 3]])
def test_take_is_indexing(positions):
    rows = np.arange(10).reshape(5, 2)
    np.testing.assert_array_equal(align.take(rows, np.array(positions, int)), rows[np.array(positions, int)])


def test_average_gives_the_time_its_frames_cover():
    frames = np.array([[0, 1], [1, 2], [2, 3], [9, 10]], float)
    values = np.arange(4, dtype=np.float32)[:, None]
    means, spans = align.average(values, frames, np.array([[1.5, 4], [5, 6], [0, 2]]))
    assert means[:, 0].tolist() == [0.5, 1.5]
    assert spans.tolist() == [[0, 2], [1.5, 3]]


def test_average_is_of_what_is_finite():
    frames = np.array([[0, 1], [1, 2], [2, 3]], float)
    values = np.array([[1, np.nan], [np.nan, np.nan], [4, 5]], np.float32)
    means, _ = align.average(values, frames, np.array([[0, 2], [1, 2], [1, 3]]))
    np.testing.assert_array_equal(means, [[1, np.nan], [np.nan, np.nan], [4, 5]])


def _frames(rng: np.random.Generator, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames with a gap, some longer or of no length, some broken, a part of them out of order."""
    starts = np.arange(0, seconds, 0.01)
    length = rng.choice([0.01, 0.025, 0.0], size=len(starts), p=[0.7, 0.25, 0.05])
    intervals = np.column_stack([starts, starts + length])
    gap = rng.uniform(0, seconds)
    intervals = intervals[(starts < gap) | (starts > gap + rng.uniform(0.2, 1.5))]
    shuffled = rng.permutation(len(intervals) // 3)
    intervals[: len(shuffled)] = intervals[shuffled]
    intervals[-20:-10, 0] = intervals[-10, 0]  # equal starts: the order of the file decides
    intervals[:, 1] = np.maximum(intervals[:, 0], intervals[:, 1])
    features = rng.normal(size=(len(intervals), 4)).astype(np.float32)
    features[rng.random(features.shape) < 0.01] = -np.inf
    features[rng.random(features.shape) < 0.01] = np.nan
    return features, intervals


def _spans(rng: np.random.Generator, number: int, seconds: float, length: float) -> np.ndarray:
    """Unsorted, overlapping spans, on and off the grid of frames; some empty, below 0 or beyond the end."""
    starts = rng.uniform(-0.3, seconds, number)
    starts[::3] = np.round(starts[::3], 2)
    ends = starts + rng.exponential(length, number)
    ends[::3] = np.round(ends[::3], 2)
    ends[1::7] = starts[1::7]
    ends[2::7] = starts[2::7] + 5e-6
    spans = np.column_stack([starts, np.maximum(starts, ends)])
    return np.concatenate([spans, [[-0.25, 0.123], [seconds + 1, seconds + 2], [0, 0.5], [0, 0.5]]])


@pytest.fixture(params=range(3))
def files(request, tmp_path):
    """Paths of features, labels, words and folds; ids missing in each of them, none a prefix of another."""
    rng = np.random.default_rng(request.param)
    ids = [f"video{i}_" for i in range(8)]
    seconds = dict(zip(ids, rng.uniform(3, 9, len(ids)), strict=True))
    missing = {"F": ids[2], "L": ids[3], "W": ids[4]}
    kept = {name: [i for i in ids if i != absent] for name, absent in missing.items()}
    paths = {name: tmp_path / f"{name}.csd" for name in kept}
    csd.write(paths["F"], "F", ((i, *_frames(rng, seconds[i])) for i in kept["F"]))
    labels = {i: _spans(rng, 12, seconds[i], 1.5) for i in kept["L"]}
    csd.write(paths["L"], "L", ((i, rng.integers(0, 4, (len(s), 7)).astype(np.float32), s) for i, s in labels.items()))
    words = {i: _spans(rng, 25, seconds[i], 0.3) for i in kept["W"]}
    csd.write(paths["W"], "W", ((i, np.ones((len(s), 1)), s) for i, s in words.items()))
    paths["folds"] = tmp_path / "folds.json"
    paths["folds"].write_text(json.dumps({"train": ids[:5], "valid": ids[5:6], "test": ids[6:]}))
    return paths


def _ours(files, out, words="") -> dict[str, np.ndarray]:
    corpus.build(files["F"], files["L"], files["folds"], out, words=words)
    return {
        f"{fold.recordings[s]}[{fold.indices[s]}]": fold.frames[fold.offsets[s] : fold.offsets[s + 1]]
        for fold in prepared.load(out).folds.values()
        for s in range(len(fold))
    }


def _assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, dict]) -> None:
    assert set(ours) == set(theirs)
    for id_, frames in ours.items():
        expected = theirs[id_]["features"]
        assert frames.shape == expected.shape, id_
        assert not np.isinf(frames).any()
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(frames[finite], expected[finite], err_msg=id_)


def test_segments_equal_the_sdks(sdk, files, tmp_path):
    dataset = sdk.mmdataset({"F": str(files["F"]), "L": str(files["L"])})
    dataset.align("L")
    ours = _ours(files, tmp_path / "out")
    assert len(ours) > 40
    _assert_equal(ours, dataset["F"].data)


def test_word_sequences_equal_the_sdks(sdk, files, tmp_path):
    dataset = sdk.mmdataset({"F": str(files["F"]), "W": str(files["W"])})
    dataset.align("W", collapse_functions=[lambda intervals, features: np.average(features, axis=0)])
    dataset.add_computational_sequences({"L": str(files["L"])}, None)
    dataset.align("L")
    ours = _ours(files, tmp_path / "out", words=files["W"])
    assert len(ours) > 30
    _assert_equal(ours, dataset["F"].data)
