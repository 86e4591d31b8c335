import dataclasses
import json

import numpy as np
import pytest

from jax_emossl import card as cards
from jax_emossl.card import Card
from jax_emossl.checkpoint import FOLDER
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError

STATISTICS = Statistics(np.array([1.0, np.nan]), np.array([4.0, np.nan]), seconds=600.0)
FRONTEND = Frontend(("a", "b"), STATISTICS, 180.0, 5.0, 2, 8, 0.01)
PRETRAINING = Card({"name": "transformer", "width": 16}, FRONTEND, "demo", ("happy", "sad"), ("rec_a", "rec_b"))
FINETUNING = dataclasses.replace(
    PRETRAINING, head="intensity", classes=("happy", "sad"), num_labels=12, calibration=[0.5, None]
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / FOLDER).mkdir()
    return tmp_path


def table(card=FINETUNING):
    """A card as JSON."""
    return json.loads(json.dumps(dataclasses.asdict(card) | {"frontend": card.frontend.to_json()}))


@pytest.mark.parametrize("card", [PRETRAINING, FINETUNING], ids=["pretraining", "finetuning"])
def test_a_card_returns_as_it_was_saved(card, folder):
    card.save(folder)
    again = Card.load(folder)
    assert again.frontend.to_json() == FRONTEND.to_json()
    assert dataclasses.replace(again, frontend=card.frontend) == card


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "null", "\ufeffnonsense", "[" * 100_000])
def test_a_damaged_card_is_refused(text, folder):
    (folder / cards.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="card.json is damaged .*: train anew"):
        Card.load(folder)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Card) if field.name != "calibration"])
def test_a_card_that_lacks_a_field_is_refused(field, folder):
    (folder / cards.FILE).write_text(json.dumps({name: value for name, value in table().items() if name != field}))
    with pytest.raises(UserError, match="card.json is damaged .*: train anew"):
        Card.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("frontend", []),
        ("corpus", None),
        ("emotions", "happy"),
        ("recordings", [1]),
        ("head", 2),
        ("classes", {"happy": 1}),
        ("num_labels", "12"),
        ("colour", "blue"),
    ],
)
def test_a_card_with_a_field_of_another_kind_is_refused(field, value, folder):
    (folder / cards.FILE).write_text(json.dumps(table() | {field: value}))
    with pytest.raises(UserError, match="card.json is damaged .*: train anew"):
        Card.load(folder)


@pytest.mark.parametrize(("field", "value"), [("pool", 0), ("clip", -1.0), ("frame_seconds", 0.0), ("names", ["a"])])
def test_a_card_whose_frontend_makes_no_sense_is_refused(field, value, folder):
    own = table()
    own["frontend"][field] = value
    (folder / cards.FILE).write_text(json.dumps(own))
    with pytest.raises(UserError, match="is damaged"):
        Card.load(folder)


def test_a_card_without_its_frontends_statistics_is_refused(folder):
    own = table()
    own["frontend"]["train"]["mean"] = own["frontend"]["train"]["mean"][:-1]
    (folder / cards.FILE).write_text(json.dumps(own))
    with pytest.raises(UserError, match="is damaged"):
        Card.load(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="init_from is '.*', which holds no checkpoint: give the workdir of a finished pretraining"):
        Card.load(tmp_path)
    FINETUNING.save(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Card.load(tmp_path)
