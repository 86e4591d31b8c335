"""Intervals and p-values that hold for new speakers and new seeds, not only for those at hand.

A comparison yields, per rotation of the folds and per seed, scores of segments that belong to recordings. Recordings are
resampled first, within their corpus, then seeds (a hierarchical bootstrap); arms are compared under the same draws. A recording is tested
in one rotation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from jax_emossl import metrics

REPLICATES = 2000
_EXACT = 12  # recordings up to which all exchanges are tried
_FEWEST_BEYOND = 10  # draws beyond a bound: percentiles further out are the range of the draws, which says nothing of others
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one run said of the reported fold's segments.

    Attributes:
      scores: (S, C) logits of categories, or ranks of segments by each emotion.
      target: (S,) places among the classes, `metrics.UNSEEN` and below for others, or (S, C) true intensities.
      recordings: (S,) ids.
      median: (S, C) predicted intensities; None for categories, as is
      four_class: (S, C) which of the classes 0..3 they are likeliest to be.
    """

    scores: Float[np.ndarray, "s c"]
    target: np.ndarray
    recordings: np.ndarray
    median: Float[np.ndarray, "s c"] | None = None
    four_class: Int[np.ndarray, "s c"] | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and for a difference the p-value of a permutation test (None where undefined)."""

    value: float
    low: float
    high: float
    p: float | None = None


Sums = Float[np.ndarray, "n t k"]
"""What a metric is made of, per weighting of the recordings and per run."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as `value` of sums over recordings, so that recordings can be weighed and exchanged.

    Attributes:
      tally: (R, K) sums per recording of a run, given each segment's place among R recordings.
      value: (..., K) sums -> (...) the metric.
    """

    tally: Callable[[Scored, Int[np.ndarray, "s"], int], Float[np.ndarray, "r k"]]
    value: Callable[[Float[np.ndarray, "... k"]], Float[np.ndarray, "..."]]

    def sums(self, runs: Sequence[Scored], row: Int[np.ndarray, "s"], weights: Float[np.ndarray, "n r"]) -> Sums:
        """The sums of every run under each weighting; `row` are its segments' places among the recordings."""
        return np.tensordot(weights, np.stack([self.tally(own, row, weights.shape[1]) for own in runs], 1).astype(float), 1)

    def exchanged(
        self, one: Sequence[Scored], two: Sequence[Scored], row: Int[np.ndarray, "s"], kept: Float[np.ndarray, "n r"]
    ) -> tuple[Sums, Sums]:
        """The sums of two arms that have changed places in the recordings that are not `kept`."""
        return tuple(self.sums(own, row, kept) + self.sums(its, row, 1 - kept) for own, its in ((one, two), (two, one)))


