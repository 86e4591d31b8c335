"""Folds from a file (what is refused: test_prepare.py) and from the CMU SDK."""

import importlib.util
import json

import pytest

from jax_emossl.data.folds import read_folds
from jax_emossl.errors import UserError


def test_ids_are_sorted_and_named_once(tmp_path):
    (tmp_path / "folds.json").write_text(json.dumps({"test": ["c"], "train": ["b", "a", "b"], "valid": []}))
    folds = read_folds(tmp_path / "folds.json")
    assert list(folds.items()) == [("train", ["a", "b"]), ("valid", []), ("test", ["c"])]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.json cannot be read as a JSON file of folds"):
        read_folds(tmp_path / "none.json")


def test_standard_folds_of_cmu_mosei():
    if importlib.util.find_spec("mmsdk") is None:
        pytest.skip("the CMU SDK (cmu-multimodal-sdk) is not installed")
    folds = read_folds("cmu_mosei")
    assert {fold: len(ids) for fold, ids in folds.items()} == {"train": 2250, "valid": 300, "test": 678}
    assert "7l3BNtSE0xc" in folds["test"]


def test_without_the_sdk_the_standard_folds_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmu-multimodal-sdk"):
        read_folds("cmu_mosei")
