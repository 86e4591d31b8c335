import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pickle
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from conftest import ROOT, same

from jax_emossl import checkpoint, preemption, programs, standards, tuned
from jax_emossl import mesh as meshes
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.data.indices import Sampler, in_order
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.logs import Scalars
from jax_emossl.loop import _Run, fit, train_step
from jax_emossl.optimizer import Optimizer, Rates
from jax_emossl.predictor import predict
from jax_emossl.resident import Resident
from jax_emossl.tasks import train as task


class Recorder:
    """Takes the place of checkpoints on disk: remembers the variables that each would hold, of the first member."""

    def __init__(self):
        self.snapshots = {}

    def latest(self, like):
        self.save(like)

    def due(self):
        return True

    def save(self, snapshot):
        self.snapshots[snapshot.step] = jax.tree.map(lambda leaf: np.array(leaf)[0], snapshot.variables)


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


def run(config, log=None, corpus=None, recorder=None):
    """One training as a command runs it, without a workdir: how it ended, and its variables at every checkpoint."""
    experiment, recorder = build(config, corpus), recorder or Recorder()
    member = experiment.member(experiment.training_segments(), experiment.segments("valid"), experiment.segments("train"))
    (fitted,) = fit(experiment.objective, [member], config, checkpoints=recorder, scalars=None if log is None else lambda _: log)
    return fitted, recorder.snapshots


def stop_at(monkeypatch, step):
    """A signal asks to stop during the step."""
    steps = itertools.count(1)
    monkeypatch.setattr(preemption, "requested", lambda: next(steps) == step)


# A run alone


