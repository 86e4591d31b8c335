"""Linear arms: fixed vectors per segment, read out by logistic or ridge regression; what a frozen encoder, or functionals, know."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from jax_emossl.arms import ARMS
from jax_emossl.averaging import alike, averaged
from jax_emossl.objectives import LabelledObjective, assess
from jax_emossl.study import Answer, Cell, Study

Vectors = Float[np.ndarray, "s p"]
Labels = Float[np.ndarray, "s e"]


def answers(study: Study, cells: Sequence[Cell], *_) -> Iterator[list[tuple[Cell, Answer]]]:
    """The cells' answers, one by one; what is under way is too short to be kept, or told."""
    for cell in cells:
        yield [(cell, answer(study, cell, ARMS[cell.arm].reads, ARMS[cell.arm].self_trained))]


def answer(study: Study, cell: Cell, reads: Sequence[str], self_trained: bool = False) -> Answer:
    """The read-out of vectors from the sources `reads`, averaged over the regularisations that validation cannot tell apart.

    A `self_trained` one is learned anew from its labels and from what it says of all other training segments (Lee 2013, ICML workshop on
    challenges in representation learning).

    Cells that differ in nothing that matters (all labels, say) are read out once.
    """
    validation = cell.seed if study.config.compare.validation == "budget" else None
    origins = tuple(study.origin(source, cell.seed) for source in reads)
    key = (reads, self_trained, np.sort(study.positions(cell)).tobytes(), origins, validation)
    if key not in study.read:
        study.read[key] = _averaged(study, cell, reads, self_trained)
    return study.read[key]


def _averaged(study: Study, cell: Cell, reads: Sequence[str], self_trained: bool) -> Answer:
    objective, (train, valid), made = study.experiment.objective, study.split(cell), []
    x = study.side_by_side(reads, cell.seed)
    labelled = study.of(train, x), train.labels
    rest = np.delete(x["train"], study.positions(cell), 0) if self_trained else ()
    for strength in study.config.compare.regularisations:
        read = read_out(objective, *labelled, strength)
        if len(rest):
            calibration = objective.calibrate({"scores": read(study.of(valid, x))}, valid.labels)
            said = rest, objective.labels_of(read(rest), calibration)
            read = read_out(objective, *map(np.concatenate, zip(labelled, said, strict=True)), strength)
        on_valid = read(study.of(valid, x))
        value, calibration, _ = assess(objective, {"scores": on_valid}, valid.labels)
        details = {"strategy": "linear", "regularisation": strength}
        made.append(Answer(read(x[study.config.compare.fold]), on_valid, None, value, calibration, details))
    return averaged(objective, alike(objective, made, valid), valid)


@threadpool_limits.wrap(limits=1)  # in products this small, more threads wait for each other, ten times as long
def read_out(objective: LabelledObjective, vectors: Vectors, labels: Labels, strength: float) -> Callable[[Vectors], np.ndarray]:
    """Scores (S, C) of vectors (S, P), learned from these; `strength` is the inverse regularisation."""
    target, model = objective.target(labels), objective.read_out(strength)
    if target.ndim == 2:
        fitted = model.fit(vectors, target)
        return lambda x: fitted.predict(x).reshape(len(x), -1)  # of one emotion, too
    known = np.unique(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a probe do not matter
        log_probability = model.fit(vectors, target).predict_log_proba if len(known) > 1 else lambda x: 0

    def scores(x: Vectors) -> np.ndarray:
        made = np.full((len(x), len(objective.classes)), -np.log(2 * len(labels)))  # of a class without a label: half a time was one
        made[:, known] = log_probability(x)
        return made

    return scores
