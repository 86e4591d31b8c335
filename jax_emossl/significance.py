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
from jaxtyping import Float, Int
from scipy import stats

from jax_emossl import metrics

REPLICATES = 2000
_EXACT = 12  # recordings up to which all exchanges are tried
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


# A tally holds sums per recording (R, K), from which a metric follows; AUROC's are over pairs of recordings (R, R, K).
Tally = Float[np.ndarray, "r ... k"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as `value` of sums over recordings, so that recordings can be weighed and exchanged.

    Attributes:
      tally: sums per recording of a run, given the recordings' order.
      value: (..., K) sums -> (...) the metric.
      pairs: whether the sums are over pairs of recordings.
    """

    tally: Callable[[Scored, Sequence[str]], Tally]
    value: Callable[[Float[np.ndarray, "... k"]], Float[np.ndarray, "..."]]
    pairs: bool = False

    def weighed(self, tally: Float[np.ndarray, "t r ... k"], weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n t k"]:
        """The sums of each tally under each weighting of its recordings."""
        if self.pairs:
            return np.einsum("nr,trqk,nq->ntk", weights, tally, weights, optimize=True)
        return np.einsum("nr,trk->ntk", weights, tally, optimize=True)


class _Estimated:
    """What has an estimate, and a difference from its like.

    Attributes:
      recordings: of every rotation, sorted; `total` in all, of `corpora` corpora.
      value: the metric on the recordings and seeds at hand.
      replicates: (n,) the metric on every draw, the same draws for all with the same recordings and seeds.
      testable: whether arms can be exchanged within recordings.
    """

    def estimate(self) -> Estimate:
        """Mean over seeds with its interval."""
        return Estimate(self.value, *interval(self.replicates, self.total, self.corpora))

    def difference(self, other: Self) -> Estimate:
        """This less the other, paired by recording and seed."""
        if (self.rotations, self.seeds, self.recordings) != (other.rotations, other.seeds, other.recordings):
            raise ValueError("runs that are compared must have the same rotations, seeds and recordings")
        low, high = interval(self.replicates - other.replicates, self.total, self.corpora)
        return Estimate(self.value - other.value, low, high, self._permutation(other) if self.testable else None)

    def _permutation(self, other: Self) -> float:
        """How often a difference as large arises when the two arms change places in random recordings."""
        if self.total <= _EXACT:
            kept = np.array(list(itertools.product((1.0, 0.0), repeat=self.total)))
        else:
            drawn = np.random.default_rng(1).integers(0, 2, (REPLICATES, self.total)).astype(float)
            kept = np.concatenate([np.ones((1, self.total)), drawn])
        difference = self.exchanged(other, kept)
        return float(np.mean(np.abs(difference) >= abs(difference[0]) - 1e-12))


class Runs(_Estimated):
    """The runs of one arm at one label count on one corpus: the tallies of every rotation and seed, for one metric.

    `scored` maps (rotation, seed) to a run; every rotation has the same seeds. A recording tested in two rotations is a ValueError.
    Runs of corpora that are estimated together have different `stream`s, so that their draws are independent. `encoders` says with which
    of several pretrainings a seed has run; these are drawn first, then seeds of theirs.
    """

    corpora = 1

    def __init__(self, scored: dict[tuple[str, int], Scored], metric: Metric, stream: int = 0, encoders: Mapping[int, int] | None = None):
        self.metric, self._stream, self.testable, self._encoders = metric, stream, not metric.pairs, encoders or {}
        self.rotations = sorted({rotation for rotation, _ in scored})
        self.seeds = sorted({seed for _, seed in scored})
        self.recordings, self._tallies = [], []
        for rotation in self.rotations:
            own = sorted(set(scored[rotation, self.seeds[0]].recordings))
            self.recordings.append(own)
            self._tallies.append(np.array([metric.tally(scored[rotation, seed], own) for seed in self.seeds], float))
        self.total = sum(map(len, self.recordings))
        if len(set().union(*self.recordings)) < self.total:
            raise ValueError("a recording must be tested in one rotation only")

    def sums(self, weights: Sequence[Float[np.ndarray, "n r"]]) -> list[Float[np.ndarray, "n t k"]]:
        """Per rotation, the sums of every seed under each weighting."""
        return [self.metric.weighed(tally, own) for tally, own in zip(self._tallies, weights, strict=True)]

    def values(self, weights: Sequence[Float[np.ndarray, "n r"]], seeds: Int[np.ndarray, "n p t"]) -> Float[np.ndarray, "n"]:
        """The metric of all rotations' recordings together, mean over the drawn seeds; `seeds` are per replicate and rotation."""
        replicate = np.arange(len(seeds))[:, None]
        drawn = [own[replicate, seeds[:, i]] for i, own in enumerate(self.sums(weights))]
        return self.metric.value(sum(drawn)).mean(1)

    def _split(self, weights: Float[np.ndarray, "n total"]) -> list[Float[np.ndarray, "n r"]]:
        """Weights of all recordings, by rotation."""
        return np.split(weights, np.cumsum([len(own) for own in self.recordings])[:-1], axis=1)

    @property
    def all_once(self) -> list[Float[np.ndarray, "1 r"]]:
        """The weights of the recordings at hand."""
        return self._split(np.ones((1, self.total)))

    @functools.cached_property
    def value(self) -> float:
        """The metric on the recordings and seeds at hand."""
        return float(self.values(self.all_once, np.tile(np.arange(len(self.seeds)), (1, len(self.rotations), 1)))[0])

    @functools.cached_property
    def replicates(self) -> Float[np.ndarray, "n"]:
        """The metric on every draw."""
        return self.values(*self.draws())

    def draws(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Weights of recordings and choices of seeds, the same for all arms with the same recordings and seeds."""
        rng = np.random.default_rng(self._stream)
        weights = rng.multinomial(self.total, np.full(self.total, 1 / self.total), size=REPLICATES).astype(float)
        shape, known = (REPLICATES, len(self.rotations)), [self._encoders.get(seed, 0) for seed in self.seeds]
        own = [np.flatnonzero(np.array(known) == encoder) for encoder in sorted(set(known))]
        if len(own) == 1:
            return self._split(weights), rng.integers(0, len(self.seeds), (*shape, len(self.seeds)))
        drawn = rng.integers(0, len(own), (*shape, len(own)))[..., np.arange(len(self.seeds)) % len(own)]
        seeds = np.array([rng.choice(places, drawn.shape) for places in own])  # of every encoder one for every place
        return self._split(weights), np.take_along_axis(seeds, drawn[None], 0)[0]

    def exchanged(self, other: Self, kept: Float[np.ndarray, "n total"]) -> Float[np.ndarray, "n"]:
        """The difference where the two have changed places in the recordings that are not `kept`."""

        def value(one: Self, two: Self) -> np.ndarray:
            sums = zip(one.sums(self._split(kept)), two.sums(self._split(1 - kept)), strict=True)
            return self.metric.value(sum(a + b for a, b in sums)).mean(1)

        return value(self, other) - value(other, self)


class Pool(_Estimated):
    """The runs of one arm at one label count on several corpora: the mean of theirs, in which every recording weighs the same."""

    def __init__(self, parts: Sequence[Runs]):
        self.parts, self.corpora = parts, len(parts)
        self.rotations, self.seeds, self.recordings = (
            [getattr(part, name) for part in parts] for name in ("rotations", "seeds", "recordings")
        )
        self._sizes = [part.total for part in parts]
        self.total, self.testable = sum(self._sizes), all(part.testable for part in parts)
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
        for name in ("rotations", "seeds", "recordings", "total", "corpora", "testable"):
            setattr(self, name, getattr(first, name))
        if any((point.seeds, point.recordings) != (first.seeds, first.recordings) for point in points):
            raise ValueError("the points of a curve must have the same seeds and recordings")
        steps = np.diff(np.log(labels)) if len(labels) > 1 else np.ones(1)
        weights = (np.append(steps, 0) + np.append(0, steps)) if len(labels) > 1 else steps  # of the trapezium rule
        self._weights = weights / weights.sum()
        self.value = self._mean([point.value for point in points])

    @functools.cached_property
    def replicates(self) -> Float[np.ndarray, "n"]:
        return self._mean([point.replicates for point in self.points])

    def exchanged(self, other: Self, kept: Float[np.ndarray, "n total"]) -> Float[np.ndarray, "n"]:
        return self._mean([point.exchanged(its, kept) for point, its in zip(self.points, other.points, strict=True)])

    def _mean(self, values: Sequence) -> Any:
        return sum(weight * value for weight, value in zip(self._weights, values, strict=True))


def holm(estimates: Sequence[Estimate | None]) -> list[Estimate | None]:
    """The same with p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6)."""
    tested = [i for i, own in enumerate(estimates) if own is not None and own.p is not None]
    corrected, largest = list(estimates), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: estimates[i].p)):
        largest = max(largest, min(1.0, (len(tested) - rank) * estimates[i].p))
        corrected[i] = dataclasses.replace(estimates[i], p=largest)
    return corrected


def interval(replicates: Float[np.ndarray, "n"], recordings: int, corpora: int = 1) -> tuple[float, float]:
    """95 % interval from bootstrap replicates: percentiles, expanded for few recordings (Hesterberg 2015, The American Statistician 69).

    Of `recordings` resampled within several `corpora`, each takes one degree of freedom.
    """
    defined, freedom = replicates[np.isfinite(replicates)], recordings - corpora
    if freedom < 1 or len(defined) == 0:
        return float("nan"), float("nan")
    quantile = stats.t.ppf(1 - (1 - _LEVEL) / 2, freedom) * np.sqrt(recordings / freedom)
    tail = stats.norm.cdf(-quantile)
    return tuple(float(q) for q in np.quantile(defined, [tail, 1 - tail]))


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


def intensity_metrics(emotions: Sequence[str]) -> dict[str, Metric]:
    """Metrics of intensities by name, `mae of <emotion>` and `accuracy4 of <emotion>` among them."""

    def absolute(scored):
        return np.abs(scored.median - scored.target)

    def correct(scored):
        return (scored.four_class == metrics.four_class(scored.target)).astype(float)

    made = {"auroc": Metric(_pair_wins, lambda sums: np.nanmean(_ratio(sums[..., ::2], sums[..., 1::2]), -1), pairs=True)}
    for name, of in (("mae", absolute), ("accuracy4", correct)):
        columns = {name: slice(None)} | {f"{name} of {emotion}": slice(e, e + 1) for e, emotion in enumerate(emotions)}
        for full, own in columns.items():
            tally = functools.partial(_per_recording, of=of, columns=own)
            made[full] = Metric(tally, lambda sums: sums[..., 0] / sums[..., 1])
    return made


def _confusions(scored: Scored, order: Sequence[str], unseen: Sequence[int]) -> Tally:
    """(R, (C + U) * C): true class by predicted class; the last U true classes are the unseen ones."""
    size = scored.scores.shape[1]
    height = size + len(unseen)
    true = np.where(scored.target > metrics.UNSEEN, scored.target, size + np.searchsorted(unseen, scored.target))
    row = np.searchsorted(order, scored.recordings)
    cell = (row * height + true) * size + scored.scores.argmax(1)
    return np.bincount(cell, minlength=len(order) * height * size).reshape(len(order), height * size)


def _per_recording(scored: Scored, order: Sequence[str], of: Callable, columns: slice) -> Tally:
    """(R, 2): the sum of what `of` makes of the run, (S, C), and the number of its values."""
    values = of(scored)[:, columns]
    row = np.searchsorted(order, scored.recordings)
    total = np.bincount(row, values.sum(1), minlength=len(order))
    return np.stack([total, np.bincount(row, minlength=len(order)) * values.shape[1]], 1)


def _pair_wins(scored: Scored, order: Sequence[str]) -> Tally:
    """(R, R, 2 E): of pairs of a segment with the emotion (first) and one without, how many are ranked rightly, and all."""
    row = np.searchsorted(order, scored.recordings)
    size, emotions = len(order), scored.scores.shape[1]
    table = np.zeros((size, size, 2 * emotions), np.float32)
    for e in range(emotions):
        present, score = scored.target[:, e] > 0, scored.scores[:, e]
        positives = np.bincount(row[present], minlength=size)
        for other in range(size):
            negative = np.sort(score[~present & (row == other)])
            below = np.searchsorted(negative, score[present]) + np.searchsorted(negative, score[present], side="right")
            table[:, other, 2 * e] = np.bincount(row[present], below / 2, minlength=size)
            table[:, other, 2 * e + 1] = positives * len(negative)
    return table


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole
