"""Folds from a file (what is refused: test_prepare.py) and from the CMU SDK."""

import importlib.util
import json

import pytest

from jax_emossl.data.folds import in_several, read_folds, read_speakers
from jax_emossl.errors import UserError


def test_ids_are_sorted_and_named_once(tmp_path):
    (tmp_path / "folds.json").write_text(json.dumps({"test": ["c"], "train": ["b", "a", "b"], "valid": []}))
    folds = read_folds(tmp_path / "folds.json")
    assert list(folds.items()) == [("train", ["a", "b"]), ("valid", []), ("test", ["c"])]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.json cannot be read as a JSON file of folds"):
        read_folds(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a JSON file of speakers"),
        ('["a"]', 'must hold who speaks in each recording: write it as {"recording": "speaker", ...}'),
        ("{}", "must hold who speaks in each recording"),
        ('{"a": "ann", "b": null}', "gives the recording 'b' no name of a speaker: write one, or leave the recording out"),
        ('{"a": " "}', "gives the recording 'a' no name"),
    ],
)
def test_a_map_of_speakers_that_is_none_is_refused(text, message, tmp_path):
    (tmp_path / "speakers.json").write_text(text)
    with pytest.raises(UserError) as refused:
        read_speakers(tmp_path / "speakers.json")
    assert str(tmp_path / "speakers.json") in str(refused.value) and message in str(refused.value)


def test_a_speaker_in_two_folds_is_refused_but_in_the_standard_ones_told():
    members, speakers = {"train": ["a", "b"], "valid": ["c"], "test": ["d", "e"]}, {"a": "ann", "b": "bea", "d": "bea", "e": "bea"}
    with pytest.raises(
        UserError, match=r"f.json has the speaker 'bea' in two folds, train \(b\) and test \(d\): keep all of a speaker in one"
    ):
        in_several("f.json", members, speakers)
    assert in_several("cmu_mosei", members, speakers) == ["bea"]
    assert in_several("f.json", members, {"a": "ann", "b": "ann"}) == []


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