def metrics_rows(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def saved_sums(folder):
    """SHA-256 of all that the last checkpoint holds: variables, optimiser state, best variables and progress."""
    return json.loads((folder / checkpoint.FOLDER / "6" / "sha256" / "metadata").read_text())


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def scratch(tiny_config, trained):
    """Workdir of a tiny training from scratch."""
    return trained(tiny_config("scratch"))[0]


@pytest.fixture(scope="module")
def from_scratch(tiny_config):
    """How the same ended, its variables at every checkpoint, and its log."""
    log = Log()
    return *run(tiny_config("scratch"), log), log


def assert_same_run(folder, whole):
    assert json.loads((folder / "results.json").read_text())["runs"] == json.loads((whole / "results.json").read_text())["runs"]
    assert metrics_rows(folder) == metrics_rows(whole)
    assert [row["step"] for row in metrics_rows(folder)] == [2, 3, 4, 6, 6]
    assert saved_sums(folder) == saved_sums(whole)
    same(checkpoint.load_best(folder).variables, checkpoint.load_best(whole).variables)


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(("name", "row"), [("pretrain", 2), ("scratch", 3)])
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(name, row, tiny_config, trained, tmp_path, monkeypatch, request):
    """Evaluations at 2, 4 and 6, training losses logged at 3 and 6: the run ends after a row between two checkpoints."""
    written = []

    class Interrupted(Scalars):
        def write(self, step, scalars):
            super().write(step, scalars)
            written.append(step)
            if len(written) == row:
                raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(task, "Scalars", Interrupted)
        with pytest.raises(PowerCut):
            trained(tiny_config(name), tmp_path)
    assert {folder.name for folder in (tmp_path / checkpoint.FOLDER).iterdir()} == {"2"}
    assert not (tmp_path / "results.json").exists()
    trained(tiny_config(name), tmp_path)
    assert_same_run(tmp_path, request.getfixturevalue({"pretrain": "pretraining"}.get(name, name)))


@pytest.mark.parametrize(("name", "step"), [("pretrain", 5), ("scratch", 1), ("scratch", 4)])
def test_a_stopped_run_saves_the_step_and_resumes_as_if_nothing_had_happened(
    name, step, tiny_config, trained, tmp_path, monkeypatch, request
):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(preemption.Preempted):
            trained(tiny_config(name), tmp_path)
    assert str(step) in {folder.name for folder in (tmp_path / checkpoint.FOLDER).iterdir()}
    assert not (tmp_path / "results.json").exists()
    trained(tiny_config(name), tmp_path)
    assert_same_run(tmp_path, request.getfixturevalue({"pretrain": "pretraining"}.get(name, name)))


def test_a_signal_to_stop_waits_for_few_steps(tiny_config, monkeypatch):
    config, made, late = tiny_config("pretrain"), [], []
    config.train.update({"steps": 8, "eval_every": 8, "log_every": 8, "batch_size": 128})  # slower than what feeds them
    advance = _Run.advance

    def recorded(own, now, batch):
        now, sums = advance(own, now, batch)
        made.append(sums["loss"])
        return now, sums

    monkeypatch.setattr(_Run, "advance", recorded)
    monkeypatch.setattr(preemption, "requested", lambda: late.append(sum(not loss.is_ready() for loss in made)))
    run(config)
    assert len(late) == 8 and max(late) <= 3


def test_a_finished_run_started_again_gives_the_same_results(tiny_config, trained, pretraining):
    before = files(pretraining)
    _, rows = trained(tiny_config("pretrain"), pretraining)
    assert rows == json.loads((pretraining / "results.json").read_text())["runs"]
    assert before == files(pretraining)


def test_a_run_is_a_function_of_its_seed(tiny_config, from_scratch):
    snapshots = from_scratch[1]
    same(run(tiny_config("scratch"))[1], snapshots)
    other = run(tiny_config("scratch", seed=4))[1]
    for step in (0, 6):
        kernels = (own[step]["params"]["encoder"]["projection"]["kernel"] for own in (snapshots, other))
        assert not np.allclose(*kernels)


def test_a_training_whose_steps_are_resident_is_the_same(tiny_config, trained, scratch, capsys):
    folder, _ = trained(tiny_config("scratch", {"data.resident": "memory"}))
    assert "GB of model steps, resident on every device" in capsys.readouterr().out
    made, expected = (checkpoint.load_best(own) for own in (folder, scratch))
    assert made.step == expected.step
    for a, b in zip(jax.tree.leaves(made.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(np.abs(b).max(), 0.1))


def test_a_probe_leaves_the_encoder_bit_identical_while_the_head_learns(tiny_config, pretraining):
    _, snapshots = run(tiny_config("finetune", {"train.strategy": "probe"}, init_from=str(pretraining)))
    encoder = checkpoint.load_best(pretraining).variables["params"]["encoder"]
    for step in (0, 2, 4, 6):
        same(snapshots[step]["params"]["encoder"], encoder)
    same(snapshots[6]["constants"], snapshots[0]["constants"])  # which only the encoder changes
    assert not any(leaf.any() for leaf in jax.tree.leaves(snapshots[0]["params"]["head"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(snapshots[6]["params"]["head"]))


def test_probe_then_full_leaves_the_encoder_alone_during_the_probe(tiny_config, pretraining):
    _, snapshots = run(tiny_config("finetune", {"train.probe_steps": 4}, init_from=str(pretraining)))
    encoder = checkpoint.load_best(pretraining).variables["params"]["encoder"]
    for step in (0, 2, 4):
        same(snapshots[step]["params"]["encoder"], encoder)
    assert np.abs(snapshots[6]["params"]["encoder"]["projection"]["kernel"] - encoder["projection"]["kernel"]).max() > 0
    assert all(leaf.any() for leaf in jax.tree.leaves(snapshots[2]["params"]["head"]))


def test_full_training_moves_the_encoder_from_the_first_step(tiny_config):
    _, snapshots = run(tiny_config("scratch", {"train.strategy": "full"}))
    first, second = (snapshots[step]["params"]["encoder"]["projection"]["kernel"] for step in (0, 2))
    assert np.abs(second - first).max() > 0


def test_the_step_with_the_best_validation_value_is_chosen(from_scratch):
    fitted, snapshots, log = from_scratch
    values = log.values("valid/auroc")
    assert list(values) == [2, 4, 6]
    assert (fitted.step, fitted.value) == max(values.items(), key=lambda item: item[1])
    assert not fitted.diverged and len(fitted.calibration["threshold"]) == 6
    assert dict(fitted.evaluations) == values
    same(fitted.variables, snapshots[fitted.step])


def test_training_stops_early_when_validation_no_longer_improves(tiny_config, trained, tmp_path):
    config, log = tiny_config("scratch", {"train.learning_rate": 0.0, "train.patience": 1}), Log()
    fitted, snapshots = run(config, log)
    assert (fitted.step, list(snapshots)) == (2, [0, 2, 4])
    _, rows = trained(config, tmp_path)
    (tmp_path / "results.json").unlink()
    assert trained(config, tmp_path)[1] == rows  # also where it was stopped after its last step
    assert {folder.name for folder in (tmp_path / checkpoint.FOLDER).iterdir()} == {"2", "4"}


def test_the_logged_loss_is_the_mean_over_all_masked_steps_since_the_last(tiny_config):
    config, log = tiny_config("pretrain", {"train.learning_rate": 0.0}), Log()
    variables = run(config, log)[1][0]
    experiment = build(config)
    segments, loss = experiment.training_segments(), jax.jit(experiment.objective.loss)
    sampler = Sampler(segments.lengths, 8, experiment.frontend.steps(config.train.crop), 8.0)
    step_key = jax.random.split(jax.random.key(0))[1]
    keys, progress = jax.vmap(lambda step: jax.random.fold_in(step_key, step))(np.arange(6)), np.arange(1, 7, dtype=np.float32) / 6
    sums = [loss(variables, segments.gather(sampler.indices(0, step)), keys[step], progress[step]) for step in range(6)]
    for logged, steps in ((3, sums[:3]), (6, sums[3:])):
        count = sum(float(count) for _, count, _ in steps)
        expected = sum(float(total) for total, _, _ in steps) / count, sum(float(s["loss_of_constant"]) for _, _, s in steps) / count
        assert (log.values("train/loss")[logged], log.values("train/loss_of_constant")[logged]) == pytest.approx(expected, rel=1e-5)
    assert list(log.values("train/gradient_norm")) == [3, 6] and "train/count" not in log.rows[1][1]


def test_a_batch_in_parts_gives_the_loss_and_the_gradient_of_the_whole(tiny_config, demo_corpus):
    """Without masks and dropout, which every part draws anew; of padded rows and of rows that do not count, too."""
    fields = {"train.dropout": 0.0, "objective.dropout": 0.0}
    experiment = build(tiny_config("scratch", fields), demo_corpus)
    objective, segments, params = experiment.objective, experiment.segments("train"), experiment.params()
    batch = segments.gather(Sampler(segments.lengths, 8, 0, 8.0).indices(0, 0)) | {"weight": np.array([1] * 5 + [0] * 3, np.float32)}
    pooled = objective.predict({"params": params}, batch)
    constants = jax.device_get(objective.constants(pooled, batch["basis"]))
    stepped = {}
    for parts in (1, 4):
        optimizer = dataclasses.replace(Optimizer.make(experiment.config.train), accumulate=parts)
        state = optimizer.transformation().init(params)
        rates = Rates.make(experiment.config.train)
        step = jax.jit(functools.partial(train_step, objective, optimizer))
        variables = {"params": params, "constants": constants}
        stepped[parts] = step(rates, jax.random.key(0), variables, state, np.int32(0), batch)
    (_, moments, sums), (_, expected, whole) = stepped[4], stepped[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), moments, expected)


def test_pretraining_learns_what_the_visible_steps_tell_of_the_masked(tiny_config, demo_corpus):
    def waves(fold):
        mean, deviation = np.nan_to_num(demo_corpus.train_statistics.mean), np.sqrt(np.nan_to_num(demo_corpus.train_statistics.variance))
        phase = np.arange(len(fold.frames))[:, None] / 60 + np.arange(74)
        return dataclasses.replace(fold, frames=(mean + deviation * np.sin(phase)).astype(np.float32))

    corpus = dataclasses.replace(demo_corpus, folds={name: waves(fold) for name, fold in demo_corpus.folds.items()})
    fields = {"train.steps": 100, "train.eval_every": 100, "train.log_every": 25, "train.learning_rate": 1e-2}
    fields |= {"data.norm_prior": float("inf"), "objective.ratio": 0.3, "objective.span": 0.0, "objective.statistics_weight": 0.0}
    log = Log()
    run(tiny_config("pretrain", fields), log, corpus)
    losses, constant = log.values("train/loss"), log.values("train/loss_of_constant")
    assert losses[100] < 0.5 * losses[25] and losses[100] < 0.3 * constant[100]


@pytest.mark.parametrize("name", ["pretrain", "scratch"])
@pytest.mark.parametrize("eval_every", [1, 2])
def test_divergence_stops_a_run_with_a_sentence(name, eval_every, tiny_config, trained):
    fields = {"train.learning_rate": 1e30, "train.eval_every": eval_every}
    with pytest.raises(UserError, match="Training diverged: .* is not finite.*lower train.learning_rate"):
        trained(tiny_config(name, fields))


def test_a_batch_that_the_devices_cannot_share_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(meshes, "make", lambda members: types.SimpleNamespace(shape={"members": 1, "data": 4}))
    with pytest.raises(UserError, match="train.batch_size is 7, but must be a positive multiple of the 4 devices"):
        run(tiny_config("scratch", {"train.batch_size": 7}))


# The head's standards


def test_the_heads_standards_are_the_same_in_training_and_in_prediction(tiny_config, from_scratch):
    """All the training segments are in the reference, as no recording has more than 32."""
    _, snapshots, _ = from_scratch
    experiment = build(tiny_config("scratch"))
    objective, train = experiment.objective, experiment.segments("train")
    without = dataclasses.replace(objective, dropout=0.0, encoder=objective.encoder.clone(dropout=0.0))
    loss = jax.jit(without.loss)
    ((order,),) = in_order([train.lengths], len(train), 8.0)
    for step in (0, 4):
        variables = snapshots[step]
        pooled = np.zeros_like(predict_rows(objective, variables, train.gather(order)))
        pooled[order.segments] = predict_rows(objective, variables, train.gather(order))
        known = variables["constants"]
        for name, values in standards.overall(pooled).items():
            np.testing.assert_allclose(known["overall"][name], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(known["vectors"][: len(train)], pooled, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(
            known["order"], np.pad(train.basis[:, 0], (0, 64 - len(train)), constant_values=-1)
        )  # a length of the grid
        (outputs,) = predict(objective, [variables], [train], 8, 8.0)
        expected = np.asarray(objective.levels.loss(outputs["scores"], train.labels)).mean(1)
        for (selection,) in itertools.islice(in_order([train.lengths], 8, 8.0), 2):
            total, _, _ = loss(variables, train.gather(selection), jax.random.key(0))
            assert float(total) == pytest.approx(expected[selection.segments].sum(), rel=1e-4)
    assert np.abs(snapshots[4]["constants"]["overall"]["location"] - snapshots[0]["constants"]["overall"]["location"]).max() > 1e-4


def predict_rows(objective, variables, batch):
    return np.asarray(jax.jit(objective.predict)(variables, batch)["pooled"])


def test_the_heads_standards_change_at_evaluations_alone(tiny_config, monkeypatch):
    recorder = Recorder()
    stop_at(monkeypatch, 5)
    with pytest.raises(preemption.Preempted):
        run(tiny_config("scratch"), recorder=recorder)
    made = recorder.snapshots
    assert list(made) == [0, 2, 4, 5]
    same(made[5]["constants"], made[4]["constants"])
    same(made[2]["constants"], made[0]["constants"])  # of an encoder that the probe leaves alone
    assert not np.array_equal(*(made[step]["constants"]["overall"]["location"] for step in (2, 4)))
    assert not np.array_equal(*(made[step]["params"]["encoder"]["projection"]["kernel"] for step in (4, 5)))


# Many at once

# (seed, labels, learning rate, strategy, pretrained)
GRID = [
    (0, 12, 1e-3, "full", False),
    (1, 12, 3e-3, "probe-then-full", True),
    (1, 0, 1e-3, "probe", True),
    (2, 30, 3e-3, "full", True),
]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is trained together; `resident` as in a comparison."""

    objective: object
    members: list
    config: object
    resident: object = None

    def fit(self, members=None, checkpoints=None, resident=True, advance=lambda share: None, **settings):
        config = self.config.copy_and_resolve_references()
        config.train.update(settings)
        own = self.resident if resident else None
        return fit(self.objective, members or self.members, config, resident=own, checkpoints=checkpoints, advance=advance)


@pytest.fixture(scope="module")
def sweep(tiny_config, pretraining):
    first = build(tiny_config("finetune", init_from=str(pretraining)))
    train, valid = first.segments("train"), first.segments("valid")
    members = []
    for seed, num_labels, rate, strategy, pretrained in GRID:
        fields = {"train.strategy": strategy, "train.learning_rate": rate}
        config = tiny_config("finetune", fields, seed=seed, num_labels=num_labels, init_from="")
        own = dataclasses.replace(first, config=config, encoder=first.encoder if pretrained else None)
        members.append(own.member(train.take(own.training_segments().positions), valid, train))
    return Sweep(first.objective, members, first.config, Resident([train, valid]))


@pytest.fixture(scope="module")
def fitted(sweep):
    return sweep.fit()


@pytest.fixture(scope="module")
def pretrainings(tiny_config):
    """Two at once, on different folds, with a smooth loss: rounding may turn the sign of an L1 error."""
    one, other = (build(tiny_config("pretrain", {"objective.loss": "l2"}, seed=seed)) for seed in (0, 5))
    train, valid, test = one.training_segments(), one.segments("valid"), one.segments("test")
    return Sweep(one.objective, [one.member(train, valid, train), other.member(valid, test, valid)], one.config)


@pytest.fixture(scope="module")
def pretrained_together(pretrainings):
    return pretrainings.fit()


def assert_equal_runs(one, other, tolerance=0.0):
    assert one.step == other.step and one.diverged == other.diverged
    assert one.value == pytest.approx(other.value, rel=tolerance)
    for a, b in zip(*(jax.tree.leaves(without_filler(own.variables)) for own in (one, other)), strict=True):
        # A key's bias has no gradient but rounding, which Adam makes steps of: small arrays are allowed what a larger one is.
        scale = max(np.abs(b).max(), 0.1)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)
    for name, values in one.outputs.items():
        np.testing.assert_allclose(values, other.outputs[name], rtol=10 * tolerance, atol=10 * tolerance)


def without_filler(variables):
    """The variables without the rows by which members' references are made equally long."""
    if not variables["constants"]:
        return variables
    real = variables["constants"]["order"] >= 0
    return variables | {"constants": {name: variables["constants"][name][real] for name in ("vectors", "order")}}


@pytest.mark.parametrize("i", range(len(GRID)))
def test_a_member_is_the_same_run_alone(i, sweep, fitted):
    """Alone, nothing is resident: features are sent batch by batch."""
    (alone,) = sweep.fit([sweep.members[i]], resident=False)
    assert_equal_runs(fitted[i], alone, 1e-4)


def test_a_member_does_not_depend_on_the_others(sweep, fitted):
    chosen = (3, 0, 1, 1)
    for again, i in zip(sweep.fit([sweep.members[i] for i in chosen]), chosen, strict=True):
        assert_equal_runs(again, fitted[i], 1e-6)


def test_members_differ(fitted):
    """So that what is equal above means something."""
    kernels = [own.variables["params"]["head"]["readout"]["kernel"] for own in fitted]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(kernels, 2))


def test_members_read_batch_by_batch_are_those_whose_steps_are_resident(sweep, fitted):
    for member, own in zip(sweep.fit(resident=False), fitted, strict=True):
        assert_equal_runs(member, own, 1e-4)


def test_a_member_is_the_same_run_alone_whatever_the_others_pad_it_to(sweep):
    """One has short segments only: alone, its batches are shorter than beside the other's. Dropout and all else are the same."""
    one, other = (dataclasses.replace(member, crop=0) for member in sweep.members[:2])
    train = one.train.whole
    short = dataclasses.replace(one, train=train.take(np.flatnonzero(train.lengths <= 24)))
    config = sweep.config.copy_and_resolve_references()
    config.data.bucket_growth = 3.0
    buckets = dataclasses.replace(sweep, config=config)
    for members, length in (([short], 24), ([short, other], 72)):
        batches = _Run.of(sweep.objective, members, config, meshes.make(len(members)), sweep.resident).batches(0, 5)
        assert max(batch["places"].shape for batch in batches) == (len(members), 8, length)
    (alone,), together = buckets.fit([short]), buckets.fit([short, other])
    assert_equal_runs(together[0], alone, 1e-4)


def test_predictions_of_members_are_those_made_alone(sweep, fitted):
    together = predict(sweep.objective, [own.variables for own in fitted], [member.valid for member in sweep.members], 8, 8.0)
    for outputs, member, own in zip(together, sweep.members, fitted, strict=True):
        (expected,) = predict(sweep.objective, [own.variables], [member.valid], 8, 8.0)
        for said in (outputs, own.outputs):
            np.testing.assert_allclose(said["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


def test_programs_serve_other_label_counts_too(sweep, monkeypatch):
    """Tracing calls `predict`; what an earlier evaluation has told makes no other program of the next."""
    traced, kind = [], type(sweep.objective)
    original = kind.predict
    monkeypatch.setattr(kind, "predict", lambda *given: traced.append(1) or original(*given))
    programs.forget()
    run = _Run.of(sweep.objective, sweep.members, sweep.config, meshes.make(len(sweep.members)), sweep.resident)
    now = run.begin()
    before = len(traced)
    run.read(now.variables, [()] * len(sweep.members))
    assert len(traced) == before > 0
    sweep.fit()
    before = len(traced)
    fewest = sweep.members[0]
    sweep.fit([dataclasses.replace(member, train=fewest.train, reference=fewest.reference) for member in sweep.members])
    assert len(traced) == before


def test_pretrainings_on_different_folds_are_members_too(pretrainings, pretrained_together):
    for member, together in zip(pretrainings.members, pretrained_together, strict=True):
        (alone,) = pretrainings.fit([member])
        assert_equal_runs(together, alone, 1e-4)


@pytest.mark.parametrize("step", [2, 5], ids=["at an evaluation", "between two"])
def test_a_stopped_sweep_goes_on_bit_identically(step, sweep, fitted, tmp_path, monkeypatch):
    shares = []
    with monkeypatch.context() as patch, contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        stop_at(patch, step)
        with pytest.raises(preemption.Preempted):
            sweep.fit(checkpoints=checkpoints, advance=shares.append)
    assert sum(shares) == pytest.approx(step / 6)
    shares.clear()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.newest() == step
        for again, once in zip(sweep.fit(checkpoints=checkpoints, advance=shares.append), fitted, strict=True):
            assert_equal_runs(again, once)
            assert [own for own, _ in once.evaluations] == [2, 4, 6] and list(again.evaluations) == list(once.evaluations)
    assert shares[0] == pytest.approx(step / 6) and sum(shares) == pytest.approx(1)


def test_a_sweep_that_is_saved_less_often_goes_on_from_its_last_save(sweep, fitted, tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, every=1e6)) as checkpoints:
        sweep.fit(checkpoints=checkpoints)
        assert checkpoints.newest() == 2  # the first evaluation, of three
    with contextlib.closing(Checkpoints(tmp_path, every=1e6)) as checkpoints:
        for again, once in zip(sweep.fit(checkpoints=checkpoints), fitted, strict=True):
            assert_equal_runs(again, once)


def test_early_stopping_is_each_members_own(sweep):
    patient = {"eval_every": 1, "patience": 1}
    together = sweep.fit(**patient)
    for member, own in zip(sweep.members, together, strict=True):
        assert_equal_runs(own, sweep.fit([member], resident=False, **patient)[0], 1e-4)
    assert len({own.step for own in together}) > 1


def wild(member):
    return dataclasses.replace(member, rates=dataclasses.replace(member.rates, learning_rate=np.float32(1e30)))


def test_a_diverging_member_leaves_the_others_alone(sweep, fitted):
    first, *others = sweep.fit([wild(sweep.members[0]), *sweep.members[1:]])
    assert (first.variables, first.step, first.value) == (None, None, None) and "not finite" in first.diverged
    for own, expected in zip(others, fitted[1:], strict=True):
        assert_equal_runs(own, expected, 1e-6)


def test_what_diverges_in_an_evaluation_leaves_the_others_alone(pretrainings, pretrained_together):
    one, other = pretrainings.members
    first, second = pretrainings.fit([wild(one), other], eval_every=1)
    assert (first.variables, first.value) == (None, None)
    assert first.diverged == "a value of loss at step 1 is not finite on the validation fold"
    assert second.step == 5  # the last step has no learning rate left: it changes nothing, and is looked at alone in the other run
    assert_equal_runs(dataclasses.replace(second, step=6), pretrained_together[1], 1e-6)


def test_a_sweep_ends_when_all_its_members_have_diverged(sweep, tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        ended = sweep.fit([wild(member) for member in sweep.members], checkpoints)
        assert checkpoints.newest() is None  # nothing is worth going on from
    assert all(own.variables is None and own.diverged for own in ended)


def test_the_memory_estimate_gives_whole_shares_and_less_for_longer_batches(sweep, tiny_config, monkeypatch):
    study = types.SimpleNamespace(segments={"train": sweep.members[0].train.whole})
    training = build(tiny_config("scratch", {"train.crop": 1.92}))
    whole = build(tiny_config("scratch"))
    assert tuned._members_at_once(study, training) == 20 // jax.device_count() * jax.device_count()  # more gain nothing on a CPU
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 10**9})
    params = training.params()
    monkeypatch.setattr(type(training), "params", lambda self: params)
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda: [device] * 3)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    large = tuned._members_at_once(study, training)
    assert large % 3 == 0 and large > tuned._members_at_once(study, whole) >= 3
    device.memory_stats = lambda: {"bytes_limit": 10**8}
    assert 3 <= tuned._members_at_once(study, training) < large
    device.memory_stats = lambda: {"bytes_limit": 1}
    assert tuned._members_at_once(study, training) == 3  # one each, whatever the estimate says


ON_DEVICES = """
import contextlib, itertools, pickle, sys
from pathlib import Path
from jax_emossl import loop, mesh, preemption
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.predictor import predict
from jax_emossl.resident import Resident

source, target = map(Path, sys.argv[1:3])

def stopped(*own, resident):
    folder = Path(sys.argv[3]) / str(len(own[1]))
    steps = itertools.count(1)
    preemption.requested = lambda: next(steps) == 3
    for _ in range(2):
        with contextlib.closing(Checkpoints(folder)) as checkpoints, contextlib.suppress(preemption.Preempted):
            ended = loop.fit(*own, resident=resident, checkpoints=checkpoints)
    return ended

made = []
for objective, members, config in pickle.loads(source.read_bytes()):
    shape, folds = mesh.make(len(members)).shape, dict.fromkeys(part.whole for m in members for part in (m.train, m.valid))
    resident = Resident(list(folds)) if objective.labelled else None
    ended = loop.fit(objective, members, config, resident=resident)
    again = stopped(objective, members, config, resident=resident) if resident else None
    outputs = predict(objective, [own.variables for own in ended], [member.valid for member in members], 8, 8.0, resident=resident)
    made.append(((shape["members"], shape["data"]), ended, again, outputs))
target.write_bytes(pickle.dumps(made))
"""


@pytest.mark.parametrize(("devices", "shapes"), [(2, [(2, 1), (1, 2)]), (4, [(2, 2), (1, 4), (2, 2)])])
def test_all_of_this_holds_on_several_devices(devices, shapes, request, sweep, fitted, tmp_path):
    """As on one device, this one: on two all members, and one; on four two of them, one, and two pretrainings."""
    chosen = {2: [[0, 1, 2, 3], [2]], 4: [[1, 3], [2]]}[devices]
    runs = [((sweep.objective, [sweep.members[i] for i in own], sweep.config), [fitted[i] for i in own]) for own in chosen]
    if devices == 4:
        own = request.getfixturevalue("pretrainings")
        runs.append(((own.objective, own.members, own.config), request.getfixturevalue("pretrained_together")))
    (tmp_path / "runs").write_bytes(pickle.dumps([own for own, _ in runs]))
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", ON_DEVICES, *(str(tmp_path / name) for name in ("runs", "made", "workdir"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    made = pickle.loads((tmp_path / "made").read_bytes())
    assert [own[0] for own in made] == shapes
    for (_, ended, again, outputs), ((objective, members, _), expected) in zip(made, runs, strict=True):
        for i, once in enumerate(expected):
            assert_equal_runs(ended[i], once, 1e-4)
            if again:
                assert_equal_runs(again[i], ended[i])
            (alone,) = predict(objective, [once.variables], [members[i].valid], 8, 8.0)
            for name, values in alone.items():
                np.testing.assert_allclose(outputs[i][name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max())
