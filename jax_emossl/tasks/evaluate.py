"""Evaluate the best checkpoint of a finished run on a fold."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from jax_emossl import checkpoint, mesh, results, workdir
from jax_emossl.data.prepared import FOLDS
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.predict import predict
from jax_emossl.tasks import train
from jax_emossl.train import Fitted


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Evaluates the run in `config.init_from` on its own corpus, or on what `config.data` names instead."""
    if config.fold not in FOLDS:
        raise UserError(f"fold is '{config.fold}': choose one of {', '.join(FOLDS)}.")
    if not config.init_from:
        raise UserError("init_from is not given: name the workdir of a finished run with --config.init_from=DIR.")
    source = Path(config.init_from)
    card = checkpoint.EncoderCard.load(source)
    trained = workdir.read_config(source)
    trained.init_from = ""
    trained.data.update({field: value for field, value in config.data.items() if value})
    experiment = build(trained, frontend=card.frontend)
    card.frontend.check_features(experiment.corpus.features, source)
    unknown = sorted(set(experiment.corpus.emotions) ^ set(card.emotions))
    if unknown:
        raise UserError(
            f"{source} and the corpus {experiment.corpus.name} disagree on the emotion '{unknown[0]}': evaluate on labels with {', '.join(card.emotions)}."
        )
    step, params = checkpoint.load_best_params(source)
    params = mesh.replicate(params)
    valid = experiment.segments("valid")
    objective = experiment.objective
    outputs = predict(objective, params, valid, trained.train.batch_size, trained.data.bucket_growth)
    calibration = objective.calibrate(outputs, valid.labels)
    report, _ = objective.metrics(outputs, valid.labels, calibration)
    fitted = Fitted(params, step, report[objective.selection], calibration)
    rows = train.evaluate(experiment, fitted, config.fold, len(experiment.training_segments()))
    results.write(out / results.RESULTS_FILE, rows, config)
    print(train.summary(experiment, rows, valid))
    return rows
