"""Evaluate the best checkpoint of a finished run on a fold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_collections

from jax_emossl import checkpoint, mesh, objectives, preemption, results, workdir
from jax_emossl.data.prepared import FOLDS
from jax_emossl.errors import UserError
from jax_emossl.experiment import build, check_held_out
from jax_emossl.predict import predict
from jax_emossl.tasks import train
from jax_emossl.train import Fitted


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Evaluates the run in `config.init_from` on its own corpus, or on what `config.data` names instead."""
    objectives.check_choice("fold", config.fold, FOLDS)
    if not config.init_from:
        raise UserError("init_from is not given: name the workdir of a finished run with --config.init_from=DIR.")
    source = Path(config.init_from)
    card = checkpoint.EncoderCard.load(source)
    trained = workdir.read_config(source)
    pretrained, trained.init_from = bool(trained.init_from), ""
    trained.data.update(_replaced(config.data))
    experiment = build(trained, frontend=card.frontend)
    card.frontend.check_features(experiment.corpus.features, source)
    if experiment.corpus.emotions != card.emotions:
        unknown = [e for e in experiment.corpus.emotions if e not in card.emotions] or card.emotions
        raise UserError(
            f"{source} and the corpus {experiment.corpus.name} disagree on the emotion '{unknown[0]}': "
            f"evaluate on labels with {', '.join(card.emotions)}, in this order."
        )
    if experiment.classes != card.classes:
        raise UserError(
            f"{source} answers {', '.join(card.classes)}, but the training fold of {experiment.corpus.name} has "
            f"{', '.join(experiment.classes)}: evaluate on a corpus with the same classes."
        )
    check_held_out(card, experiment.corpus, source)
    step, params = checkpoint.load_best_params(source)
    params = mesh.replicate(params)
    preemption.stop_if_requested()
    experiment = dataclasses.replace(experiment, encoder=params["encoder"] if pretrained else None)  # names the arm
    valid = experiment.segments("valid")
    objective = experiment.objective
    outputs = predict(objective, params, valid, trained.train.batch_size, trained.data.bucket_growth)
    preemption.stop_if_requested()
    calibration = objective.calibrate(outputs, valid.labels)
    report, _ = objective.metrics(outputs, valid.labels, calibration)
    fitted = Fitted(params, step, report[objective.selection], calibration)  # other labels may not define the metric
    rows = train.evaluate(experiment, fitted, config.fold, trained.num_labels or len(experiment.corpus.fold("train")))
    preemption.stop_if_requested()
    results.write(out / results.RESULTS_FILE, rows, config)
    print(train.summary(experiment, rows, valid))
    return rows


def _replaced(data: ml_collections.ConfigDict) -> dict[str, str]:
    """The fields given, and those of the run's own corpus that they make void."""
    given = {field: value for field, value in data.items() if value}
    if given.keys() & {"corpus", "prepared"}:
        return dict.fromkeys(data, "") | {"corpus": "demo"} | given
    return ({"prepared": ""} if given.keys() & {"features", "labels", "folds"} else {}) | given
