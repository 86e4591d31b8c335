import ml_collections
import pytest

from jax_emossl.data import corpora
from jax_emossl.errors import UserError


def rotations(folds, corpus="demo"):
    return corpora.rotations(ml_collections.ConfigDict({"folds": folds, "corpus": corpus}))


def test_the_corpus_own_folds_are_one_rotation_without_a_name():
    assert rotations("") == [("", "")]


def test_several_files_are_rotations_named_after_them():
    assert rotations("x/a.json,b.json") == [("a", "x/a.json"), ("b", "b.json")]


def test_rotations_of_the_same_name_are_refused():
    with pytest.raises(UserError, match="names a/folds.json and b/folds.json, both 'folds': rename one, rotations are told apart by it"):
        rotations("a/folds.json,x.json,b/folds.json")


def test_a_corpus_may_bring_its_rotations_along(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSSL_DATA", str(tmp_path))
    assert [name for name, _ in rotations("rotations", "nemo")] == [f"folds_rotation{i}" for i in (1, 2, 3)]
    with pytest.raises(UserError, match="'demo' has no rotations"):
        rotations("rotations")
