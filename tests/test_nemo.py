import os
from pathlib import Path

import numpy as np
import pytest

from configs import pretrain, scratch
from jax_emossl.data import corpora, csd, label_budget
from jax_emossl.data.corpora import nemo
from jax_emossl.experiment import build


@pytest.fixture(scope="module")
def corpus():
    if not os.environ.get("EMOSSL_DATA") or not Path(nemo.files().features).is_file():
        pytest.skip("EMOSSL_DATA is not set, or has no folder nemo: nEMO is not at hand")
    return corpora.load(pretrain.get_config("nemo").data)


def test_the_files_load_with_all_segments_and_recordings(corpus):
    with csd.Sequence(nemo.files().labels) as labels:
        assert len(labels.ids) == 9 and sum(labels.shape(id_)[0] for id_ in labels.ids) == 4481
    folds = [corpus.fold(name) for name in ("train", "valid", "test")]
    assert sum(len(fold) for fold in folds) == 4481
    assert [len(set(fold.recordings)) for fold in folds] == [6, 1, 2]
    assert len(set().union(*(fold.recordings for fold in folds))) == 9
    assert (corpus.name, corpus.synthetic, len(corpus.features)) == ("nemo", False, 25)
    assert corpus.emotions == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    assert all(np.isfinite(fold.frames).all() for fold in folds)


def test_every_segment_has_one_emotion_of_intensity_3_or_none(corpus):
    for name in ("train", "valid", "test"):
        labels = corpus.fold(name).labels
        assert set(np.unique(labels)) == {0, 3} and ((labels > 0).sum(1) <= 1).all() and not labels[:, 4].any()


def test_the_head_is_category_with_the_six_classes_there_are(corpus):
    objective = build(scratch.get_config("nemo"), corpus).objective
    assert objective.classes == ("neutral", "happy", "sad", "anger", "surprise", "fear") and objective.selection == "uar"


def test_sixty_labels_are_spread_over_the_classes(corpus):
    labels = corpus.fold("train").labels
    chosen = labels[label_budget.choose(labels, 60, seed=0)]
    counts = [*(chosen > 0).sum(0), (chosen == 0).all(1).sum()]
    assert sum(counts) == 60 and counts[4] == 0
    assert min(count for emotion, count in enumerate(counts) if emotion != 4) >= 8
