import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_emossl.data import label_budget
from jax_emossl.errors import UserError


def one_emotion_each(seed, total=300):
    """Six emotions and neutral in unequal shares, one per segment, as in acted corpora."""
    classes = np.random.default_rng(seed).choice(7, total, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.06, 0.04])
    return 3 * np.eye(7, dtype=np.float32)[classes][:, :6]


def strata(labels):
    present = labels > 0
    return np.column_stack([present, ~present.any(1)])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), small=st.integers(1, 100), more=st.integers(0, 100))
def test_a_smaller_budget_is_a_prefix_of_a_larger(seed, small, more):
    labels = one_emotion_each(seed, 200)
    chosen = label_budget.choose(labels, small + more, seed)
    assert len(set(chosen)) == len(chosen) == small + more
    np.testing.assert_array_equal(label_budget.choose(labels, small, seed), chosen[:small])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.integers(1, 300))
def test_every_emotion_and_neutral_gets_its_share(seed, budget):
    member = strata(one_emotion_each(seed))
    chosen = label_budget.choose(one_emotion_each(seed), budget, seed)
    deviation = member[chosen].sum(0) - budget * member.mean(0)
    assert np.abs(deviation).max() < 2
    assert deviation.max() < 1 + 1e-9


def test_several_emotions_in_a_segment_are_stratified_too(demo_corpus):
    labels = np.tile(demo_corpus.fold("train").labels, (10, 1))
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    member, budget = strata(labels), 60
    for seed in range(5):
        share = member[label_budget.choose(labels, budget, seed)].mean(0)
        random = member[np.random.default_rng(seed).choice(len(labels), budget, replace=False)].mean(0)
        assert np.abs(share - member.mean(0)).max() < 0.06
        assert np.abs(share - member.mean(0)).sum() < np.abs(random - member.mean(0)).sum()


def test_rare_emotions_come_early():
    labels = one_emotion_each(0)
    chosen = label_budget.choose(labels, 30, seed=3)
    assert strata(labels)[chosen].any(0).all()


def test_the_choice_is_seeded():
    labels = one_emotion_each(0)
    np.testing.assert_array_equal(label_budget.choose(labels, 60, seed=1), label_budget.choose(labels, 60, seed=1))
    assert set(label_budget.choose(labels, 60, seed=1)) != set(label_budget.choose(labels, 60, seed=2))


def test_zero_means_all_and_the_whole_fold_can_be_asked_for():
    labels = one_emotion_each(0)
    np.testing.assert_array_equal(label_budget.choose(labels, 0, seed=5), np.arange(300))
    assert sorted(label_budget.choose(labels, 300, seed=5)) == list(range(300))


@pytest.mark.parametrize("budget", [301, -1])
def test_more_labels_than_the_fold_has_are_refused(budget):
    with pytest.raises(UserError, match=f"num_labels is {budget}, but the training fold has 300 labelled segments: give 0"):
        label_budget.choose(one_emotion_each(0), budget, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(8, 200), speakers=st.integers(2, 12))
def test_what_validates_within_a_budget_is_of_recordings_of_its_own(seed, size, speakers):
    recordings = np.random.default_rng(seed).choice([f"r{i}" for i in range(speakers)], size)
    recordings[:2] = "r0", "r1"
    taken = label_budget.held_out(recordings, seed)
    assert not set(recordings[taken]) & set(recordings[~taken]) and taken.any() and not taken.all()
    assert taken.mean() <= 0.5
    left = [np.mean(recordings == name) for name in set(recordings[~taken])]
    assert all(abs(taken.mean() + own - 0.25) > abs(taken.mean() - 0.25) - 1e-9 for own in left)  # none would bring it nearer
    np.testing.assert_array_equal(taken, label_budget.held_out(recordings, seed))


def test_labels_of_one_recording_cannot_validate_themselves():
    with pytest.raises(UserError, match="compare.validation is budget, but the 3 labels are of one recording"):
        label_budget.held_out(["a", "a", "a"], 0)
