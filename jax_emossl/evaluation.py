"""The rows of a run on a fold, of the model and of the constant predictor, and what a reader must know to judge them."""

import math

from jax_emossl import results
from jax_emossl.data import normalisation
from jax_emossl.data.batches import Segments
from jax_emossl.experiment import Experiment
from jax_emossl.loop import Fitted
from jax_emossl.objectives import Outputs, Variables
from jax_emossl.predictor import predict

_OF_CONSTANT = "_of_constant"


def outputs(experiment: Experiment, variables: Variables, segments: Segments) -> Outputs:
    """What a run predicts of some segments."""
    return predict(experiment.objective, [variables], [segments], *experiment.sizes)[0]


def rows(experiment: Experiment, fitted: Fitted, fold: str, num_labels: int) -> list[dict]:
    """The rows of the model and of the constant predictor on a fold."""
    config, objective, segments = experiment.config, experiment.objective, experiment.segments(fold)
    labels, train_labels = segments.labels, experiment.segments("train").labels
    model, undefined = objective.evaluate(outputs(experiment, fitted.variables, segments), labels, fitted.calibration)
    if objective.labelled:
        constant = objective.constant(labels, train_labels)
    else:
        constant = {name.removesuffix(_OF_CONSTANT): value for name, value in model.items() if name.endswith(_OF_CONSTANT)}, {}
        model = {name: value for name, value in model.items() if not name.endswith(_OF_CONSTANT)}
    selection = {"fold": "valid", "metric": objective.selection, "value": fitted.value}
    if objective.labelled:
        selection["strategy"] = config.train.strategy
    own = results.row(
        experiment.name, experiment.synthetic, experiment.arm, num_labels, config.seed, fold, fitted.step, selection, (model, undefined)
    )
    return [own, results.row(experiment.name, experiment.synthetic, "constant", len(train_labels), config.seed, fold, None, None, constant)]


def summary(experiment: Experiment, made: list[dict], valid: Segments) -> str:
    """The table of a run, with what a reader must know to judge it."""
    return f"{context(experiment, valid, made[-1]['fold'])}\n{results.table(made)}"


def context(experiment: Experiment, valid: Segments | None, fold: str) -> str:
    """Corpus, validation fold (None where a part of the labels validates) and normalisation of the fold that is scored, in words."""
    synthetic = " (SYNTHETIC)" if experiment.synthetic else ""
    frontend, standards_prior = experiment.frontend, getattr(experiment.objective, "standards_prior", math.inf)
    by = normalisation.words(frontend.by, fold, frontend.prior, standards_prior, unit=experiment.unit)
    judge = "about a quarter of the labels"
    if valid is not None:
        judge = f"the validation fold: {len(valid)} segments of {len(set(valid.recordings))} {experiment.unit}s"
    return f"Corpus {experiment.name}{synthetic}. Steps and thresholds are chosen on {judge}.\nFeatures and pooled statistics are normalised {by}."
