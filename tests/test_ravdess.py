import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs import pretrain
from jax_emossl.data import corpora, csd
from jax_emossl.data.corpora import nemo, ravdess


@pytest.fixture(scope="module")
def corpus():
    if not os.environ.get("EMOSSL_DATA") or not Path(ravdess.files().features).is_file():
        pytest.skip("EMOSSL_DATA is not set, or has no folder ravdess: RAVDESS is not at hand")
    return corpora.load(pretrain.get_config("ravdess").data)


def test_the_files_load_with_all_segments_and_actors(corpus):
    with csd.Sequence(ravdess.files().labels) as labels:
        assert len(labels.ids) == 24 and sum(labels.shape(id_)[0] for id_ in labels.ids) == 1440
    folds = [corpus.fold(name) for name in ("train", "valid", "test")]
    assert [len(fold) for fold in folds] == [720, 240, 480]
    assert [len(set(fold.recordings)) for fold in folds] == [12, 4, 8]
    assert len(set().union(*(fold.recordings for fold in folds))) == 24
    assert (corpus.name, corpus.synthetic, len(corpus.features)) == ("ravdess", False, 25)
    assert corpus.emotions == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    assert all(np.isfinite(fold.frames).all() for fold in folds)


def test_every_segment_has_one_emotion_of_intensity_2_or_3_or_none(corpus):
    for name in ("train", "valid", "test"):
        labels = corpus.fold(name).labels
        assert set(np.unique(labels)) == {0, 2, 3} and ((labels > 0).sum(1) <= 1).all() and labels.any(0).all()


def test_its_rotations_test_every_actor_once(corpus):
    data = pretrain.get_config("ravdess").data
    data.folds = "rotations"
    found = corpora.rotations(data)
    tested = [actor for _, folds in found for actor in json.loads(Path(folds).read_text())["test"]]
    assert len(found) == 3 and len(tested) == len(set(tested)) == 24


def test_it_has_the_features_of_nemo(corpus):
    if not Path(nemo.files().features).is_file():
        pytest.skip("EMOSSL_DATA has no folder nemo")
    with csd.Sequence(nemo.files().features) as file:
        assert tuple(file.metadata["dimension names"]) == corpus.features
