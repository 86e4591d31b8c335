import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import same

from jax_emossl import checkpoint
from jax_emossl.card import Card
from jax_emossl.checkpoint import Checkpoints, Snapshot
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.loop import fit


def variables(step):
    """Those of one member after a step."""
    params = {"encoder": {"kernel": np.full((2, 3), step, np.float32)}, "head": {"bias": np.arange(3, dtype=np.float32) / (step + 3)}}
    return {"params": params, "constants": {"overall": {"location": np.arange(4, dtype=np.float32) + step}}}


def snapshot(step, best_step):
    """A run's, of one member: its arrays have a leading axis."""

    def stacked(step):
        return jax.tree.map(lambda leaf: jnp.array(leaf[None]), variables(step))

    own = {"best_step": best_step, "value": 0.1 * step, "calibration": [0.5, None]}
    state = {"mu": stacked(step)["params"], "count": jnp.full(1, step, jnp.int32)}
    return Snapshot(step, stacked(step), state, stacked(best_step), {"members": [own], "unlogged": []})


def test_the_latest_two_are_kept_the_newest_returns_exactly_and_holds_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 6):
        checkpoints.save(snapshot(step, best_step=min(step, 2)))
    checkpoints.close()
    assert {int(folder.name) for folder in (tmp_path / checkpoint.FOLDER).iterdir()} == {4, 5}
    latest, expected = newest(tmp_path, snapshot(0, 0)), snapshot(5, 2)
    assert (latest.step, latest.progress) == (5, expected.progress)
    for name in ("variables", "opt_state", "best"):
        same(getattr(latest, name), getattr(expected, name))
    best = checkpoint.load_best(tmp_path)
    assert (best.step, best.calibration) == (2, [0.5, None])
    same(best.variables, variables(2))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(best.variables))


def test_saves_that_can_wait_are_so_far_apart(tmp_path, monkeypatch):
    now = itertools.count(1000, 20)
    monkeypatch.setattr(checkpoint, "monotonic", lambda: next(now))
    rare, often = Checkpoints(tmp_path / "rare", every=60), Checkpoints(tmp_path / "often")
    assert rare.due()
    rare.save(snapshot(1, 1))  # by the clock, 20 s later
    assert [rare.due() for _ in range(4)] == [False, False, True, True]
    often.save(snapshot(1, 1))
    assert often.due()
    rare.close()
    often.close()


def test_a_sweep_keeps_all_its_members(tmp_path):
    two = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf + 1]), snapshot(3, 1).best)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(dataclasses.replace(snapshot(3, 1), best=two))
    checkpoints.close()
    same(newest(tmp_path, dataclasses.replace(snapshot(0, 0), best=two)).best, two)
    same(checkpoint.load_best(tmp_path).variables, variables(1))  # of the first


def test_a_run_that_was_never_evaluated_has_no_best_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1, 1))
    checkpoints.close()
    never = snapshot(2, 1)
    never.progress["members"][0]["best_step"] = None
    checkpoints = Checkpoints(tmp_path / "other")
    checkpoints.save(never)
    checkpoints.close()
    assert checkpoint.load_best(tmp_path).step == 1  # saved when stopped, after an evaluation
    with pytest.raises(UserError, match="holds no complete checkpoint: run its training first"):
        checkpoint.load_best(tmp_path / "other")


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint: give the workdir of a finished run"):
        checkpoint.load_best(tmp_path)


