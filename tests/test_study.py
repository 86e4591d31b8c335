"""What the arms of a comparison share is made once."""

import types

import numpy as np
import pytest

from jax_emossl import config as configs
from jax_emossl import study as module
from jax_emossl.experiment import build
from jax_emossl.study import Study


@pytest.fixture
def read(monkeypatch):
    """The folds that encoders read, in turn; what they make of a segment is its length and its place."""
    folds = []

    def represent(encoder, params, segments, *sizes):
        folds.extend(segments)
        return {fold: np.stack([part.lengths, part.positions], 1).astype(np.float32) for fold, part in segments.items()}

    monkeypatch.setattr(module, "represent", represent)
    return folds


@pytest.fixture
def study(comparison_config):
    config = comparison_config.copy_and_resolve_references()
    config.data.resident = "mapped"
    return Study.make(config, [build(configs.part(config, "finetune"))])


def test_an_encoder_reads_a_fold_once_and_the_training_fold_only_where_a_probe_does(study, read):
    shown = study.represented("random", 0, "test")  # as the report's pictures do
    assert read == ["test"] and len(shown) == len(study.reported)
    for _ in range(2):
        vectors = study.vectors("random", 0)
    assert sorted(read) == ["test", "train", "valid"] and {fold: len(own) for fold, own in vectors.items()} == {
        fold: len(own) for fold, own in study.segments.items()
    }
    study.vectors("random", 1)  # another encoder
    assert sorted(read) == ["test", "test", "train", "train", "valid", "valid"]


def test_linear_arms_read_what_heads_do(study, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "represent", lambda encoder, params, segments, *rest: asked.append(rest[-1]) or dict.fromkeys(segments))
    for reads in ("encoder", "summary"):
        objective = types.SimpleNamespace(encoder=None, reads=reads)
        training = types.SimpleNamespace(objective=objective, params=lambda: {"encoder": {}}, sizes=(8, 8.0))
        monkeypatch.setattr(Study, "training", lambda *_, training=training: training)
        study.encoded.clear()
        study.represented("random", 0, "test")
    assert asked == ["encoder", "summary"]


def test_few_segments_have_as_many_components_as_they_have_directions(study):
    """One more would be rounding, which whitening makes as large as the rest, and larger on other folds."""
    few = {fold: own[:5] for fold, own in study.vectors("functionals", 0).items()}
    study.known["functionals", 0] = few
    components = study.vectors("pca", 0)
    assert {fold: own.shape for fold, own in components.items()} == dict.fromkeys(few, (5, 4))
    np.testing.assert_allclose(components["train"].std(0, ddof=1), 1, rtol=1e-3)


def test_what_is_mapped_is_not_resident(study):
    assert study.resident is None
