import dataclasses
import itertools
import types

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from jax_emossl import metrics, significance
from jax_emossl.significance import Curve, Runs, Scored, category_metrics, intensity_metrics, interval

CLASSES = ("neutral", "happy", "sad")
EMOTIONS = ("happy", "sad")


def category_run(rng, recordings=4, segments=25, skill=1.0, name="r"):
    target = rng.integers(0, 3, recordings * segments)
    scores = rng.normal(size=(len(target), 3)) + skill * np.eye(3)[target]
    return Scored(scores, target, np.repeat([f"{name}{i}" for i in range(recordings)], segments))


def intensity_run(rng, recordings=4, segments=25):
    target = np.where(rng.random((recordings * segments, 2)) < 0.4, rng.integers(1, 4, (recordings * segments, 2)), 0).astype(float)
    made = metrics.Intensities.of(target + rng.normal(size=target.shape))
    return Scored(made.scores, target, np.repeat([f"r{i}" for i in range(recordings)], segments), made.median, made.four_class)


@pytest.mark.parametrize("unseen", [[], [metrics.UNSEEN - 1, metrics.UNSEEN]])
def test_category_metrics_are_those_of_the_results_file(unseen):
    run = category_run(np.random.default_rng(0))
    run.target[: 3 * len(unseen)] = np.repeat(unseen, 3)  # in the first recording
    expected, _ = metrics.category_report(run.scores, run.target, CLASSES)
    own = category_metrics(CLASSES, unseen)
    for name in ("uar", "f1_macro", "accuracy"):
        assert Runs({("", 0): run}, own[name]).value == pytest.approx(expected[name])
    recall = Runs({("", 0): run}, own["recall of sad"]).value
    assert recall == pytest.approx(expected["per_emotion"]["sad"]["recall"])


@pytest.mark.parametrize("drawn", [("r0", "r0", "r2"), ("r1", "r2", "r2")])
def test_a_draw_is_judged_by_the_classes_in_it(drawn):
    run = category_run(np.random.default_rng(1), recordings=3)
    run.target[:4] = metrics.UNSEEN  # in r0 alone
    run.target[run.target == 0] = 1
    again = np.concatenate([np.flatnonzero(run.recordings == name) for name in drawn])
    expected, _ = metrics.category_report(run.scores[again], run.target[again], CLASSES)
    weights = [np.array([[drawn.count(name) for name in ("r0", "r1", "r2")]], float)]
    for name in ("uar", "f1_macro", "accuracy"):
        own = Runs({("", 0): run}, category_metrics(CLASSES, [metrics.UNSEEN])[name])
        assert own.values(weights, np.zeros((1, 1, 1), int))[0] == pytest.approx(expected[name])


def test_intensity_metrics_are_those_of_the_results_file():
    run = intensity_run(np.random.default_rng(0))
    expected, _ = metrics.intensity_report(metrics.Intensities.of(run.scores), run.target, EMOTIONS, [0.5, 0.5])
    for name in ("auroc", "mae", "accuracy4"):
        assert Runs({("", 0): run}, intensity_metrics(EMOTIONS)[name]).value == pytest.approx(expected[name])
    for name in ("mae", "accuracy4"):
        own = Runs({("", 0): run}, intensity_metrics(EMOTIONS)[f"{name} of sad"]).value
        assert own == pytest.approx(expected["per_emotion"]["sad"][name])


def test_weighing_recordings_is_repeating_their_segments():
    run = intensity_run(np.random.default_rng(1), recordings=3)
    again = np.concatenate([np.flatnonzero(run.recordings == name) for name in ("r0", "r0", "r2")])
    expected = np.mean([sklearn_metrics.roc_auc_score(run.target[again, e] > 0, run.scores[again, e]) for e in range(2)])
    own = Runs({("", 0): run}, intensity_metrics(EMOTIONS)["auroc"])
    assert own.values([np.array([[2.0, 0.0, 1.0]])], np.zeros((1, 1, 1), int))[0] == pytest.approx(expected)


