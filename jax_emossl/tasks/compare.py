"""Pretrain once, then fine-tune from the pretrained encoder and from scratch at several label counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import ml_collections
from tqdm import tqdm

from jax_emossl import metrics, report, results, workdir
from jax_emossl.errors import UserError
from jax_emossl.experiment import Experiment, build
from jax_emossl.tasks import train
from jax_emossl.train import Fitted, fit

_ARMS = ("pretrained", "scratch")


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Fills in the cells (arm, label count, seed) that `out` does not hold yet; returns all rows."""
    corpus = build(_part(config, "finetune")).corpus  # refuses a config that could not be compared, before pretraining
    cells = list(_cells(config, len(corpus.fold("train"))))
    pretraining = out / "pretrain"
    pretrain_config = _part(config, "pretrain")
    workdir.enter(pretraining, pretrain_config)
    train.run(pretrain_config, pretraining)
    first = build(_part(config, "finetune", init_from=str(pretraining)))
    file = out / results.RESULTS_FILE
    rows = results.read(file)["runs"] if file.exists() else []
    done = {(r["arm"], r["num_labels"], r["seed"]) for r in rows}
    with tqdm(cells, desc="comparing", unit="cell", leave=False, disable=None) as bar:
        for arm, num_labels, seed in bar:
            bar.set_postfix_str(f"{arm}, {num_labels} labels, seed {seed}")
            if (arm, num_labels, seed) not in done:
                rows += _cell(config, first, arm, num_labels, seed, str(pretraining))
                results.write(file, rows, config)
    valid = first.segments("valid")
    shown = report.table_metrics(rows)
    print(train.context(first, valid))
    print(report.comparison_table(rows, shown))
    for name in shown[:2]:
        print(f"Figure: {report.learning_curve(rows, name, out / f'{name}.png')}")
    return rows


def _part(config: ml_collections.ConfigDict, part: str, **fields) -> ml_collections.ConfigDict:
    """The config of one training: the shared fields, with the objective and train fields of `part`."""
    shared = {name: config[name].copy_and_resolve_references() for name in ("data", "model")}
    own = {name: config[part][name].copy_and_resolve_references() for name in ("objective", "train")}
    return ml_collections.ConfigDict({"task": "train", "seed": config.seed, "num_labels": 0, "init_from": "", **shared, **own, **fields})


def _cells(config: ml_collections.ConfigDict, available: int) -> Iterator[tuple[str, int, int]]:
    """All (arm, label count, seed); 0 stands for all labels, and counts beyond the fold are refused."""
    grid = config.compare
    if min(len(grid.label_counts), len(grid.learning_rates), len(grid.strategies), grid.seeds) < 1:
        raise UserError("compare.label_counts, learning_rates, strategies and seeds must name at least one each.")
    counts = [count or available for count in grid.label_counts]
    if max(counts) > available:
        raise UserError(f"compare.label_counts has {max(counts)}, but the training fold has {available} labelled segments: lower it.")
    seeds = range(config.seed, config.seed + config.compare.seeds)
    return itertools.product(_ARMS, dict.fromkeys(counts), seeds)


def _cell(config: ml_collections.ConfigDict, first: Experiment, arm: str, num_labels: int, seed: int, pretraining: str) -> list[dict]:
    """Both arms try the same grid; validation chooses its best member, which alone sees the test fold."""
    fields = {"num_labels": num_labels, "seed": seed, "init_from": pretraining if arm == "pretrained" else ""}
    valid, background = first.segments("valid"), first.segments("train")
    best: tuple[Experiment, Fitted] | None = None
    for rate, strategy in itertools.product(config.compare.learning_rates, config.compare.strategies):
        member = _part(config, "finetune", **fields)
        member.train.learning_rate, member.train.strategy = rate, strategy
        experiment = build(member, first.corpus, first.frontend)
        fitted = fit(
            experiment.objective,
            experiment.training_segments(),
            valid,
            member,
            encoder=experiment.encoder,
            background=background,
            description=f"{arm}, {num_labels} labels, seed {seed}, rate {rate:g}",
        )
        if best is None or metrics.better(experiment.objective.selection, fitted.value, best[1].value):
            best = experiment, fitted
    return train.evaluate(*best, "test", num_labels)
