import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax_emossl.sweep import Member, fit_members, members_at_once, predict_members
from jax_emossl.train import fit

from jax_emossl import preemption, sweep
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.experiment import build
from jax_emossl.predict import predict

# (seed, labels, learning rate, strategy, pretrained)
GRID = [
    (0, 12, 1e-3, "full", False),
    (1, 12, 3e-3, "probe-then-full", True),
    (1, 0, 1e-3, "frozen", True),
    (2, 30, 3e-3, "full", True),
]


@pytest.fixture(scope="module")
def members(tiny_config, pretraining):
    """Objective and members of a sweep over GRID, 20 steps each."""
    first = build(tiny_config("finetune", {"train.crop": 12}, init_from=str(pretraining)))
    train, valid = first.segments("train"), first.segments("valid")
    made = []
    for seed, num_labels, rate, strategy, pretrained in GRID:
        fields = {
            "train.steps": 20, "train.eval_every": 5, "train.crop": 12, "train.strategy": strategy,
            "train.learning_rate": rate, "train.probe_steps": 6,
        }  # fmt: skip
        config = tiny_config("finetune", fields, seed=seed, num_labels=num_labels, init_from="")
        own = build(config, first.corpus, first.frontend).training_segments()
        own = train.take(own.positions)
        made.append(Member(config, own, valid, first.encoder if pretrained else None, train))
    return first.objective, made


@pytest.fixture(scope="module")
def fitted(members):
    return fit_members(*members)


def assert_equal_runs(one, other, tolerance=0.0):
    assert one.step == other.step
    assert one.value == pytest.approx(other.value, rel=tolerance)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        # A key's bias has no gradient but rounding, which Adam makes steps of: small arrays are allowed what a larger one is.
        scale = max(np.abs(b).max(), 0.1)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("i", range(len(GRID)))
def test_a_member_is_the_same_run_alone(members, fitted, i):
    objective, all_members = members
    member = all_members[i]
    alone = fit(objective, member.train, member.valid, member.config, encoder=member.encoder, background=member.background)
    assert_equal_runs(fitted[i], alone, 1e-4)


def test_a_member_does_not_depend_on_the_others(members, fitted):
    objective, all_members = members
    for i, (again,) in enumerate([fit_members(objective, [member]) for member in all_members[1:3]]):
        assert_equal_runs(again, fitted[i + 1], 1e-4)  # too few for several devices, which then share its rows
    for again, i in zip(fit_members(objective, [all_members[i] for i in (3, 0)]), (3, 0), strict=True):
        assert_equal_runs(again, fitted[i], 1e-6)


def test_predictions_of_members_are_those_made_alone(members, fitted):
    objective, all_members = members
    together = predict_members(objective, [f.params for f in fitted], [m.valid for m in all_members], 8, 8.0)
    for outputs, member, own in zip(together, all_members, fitted, strict=True):
        expected = predict(objective, own.params, member.valid, 8, 8.0)
        np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


def test_pretrainings_on_different_folds_are_members_too(tiny_config, demo_corpus):
    # Not L1, whose gradient jumps: on several devices the run alone sums in another order.
    fields = {"train.steps": 20, "train.eval_every": 10, "objective.loss": "l2"}
    config = tiny_config("pretrain", fields)
    experiment = build(config)
    train, valid = experiment.training_segments(), experiment.segments("valid")
    other = tiny_config("pretrain", fields, seed=5)
    pair = [Member(config, train, valid), Member(other, valid, experiment.segments("test"))]
    for member, together in zip(pair, fit_members(experiment.objective, pair), strict=True):
        alone = fit(experiment.objective, member.train, member.valid, member.config)
        assert_equal_runs(together, alone, 1e-4)


def test_a_stopped_sweep_goes_on_bit_identically(members, fitted, tmp_path, monkeypatch):
    objective, all_members = members
    asked = iter([False, True])
    monkeypatch.setattr(preemption, "requested", lambda: next(asked, False))
    checkpoints = Checkpoints(tmp_path, objective.selection)
    with pytest.raises(preemption.Preempted):
        fit_members(objective, all_members, checkpoints=checkpoints)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, objective.selection)
    assert checkpoints.newest() == 10
    for again, once in zip(fit_members(objective, all_members, checkpoints=checkpoints), fitted, strict=True):
        assert_equal_runs(again, once)
    checkpoints.close()


def test_early_stopping_is_each_members_own(members):
    objective, all_members = members
    patient = []
    for member in all_members:
        config = member.config.copy_and_resolve_references()
        config.train.eval_every, config.train.patience = 2, 2
        patient.append(Member(config, member.train, member.valid, member.encoder, member.background))
    for member, together in zip(patient, fit_members(objective, patient), strict=True):
        alone = fit(objective, member.train, member.valid, member.config, encoder=member.encoder, background=member.background)
        assert together.step == alone.step


def test_a_diverging_member_leaves_the_others_alone(members, fitted, capsys):
    objective, all_members = members
    broken = all_members[0].config.copy_and_resolve_references()
    broken.train.learning_rate = 1e30
    wild = Member(broken, *(getattr(all_members[0], n) for n in ("train", "valid", "encoder", "background")))
    first, second = fit_members(objective, [wild, all_members[3]])
    assert first is None and "not finite" in capsys.readouterr().err
    assert_equal_runs(second, fitted[3], 1e-6)


def test_members_must_share_what_is_compiled(members):
    objective, all_members = members
    longer = all_members[0].config.copy_and_resolve_references()
    longer.train.steps = 21
    with pytest.raises(ValueError, match="members of a sweep"):
        fit_members(objective, [all_members[1], Member(longer, all_members[0].train, all_members[0].valid)])


def test_the_memory_estimate_gives_whole_shares_and_less_for_longer_batches(members, monkeypatch):
    objective, (member, *_) = members
    monkeypatch.setattr(sweep, "_MOST_MEMBERS", {})
    monkeypatch.setattr(sweep, "_device_memory", lambda: 1e9)
    large = members_at_once(objective, member)
    monkeypatch.setattr(sweep, "_device_memory", lambda: 1e8)
    assert 1 <= members_at_once(objective, member) < large


@pytest.mark.skipif("EMOSSL_SWEEP_INNER" in os.environ, reason="already on several devices")
def test_all_of_this_holds_on_two_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "EMOSSL_SWEEP_INNER": "1"}
    chosen = "alone or others or predictions or folds or identically"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", str(Path(__file__)), "-k", chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "2 devices" not in done.stdout
