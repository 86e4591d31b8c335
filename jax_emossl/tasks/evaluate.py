"""Evaluate the best checkpoint of a finished run on a fold."""

import dataclasses
from pathlib import Path

import ml_collections

from jax_emossl import checkpoint, evaluation, preemption, processes, results, workdir
from jax_emossl.card import FILE, Card
from jax_emossl.data import corpora
from jax_emossl.data.batches import Segments
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.experiment import Experiment, build, carry, check_held_out, require
from jax_emossl.loop import Fitted


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Evaluates the run in `config.init_from` on its own corpus, or on what `config.data` names instead."""
    with processes.as_one():
        experiment, best, num_labels = _restored(config)
    experiment.check_alike()
    preemption.stop_if_requested()
    valid = experiment.segments("valid")
    rows = evaluation.rows(experiment, _calibrated(experiment, best, valid), config.fold, num_labels)
    preemption.stop_if_requested()
    results.write(out / results.RESULTS_FILE, rows, config)
    print(evaluation.summary(experiment, rows, valid))
    return rows


def _restored(config: ml_collections.ConfigDict) -> tuple[Experiment, checkpoint.Best, int]:
    """The run in `config.init_from` on the corpus at hand, its best step, and how many labels it had."""
    source = Path(config.init_from)
    card = Card.load(source)
    trained = ml_collections.ConfigDict(processes.of_first(lambda: workdir.read_config(source).to_dict()))
    pretrained = bool(trained.get("init_from"))
    trained.init_from = ""
    read = trained.data.prepared
    trained.data.update(_replaced(config.data))
    if not (trained.data.prepared or trained.data.corpus or trained.data.features):
        raise UserError(
            f"{source} read {read}, which has one set of labels, folds and speakers: prepare the corpus with the others, "
            "and name that by --config.data.prepared."
        )
    corpus = corpora.load(corpora.split(trained.data)[0])
    require(corpus, config.fold)
    carry(card, card.frontend.settings(), trained.data, corpus, source)
    experiment = build(trained, corpus)
    _check(card, experiment, source)
    if experiment.objective.labelled:
        try:
            experiment = dataclasses.replace(experiment, objective=experiment.objective.with_reference(card.reference))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source / FILE} is damaged ({type(error).__name__}): train anew.") from error
    best = checkpoint.load_best(source)
    elsewhere = experiment.name != card.corpus or any(config.data.values())
    if experiment.objective.of_recordings and elsewhere:
        raise UserError(
            f"{source} learned {trained.objective.name} of the recordings of {card.corpus}, which no other corpus or division has: "
            "evaluate it without data.*, on what it was trained with."
        )
    if checkpoint.shapes(best.variables["params"]) != checkpoint.shapes(experiment.params()):
        raise UserError(f"{source} holds weights of other shapes than this version makes of its config: train anew.")
    experiment = dataclasses.replace(experiment, encoder=best.variables["params"]["encoder"] if pretrained else None)  # names the arm
    return experiment, best, card.num_labels


def _calibrated(experiment: Experiment, best: checkpoint.Best, valid: Segments) -> Fitted:
    """The run as it was fitted, calibrated on this corpus's validation fold."""
    objective, outputs = experiment.objective, evaluation.outputs(experiment, best.variables, valid)
    calibration = objective.calibrate(outputs, valid.labels) if objective.labelled else None
    report, _ = objective.evaluate(outputs, valid.labels, calibration)  # other labels may not define the metric
    return Fitted(best.variables, best.step, report[objective.selection], calibration, "")


def _check(card: Card, experiment: Experiment, source: Path) -> None:
    """Refuses a corpus on which the run of `card` cannot be evaluated, or should not."""
    corpus: Corpus = experiment.corpus
    if experiment.objective.labelled and corpus.emotions != card.emotions:
        unknown = [e for e in corpus.emotions if e not in card.emotions] or card.emotions
        raise UserError(
            f"{source} and the corpus {corpus.name} disagree on the emotion '{unknown[0]}': "
            f"evaluate on labels with {', '.join(card.emotions)}, in this order."
        )
    classes = experiment.card().classes
    if classes != card.classes:
        raise UserError(
            f"{source} answers {', '.join(card.classes)}, but the training fold of {corpus.name} has "
            f"{', '.join(classes)}: evaluate on a corpus with the same classes."
        )
    check_held_out(card, corpus, source)


def _replaced(data: ml_collections.ConfigDict) -> dict[str, str]:
    """The fields given, and those of the run's own corpus that they make void."""
    given = {field: value for field, value in data.items() if value}
    if given.keys() & {"corpus", "prepared", "features"}:
        return dict.fromkeys(data, "") | given
    return ({"prepared": ""} if given.keys() & {"labels", "folds", "speakers"} else {}) | given
