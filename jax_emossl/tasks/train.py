"""Train one model for one objective, evaluate it, and leave its numbers in the workdir."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from jax_emossl import results
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.data.batches import Segments
from jax_emossl.experiment import Experiment, build
from jax_emossl.logs import Scalars
from jax_emossl.predict import predict
from jax_emossl.train import Fitted, fit


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[dict]:
    """Trains, or goes on where an earlier run in `workdir` stopped; returns the rows of its results."""
    file = workdir / results.RESULTS_FILE
    if file.exists():
        rows = results.read(file)["runs"]
        print(f"This run is finished.\n{results.table(rows)}")
        return rows
    experiment = build(config)
    experiment.card().save(workdir)
    train = experiment.training_segments()
    valid = experiment.segments("valid")
    checkpoints = Checkpoints(workdir, experiment.objective.selection)
    try:
        fitted = fit(
            experiment.objective, train, valid, config,
            encoder=experiment.encoder,
            background=experiment.segments("train"),
            checkpoints=checkpoints,
            scalars=lambda step: Scalars(workdir, step),
            description=experiment.arm,
        )  # fmt: skip
    finally:
        checkpoints.close()
    rows = [row for fold in ("valid", "test") for row in evaluate(experiment, fitted, fold, len(train))]
    results.write(file, rows, config)
    print(summary(experiment, rows, valid))
    return rows


def evaluate(experiment: Experiment, fitted: Fitted, fold: str, num_labels: int) -> list[dict]:
    """The rows of the model and of the constant predictor on one fold."""
    config, objective = experiment.config, experiment.objective
    segments = experiment.segments(fold)
    outputs = predict(objective, fitted.params, segments, config.train.batch_size, config.data.bucket_growth)
    train_labels = experiment.corpus.fold("train").labels
    labels = 0 if experiment.arm == "pretrain" else num_labels
    selection = {"fold": "valid", "metric": objective.selection, "value": fitted.value}
    model = objective.metrics(outputs, segments.labels, fitted.calibration)
    constant = objective.constant(outputs, segments.labels, train_labels)
    return [
        results.row(experiment.corpus, experiment.arm, labels, config.seed, fold, fitted.step, selection, model),
        results.row(experiment.corpus, "constant", len(train_labels), config.seed, fold, None, None, constant),
    ]


def summary(experiment: Experiment, rows: list[dict], valid: Segments) -> str:
    """The table of a run, with what a reader must know to judge it."""
    return f"{context(experiment, valid)}\n{results.table(rows)}"


def context(experiment: Experiment, valid: Segments) -> str:
    """Corpus, validation fold and normalisation, in words."""
    synthetic = " (SYNTHETIC)" if experiment.corpus.synthetic else ""
    prior = experiment.frontend.prior
    own = (
        ""
        if prior == float("inf")
        else f"\nFeatures and pooled statistics are normalised with each recording's own frames, test recordings too (transductive, prior {prior:g} s)."
    )
    return (
        f"Corpus {experiment.corpus.name}{synthetic}. Steps and thresholds are chosen on the validation fold: "
        f"{len(valid)} segments of {len(set(valid.recordings))} recordings.{own}"
    )
