"""Pretrain, then compare with what one would do without: arms x label counts x seeds, on one or several rotations of the folds."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from jax_emossl import checkpoint, mesh, metrics, objectives, preemption, probe, report, results, sweep, workdir
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.data import corpora, functionals, label_budget
from jax_emossl.data.indices import Selection
from jax_emossl.errors import UserError, notice
from jax_emossl.experiment import Experiment, build
from jax_emossl.objectives import check_choice
from jax_emossl.objectives.emotion import category_names, standardised
from jax_emossl.optimizer import STRATEGIES
from jax_emossl.sweep import Member
from jax_emossl.tasks import train
from jax_emossl.train import Fitted

_LINEAR = {
    "frozen": ("encoder",),
    "random": ("random",),
    "functionals": ("functionals",),
    "pretrained+functionals": ("encoder", "functionals"),
}
_IN_PROGRESS = "in_progress"


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Fills in the cells (variant, rotation, arm, label count, seed) that `out` does not hold yet; returns all rows."""
    grid = config.compare
    _check(grid)
    mesh.use_cpu_cores((config.pretrain.train.batch_size, config.finetune.train.batch_size))
    studies = [
        _Study(_varied(config, variant, fields, folds), out, variant, name, several=len(corpora.rotations(config.data)) > 1)
        for variant, fields in grid.variants
        for name, folds in corpora.rotations(config.data)
    ]
    file = out / results.RESULTS_FILE
    rows = results.read(file)["runs"] if file.exists() else []
    cells = [study.cells() for study in studies]  # refuses what could not be compared, before anything is trained
    with tqdm(total=sum(map(len, cells)), desc="comparing", unit="cell", leave=False, disable=None) as bar:
        for study, own in zip(studies, cells, strict=True):
            done = {_key(row) for row in rows if "budget" in row}
            missing = [cell for cell in own if (study.variant, study.rotation, *cell) not in done]
            bar.update(len(own) - len(missing))
            study = dataclasses.replace(study)  # a copy, whose caches end with it
            for finished, new in study.run(missing) if missing else ():
                rows += new
                results.write(file, rows, config)
                bar.update(finished)
    print("\n".join(dict.fromkeys(study.context() for study in studies)))
    print(report.write(out))
    return rows


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One point of the comparison; `budget` is the label count asked for, 0 for all labels."""

    arm: str
    budget: float
    seed: int

    def __iter__(self) -> Iterator:
        return iter((self.arm, self.budget, self.seed))


@dataclasses.dataclass(frozen=True)
class _Study:
    """One variant of the pretraining on one rotation of the folds, with all its cells."""

    config: ml_collections.ConfigDict
    out: Path
    variant: str
    rotation: str
    several: bool

    def cells(self) -> list[_Cell]:
        """All cells; label counts beyond the fold are left out with a notice."""
        grid, available = self.config.compare, len(self._unpretrained.corpus.fold("train"))
        budgets = []
        for budget in dict.fromkeys(grid.label_counts):
            whole = budget == available and 0 in grid.label_counts  # asked for twice
            if whole or self._num_labels(budget) > available:
                why = ", which is what 0 asks for," if whole else ""
                notice(
                    f"{self.rotation or 'the training fold'} has {available} labelled segments: the label count {budget}{why} is left out."
                )
            else:
                budgets.append(budget)
        if not budgets:
            raise UserError(
                f"Every one of compare.label_counts is beyond the {available} labelled segments of the training fold: lower them."
            )
        seeds = range(self.config.seed, self.config.seed + grid.seeds)
        return [_Cell("constant", 0, self.config.seed), *(_Cell(*c) for c in itertools.product(grid.arms, budgets, seeds))]

    def context(self) -> str:
        return train.context(self._unpretrained, self._unpretrained.segments("valid"))

    def run(self, cells: Sequence[_Cell]) -> Iterator[tuple[int, list[dict]]]:
        """Yields (number of cells, their rows) as they are done."""
        if self._pretrains and not (self.out / results.ILLUSTRATION).exists():
            self._illustrate()
        for cell in (c for c in cells if c.arm == "constant"):
            yield 1, [self._constant(cell)]
        for cell in (c for c in cells if c.arm in _LINEAR):
            yield 1, [self._linear(cell)]
            preemption.stop_if_requested()
        tuned = [c for c in cells if c.arm in results.TUNED]
        if tuned:
            grid = self._members(tuned[0])
            size = max(1, sweep.members_at_once(self._first.objective, grid[0]) // len(grid)) if grid else len(tuned)
            for i in range(0, len(tuned), size):
                yield len(tuned[i : i + size]), self._tuned(tuned[i : i + size])
                preemption.stop_if_requested()

    @functools.cached_property
    def _unpretrained(self) -> Experiment:
        return build(_part(self.config, "finetune"))

    @functools.cached_property
    def _first(self) -> Experiment:
        """The experiment that starts from the pretrained encoder, which is trained now if it is not there."""
        if not self._pretrains:
            return self._unpretrained
        config = _part(self.config, "pretrain")
        workdir.enter(self._pretraining, config)
        train.run(config, self._pretraining)
        return build(_part(self.config, "finetune", init_from=str(self._pretraining)), self._unpretrained.corpus)

    @property
    def _pretrains(self) -> bool:
        return bool(set(self.config.compare.arms) & {"pretrained", "frozen", "pretrained+functionals"})

    @property
    def _pretraining(self) -> Path:
        """Workdir of the pretraining."""
        return self.out / "pretrain" / self.variant / (self.rotation if self.several else "")

    @functools.cached_property
    def _segments(self) -> dict:
        """The folds that take part: the test fold is not looked at unless it is reported."""
        return {fold: self._first.segments(fold) for fold in dict.fromkeys(("train", "valid", self.config.compare.fold))}

    @functools.cached_property
    def _starts(self) -> sweep.Starts:
        return sweep.Starts(self._first.objective)

    @functools.cached_property
    def _probes(self) -> dict[tuple, tuple[probe.Probe, np.ndarray]]:
        return {}

    @functools.cached_property
    def _functionals(self) -> dict[str, np.ndarray]:
        raw = {fold: functionals.of_fold(self._first.corpus, fold, self._first.frontend) for fold in self._segments}
        toward = {"location": raw["train"].mean(0), "scale": raw["train"].std(0)}
        return {fold: standardised(raw[fold], own, toward) for fold, own in self._segments.items()}

    def _vectors(self, source: str, seed: int) -> dict[str, np.ndarray]:
        """Fixed vectors of every fold's segments, standardised per recording."""
        if source == "functionals":
            return self._functionals
        encoder = self._first.encoder if source == "encoder" else None
        config = _part(self.config, "finetune", seed=seed)
        params = self._starts.params(Member(config, self._segments["train"], self._segments["valid"], encoder))
        return {fold: self._starts.outputs([(params, own)], config)[0]["standardised"] for fold, own in self._segments.items()}

    def _illustrate(self) -> None:
        """Keeps what the report's pictures need: some reconstructions, and the test segments before and after pretraining."""
        first, reported = self._first, self.config.compare.fold
        own, valid = self._segments[reported], self._segments["valid"]
        _, params = checkpoint.load_best_params(self._pretraining)
        objective = objectives.make(self.config.pretrain.objective, first.corpus, first.objective.encoder, first.frontend.dimension)
        if not hasattr(objective, "reconstruct"):
            return
        middle = np.argsort(valid.lengths, kind="stable")[[len(valid) // 4, len(valid) // 2, 3 * len(valid) // 4]]
        batch = valid.gather(Selection(middle, np.zeros(3, int), np.ones(3, np.float32), int(valid.lengths[middle].max())))
        masked, reconstructed, _ = objective.reconstruct(params, batch, jax.random.split(jax.random.key(0), len(middle)))
        results.keep_predictions(
            self.out, Path("illustration"),
            features=batch["features"], masked=np.asarray(masked), reconstructed=np.asarray(reconstructed), num_frames=batch["num_frames"],
            stack=first.frontend.stack, hop=(first.corpus.hop or 1.0) * first.frontend.pool,
            before=self._vectors("random", self.config.seed)[reported], after=self._vectors("encoder", self.config.seed)[reported],
            emotion=np.array(category_names(own.labels, first.corpus.emotions)), recording=own.recordings.astype(str),
        )  # fmt: skip

    def _num_labels(self, budget: float) -> int:
        available = len(self._unpretrained.corpus.fold("train"))
        return max(1, round(budget * available)) if 0 < budget < 1 else int(budget) or available

    def _positions(self, cell: _Cell) -> np.ndarray:
        return label_budget.choose(self._first.corpus.fold("train").labels, self._num_labels(cell.budget), cell.seed)

    def _probe(self, cell: _Cell, sources: Sequence[str]) -> tuple[probe.Probe, np.ndarray]:
        """A linear read-out, and its scores of the reported fold; equal ones (all labels, say) are made once."""
        chosen = self._positions(cell)
        key = (*sources, *((cell.seed,) if "random" in sources else ()), np.sort(chosen).tobytes())
        if key not in self._probes:
            parts = [self._vectors(source, cell.seed) for source in sources]
            x = {fold: np.concatenate([part[fold] for part in parts], 1) for fold in self._segments}
            labels = {fold: own.labels for fold, own in self._segments.items()}
            fitted = probe.fit(self._first.objective, (x["train"][chosen], labels["train"][chosen]), (x["valid"], labels["valid"]))
            self._probes[key] = fitted, fitted.scores(x[self.config.compare.fold])
        return self._probes[key]

    def _linear(self, cell: _Cell) -> dict:
        fitted, scores = self._probe(cell, _LINEAR[cell.arm])
        return self._row(cell, None, fitted.value, fitted.calibration, scores, {"regularisation": fitted.strength})

    def _members(self, cell: _Cell) -> list[Member]:
        """One member per point of the grid of strategies and learning rates."""
        own, train_ = self._positions(cell), self._segments["train"]
        encoder = self._first.encoder if cell.arm == "pretrained" else None
        members = []
        for strategy, rate in itertools.product(self.config.compare.strategies, self.config.compare.learning_rates):
            if strategy != "frozen":
                config = _part(self.config, "finetune", seed=cell.seed, num_labels=len(own))
                config.train.strategy, config.train.learning_rate = strategy, rate
                members.append(Member(config, train_.take(own), self._segments["valid"], encoder, train_))
        return members

    def _tuned(self, cells: Sequence[_Cell]) -> list[dict]:
        """Validation chooses the best of each cell's grid, which alone sees the reported fold."""
        grid = self.config.compare.strategies, self.config.compare.learning_rates
        key = repr((self.variant, self.rotation, cells, grid, jax.device_count()))  # what fixes the members' number and order
        folder = self.out / _IN_PROGRESS / hashlib.sha256(key.encode()).hexdigest()[:16]
        best = self._fit(cells, folder)
        reported = self._segments[self.config.compare.fold]
        params = [fitted.params for _, fitted in filter(None, best)]
        settings = self.config.finetune.train.batch_size, self.config.data.bucket_growth
        outputs = iter(sweep.predict_members(self._first.objective, params, [reported] * len(params), *settings))
        rows = [self._chosen(cell, own, next(outputs)["scores"] if own else None) for cell, own in zip(cells, best, strict=True)]
        shutil.rmtree(folder, ignore_errors=True)
        return rows

    def _fit(self, cells: Sequence[_Cell], folder: Path) -> list[tuple[ml_collections.ConfigDict, Fitted] | None]:
        """Per cell the settings and result of the best member of its grid; None where all diverged, or none is to be trained."""
        grids = [self._members(cell) for cell in cells]
        members = [member for grid in grids for member in grid]
        if not members:
            return [None] * len(cells)
        selection = self._first.objective.selection
        checkpoints = Checkpoints(folder, selection)
        try:
            words = " ".join(filter(None, (self.variant, self.rotation, f"{cells[0].arm} to {cells[-1].arm}")))
            fitted = iter(
                sweep.fit_members(self._first.objective, members, starts=self._starts, checkpoints=checkpoints, description=words)
            )
        finally:
            checkpoints.close()
        best = []
        for grid in grids:
            winner = None
            for member, own in zip(grid, itertools.islice(fitted, len(grid)), strict=True):
                if own and (winner is None or metrics.better(selection, own.value, winner[1].value)):
                    winner = member.config.train, own
            best.append(winner)
        return best

    def _chosen(self, cell: _Cell, best: tuple[ml_collections.ConfigDict, Fitted] | None, scores: np.ndarray | None) -> dict:
        """The row of the better of the best trained member and, where asked for, the linear read-out of the frozen encoder."""
        if "frozen" in self.config.compare.strategies:
            fixed, fixed_scores = self._probe(cell, ("encoder",) if cell.arm == "pretrained" else ("random",))
            if best is None or metrics.better(self._first.objective.selection, fixed.value, best[1].value):
                details = {"strategy": "frozen", "regularisation": fixed.strength}
                return self._row(cell, None, fixed.value, fixed.calibration, fixed_scores, details)
        if best is None:
            raise UserError(f"Every training of {cell.arm} with {cell.budget:g} labels diverged: lower compare.learning_rates.")
        settings, fitted = best
        details = {"strategy": settings.strategy, "learning_rate": settings.learning_rate}
        return self._row(cell, fitted.step, fitted.value, fitted.calibration, scores, details)

    def _constant(self, cell: _Cell) -> dict:
        corpus, fold = self._unpretrained.corpus, self.config.compare.fold
        labels, train_labels = corpus.fold(fold).labels, corpus.fold("train").labels
        made = self._unpretrained.objective.constant({}, labels, train_labels)
        row = results.row(corpus, "constant", len(train_labels), cell.seed, fold, None, None, made)
        return row | {"variant": self.variant, "folds": self.rotation, "budget": 0}

    def _row(self, cell: _Cell, step: int | None, value: float, calibration, scores: np.ndarray, details: dict) -> dict:
        """A row of results, its predictions kept beside it."""
        fold, objective = self.config.compare.fold, self._first.objective
        own = self._segments[fold]
        made = objective.metrics({"scores": scores}, own.labels, calibration)
        selection = {"fold": "valid", "metric": objective.selection, "value": float(value), **details}
        kept = results.keep_predictions(
            self.out, Path(self.variant) / self.rotation / f"{cell.arm}-{cell.budget:g}-{cell.seed}",
            scores=scores.astype(np.float32), target=objective.target(own.labels), recordings=own.recordings.astype(str),
        )  # fmt: skip
        row = results.row(self._first.corpus, cell.arm, self._num_labels(cell.budget), cell.seed, fold, step, selection, made)
        return row | {
            "variant": self.variant,
            "folds": self.rotation,
            "budget": cell.budget,
            "predictions": kept,
            "classes": list(objective.classes),
        }


def _check(grid: ml_collections.ConfigDict) -> None:
    if min(len(grid.label_counts), len(grid.learning_rates), len(grid.strategies), len(grid.arms), len(grid.variants), grid.seeds) < 1:
        raise UserError("compare.label_counts, learning_rates, strategies, arms, variants and seeds must name at least one each.")
    for strategy in grid.strategies:
        check_choice("compare.strategies", strategy, STRATEGIES)
    for arm in grid.arms:
        check_choice("compare.arms", arm, (*results.TUNED, *_LINEAR))
    if min(grid.label_counts) < 0:
        raise UserError(f"compare.label_counts has {min(grid.label_counts)}: give counts, fractions of the fold, or 0 for all labels.")
    check_choice("compare.fold", grid.fold, ("valid", "test"))
    names = [name for name, _ in grid.variants]
    for name in names:
        if name != Path(name).name or len(name) > 100:
            raise UserError(f"compare.variants has the name '{name}': folders are named after it, so give up to 100 letters without '/'.")
        if names.count(name) > 1:
            raise UserError(f"compare.variants has the name '{name}' twice: give each variant a name of its own.")


def _varied(config: ml_collections.ConfigDict, variant: str, fields: Sequence, folds: str) -> ml_collections.ConfigDict:
    """The config of one variant on one rotation."""
    varied = config.copy_and_resolve_references()
    varied.data.folds = folds
    try:
        for name, value in fields:
            *path, last = name.split(".")
            group = functools.reduce(lambda part, key: part[key], path, varied)
            group[last]  # a field that is not there is a mistake, not a new one
            group[last] = value
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"compare.variants: '{variant}' sets {name}, which is no field or not of this type: correct the variant."
        ) from error
    _check(varied.compare)
    return varied


def _part(config: ml_collections.ConfigDict, part: str, **fields) -> ml_collections.ConfigDict:
    """The config of one training: the shared fields, with the objective and train fields of `part`."""
    shared = {name: config[name].copy_and_resolve_references() for name in ("data", "model")}
    own = {name: config[part][name].copy_and_resolve_references() for name in ("objective", "train")}
    return ml_collections.ConfigDict({"task": "train", "seed": config.seed, "num_labels": 0, "init_from": "", **shared, **own, **fields})


def _key(row: dict) -> tuple:
    return row["variant"], row["folds"], row["arm"], row["budget"], row["seed"]