def pair_wins(run):
    """(R, R, 2 E): of pairs of a segment with the emotion (first) and one without, how many are ranked rightly, and all, by definition."""
    names = sorted(set(run.recordings))
    table = np.zeros((len(names), len(names), 2 * len(EMOTIONS)))
    for e, (one, other) in itertools.product(range(len(EMOTIONS)), np.ndindex(len(names), len(names))):
        there = run.scores[(run.recordings == names[one]) & (run.target[:, e] > 0), e]
        absent = run.scores[(run.recordings == names[other]) & (run.target[:, e] == 0), e]
        table[one, other, 2 * e] = ((there[:, None] > absent) + 0.5 * (there[:, None] == absent)).sum()
        table[one, other, 2 * e + 1] = len(there) * len(absent)
    return table


def shuffled(rng, run):
    """The same in another order of segments, with ties."""
    order = rng.permutation(len(run.target))
    return Scored(np.round(run.scores[order], 1), run.target[order], run.recordings[order], run.median[order], run.four_class[order])


def test_auroc_of_every_draw_is_that_of_all_pairs():
    rng = np.random.default_rng(11)
    scored = {("", seed): shuffled(np.random.default_rng(12), intensity_run(rng, 5)) for seed in (0, 1)}
    scored["", 1] = dataclasses.replace(scored["", 1], target=scored["", 0].target)
    scored["", 0].target[scored["", 0].recordings == "r0", 0] = 0  # a recording without the emotion
    runs, weights = Runs(scored, intensity_metrics(EMOTIONS)["auroc"]), rng.multinomial(5, np.full(5, 0.2), 40).astype(float)
    for seed, made in enumerate(np.moveaxis(runs.sums([weights])[0], 1, 0)):
        np.testing.assert_allclose(made, np.einsum("nr,rqk,nq->nk", weights, pair_wins(scored["", seed]), weights), rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_what_is_not_defined_has_neither_value_nor_p():
    rng = np.random.default_rng(13)
    one, two = intensity_run(rng, 5), intensity_run(rng, 5)
    for run in (one, two):
        run.target[:] = one.target
        run.target[:, 0] = 0
    runs = [Runs({("", 0): run}, intensity_metrics(EMOTIONS)["auroc"]) for run in (one, two)]
    alone = np.mean([sklearn_metrics.roc_auc_score(one.target[:, 1] > 0, one.scores[:, 1])])
    assert runs[0].value == pytest.approx(alone)  # of the emotion that is there
    for run in (one, two):
        run.target[:] = 0
    undefined = Runs({("", 0): one}, intensity_metrics(EMOTIONS)["auroc"])
    difference = undefined.difference(Runs({("", 0): two}, intensity_metrics(EMOTIONS)["auroc"]))
    assert np.isnan(undefined.value) and np.isnan(difference.value) and difference.p is None


@pytest.mark.parametrize("recordings", [1, 4])
def test_auroc_is_tested_by_exchanging_ranks(recordings):
    """Against exchanging them one by one, within two rotations."""
    rng, metric = np.random.default_rng(13), intensity_metrics(EMOTIONS)["auroc"]
    targets = {rotation: intensity_run(rng, recordings) for rotation in "ab"}
    arms = []
    for scale in (1.0, 50.0):  # of no account
        runs = {}
        for rotation, seed in itertools.product("ab", (0, 1)):
            scores = scale * np.round(targets[rotation].target + rng.normal(size=targets[rotation].target.shape), 1)
            runs[rotation, seed] = Scored(scores, targets[rotation].target, np.char.add(rotation, targets[rotation].recordings))
        arms.append(runs)
    one, two = (Runs(runs, metric) for runs in arms)
    kept = np.concatenate([np.ones((1, 2 * recordings)), rng.integers(0, 2, (20, 2 * recordings))])
    made = one.exchanged(two, kept)
    assert made[0] == pytest.approx(one.value - two.value)
    names = np.concatenate(one.recordings)
    for k, difference in zip(kept, made, strict=True):
        mixed = []
        for first, second in ((0, 1), (1, 0)):
            own = {}
            for key, run in arms[first].items():
                ranks = [stats.rankdata(arms[i][key].scores, axis=0) for i in (first, second)]
                stays = k[np.searchsorted(names, run.recordings)][:, None] == 1
                own[key] = dataclasses.replace(run, scores=np.where(stays, *ranks))
            mixed.append(Runs(own, metric).value)
        assert difference == pytest.approx(mixed[0] - mixed[1], abs=1e-9)


def test_rotations_are_judged_together_and_seeds_averaged():
    rng = np.random.default_rng(2)
    scored = {(rotation, seed): category_run(rng, name=rotation) for rotation in ("a", "b") for seed in (0, 1)}
    runs = Runs(scored, category_metrics(CLASSES)["accuracy"])
    right = {seed: np.concatenate([scored[r, seed].scores.argmax(1) == scored[r, seed].target for r in ("a", "b")]) for seed in (0, 1)}
    assert runs.value == pytest.approx(np.mean([right[0].mean(), right[1].mean()]))


def test_the_difference_of_a_run_from_itself_is_nothing():
    runs = Runs({("", 0): category_run(np.random.default_rng(3))}, category_metrics(CLASSES)["uar"])
    difference = runs.difference(runs)
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_runs_on_other_recordings_are_not_paired():
    one, two = (Runs({("", 0): category_run(np.random.default_rng(0), name=n)}, category_metrics(CLASSES)["uar"]) for n in "ab")
    with pytest.raises(ValueError, match="same rotations, seeds and recordings"):
        one.difference(two)


def test_a_recording_is_tested_once():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a recording must be tested in one rotation only"):
        Runs({(rotation, 0): category_run(rng, name="r") for rotation in ("a", "b")}, category_metrics(CLASSES)["uar"])


def test_a_clear_difference_in_nine_recordings_has_the_smallest_possible_p():
    rng = np.random.default_rng(4)
    good, poor = ({("", 0): category_run(rng, recordings=9, segments=60, skill=skill)} for skill in (3.0, 0.0))
    poor = {key: Scored(run.scores, run.target, run.recordings) for key, run in poor.items()}
    metric = category_metrics(CLASSES)["accuracy"]
    difference = Runs(good, metric).difference(Runs(poor, metric))
    assert difference.low > 0 and difference.p == pytest.approx(2 / 2**9)


def test_of_many_recordings_some_exchanges_are_drawn():
    rng = np.random.default_rng(7)
    good, poor = (Runs({("", 0): category_run(rng, 20, 60, skill)}, category_metrics(CLASSES)["accuracy"]) for skill in (3.0, 0.0))
    assert good.difference(poor).p == pytest.approx(1 / (significance.REPLICATES + 1))


def simulated(rng, recordings=9, segments=40, seeds=4):
    """Runs of two arms whose accuracy varies by recording, by seed, and by chance, around 0.5 for both."""
    hard = rng.normal(0, 0.1, recordings)
    arms = []
    for _ in range(2):
        own = hard + rng.normal(0, 0.08, recordings)  # an arm suits some recordings better than others
        scored = {}
        for seed in range(seeds):
            chance = np.repeat(np.clip(0.5 + own + rng.normal(0, 0.03), 0.01, 0.99), segments)
            right = rng.random(len(chance)) < chance
            target = np.zeros(len(chance), int)
            scored["", seed] = Scored(np.eye(3)[np.where(right, 0, 1)], target, np.repeat([f"r{i}" for i in range(recordings)], segments))
        arms.append(Runs(scored, category_metrics(CLASSES)["accuracy"]))
    return arms


@pytest.mark.parametrize("recordings", [9, 14])  # all exchanges, and some of them
def test_intervals_cover_the_truth_and_p_values_are_uniform_where_nothing_differs(recordings, monkeypatch):
    monkeypatch.setattr(significance, "REPLICATES", 400)
    rng = np.random.default_rng(5)
    covered, ps = [], []
    for _ in range(200):
        one, two = simulated(rng, recordings)
        difference = one.difference(two)
        for value, made in ((0.5, one.estimate()), (0.0, difference)):
            covered.append(made.low <= value <= made.high)
        ps.append(difference.p)
    assert 0.91 <= np.mean(covered) <= 0.99
    for level in (0.1, 0.3, 0.5, 0.8):  # within four standard errors
        assert np.mean(np.array(ps) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 200))


def test_p_values_of_auroc_are_uniform_where_arms_differ_in_scale_alone(monkeypatch):
    monkeypatch.setattr(significance, "REPLICATES", 200)
    rng, metric, ps = np.random.default_rng(15), intensity_metrics(EMOTIONS)["auroc"], []
    for _ in range(120):
        target, names = (rng.random((14 * 10, 2)) < 0.35).astype(float), np.repeat([f"r{i:02d}" for i in range(14)], 10)
        hard, arms = rng.normal(0, 0.5, (14, 1)), []
        for scale in (1.0, 20.0):
            skill = np.repeat(1 + hard + rng.normal(0, 0.4, (14, 1)), 10, 0)  # an arm suits some recordings better than others
            arms.append(Runs({("", 0): Scored(scale * (skill * target + rng.normal(size=target.shape)), target, names)}, metric))
        ps.append(arms[0].difference(arms[1]).p)
    for level in (0.1, 0.3, 0.5, 0.8):
        assert np.mean(np.array(ps) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 120))


def test_the_interval_of_three_recordings_covers_what_others_would_give(monkeypatch):
    monkeypatch.setattr(significance, "REPLICATES", 400)
    rng, covered = np.random.default_rng(16), []
    for _ in range(200):
        one, two = simulated(rng, 3, segments=400, seeds=2)  # chance within a recording hides nothing of how recordings differ
        made = one.difference(two)
        covered.append(made.low <= 0 <= made.high)
    assert np.mean(covered) >= 0.93  # the range of the draws, to which percentiles come down: .89


def test_the_interval_is_expanded_for_few_recordings_and_undefined_for_two():
    normal = np.random.default_rng(6).normal(size=200_000)
    low, high = interval(normal, 10_000)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=0.03)
    assert interval(normal, 9)[1] == pytest.approx(2.306 * np.sqrt(9 / 8), abs=0.06)  # t(0.975, 8)
    assert interval(normal, 3) == pytest.approx((-4.303 * np.sqrt(3 / 2), 4.303 * np.sqrt(3 / 2)), rel=0.01)  # t(0.975, 2)
    assert interval(normal[:2000], 7)[1] == pytest.approx(2.447 * np.sqrt(7 / 6), abs=0.1)  # percentiles or not
    assert np.isnan([interval(normal, 1), interval(normal, 2), interval(normal, 4, corpora=3)]).all()


def two_arms(rng, counts=(30, 300), name="r"):
    """Per label count the accuracies of a better and a worse arm, over eight recordings and two seeds."""
    metric = category_metrics(CLASSES)["accuracy"]
    made = []
    for skill in (1.5, 0.8):
        made.append([Runs({("", s): category_run(rng, 8, skill=skill + n / 300, name=name) for s in (0, 1)}, metric) for n in counts])
    return made


def test_a_curve_is_the_mean_along_the_logarithm_of_the_label_counts():
    (good, bad) = two_arms(np.random.default_rng(8), (10, 100, 1000))
    one, two = (Curve(runs, (10, 100, 1000)) for runs in (good, bad))
    gains = [a.value - b.value for a, b in zip(good, bad, strict=True)]
    made = one.difference(two)
    assert made.value == pytest.approx(np.average(gains, weights=[1, 2, 1])) and made.low < made.value < made.high and 0 < made.p < 0.05
    assert Curve(good[:1], (10,)).difference(Curve(bad[:1], (10,))) == good[0].difference(bad[0])
    assert Curve(good[:2], (10, 10)).value == pytest.approx((good[0].value + good[1].value) / 2)  # asked for in two ways
    replicates = np.average([a.replicates for a in good], axis=0, weights=[1, 2, 1])
    np.testing.assert_allclose(one.replicates, replicates)  # the same draws of recordings at every label count


def point(value, replicates=None, seeds=(0,)):
    """What has an estimate, of so many recordings that intervals are percentiles."""
    drawn = np.full(4001, float(value)) if replicates is None else replicates
    return types.SimpleNamespace(value=value, replicates=drawn, seeds=seeds, recordings=[["r"]], total=10_000, corpora=1)


def test_labels_are_read_off_the_logarithmic_learning_curve():
    curve, labels = [point(0.2), point(0.4), point(0.6)], (10, 100, 1000)
    made = significance.labels_needed(curve, labels, point(0.5, np.linspace(0.4, 0.6, 4001)))
    assert made.value == pytest.approx(10**2.5)
    assert (made.low, made.high) == (pytest.approx(10**2.025, rel=0.01), pytest.approx(10**2.975, rel=0.01))
    errors = [point(1 - own.value) for own in curve]
    mirrored = significance.labels_needed(errors, labels, point(0.5, np.linspace(0.4, 0.6, 4001)), -1)
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((made.value, made.low, made.high))
    dented = [point(0.2), point(0.5), point(0.4), point(0.6)]
    assert significance.labels_needed(dented, (1, 10, 100, 1000), point(0.5)).value == pytest.approx(10)


def test_label_counts_may_be_open_on_one_side_and_are_none_where_the_curve_cannot_say():
    curve, labels = [point(0.2), point(0.4), point(0.6)], (10, 100, 1000)
    more = significance.labels_needed(curve, labels, point(0.58, np.linspace(0.5, 0.66, 4001)))
    assert more.value == pytest.approx(10**2.9) and more.low < more.value and more.high == np.inf
    fewer = significance.labels_needed(curve, labels, point(0.1, np.linspace(0.1, 0.3, 4001)))
    assert (fewer.value, fewer.low) == (0, 0) and 10 < fewer.high < 100
    sure = significance.labels_needed(curve, labels, point(0.9))
    assert (sure.value, sure.low, sure.high) == (np.inf,) * 3
    assert significance.labels_needed(curve, labels, point(0.4, np.linspace(0, 0.8, 4001))) is None  # open on both sides
    falling = point(0.6, np.linspace(0.15, 1.05, 4001))  # in some draws not above the first
    assert significance.labels_needed([*curve[:2], falling], labels, point(0.5)) is None
    assert significance.labels_needed(curve[:1], labels[:1], point(0.2)) is None
    assert significance.labels_needed(curve, labels, point(0.5, seeds=(0, 1))) is None


def test_an_arm_needs_as_many_labels_as_it_has_for_what_it_reaches():
    good, _ = two_arms(np.random.default_rng(14), (10, 100, 1000))
    for runs, labels in zip(good[1:], (100, 1000), strict=True):
        made = significance.labels_needed(good, (10, 100, 1000), runs)
        assert made.value == pytest.approx(labels) and made.low <= made.value + 1e-9 and made.value <= made.high + 1e-9


def test_of_several_corpora_every_recording_weighs_the_same_and_is_drawn_within_its_own():
    rng, metric = np.random.default_rng(9), category_metrics(CLASSES)["accuracy"]
    parts = [Runs({("", 0): category_run(rng, n, name=name)}, metric, i) for i, (name, n) in enumerate((("a", 4), ("b", 12)))]
    pool = significance.Pool(parts)
    assert pool.value == pytest.approx((4 * parts[0].value + 12 * parts[1].value) / 16) and pool.total == 16
    np.testing.assert_allclose(pool.replicates, (4 * parts[0].replicates + 12 * parts[1].replicates) / 16)
    assert abs(np.corrcoef(parts[0].replicates, parts[1].replicates)[0, 1]) < 0.1  # independent draws
    assert significance.Pool(parts[:1]).estimate() == parts[0].estimate()
    other = significance.Pool([Runs({("", 0): category_run(rng, n, name=name)}, metric) for name, n in (("a", 4), ("b", 12))])
    assert 0 < pool.difference(other).p <= 1


def test_p_values_are_corrected_by_holms_steps():
    given = [significance.Estimate(0, 0, 0, p) for p in (0.01, 0.04, 0.03, None, 0.5)]
    assert [own.p for own in significance.holm([*given, None])[:5]] == pytest.approx([0.04, 0.09, 0.09, None, 0.5])


def test_pretrainings_are_drawn_before_the_seeds_that_ran_with_them():
    """Seeds whose encoders differ, and nothing else: the spread is that of the encoders, not of as many free seeds."""
    rng, metric = np.random.default_rng(10), category_metrics(CLASSES)["accuracy"]
    good, bad = (category_run(rng, 30, skill=skill) for skill in (3.0, 0.0))
    runs = {("", seed): (good, bad)[seed % 2] for seed in range(6)}
    free, nested = Runs(runs, metric), Runs(runs, metric, 0, {seed: seed % 2 for seed in range(6)})
    assert nested.value == free.value and nested.replicates.std() > 1.3 * free.replicates.std()
    alone = Runs(runs, metric, 0, {seed: seed for seed in range(6)})  # an encoder each: nothing to nest
    assert alone.replicates.std() == pytest.approx(free.replicates.std(), rel=0.1)
    np.testing.assert_array_equal(Runs(runs, metric, 0, dict.fromkeys(range(6), 0)).replicates, free.replicates)
