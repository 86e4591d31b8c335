import fcntl
import re
from pathlib import Path

import pytest

from jax_emossl import workdir
from jax_emossl.errors import UserError


def test_the_config_returns_as_it_was_given(tmp_path, tiny_config):
    config = tiny_config("scratch", {"data.norm_prior": float("inf")})
    workdir.enter(tmp_path / "a" / "run", config)
    assert workdir.read_config(tmp_path / "a" / "run").to_dict() == config.to_dict()


def test_the_same_config_may_enter_again_and_another_may_not(tmp_path, tiny_config):
    for _ in range(2):
        workdir.enter(tmp_path, tiny_config("scratch", {"data.norm_prior": float("inf")}))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="differs in data.norm_prior, num_labels: give another --workdir"):
        workdir.enter(tmp_path, tiny_config("scratch", num_labels=3))
    workdir.enter(tmp_path, tiny_config("scratch", num_labels=3), insist=True)
    assert workdir.read_config(tmp_path).num_labels == 3
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="holds a finished run, on which --insist cannot go on"):
        workdir.enter(tmp_path, tiny_config("scratch", num_labels=4), insist=True)


def test_a_comparison_goes_on_past_its_first_cell_where_it_is_insisted(tmp_path, tiny_config):
    config = tiny_config("scratch", task="compare")
    workdir.enter(tmp_path, config)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="differs in num_labels: .* or --insist to go on"):
        workdir.enter(tmp_path, tiny_config("scratch", task="compare", num_labels=3))
    workdir.enter(tmp_path, tiny_config("scratch", task="compare", num_labels=3), insist=True)
    assert workdir.read_config(tmp_path).num_labels == 3
    with pytest.raises(UserError, match="holds a finished run, on which --insist cannot go on"):
        workdir.enter(tmp_path, tiny_config("scratch"), insist=True)


def test_what_is_insisted_upon_holds_within_and_what_is_finished_there_stays(tmp_path, tiny_config):
    for folder in (tmp_path, finished := tmp_path / "pretrain" / "a", begun := tmp_path / "pretrain" / "b"):
        workdir.enter(folder, tiny_config("scratch", task="compare"))
    (finished / "results.json").write_text("{}")
    (begun / "checkpoints").mkdir()
    changed = tiny_config("scratch", task="compare", num_labels=3)
    with pytest.raises(UserError, match="differs in num_labels"):
        workdir.enter(begun, changed)
    for folder in (tmp_path, finished, begun):
        workdir.enter(folder, changed, insist=folder == tmp_path)
    assert workdir.read_config(begun).num_labels == 3 and workdir.read_config(finished).num_labels == 0


def test_a_run_that_has_not_started_may_be_corrected(tmp_path, tiny_config):
    workdir.enter(tmp_path, tiny_config("scratch", num_labels=99_999))
    workdir.enter(tmp_path, tiny_config("scratch", num_labels=3))
    assert workdir.read_config(tmp_path).num_labels == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": 3}'])
def test_a_damaged_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json is missing or damaged: give the workdir of a run"):
        workdir.read_config(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path, tiny_config):
    with open(tmp_path / workdir.LOCK_FILE, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process: wait for it to end, or give another --workdir"):
            workdir.enter(tmp_path, tiny_config("scratch"))
    workdir.enter(tmp_path, tiny_config("scratch"))


def test_the_default_folder_is_named_after_config_and_time():
    assert re.fullmatch(r"runs/finetune-\d{8}-\d{6}", str(workdir.default("configs/finetune.py:nemo")))


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    def full(self, *_):
        self.touch()
        raise OSError(28, "No space left on device")

    workdir.write_atomically(tmp_path / "results.json", b"torn")
    workdir.write_atomically(tmp_path / "results.json", "whole")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device: .*results.json"):
        workdir.write_atomically(tmp_path / "results.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "whole")]