def test_a_save_is_not_touched_by_the_steps_after_it(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 100, tree), donate_argnums=0)
    checkpoints, now = Checkpoints(tmp_path), snapshot(1, 1)
    checkpoints.save(now)
    advance(now.variables["params"])
    advance(now.opt_state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    same(checkpoints.latest(snapshot(0, 0)).variables, snapshot(1, 1).variables)
    checkpoints.close()


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(snapshot(step, 1))
    checkpoints.close()
    for item in ("variables", "best"):
        for file in (tmp_path / checkpoint.FOLDER / "2" / item).rglob("*"):
            if file.is_file():
                file.write_bytes(b"\0" * file.stat().st_size)
    assert checkpoint.load_best(tmp_path).step == 1
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest(snapshot(0, 0)).step == 1
    checkpoints.close()


def test_transfer_copies_exactly_the_encoder(tiny_config, pretraining):
    experiment = build(tiny_config("finetune", init_from=str(pretraining)))
    pretrained = checkpoint.load_best(pretraining).variables["params"]
    same(experiment.encoder, pretrained["encoder"])
    fresh = build(tiny_config("pretrain")).params()
    assert not np.allclose(fresh["encoder"]["projection"]["kernel"], experiment.encoder["projection"]["kernel"])  # it was trained

    transferred, scratch = experiment.params(), dataclasses.replace(experiment, encoder=None).params()
    same(transferred["encoder"], pretrained["encoder"])
    same(transferred["head"], scratch["head"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(transferred["head"]))
    assert jax.tree.structure(transferred) == jax.tree.structure(scratch)


def test_fitting_starts_from_the_transferred_encoder(tiny_config, pretraining):
    config = tiny_config("finetune", {"train.strategy": "probe"}, init_from=str(pretraining))
    experiment = build(config)
    member = experiment.member(experiment.training_segments(), experiment.segments("valid"), experiment.segments("train"))
    (fitted,) = fit(experiment.objective, [member], config)
    same(fitted.variables["params"]["encoder"], checkpoint.load_best(pretraining).variables["params"]["encoder"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(fitted.variables["params"]["head"]))


def test_the_card_of_a_pretraining_tells_what_it_has_seen(pretraining, demo_corpus):
    card = Card.load(pretraining)
    assert card.recordings == tuple(sorted(demo_corpus.train_recordings)) and card.emotions == demo_corpus.emotions
    assert (card.corpus, card.head, card.classes) == ("demo", "", ())


@pytest.mark.parametrize(("field", "value"), [("width", 32), ("layers", 2), ("heads", 1)])
def test_a_model_of_another_shape_is_refused_with_the_mend(field, value, tiny_config, pretraining):
    with pytest.raises(UserError, match=rf"has model.{field}=\d+ where the config has {value}: give --config.model.{field}="):
        build(tiny_config("finetune", {f"model.{field}": value}, init_from=str(pretraining)))


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_refused(tiny_config, pretraining, tmp_path):
    (tmp_path / checkpoint.FOLDER).mkdir()
    Card.load(pretraining).save(tmp_path)
    with pytest.raises(UserError, match="holds no complete checkpoint: run its training first"):
        build(tiny_config("finetune", init_from=str(tmp_path)))


# Damage


def saved(folder, *steps):
    """Checkpoints of these steps, the first of which is the best."""
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(snapshot(step, steps[0]))
    checkpoints.close()


def newest(folder, like=None):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.latest(like or snapshot(0, 0))
    finally:
        checkpoints.close()


@pytest.mark.parametrize("item", ["progress/metadata", "sha256/metadata", "variables/_METADATA", "opt_state/_METADATA"])
@pytest.mark.parametrize("damage", [lambda text: b"\0" * len(text), lambda text: text[: len(text) // 2], lambda text: b""])
def test_damaged_metadata_set_a_checkpoint_aside(item, damage, tmp_path, capsys):
    saved(tmp_path, 1, 2)
    file = tmp_path / checkpoint.FOLDER / "2" / item
    file.write_bytes(damage(file.read_bytes()))
    assert checkpoint.load_best(tmp_path).step == 1
    assert newest(tmp_path).step == 1
    assert [folder.name.split("-")[0] for folder in (tmp_path / checkpoint.DAMAGED_FOLDER).iterdir()] == ["2"]
    assert f"the checkpoint of step 2 in {tmp_path} is damaged: it is moved to {tmp_path}/damaged and not used." in capsys.readouterr().err


def test_damage_to_what_the_library_reads_of_all_checkpoints_is_one_sentence_and_its_mend_works(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1, best_step=1))
    checkpoints.close()
    (file,) = (tmp_path / checkpoint.FOLDER).glob("*/_CHECKPOINT_METADATA")
    told = json.loads(file.read_text()) | {"custom_metadata": {"a": 1}, "commit_timetrics": 2}
    file.write_text(json.dumps(told))
    for read in (Checkpoints, checkpoint.load_best):
        with pytest.raises(UserError, match=r"_CHECKPOINT_METADATA is damaged \(.*commit_timetrics.*\): delete it"):
            read(tmp_path)
    file.unlink()
    same(checkpoint.load_best(tmp_path).variables, variables(1))


def test_a_changed_number_in_the_progress_is_damage(tmp_path):
    saved(tmp_path, 1, 2)
    file = tmp_path / checkpoint.FOLDER / "2" / "progress" / "metadata"
    text = file.read_text()
    assert '"value": 0.2' in text
    file.write_text(text.replace('"value": 0.2', '"value": 0.3'))
    assert newest(tmp_path).step == 1


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_in_silence(tmp_path):
    saved(tmp_path, 1, 2)
    for step in "12":
        (tmp_path / checkpoint.FOLDER / step / "progress" / "metadata").write_bytes(b"")
    with pytest.raises(UserError, match="All checkpoints in .* are damaged: start anew in another --workdir"):
        newest(tmp_path)


def test_an_intact_checkpoint_of_other_shapes_is_refused_and_stays(tmp_path):
    saved(tmp_path, 1, 2)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    wider = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 7)), snapshot(0, 0).variables)
    for change in ({"variables": wider, "best": wider}, {"opt_state": {"nu": wider, "count": jnp.zeros(1, jnp.int32)}}):
        like = dataclasses.replace(snapshot(0, 0), **change)
        with pytest.raises(UserError, match="of step 2 in .* has other shapes than the config: start in another --workdir"):
            newest(tmp_path, like)
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_damaged_checkpoint_does_not_pass_for_one_of_other_shapes(tmp_path):
    saved(tmp_path, 1, 2)
    file = tmp_path / checkpoint.FOLDER / "2" / "opt_state" / "_METADATA"
    file.write_text(file.read_text().replace("kernel", "colonel"))
    assert newest(tmp_path).step == 1


def test_what_the_loop_does_during_a_save_is_not_in_it(tmp_path):
    checkpoints, now = Checkpoints(tmp_path), snapshot(1, 1)
    checkpoints.save(now)
    now.progress["members"][0]["value"] = "later"
    checkpoints.close()
    assert newest(tmp_path).progress == snapshot(1, 1).progress


@pytest.mark.parametrize("error", [ValueError("step 1 exists"), RuntimeError("RESOURCE_EXHAUSTED: out of memory")])
def test_only_errors_of_the_disk_blame_the_disk(error, tmp_path):
    with pytest.raises(type(error), match=str(error)):
        with checkpoint._storage(tmp_path):
            raise error
    for full in (OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")):
        with pytest.raises(UserError, match="cannot be saved .*No space left on device.*: free some space there and run the same command"):
            with checkpoint._storage(tmp_path):
                raise full


def test_an_unfinished_run_to_start_from_is_told_of(tmp_path, tiny_config, pretraining, capsys):
    build(tiny_config("finetune", init_from=str(pretraining)))
    assert "is not finished" not in capsys.readouterr().err
    unfinished = shutil.copytree(pretraining, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    build(tiny_config("finetune", init_from=str(unfinished)))
    assert f"notice: {unfinished} is not finished (it has no results.json): its best step so far, 6, is used." in capsys.readouterr().err
