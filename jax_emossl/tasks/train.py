"""Train one model for one objective, evaluate it, and leave its numbers in the workdir."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import ml_collections

from jax_emossl import evaluation, processes, results
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.errors import UserError, notice
from jax_emossl.experiment import build, require
from jax_emossl.logs import Scalars, Unwritten
from jax_emossl.loop import fit
from jax_emossl.resident import Resident, nbytes, placement


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[dict]:
    """Trains, or goes on where an earlier run in `workdir` stopped; returns the rows of its results."""
    file = workdir / results.RESULTS_FILE
    rows = processes.of_first(lambda: results.read(file)["runs"] if file.exists() else None)
    if rows is not None:
        print(f"This run is finished.\n{results.table(rows)}")
        return rows
    with processes.as_one():
        experiment = build(config)
        if experiment.objective.labelled:
            require(experiment.corpus, "test")
    experiment.check_alike()
    card = experiment.card()
    if processes.first():
        card.save(workdir)
    train, valid = experiment.training_segments(), experiment.segments("valid")
    print(f"{experiment.name}: {placement(config.data.resident, nbytes([train, valid]), together=False)}", flush=True)
    if sentence := experiment.crop_notice(train.whole):
        notice(sentence)
    member = experiment.member(train, valid, train.whole)
    with processes.as_one():
        resident = Resident.of(config.data.resident, [train, valid], together=False)
    log = functools.partial(Scalars, workdir) if processes.first() else lambda _: Unwritten()
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        (fitted,) = fit(
            experiment.objective, [member], config,
            resident=resident, checkpoints=checkpoints, scalars=log, description=experiment.arm,
        )  # fmt: skip
        newest = checkpoints.newest()
    if fitted.diverged:
        stands = f"; checkpoints up to step {newest} are kept" if newest else ""
        raise UserError(
            f"Training diverged: {fitted.diverged}{stands}; try a lower train.learning_rate or train.clip_norm in a new workdir."
        )
    if processes.first():
        dataclasses.replace(card, calibration=fitted.calibration).save(workdir)
    rows = []
    for fold in (fold for fold in ("valid", "test") if len(experiment.segments(fold))):  # a pretraining may lack a test fold
        rows += evaluation.rows(experiment, fitted, fold, card.num_labels)
    results.write(file, rows, config)
    print(evaluation.summary(experiment, rows, valid))
    return rows
