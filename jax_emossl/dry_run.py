"""What a command would read, train and write, with an estimate of its time and memory; nothing is prepared, trained or written.

The estimate counts the encoder's products of matrices, three times for training, and times such products for a moment.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from jax_emossl import config as fields
from jax_emossl.arms import ARMS
from jax_emossl.data import corpora, prepared

_EFFICIENCY = 0.3  # of a training step against such products, measured on CPU
_TOGETHER = 16  # trainings of a comparison that are in memory at once, at most
_PROGRAM = 0.6e9  # bytes, without data


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of a corpus: features, seconds per frame, and per fold the numbers of segments and frames. The defaults are assumptions."""

    features: int = 75
    frame: float = 0.01
    folds: dict[str, tuple[int, int]] = dataclasses.field(default_factory=lambda: {"train": (2000, 800_000), "valid": (500, 200_000)})


def describe(config: ml_collections.ConfigDict, workdir: Path) -> list[str]:
    """The answer, in lines, for a config that is resolved and checked."""
    lines = ["", *(f"  {name} = {value!r}" for name, value in fields.flat(config).items()), ""]
    if config.task == "evaluate":
        return [*lines, f"reads {config.init_from} and its corpus, or the one named; trains nothing; writes {workdir}"]
    jobs: collections.Counter[str] = collections.Counter()
    operations = memory = 0.0
    tokens = 1
    variants = config.compare.variants if config.task == "compare" else [("", ())]
    for rotation, folds in corpora.rotations(config.data):
        data = config.data.copy_and_resolve_references()
        data.folds = folds
        line, sizes = _read(data)
        lines.append(f"reads {rotation}{': ' if rotation else ''}{line}")
        for variant, changes in variants:
            for what, number, own in _trainings(config, variant, changes, folds):
                each, at_once, tokens = _costs(own, sizes)
                jobs[what] += number
                operations += number * each
                memory = max(memory, at_once(min(number, _TOGETHER)))
    lines += [f"trains {number} x {what}" for what, number in jobs.items() if number]
    if config.task == "compare":
        linear = [arm for arm in config.compare.arms if ARMS[arm].mechanism == "linear" or "linear" in config.compare.strategies]
        lines.append(f"reads out linearly: {', '.join(linear) or 'nothing'} (not in the estimate)")
    seconds = operations / (_EFFICIENCY * _speed(tokens, config.model.width))
    lines.append(f"writes {workdir}: config, checkpoints, metrics, results" + (", predictions, report" if config.task == "compare" else ""))
    device = jax.devices()[0].device_kind
    return [
        *lines,
        f"ESTIMATE on {device}: {seconds / 60:.1f} min without compilation, {memory / 1e9:.1f} GB; either may be off by a factor of 3",
    ]


def _read(data: ml_collections.ConfigDict) -> tuple[str, _Sizes]:
    """What is read for one division into folds, in words and in numbers."""
    if data.prepared:
        folder = Path(data.prepared)
    else:
        files = corpora.files(data)
        absent = corpora.missing(files)
        if absent and not files.create:
            corpora.load(data)  # says what is missing
        folder = None if absent else corpora.folder(data, files)
        if not folder or not prepared.is_prepared(folder):
            made = "generated and prepared" if absent else "prepared"
            words = f"{', '.join(filter(None, (files.features, files.labels, files.folds, data.words)))}, to be {made} first"
            return f"{words}; the estimate assumes {_Sizes.features} features and 2000 segments of 4 s for training", _Sizes()
    corpus = prepared.load(folder)
    counts = {name: (len(fold), len(fold.frames)) for name, fold in corpus.folds.items()}
    segments = ", ".join(f"{name} {number}" for name, (number, _) in counts.items())
    return f"{folder}, prepared; segments: {segments}", _Sizes(len(corpus.features), corpus.frame_seconds, counts)


def _trainings(config: ml_collections.ConfigDict, variant: str, changes: tuple, folds: str):
    """Yields (what, number, config) of the trainings of one variant on one division into folds."""
    if config.task != "compare":
        yield _words("training", config), 1, config
        return
    own = fields.varied(config, variant, changes, folds)
    grid, arms = own.compare, [ARMS[name] for name in own.compare.arms]
    pretraining, finetuning = fields.part(own, "pretrain"), fields.part(own, "finetune")
    yield _words("pretraining", pretraining), int(any(arm.needs_pretraining for arm in arms)), pretraining
    cells = sum(arm.mechanism == "tuned" for arm in arms) * len(grid.label_counts) * grid.seeds
    points = len(grid.learning_rates) * sum(strategy != "linear" for strategy in grid.strategies)
    yield _words("fine-tuning", finetuning), cells * points, finetuning


def _words(what: str, config: ml_collections.ConfigDict) -> str:
    train = config.train
    return f"{what} of {train.steps} steps of {train.batch_size} x {f'{train.crop:g} s' if train.crop else 'a whole segment'}"


def _costs(config: ml_collections.ConfigDict, sizes: _Sizes):
    """Of one training: operations; bytes as a function of the trainings in memory; model steps of a batch."""
    train, model = config.train, config.model
    pool = max(config.data.pool, sizes.frame)
    step = max(config.data.stack, pool)
    segments, frames = sizes.folds["train"]
    length = max(1, round((train.crop or frames * sizes.frame / segments) / step))
    width = sizes.features * round(step / pool)
    tokens = train.batch_size * length
    parameters = 2 * width * model.width + 12 * model.layers * model.width**2
    per_token = 2 * parameters + 4 * model.layers * length * model.width
    evaluated = math.ceil(train.steps / train.eval_every) * sizes.folds["valid"][1] * sizes.frame / step
    data = 4 * sizes.features * sum(count for _, count in sizes.folds.values()) * sizes.frame / pool
    activations = 4 * model.layers * tokens * (40 * model.width + 6 * model.heads * length)
    return (
        (3 * train.steps * tokens + evaluated) * per_token,
        lambda number: _PROGRAM + data + activations + number * 16 * parameters,
        tokens,
    )


def _speed(tokens: int, width: int) -> float:
    """Operations a second in the products of which this model is made."""
    x, w = jnp.ones((tokens, width)), jnp.ones((width, 4 * width))
    product = jax.jit(lambda x, w: (x @ w) @ w.T)
    product(x, w).block_until_ready()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        product(x, w).block_until_ready()
        done += 1
    return done * 16 * tokens * width**2 / (time.perf_counter() - start)
