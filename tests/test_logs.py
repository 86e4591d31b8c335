import json

import pytest

from jax_emossl.errors import UserError
from jax_emossl.logs import Scalars


def write(folder, resume_step, *steps):
    log = Scalars(folder, resume_step)
    for step in steps:
        log.write(step, {"train/loss": step / 10})
    log.close()


def test_rows_are_json_for_programs_and_events_for_tensorboard(tmp_path):
    write(tmp_path, 0, 1, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.1}\n{"step": 2, "train/loss": 0.2}\n'
    assert [path for path in tmp_path.glob("events.out.tfevents.*") if path.stat().st_size > 50]


def test_on_resuming_rows_after_the_checkpoint_and_half_written_ones_go(tmp_path):
    write(tmp_path, 0, 1, 2, 3, 4)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "trai')
    write(tmp_path, 2, 3, 4)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_what_is_not_a_number_is_not_logged(tmp_path):
    log = Scalars(tmp_path, 0)
    with pytest.raises(ValueError):
        log.write(1, {"train/loss": float("nan")})
    log.close()


def test_every_row_is_on_disk_at_once(tmp_path):
    log = Scalars(tmp_path, 0)
    log.write(1, {"train/loss": 0.1})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.1}\n'
    assert b"train/loss" in events.read_bytes()
    log.close()


def test_a_row_that_is_no_text_is_written_anew(tmp_path):
    write(tmp_path, 0, 1, 2)
    (tmp_path / "metrics.jsonl").write_bytes((tmp_path / "metrics.jsonl").read_bytes().replace(b"2", b"\xff"))
    write(tmp_path, 1, 2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_full_disk_is_one_sentence(tmp_path):
    log = Scalars(tmp_path, 0)
    log._file.close()
    log._file = open("/dev/full", "w")
    with pytest.raises(UserError, match="metrics.jsonl cannot be written .No space left on device.: free some space there"):
        log.write(1, {"train/loss": 0.1})
