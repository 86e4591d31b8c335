"""What a command would read, train and write, with an estimate of its time and memory; nothing is prepared, trained or written.

The estimate counts products of matrices, three times for training, over the speed of such products, which is measured for a moment.
"""

import collections
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import ml_collections

from jax_emossl import config as fields
from jax_emossl.arms import ARMS
from jax_emossl.card import Card
from jax_emossl.data import corpora, prepared, tfds
from jax_emossl.resident import dtype, is_resident, placement
from jax_emossl.study import budgets_within, num_labels
from jax_emossl.tuned import MOST_MEMBERS

_EFFICIENCY = 0.3  # speed of trainings over that of the products alone, evaluations of a comparison included
_PROGRAM = 1e9  # bytes without any data


class _Sizes(NamedTuple):
    """Of a corpus: features, seconds per frame, and per fold the numbers of segments and frames."""

    features: int
    frame: float
    folds: dict[str, tuple[int, int]]

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Of corpora that are learned from as one."""
        numbers = {name: [own.folds[name] for own in parts if name in own.folds] for name in parts[0].folds}
        return parts[0]._replace(folds={name: tuple(map(sum, zip(*own, strict=True))) for name, own in numbers.items()})


_ASSUMED = _Sizes(75, 0.01, {"train": (2000, 800_000), "valid": (500, 200_000)})


def describe(config: ml_collections.ConfigDict, workdir: Path) -> list[str]:
    """The answer, in lines, for a config that is resolved and checked."""
    lines = ["", *(f"  {name} = {value!r}" for name, value in fields.flat(config).items()), ""]
    if source := config.get("init_from"):
        lines.append(f"reads {source}, trained on {Card.load(Path(source)).corpus}")
    if config.task == "evaluate":
        return [*lines, f"reads that corpus, or the one named; trains nothing; writes {workdir}"]
    jobs: collections.Counter[str] = collections.Counter()
    seconds, memory, known = 0.0, _PROGRAM, set()
    for target in corpora.targets(config.data) if config.task == "compare" else [{}]:
        read = [_read(own) for own in corpora.split(ml_collections.ConfigDict({**config.data, **target}))]
        sizes = _Sizes.together([own for _, own in read])
        size = _size(config, sizes)
        lines += [*(f"reads {line}" for line, _ in read), f"  {placement(config.data.resident, size, config.task == 'compare')}"]
        for what, number, own in _trainings(config, target, sizes.folds["train"][0], known):
            if not number:
                continue
            piece = f"{own.train.crop:g} s" if own.train.crop else "a whole segment"
            jobs[f"{what} of {own.train.steps} steps of {own.train.batch_size} x {piece}"] += number
            data = size if is_resident(own.data.resident, size, what == "fine-tuning") else 0
            each, needed = _estimate(own, sizes, min(number, MOST_MEMBERS["cpu"]))
            seconds, memory = seconds + number * each, max(memory, data + needed)
    lines += [f"trains {number} x {what}" for what, number in jobs.items()]
    beside = ", linear read-outs, predictions, report (not in the estimate)" if config.task == "compare" else ""
    lines.append(f"writes {workdir}: config, checkpoints, metrics, results{beside}")
    cost = f"{seconds / 60:.1f} min without compilation, {memory / 1e9:.1f} GB; either may be off by a factor of 3"
    return [*lines, f"ESTIMATE on this {jax.devices()[0].device_kind}: {cost}"]


def _read(data: ml_collections.ConfigDict) -> tuple[str, _Sizes]:
    """What is read for one division into folds, in words and in numbers."""
    assumed = "estimated for 75 features at 100 Hz and 2000 segments of 4 s"
    folder = Path(data.prepared)
    if data.prepared.startswith(tfds.PREFIX) and not prepared.is_prepared(folder := corpora.copy_of(data.prepared)):
        return f"{data.prepared}, to be copied to {folder} first; {assumed}", _ASSUMED
    if not data.prepared:
        files = corpora.files(data)
        absent = corpora.missing(files)
        if absent and not files.create:
            corpora.load(data)  # says what is missing
        if absent or not prepared.is_prepared(folder := corpora.folder(data, files)):
            sources = ", ".join(filter(None, (files.features, files.labels, files.folds, files.speakers, data.words)))
            todo = "generated and prepared" if absent else "prepared"
            return f"{sources}, to be {todo} first; {assumed}", _ASSUMED
    corpus = prepared.load(folder)
    counts = {name: (len(fold), len(fold.frames)) for name, fold in corpus.folds.items()}
    segments = ", ".join(f"{name} {number}" for name, (number, _) in counts.items())
    return f"{folder}, prepared; segments: {segments}", _Sizes(len(corpus.features), corpus.frame_seconds, counts)


def _trainings(
    config: ml_collections.ConfigDict, target: dict[str, str], available: int, known: set[str]
) -> Iterator[tuple[str, int, ml_collections.ConfigDict]]:
    """Kind, number and config of the trainings on one division into folds; `known` keeps those that other variants and divisions share."""

    def new(*parts: object) -> bool:
        size = len(known)
        known.add(repr(parts))
        return len(known) > size

    if config.task != "compare":
        own = config.copy_and_resolve_references()
        if "num_labels" in own:
            own.train = fields.stretched(own.train, num_labels(own.num_labels, available))
        yield "training", 1, own
        return
    for variant, changes in config.compare.variants:
        own = fields.varied(config, variant, changes, target)
        grid, arms = own.compare, [ARMS[name] for name in own.compare.arms]
        pretraining, points = fields.part(own, "pretrain"), fields.trained_points(grid)
        trains = any(arm.needs_pretraining for arm in arms) and not Path(grid.pretrain_on, "card.json").is_file()
        yield "pretraining", grid.pretrainings * (trains and new(pretraining.to_json_best_effort())), pretraining
        for budget in budgets_within(grid.label_counts, available):
            training = fields.part(own, "finetune")
            alike = training.to_json_best_effort(), points, grid.validation, grid.seeds, budget
            made = [arm for arm in arms if arm.mechanism == "tuned" and (arm.needs_pretraining or new(arm.name, *alike))]
            training.train = fields.stretched(training.train, num_labels(budget, available))
            yield "fine-tuning", len(made) * grid.seeds * len(points), training


def _size(config: ml_collections.ConfigDict, sizes: _Sizes) -> float:
    """Bytes of the model steps that a command's trainings read."""
    folds = {"train", "valid", config.compare.fold} if config.task == "compare" else {"train", "valid"}
    if "train" in config and config.train.get("unlabelled"):
        folds.add(prepared.UNLABELLED)
    frames = sum(count for fold, (_, count) in sizes.folds.items() if fold in folds)
    return dtype().itemsize * sizes.features * frames * sizes.frame / max(config.data.pool, sizes.frame)


def _estimate(config: ml_collections.ConfigDict, sizes: _Sizes, together: int) -> tuple[float, float]:
    """Seconds of one training, and bytes of `together` of them, the data left out."""
    train, model = config.train, config.model
    pool = max(config.data.pool, sizes.frame)
    step = max(config.data.stack, pool)
    segments, frames = sizes.folds["train"]
    length = max(1, round(min(train.crop or math.inf, frames * sizes.frame / segments) / step))
    tokens = train.batch_size * length
    parameters = 2 * sizes.features * round(step / pool) * model.width + 12 * model.layers * model.width**2
    evaluated = math.ceil(train.steps / train.eval_every) * sizes.folds["valid"][1] * sizes.frame / step
    operations = (3 * train.steps * tokens + evaluated) * (2 * parameters + 4 * model.layers * length * model.width)
    activations = 4 * model.layers * tokens // train.accumulate * (40 * model.width + 6 * model.get("heads", 0) * length)
    return operations / (_EFFICIENCY * _speed(tokens, model.width)), _PROGRAM + activations + 16 * parameters * together


@functools.cache
def _speed(tokens: int, width: int) -> float:
    """Operations a second in the products of which a model of this width is made."""
    x, w = jnp.ones((tokens, width)), jnp.ones((width, 4 * width))
    product = jax.jit(lambda x, w: jax.nn.softmax(jax.nn.gelu(x @ w)) @ w.T)
    product(x, w).block_until_ready()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        product(x, w).block_until_ready()
        done += 1
    return done * 16 * tokens * width**2 / (time.perf_counter() - start)