@dataclasses.dataclass(frozen=True)
class Auroc:
    """A `Metric` of pairs: how often a segment with the emotion is ranked above one without; the mean over emotions.

    The sums are, per emotion, the pairs ranked rightly (ties count half) and all pairs.
    """

    @staticmethod
    def value(sums: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "..."]:
        each = _ratio(sums[..., ::2], sums[..., 1::2])  # a draw may lack an emotion
        return _ratio(np.nansum(each, -1), np.sum(~np.isnan(each), -1))

    def sums(self, runs: Sequence[Scored], row: Int[np.ndarray, "s"], weights: Float[np.ndarray, "n r"]) -> Sums:
        """The table of wins between recordings is made for one emotion of one run at a time, and not kept."""
        size, light, made = weights.shape[1], weights.astype(np.float32), []
        for own in runs:
            for present, score in zip(own.target.T > 0, own.scores.T, strict=True):
                right = (light @ _wins(score, present, row, size) * light).sum(1, dtype=float)
                made += [right, np.prod([weights @ np.bincount(row[part], minlength=size) for part in (present, ~present)], 0)]
        return np.stack(made, 1).reshape(len(weights), len(runs), -1)

    def exchanged(
        self, one: Sequence[Scored], two: Sequence[Scored], row: Int[np.ndarray, "s"], kept: Float[np.ndarray, "n r"]
    ) -> tuple[Sums, Sums]:
        """Sums whose values differ as those of two arms do that have changed ranks in the recordings that are not `kept`.

        Scores of two arms have no scale in common, so ranks change places (Venkatraman & Begg 1996, Biometrika 83). What all pairs within
        the kept recordings, within the others and between the two then gain is a sum over segments: of the place that the one arm gives
        it, less that by the other, among the segments of the other kind as both arms rank them.
        """
        made = []
        for a, b in zip(one, two, strict=True):
            for present, *scores in zip(a.target.T > 0, a.scores.T, b.scores.T, strict=True):
                ranks, gain = [stats.rankdata(own) for own in scores], np.zeros(len(row))
                for part, sign in ((present, 1), (~present, -1)):
                    others = np.sort(np.concatenate([own[~part] for own in ranks]))
                    places = [np.searchsorted(others, own[part]) + np.searchsorted(others, own[part], side="right") for own in ranks]
                    gain[part] = sign * (places[0] - places[1]) / 4
                half = (2 * kept - 1) @ np.bincount(row, gain, kept.shape[1]) / 2
                made += [half, np.full(len(kept), float(present.sum() * (~present).sum()))]
        own = np.stack(made, 1).reshape(len(kept), len(one), -1)
        return own, own * np.tile([-1.0, 1.0], own.shape[-1] // 2)


class _Estimated:
    """What has an estimate, and a difference from its like.

    Attributes:
      recordings: of every rotation, sorted; `total` in all, of `corpora` corpora.
      value: the metric on the recordings and seeds at hand.
      replicates: (n,) the metric on every draw, the same draws for all with the same recordings and seeds.
    """

    def estimate(self) -> Estimate:
        """Mean over seeds with its interval."""
        return Estimate(self.value, *interval(self.replicates, self.total, self.corpora))

    def difference(self, other: Self) -> Estimate:
        """This less the other, paired by recording and seed."""
        if (self.rotations, self.seeds, self.recordings) != (other.rotations, other.seeds, other.recordings):
            raise ValueError("runs that are compared must have the same rotations, seeds and recordings")
        low, high = interval(self.replicates - other.replicates, self.total, self.corpora)
        return Estimate(self.value - other.value, low, high, self._permutation(other))

    def _permutation(self, other: Self) -> float | None:
        """How often a difference as large arises when the two arms change places in random recordings; None where there is none."""
        if self.total <= _EXACT:
            kept = np.array(list(itertools.product((1.0, 0.0), repeat=self.total)))
        else:
            drawn = np.random.default_rng(1).integers(0, 2, (REPLICATES, self.total)).astype(float)
            kept = np.concatenate([np.ones((1, self.total)), drawn])
        difference = self.exchanged(other, kept)
        return None if np.isnan(difference[0]) else float(np.mean(np.abs(difference) >= abs(difference[0]) - 1e-12))


class Runs(_Estimated):
    """The runs of one arm at one label count on one corpus, of every rotation and seed, for one metric.

    `scored` maps (rotation, seed) to a run; every rotation has the same seeds, and the same segments in each. A recording tested in two
    rotations is a ValueError. Runs of corpora that are estimated together have different `stream`s, so that their draws are independent.
    `encoders` says with which of several pretrainings a seed has run; these are drawn first, then seeds of theirs.
    """

    corpora = 1

    def __init__(
        self, scored: dict[tuple[str, int], Scored], metric: Metric | Auroc, stream: int = 0, encoders: Mapping[int, int] | None = None
    ):
        self.metric, self._stream = metric, stream
        self.rotations = sorted({rotation for rotation, _ in scored})
        self.seeds = sorted({seed for _, seed in scored})
        self._encoders = tuple((encoders or {}).get(seed, 0) for seed in self.seeds)
        self._scored = [[scored[rotation, seed] for seed in self.seeds] for rotation in self.rotations]
        named = [np.unique(runs[0].recordings, return_inverse=True) for runs in self._scored]
        self.recordings, self._rows = [names.tolist() for names, _ in named], [row for _, row in named]
        self.total = sum(map(len, self.recordings))
        if len(set().union(*self.recordings)) < self.total:
            raise ValueError("a recording must be tested in one rotation only")

    def sums(self, weights: Sequence[Float[np.ndarray, "n r"]]) -> list[Sums]:
        """Per rotation, the sums of every seed under each weighting."""
        return [self.metric.sums(*own) for own in zip(self._scored, self._rows, weights, strict=True)]

    def values(self, weights: Sequence[Float[np.ndarray, "n r"]], seeds: Int[np.ndarray, "n p t"]) -> Float[np.ndarray, "n"]:
        """The metric of all rotations' recordings together, mean over the drawn seeds; `seeds` are per replicate and rotation."""
        replicate = np.arange(len(seeds))[:, None]
        drawn = [own[replicate, seeds[:, i]] for i, own in enumerate(self.sums(weights))]
        return self.metric.value(sum(drawn)).mean(1)

    def split(self, weights: Float[np.ndarray, "n total"]) -> list[Float[np.ndarray, "n r"]]:
        """Weights of all recordings, by rotation."""
        return np.split(weights, np.cumsum([len(own) for own in self.recordings])[:-1], axis=1)

    @functools.cached_property
    def _drawn(self) -> Float[np.ndarray, "n"]:
        weights, seeds = _draws(REPLICATES, self._stream, self.total, len(self.rotations), self._encoders)
        return self.values(self.split(weights), seeds)

    @property
    def value(self) -> float:
        """The metric on the recordings and seeds at hand."""
        return float(self._drawn[0])

    @property
    def replicates(self) -> Float[np.ndarray, "n"]:
        """The metric on every draw."""
        return self._drawn[1:]

    def exchanged(self, other: Self, kept: Float[np.ndarray, "n total"]) -> Float[np.ndarray, "n"]:
        """The difference where the two have changed places in the recordings that are not `kept`."""
        made = [self.metric.exchanged(*own) for own in zip(self._scored, other._scored, self._rows, self.split(kept), strict=True)]
        one, two = (self.metric.value(sum(own)).mean(1) for own in zip(*made, strict=True))
        return one - two


@functools.lru_cache(8)  # all arms, label counts and metrics of a corpus have the same
def _draws(
    replicates: int, stream: int, recordings: int, rotations: int, encoders: tuple[int, ...]
) -> tuple[Float[np.ndarray, "n total"], Int[np.ndarray, "n p t"]]:
    """Weights of recordings and choices of seeds, given each seed's encoder; first what is at hand, then so many replicates."""
    rng = np.random.default_rng(stream)
    weights = rng.multinomial(recordings, np.full(recordings, 1 / recordings), size=replicates).astype(float)
    shape, each = (replicates, rotations), np.arange(len(encoders))
    own = [np.flatnonzero(np.array(encoders) == encoder) for encoder in sorted(set(encoders))]
    if len(own) == 1:
        seeds = rng.integers(0, len(each), (*shape, len(each)))
    else:
        drawn = rng.integers(0, len(own), (*shape, len(own)))[..., each % len(own)]
        within = np.array([rng.choice(places, drawn.shape) for places in own])  # of every encoder one for every place
        seeds = np.take_along_axis(within, drawn[None], 0)[0]
    at_hand = np.broadcast_to(each, (1, rotations, len(each)))
    return np.concatenate([np.ones((1, recordings)), weights]), np.concatenate([at_hand, seeds])


class Pool(_Estimated):
    """The runs of one arm at one label count on several corpora: the mean of theirs, in which every recording weighs the same."""

    def __init__(self, parts: Sequence[Runs]):
        self.parts, self.corpora = parts, len(parts)
        self.rotations, self.seeds, self.recordings = (
            [getattr(part, name) for part in parts] for name in ("rotations", "seeds", "recordings")
        )
        self._sizes = [part.total for part in parts]
        self.total = sum(self._sizes)
        self.value = self._mean([part.value for part in parts])

    @functools.cached_property
    def replicates(self) -> Float[np.ndarray, "n"]:
        return self._mean([part.replicates for part in self.parts])

    def exchanged(self, other: Self, kept: Float[np.ndarray, "n total"]) -> Float[np.ndarray, "n"]:
        own = np.split(kept, np.cumsum(self._sizes)[:-1], axis=1)
        return self._mean([part.exchanged(its, k) for part, its, k in zip(self.parts, other.parts, own, strict=True)])

    def _mean(self, values: Sequence) -> Any:
        return sum(size * value for size, value in zip(self._sizes, values, strict=True)) / self.total


class Curve(_Estimated):
    """One arm over several label counts of the same recordings and seeds: the mean of its metric along their logarithm."""

    def __init__(self, points: Sequence[Runs | Pool], labels: Sequence[float]):
        first, self.points = points[0], points
        for name in ("rotations", "seeds", "recordings", "total", "corpora"):
            setattr(self, name, getattr(first, name))
        if any((point.seeds, point.recordings) != (first.seeds, first.recordings) for point in points):
            raise ValueError("the points of a curve must have the same seeds and recordings")
        steps = np.diff(np.log(labels))
        weights = np.append(steps, 0) + np.append(0, steps)  # of the trapezium rule
        self._weights = weights / weights.sum() if weights.any() else np.full(len(weights), 1 / len(weights))
        self.value = self._mean([point.value for point in points])

    @functools.cached_property
    def replicates(self) -> Float[np.ndarray, "n"]:
        return self._mean([point.replicates for point in self.points])

    def exchanged(self, other: Self, kept: Float[np.ndarray, "n total"]) -> Float[np.ndarray, "n"]:
        return self._mean([point.exchanged(its, kept) for point, its in zip(self.points, other.points, strict=True)])

    def _mean(self, values: Sequence) -> Any:
        return sum(weight * value for weight, value in zip(self._weights, values, strict=True))


def labels_needed(points: Sequence[Runs | Pool], labels: Sequence[float], target: Runs | Pool, sign: int = 1) -> Estimate | None:
    """The label count at which an arm, whose `points` are at these `labels`, reaches what another, `target`, has.

    Between two points the metric follows the logarithm of the label count. 0 stands for fewer labels than the first point has, infinity for
    more than the last. `sign` is -1 where lower is better. None where the arm is not surely better with the most labels than with the
    fewest, so that its curve cannot say, where the interval is open on both sides, and where the runs are not of the same seeds and recordings.
    """
    of = (target.seeds, target.recordings)
    if any((point.seeds, point.recordings) != of for point in points):
        return None
    curve, replicates = np.array([point.value for point in points]), np.stack([point.replicates for point in points], 1)
    resampled = target.total, target.corpora
    if not interval(sign * (replicates[:, -1] - replicates[:, 0]), *resampled)[0] > 0:
        return None
    value = _reached(sign * curve[None], labels, sign * np.array([target.value]))[0]
    reached = _reached(sign * replicates, labels, sign * target.replicates)
    if _too_few(reached, *resampled):
        return None
    low, high = interval(reached, *resampled, method="nearest")
    return None if low == 0 and high == np.inf else Estimate(float(value), low, high)


def _reached(curves: Float[np.ndarray, "n b"], labels: Sequence[float], targets: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Where the running best of each curve first reaches its target, NaN where either is undefined."""
    best, places = np.maximum.accumulate(curves, 1), np.log(labels)
    short = (best < targets[:, None]).sum(1)  # points that do not reach it
    row, after = np.arange(len(best)), short.clip(1, len(places) - 1)
    step = best[row, after] - best[row, after - 1]
    share = _ratio(targets - best[row, after - 1], step).clip(0, 1)
    between = np.exp(places[after - 1] + share * (places[after] - places[after - 1]))
    made = np.select([short == 0, short == len(places)], [0, np.inf], between)
    return np.where(np.isnan(curves).any(1) | np.isnan(targets), np.nan, made)


def holm(estimates: Sequence[Estimate | None]) -> list[Estimate | None]:
    """The same with p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6)."""
    tested = [i for i, own in enumerate(estimates) if own is not None and own.p is not None]
    corrected, largest = list(estimates), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: estimates[i].p)):
        largest = max(largest, min(1.0, (len(tested) - rank) * estimates[i].p))
        corrected[i] = dataclasses.replace(estimates[i], p=largest)
    return corrected


def interval(replicates: Float[np.ndarray, "n"], recordings: int, corpora: int = 1, method: str = "linear") -> tuple[float, float]:
    """95 % interval from bootstrap replicates: percentiles, expanded for few recordings (Hesterberg 2015, The American Statistician 69).

    Of `recordings` resampled within several `corpora`, each takes one degree of freedom. Where too few draws lie beyond such percentiles, as
    of up to seven recordings, it is Student's, of the replicates' deviation. NaN with a single degree of freedom or none: two recordings
    cannot say how much others differ. `method` is NumPy's, of quantiles.
    """
    defined, freedom = replicates[~np.isnan(replicates)], recordings - corpora
    if freedom < 2 or len(defined) == 0:
        return float("nan"), float("nan")
    quantile = _expanded(recordings, corpora)
    if _too_few(defined, recordings, corpora):
        half = quantile * defined.std()
        return float(defined.mean() - half), float(defined.mean() + half)
    tail = stats.norm.cdf(-quantile)
    return tuple(float(q) for q in np.quantile(defined, [tail, 1 - tail], method=method))


def _expanded(recordings: int, corpora: int) -> float:
    """Deviations of the replicates from their mean to the bound: Student's quantile, and what a bootstrap of so few makes too narrow."""
    freedom = recordings - corpora
    return float(stats.t.ppf(1 - (1 - _LEVEL) / 2, freedom) * np.sqrt(recordings / freedom))


def _too_few(replicates: Float[np.ndarray, "n"], recordings: int, corpora: int) -> bool:
    """Whether hardly a draw lies beyond percentiles as far out as that."""
    return stats.norm.cdf(-_expanded(recordings, corpora)) * np.sum(~np.isnan(replicates)) < _FEWEST_BEYOND


def category_metrics(classes: Sequence[str], unseen: Sequence[int] = ()) -> dict[str, Metric]:
    """Metrics of categories by name, `recall of <class>` among them.

    `unseen` are the targets, ascending, of classes that training does not know; where present, their recall and F1 count as 0.
    """
    size = len(classes)
    tally = functools.partial(_confusions, unseen=unseen)

    def counts(sums):
        """Segments by class: answered rightly (..., C), there (..., C + U), answered so (..., C)."""
        table = sums.reshape(*sums.shape[:-1], size + len(unseen), size)
        return np.diagonal(table, axis1=-2, axis2=-1), table.sum(-1), table.sum(-2)

    def over_present(values, there):
        return np.where(there[..., :size] > 0, values, 0).sum(-1) / (there > 0).sum(-1)

    def uar(sums):
        hits, there, _ = counts(sums)
        return over_present(_ratio(hits, there[..., :size]), there)

    def f1_macro(sums):
        hits, there, answered = counts(sums)
        return over_present(_ratio(2 * hits, there[..., :size] + answered), there)

    def recall(sums, i):
        hits, there, _ = counts(sums)
        return _ratio(hits[..., i], there[..., i])

    values = {"uar": uar, "f1_macro": f1_macro, "accuracy": lambda sums: counts(sums)[0].sum(-1) / sums.sum(-1)}
    values |= {f"recall of {name}": functools.partial(recall, i=i) for i, name in enumerate(classes)}
    return {name: Metric(tally, value) for name, value in values.items()}


def intensity_metrics(emotions: Sequence[str]) -> dict[str, Metric | Auroc]:
    """Metrics of intensities by name, `mae of <emotion>` and `accuracy4 of <emotion>` among them."""

    def absolute(scored):
        return np.abs(scored.median - scored.target)

    def correct(scored):
        return (scored.four_class == metrics.four_class(scored.target)).astype(float)

    made: dict[str, Metric | Auroc] = {"auroc": Auroc()}
    for name, of in (("mae", absolute), ("accuracy4", correct)):
        columns = {name: slice(None)} | {f"{name} of {emotion}": slice(e, e + 1) for e, emotion in enumerate(emotions)}
        for full, own in columns.items():
            tally = functools.partial(_per_recording, of=of, columns=own)
            made[full] = Metric(tally, lambda sums: sums[..., 0] / sums[..., 1])
    return made


def _confusions(scored: Scored, row: Int[np.ndarray, "s"], recordings: int, unseen: Sequence[int]) -> Int[np.ndarray, "r k"]:
    """(R, (C + U) * C): true class by predicted class; the last U true classes are the unseen ones."""
    size = scored.scores.shape[1]
    height = size + len(unseen)
    true = np.where(scored.target > metrics.UNSEEN, scored.target, size + np.searchsorted(unseen, scored.target))
    cell = (row * height + true) * size + scored.scores.argmax(1)
    return np.bincount(cell, minlength=recordings * height * size).reshape(recordings, height * size)


def _per_recording(scored: Scored, row: Int[np.ndarray, "s"], recordings: int, of: Callable, columns: slice) -> Float[np.ndarray, "r 2"]:
    """The sum of what `of` makes of the run, (S, C), and the number of its values."""
    values = of(scored)[:, columns]
    total = np.bincount(row, values.sum(1), minlength=recordings)
    return np.stack([total, np.bincount(row, minlength=recordings) * values.shape[1]], 1)


def _wins(score: Float[np.ndarray, "s"], present: Bool[np.ndarray, "s"], row: Int[np.ndarray, "s"], size: int) -> Float[np.ndarray, "r r"]:
    """Of pairs of a segment with the emotion, in the first recording, and one without, in the second: how many are ranked rightly."""
    own, other = np.flatnonzero(present)[np.argsort(score[present])], np.flatnonzero(~present)
    # How many without the emotion, by recording, come to lie below each one with it that did not lie below the one before.
    sides = (np.searchsorted(score[own], score[other], side) for side in ("left", "right"))
    counts = sum(np.bincount(side * size + row[other], minlength=(len(own) + 1) * size) for side in sides)
    below = np.cumsum(counts.reshape(-1, size)[:-1], 0, np.float32)
    order = np.argsort(row[own], kind="stable")
    recordings, first = np.unique(row[own[order]], return_index=True)
    wins = np.zeros((size, size), np.float32)
    wins[recordings] = np.add.reduceat(below[order], first) / 2 if len(own) else 0
    return wins


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole
