import functools

import make_comparison
import numpy as np
import pytest
from make_comparison import CLASSES

from jax_emossl import metrics, results
from jax_emossl.arms import ARMS, Arm
from jax_emossl.comparison import Comparison
from jax_emossl.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_comparison.write(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def comparison(folder):
    return Comparison(folder)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the made-up comparison whose results.json `change(table)` has altered."""
    return functools.partial(make_comparison.copy, folder, tmp_path)


def test_arms_stand_in_the_order_of_the_registry_without_the_constant(comparison):
    assert comparison.arms("") == ["pretrained", "scratch"] and comparison.pairs("") == [("pretrained", "scratch")]


def test_an_arm_of_the_registry_from_outside_the_package_is_welcome(changed, monkeypatch):
    monkeypatch.setitem(ARMS, "toy", Arm("toy", "linear", ("random",), {}, baseline=True))

    def other(table):
        for row in table["runs"]:
            row["arm"] = {"scratch": "toy"}.get(row["arm"], row["arm"])

    assert Comparison(changed(other)).pairs("") == [("pretrained", "toy")]


def test_what_reads_the_encoder_beside_functionals_is_compared_with_these_alone(changed):
    def other(table):
        table["runs"] = [
            row | {"arm": {"pretrained": "pretrained+functionals", "scratch": "functionals"}.get(row["arm"], row["arm"])}
            for row in table["runs"]
        ]

    assert Comparison(changed(other)).pairs("") == [("pretrained+functionals", "functionals")]


def test_an_arm_that_the_registry_lacks_is_named(changed):
    with pytest.raises(
        UserError, match="results.json has rows of the arm 'magic', which is none of pretrained, frozen, .*constant: add it"
    ):
        Comparison(changed(lambda table: table["runs"][1].update(arm="magic")))


def test_confusions_count_every_rotation_and_seed(comparison):
    assert comparison.confusion("", "pretrained", 30).sum() == 90 * 2 * 2


def test_estimates_are_of_all_rotations_together(comparison, folder):
    right = {seed: [] for seed in (0, 1)}
    for seed in right:
        for rotation in "ab":
            kept = results.load_arrays(folder / "predictions" / f"{rotation}-pretrained-30-{seed}.npz")
            right[seed] += list(kept["scores"].argmax(1) == kept["target"])
    e = comparison.estimate("", "pretrained", 30, "accuracy")
    assert e.value == pytest.approx(np.mean([np.mean(own) for own in right.values()])) and e.low < e.value < e.high
    assert comparison.constant("uar") == pytest.approx(1 / 3) and comparison.constant("auroc") is None


def test_label_counts_are_ordered_by_the_labels_behind_them(changed):
    def shares(table):
        for row in table["runs"]:
            row["budget"] = {30: 0.5, 60: 60}.get(row["budget"], 0)
            row["num_labels"] = {0.5: 100, 60: 60}.get(row["budget"], 200)

    c = Comparison(changed(shares))
    assert c.budgets("", "pretrained", "scratch") == c.budgets("") == [60, 0.5, 0]
    assert [c.budget_name(budget) for budget in c.budgets("")] == ["60", "0.5 (100)", "all (200)"]


def test_label_counts_of_all_these_arms_and_of_any(changed):
    def fewer(table):
        table["runs"] = [row for row in table["runs"] if (row["arm"], row["budget"]) != ("scratch", 60)]

    c = Comparison(changed(fewer))
    assert c.budgets("", "pretrained", "scratch") == [30, 0] and c.budgets("") == c.budgets("", "pretrained") == [30, 60, 0]


def test_a_difference_waits_for_both_arms_seeds(changed):
    def under_way(table):
        table["runs"] = [r for r in table["runs"] if r["arm"] != "scratch" or (r["folds"], r["seed"]) != ("b", 1)]

    c = Comparison(changed(under_way))
    assert c.difference("", "pretrained", "scratch", 30, "uar") is None
    assert c.runs("", "scratch", 30, "uar").seeds == [0]


def test_rotations_without_a_common_seed_are_refused(changed):
    def apart(table):
        table["runs"] = [row for row in table["runs"] if (row["folds"], row["seed"]) in (("a", 0), ("b", 1))]

    c = Comparison(changed(apart))
    with pytest.raises(UserError, match="results.json: the rotations of scratch with 30 labels have no seed in common: run its command"):
        c.estimate("", "scratch", 30, "uar")


def test_a_recording_that_two_rotations_test_is_refused(changed):
    out = changed(lambda table: None)
    for file in (out / "predictions").glob("b-*.npz"):
        make_comparison.keep(out, file.stem, recordings=np.repeat(["b0", "a1", "b2"], 30))
    with pytest.raises(UserError, match="results.json: the rotations 'a' and 'b' both test the recording 'a1', which may be tested once"):
        Comparison(out)


def test_two_variants_test_the_same_recordings(changed):
    def variants(table):
        for row in table["runs"]:
            row["variant"] = row["folds"]
        table["runs"] += [row | {"folds": "b", "variant": "a"} for row in table["runs"] if row["folds"] == "b"]

    c = Comparison(changed(variants))
    assert c.variants == ["a", "b"] and c.recordings == 8


def test_a_comparison_without_a_finished_cell_has_no_report_yet(changed):
    def constants(table):
        table["runs"] = [row for row in table["runs"] if row["arm"] == "constant"]

    with pytest.raises(UserError, match="results.json has no finished cell yet: run its command again"):
        Comparison(changed(constants))


def test_results_of_another_task_have_no_report(changed):
    with pytest.raises(UserError, match="holds no comparison"):
        Comparison(changed(lambda table: [row.pop("budget") for row in table["runs"]]))


@pytest.mark.parametrize(("name", "value"), [("classes", ["neutral", "sad", "happy"]), ("fold", "valid")])
def test_rotations_that_cannot_be_judged_together_are_refused(changed, name, value):
    def other(table):
        for row in table["runs"]:
            if row["folds"] == "b":
                row[name] = value

    with pytest.raises(UserError, match=f"results.json: the {name} of its rows differ, .* rotation 'b' .*: give each a --workdir"):
        Comparison(changed(other))


def test_a_config_without_the_prior_is_refused(changed):
    with pytest.raises(UserError, match="results.json has no number as config.data.norm_prior: run the experiment anew"):
        Comparison(changed(lambda table: table["config"].clear()))


@pytest.mark.parametrize(
    "arrays",
    [
        {"scores": np.zeros((90, 2))},
        {"scores": np.zeros(90)},
        {"scores": np.full((90, 3), "x")},
        {"target": np.zeros((90, 3))},
        {"target": np.zeros(90)},
        {"target": np.full(90, 3)},
        {"recordings": np.array("a0")},
        {"recordings": np.full(89, "a0")},
        {"scores": np.zeros((0, 3)), "target": np.zeros(0, int), "recordings": np.zeros(0, str)},
    ],
)
def test_predictions_that_do_not_fit_are_named(changed, arrays):
    out = changed(lambda table: None)
    make_comparison.keep(out, "a-scratch-30-0", **arrays)
    with pytest.raises(UserError, match="a-scratch-30-0.npz does not fit results.json: run the experiment anew"):
        Comparison(out)


def test_predictions_of_other_segments_are_named(changed):
    out = changed(lambda table: None)
    make_comparison.keep(out, "b-scratch-30-0", recordings=np.repeat(["b2", "b1", "b0"], 30))
    with pytest.raises(UserError, match="b-scratch-30-0.npz is of other segments .*: the corpus has changed"):
        Comparison(out)


def test_damaged_predictions_are_named(changed):
    out = changed(lambda table: None)
    file = out / "predictions" / "a-scratch-30-0.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="a-scratch-30-0.npz is missing or damaged"):
        Comparison(out)


def test_a_class_that_training_lacks_counts_as_missed(changed):
    out = changed(lambda table: None)
    for file in (out / "predictions").glob("a-*.npz"):
        target = results.load_arrays(file)["target"]
        target[:10] = metrics.UNSEEN - 1
        make_comparison.keep(out, file.stem, target=target)
    c, expected = Comparison(out), []
    for seed in (0, 1):
        both = [results.load_arrays(out / "predictions" / f"{rotation}-pretrained-30-{seed}.npz") for rotation in "ab"]
        scores, target = (np.concatenate([own[name] for own in both]) for name in ("scores", "target"))
        expected.append(metrics.category_report(scores, target, CLASSES)[0])
    for name in c.headline:
        assert c.estimate("", "pretrained", 30, name).value == pytest.approx(np.mean([own[name] for own in expected]))
    assert c.confusion("", "pretrained", 30).sum() == (180 - 10) * 2
