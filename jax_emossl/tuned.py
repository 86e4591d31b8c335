"""Tuned arms: encoder and head are trained on the labels; validation chooses strategy, learning rate and step."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from jax_emossl import linear, mesh, processes
from jax_emossl.arms import ARMS
from jax_emossl.averaging import alike, averaged
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.config import trained_points
from jax_emossl.data.indices import padded_length
from jax_emossl.errors import UserError, notice
from jax_emossl.experiment import Experiment
from jax_emossl.loop import Fitted, fit
from jax_emossl.predictor import predict
from jax_emossl.study import Answer, Cell, Study, num_labels

Advance = Callable[[Sequence[Cell], float], None]
_Trained = tuple[Experiment, Fitted]  # a training of a cell's grid, and how it ended
MOST_MEMBERS = {"cpu": 20}  # five seeds at four rates: two arms leave no rest; more gain nothing there, and lose more work when interrupted
_SAVED_EVERY = 60  # s: so many trainings at once take the cores half a second to save
_MEMORY_SHARE = 0.5  # of a device's memory, to be shared by the members' states and activations


def answers(study: Study, cells: Sequence[Cell], folder: Path, words: str, advance: Advance) -> Iterator[list[tuple[Cell, Answer]]]:
    """The cells' answers, as many at once as fit the devices' memory.

    The state of cells under way is kept in `folder`, for a later call; `words` name the comparison in the progress bar. `advance` is told
    step by step what share of some cells' trainings was done.
    """
    size = len(cells)
    if grid := _grid(study, cells[0]):
        size = max(1, _members_at_once(study, grid[0]) // len(grid))
    for _, members in itertools.groupby(cells, lambda cell: cell.budget):  # members take the same steps
        own = list(members)
        for i in range(0, len(own), size):
            yield from _together(study, own[i : i + size], folder, words, advance)


def _together(study: Study, cells: Sequence[Cell], folder: Path, words: str, advance: Advance) -> Iterator[list[tuple[Cell, Answer]]]:
    grids = [_grid(study, cell) for cell in cells]
    # What fixes the members' number and order names the folder.
    key = repr((cells, study.config.compare.strategies, study.config.compare.learning_rates, jax.device_count()))
    under_way = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    words = f"{words} {cells[0].arm} to {cells[-1].arm}".strip()
    ended = iter(_fit(study, cells, grids, under_way, words, functools.partial(advance, cells)))
    trained = [[(training, next(ended)) for training in grid] for grid in grids]
    yield list(zip(cells, _answers(study, cells, trained), strict=True))
    if processes.first():
        shutil.rmtree(under_way, ignore_errors=True)


def _grid(study: Study, cell: Cell) -> list[Experiment]:
    """One training per point of the grid of strategies and learning rates, the same for every arm."""
    points = trained_points(study.config.compare)
    source, labels = ARMS[cell.arm].reads[0], num_labels(cell.budget, len(study.segments["train"]))
    return [study.training(cell.seed, source, labels, strategy=strategy, learning_rate=rate) for strategy, rate in points]


def _fit(
    study: Study, cells: Sequence[Cell], grids: Sequence[list[Experiment]], under_way: Path, words: str, advance: Callable[[float], None]
) -> list[Fitted]:
    """How the trainings of all grids, one after another, ended."""
    own = [study.split(cell) for cell in cells]
    members = [training.member(*parts, study.segments["train"]) for parts, grid in zip(own, grids, strict=True) for training in grid]
    if not members:
        return []
    objective, config = study.experiment.objective, grids[0][0].config
    with contextlib.closing(Checkpoints(under_way, _SAVED_EVERY)) as checkpoints:
        ended = fit(objective, members, config, resident=study.resident, checkpoints=checkpoints, description=words, advance=advance)
    for member in ended:
        if member.diverged:
            notice(f"{words}: {member.diverged} in one of its trainings; its best step so far stands.")
    return ended


def _answers(study: Study, cells: Sequence[Cell], trained: Sequence[Sequence[_Trained]]) -> Iterator[Answer]:
    """Per cell, what its trainings say, averaged where validation cannot tell them apart, and where asked for the linear read-out too."""
    objective, judges = study.experiment.objective, [study.split(cell)[1] for cell in cells]
    ended = [[(training, own) for training, own in grid if own.variables] for grid in trained]
    variables = [own.variables for grid in ended for _, own in grid]

    tuned = [[_answer(*own) for own in grid] for grid in ended]
    made = [_read_out(study, cell) + own for cell, own in zip(cells, tuned, strict=True)]
    for cell, own in zip(cells, made, strict=True):
        if not own:
            labels = f"{cell.budget:g}" if cell.budget else "all"
            raise UserError(f"Every training of {cell.arm} with {labels} labels diverged: lower compare.learning_rates.")
    # Of several processes the first decides: the last digits of others' may differ.
    places = processes.of_first(
        lambda: [[own.index(a) for a in alike(objective, own, valid)] for own, valid in zip(made, judges, strict=True)]
    )
    kept = [[own[i] for i in some] for own, some in zip(made, places, strict=True)]
    # The reported fold may be large: those that are not kept do not read it.
    asked, wanted = list(itertools.chain(*tuned)), set(itertools.chain(*kept))
    parts, over = [study.reported] * len(asked), [own not in wanted for own in asked]
    said = predict(objective, variables, parts, *study.experiment.sizes, resident=study.resident, over=over) if variables else []
    reported = {answer: outputs["scores"] for answer, outputs in zip(asked, said, strict=True)}
    for own, valid in zip(kept, judges, strict=True):
        yield averaged(objective, [dataclasses.replace(answer, scores=reported.get(answer, answer.scores)) for answer in own], valid)


def _answer(training: Experiment, ended: Fitted) -> Answer:
    """That of one training, of the reported fold not yet asked."""
    details = {"strategy": training.config.train.strategy, "learning_rate": training.config.train.learning_rate}
    return Answer(None, ended.outputs["scores"], ended.step, ended.value, ended.calibration, details, [ended.evaluations])


def _read_out(study: Study, cell: Cell) -> list[Answer]:
    """Where asked for, the linear read-out of the encoder with which the cell's trainings begin."""
    beside = ("functionals",) if study.experiment.objective.reads_functionals else ()
    return [linear.answer(study, cell, (*ARMS[cell.arm].reads, *beside))] if "linear" in study.config.compare.strategies else []


def _members_at_once(study: Study, training: Experiment) -> int:
    """How many members like this one fit the devices' memory, by an estimate; a multiple of the devices.

    A member needs its parameters four times (with both moments and the best so far) and, while it is trained, about 40
    values per model step, channel and layer, and six per attention score.
    """
    settings, model = training.config.train, training.config.model
    crop, longest = training.frontend.steps(settings.crop), int(study.segments["train"].lengths.max())
    length = min(crop or longest, padded_length(longest, training.config.data.bucket_growth))
    state = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(training.params()))
    per_step = 40 * model.width + 6 * model.get("heads", 0) * length
    activations = 4 * model.layers * settings.batch_size // settings.accumulate * length * per_step
    platform, devices = jax.devices()[0].platform, jax.device_count()
    free = _MEMORY_SHARE * processes.of_first(mesh.device_memory) / (devices if platform == "cpu" else 1)
    together = free / state if platform == "cpu" else free / (state + activations)  # on CPU they take turns
    return max(1, min(int(together), MOST_MEMBERS.get(platform, 10**6) // devices)) * devices
