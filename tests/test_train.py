import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import same
from jax_emossl.train import fit

from jax_emossl import checkpoint, mesh, workdir
from jax_emossl.data.indices import Sampler
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.logs import Scalars
from jax_emossl.tasks import train as task


class Recorder:
    """Takes the place of checkpoints on disk: remembers what each would hold."""

    def __init__(self):
        self.snapshots = {}

    def latest(self, like):
        self.snapshots[0] = jax.tree.map(np.asarray, like.params)

    def save(self, snapshot, value):
        self.snapshots[snapshot.step] = jax.tree.map(np.asarray, snapshot.params)

    def newest(self):
        return None


class Log:
    """Takes the place of the log."""

    def __init__(self):
        self.rows = []

    def write(self, step, scalars):
        self.rows.append((step, scalars))

    def values(self, name):
        """What was logged under a name, by step."""
        return {step: row[name] for step, row in self.rows if name in row}

    def close(self):
        pass


def run(config, log=None, corpus=None):
    experiment, recorder = build(config, corpus), Recorder()
    fitted = fit(
        experiment.objective, experiment.training_segments(), experiment.segments("valid"), config,
        encoder=experiment.encoder, background=experiment.segments("train"),
        checkpoints=recorder, scalars=None if log is None else lambda _: log,
    )  # fmt: skip
    return fitted, recorder.snapshots


def metrics_rows(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(("name", "row"), [("pretrain", 2), ("scratch", 3)])
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(name, row, tiny_config, trained, tmp_path, monkeypatch):
    """Evaluations at 2, 4 and 6, training losses logged at 3 and 6: the run ends after a row between two checkpoints."""
    config, written, last = tiny_config(name), [], {}

    class Interrupted(Scalars):
        def write(self, step, scalars):
            super().write(step, scalars)
            written.append(step)
            if len(written) == row:
                raise PowerCut

    class Remembered(checkpoint.Checkpoints):
        def save(self, snapshot, value):
            last[self._workdir] = jax.tree.map(np.asarray, dataclasses.asdict(snapshot))
            super().save(snapshot, value)

    monkeypatch.setattr(task, "Checkpoints", Remembered)
    whole, rows = trained(config)
    with monkeypatch.context() as patch:
        patch.setattr(task, "Scalars", Interrupted)
        with pytest.raises(PowerCut):
            trained(config, tmp_path)
    assert last[tmp_path]["step"] == 2
    assert not (tmp_path / "results.json").exists()

    assert trained(config, tmp_path)[1] == rows
    assert metrics_rows(tmp_path) == metrics_rows(whole)
    assert [r["step"] for r in metrics_rows(tmp_path)] == [2, 3, 4, 6, 6]
    assert last[whole]["step"] == 6
    same(last[tmp_path], last[whole])  # parameters, optimiser state, best parameters and progress
    same(checkpoint.load_best_params(tmp_path), checkpoint.load_best_params(whole))


def test_a_finished_run_started_again_gives_the_same_results(tiny_config, trained, pretraining):
    before = {path: path.stat().st_mtime_ns for path in pretraining.rglob("*") if path.is_file() and path.name != ".lock"}
    _, rows = trained(tiny_config("pretrain"), pretraining)
    assert rows == json.loads((pretraining / "results.json").read_text())["runs"]
    assert before == {path: path.stat().st_mtime_ns for path in pretraining.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_run_is_a_function_of_its_seed(tiny_config):
    same(run(tiny_config("scratch", seed=3))[1], run(tiny_config("scratch", seed=3))[1])
    a, b = run(tiny_config("scratch", seed=3))[1][0], run(tiny_config("scratch", seed=4))[1][0]
    assert not np.allclose(a["encoder"]["projection"]["kernel"], b["encoder"]["projection"]["kernel"])


def test_a_frozen_encoder_stays_bit_identical_while_the_head_learns(tiny_config, pretraining):
    _, snapshots = run(tiny_config("finetune", {"train.strategy": "frozen"}, init_from=str(pretraining)))
    encoder = checkpoint.load_best_params(pretraining)[1]["encoder"]
    for step in (0, 2, 4, 6):
        same(snapshots[step]["encoder"], encoder)
    assert not any(leaf.any() for leaf in jax.tree.leaves(snapshots[0]["head"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(snapshots[6]["head"]))
    same(snapshots[6]["standard"], snapshots[0]["standard"])


def test_probe_then_full_leaves_the_encoder_alone_during_the_probe(tiny_config, pretraining):
    _, snapshots = run(tiny_config("finetune", {"train.probe_steps": 4}, init_from=str(pretraining)))
    encoder = checkpoint.load_best_params(pretraining)[1]["encoder"]
    for step in (0, 2, 4):
        same(snapshots[step]["encoder"], encoder)
    assert np.abs(snapshots[6]["encoder"]["projection"]["kernel"] - encoder["projection"]["kernel"]).max() > 0
    assert all(leaf.any() for leaf in jax.tree.leaves(snapshots[2]["head"]))


def test_full_training_moves_the_encoder_from_the_first_step(tiny_config):
    _, snapshots = run(tiny_config("scratch"))
    assert np.abs(snapshots[2]["encoder"]["projection"]["kernel"] - snapshots[0]["encoder"]["projection"]["kernel"]).max() > 0


def test_the_step_with_the_best_validation_value_is_chosen(tiny_config):
    log = Log()
    fitted, snapshots = run(tiny_config("scratch"), log)
    values = log.values("valid/auroc")
    assert list(values) == [2, 4, 6]
    assert (fitted.step, fitted.value) == max(values.items(), key=lambda item: item[1])
    same(fitted.params, snapshots[fitted.step])


def test_training_stops_early_when_validation_no_longer_improves(tiny_config):
    log = Log()
    fitted, snapshots = run(tiny_config("scratch", {"train.learning_rate": 0.0, "train.patience": 1}), log)
    assert (fitted.step, list(snapshots)) == (2, [0, 2, 4])


def test_the_logged_loss_is_the_mean_over_all_masked_steps_since_the_last(tiny_config):
    config, log = tiny_config("pretrain", {"train.learning_rate": 0.0}), Log()
    params = run(config, log)[1][0]
    experiment = build(config)
    segments, loss = experiment.training_segments(), jax.jit(experiment.objective.loss)
    sampler = Sampler(segments.lengths, 8, config.train.crop, 8.0)
    step_key = jax.random.split(jax.random.key(0))[1]
    sums = [loss(params, segments.gather(sampler.indices(0, step)), jax.random.fold_in(step_key, step)) for step in range(3)]
    count = sum(float(count) for _, count, _ in sums)
    expected = sum(float(total) for total, _, _ in sums) / count, sum(float(s["loss_of_constant"]) for _, _, s in sums) / count
    logged = log.values("train/loss")[3], log.values("train/loss_of_constant")[3]
    assert logged == pytest.approx(expected, rel=1e-5)


def test_pretraining_learns_what_the_visible_steps_tell_of_the_masked(tiny_config, demo_corpus):
    def waves(fold):
        mean, deviation = np.nan_to_num(demo_corpus.train_statistics.mean), np.sqrt(np.nan_to_num(demo_corpus.train_statistics.variance))
        phase = np.arange(len(fold.frames))[:, None] / 60 + np.arange(74)
        return dataclasses.replace(fold, frames=(mean + deviation * np.sin(phase)).astype(np.float32))

    corpus = dataclasses.replace(demo_corpus, folds={name: waves(fold) for name, fold in demo_corpus.folds.items()})
    fields = {"train.steps": 100, "train.eval_every": 100, "train.log_every": 25, "train.learning_rate": 1e-2}
    log = Log()
    fields |= {"data.norm_prior": float("inf"), "objective.ratio": 0.3, "objective.span": 1, "objective.statistics": 0.0}
    run(tiny_config("pretrain", fields), log, corpus)
    losses, constant = log.values("train/loss"), log.values("train/loss_of_constant")
    assert losses[100] < 0.5 * losses[25] and losses[100] < 0.3 * constant[100]


def test_divergence_stops_the_run_loudly(tiny_config):
    with pytest.raises(UserError, match="Training diverged: .* is not finite.*lower train.learning_rate"):
        run(tiny_config("scratch", {"train.learning_rate": 1e30}))


@pytest.mark.parametrize("size", [7, 0, -8])
def test_a_batch_that_the_devices_cannot_share_is_refused(size, tiny_config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(UserError, match=f"train.batch_size is {size}, but must be a positive multiple of the 4 devices"):
        run(tiny_config("scratch", {"train.batch_size": size}))
    mesh.check_batch_size(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train.strategy": "thaw"}, "train.strategy is 'thaw': choose one of full, frozen, probe-then-full"),
        ({"data.loader": "carrier pigeon"}, "data.loader is 'carrier pigeon': choose one of memory, tf.data"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message, tiny_config):
    with pytest.raises(UserError, match=message):
        run(tiny_config("scratch", fields))


def test_a_workdir_holds_one_run(tiny_config, pretraining):
    with pytest.raises(UserError, match="belongs to a run whose config differs in objective.ratio, seed: give another --workdir"):
        workdir.enter(pretraining, tiny_config("pretrain", {"objective.ratio": 0.1}, seed=9))
