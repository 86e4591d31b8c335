"""Pretrain, then compare with what one would do without: arms x label counts x seeds, on one or several rotations of the folds."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import ml_collections
import numpy as np
from tqdm import tqdm

from jax_emossl import checkpoint, evaluation, linear, mesh, preemption, processes, programs, report, results, standards, tuned, workdir
from jax_emossl import config as configs
from jax_emossl.arms import ARMS
from jax_emossl.data import corpora, label_budget
from jax_emossl.data.folds import check_tested_once
from jax_emossl.data.indices import Selection
from jax_emossl.errors import UserError, notice
from jax_emossl.experiment import Experiment, build, check_held_out, require
from jax_emossl.objectives import assess
from jax_emossl.objectives.emotion import category_names
from jax_emossl.resident import nbytes, placement
from jax_emossl.study import Answer, Cell, Study, budgets_within, num_labels
from jax_emossl.tasks import train

_IN_PROGRESS = "in_progress"
_UNLEARNED = 1 / 3  # of the cost of a training's second of speech, where nothing is learned from it and many trainings share the reading
_MOST_SHOWN = 2000  # segments in the embedding map


def run(config: ml_collections.ConfigDict, out: Path) -> list[dict]:
    """Fills in the cells (variant, rotation, arm, label count, seed) that `out` does not hold yet; returns all rows."""
    variants = [configs.varied(config, *variant, {}) for variant in config.compare.variants]
    trainings = [own.train for variant in variants for own in (variant.pretrain, variant.finetune)]
    mesh.use_cpu_cores([train.batch_size // train.accumulate for train in trainings])
    with processes.as_one():
        targets, known = corpora.targets(config.data), {}
    processes.check_alike(lambda: {"data.folds": targets})
    with processes.as_one():
        plans = [_Plan.make(config, out, variant, data, known) for variant in config.compare.variants for data in targets]
        plans = _at_the_same_counts(plans)
        _check_tested_once(plans, config.compare.fold)
        _check_classes(plans)
    for plan in plans:
        plan.unpretrained.check_alike()
        plan.check_batches()
    # So far all that cannot be compared is refused, before anything is trained.
    print("\n".join(dict.fromkeys(plan.placement for plan in plans)), flush=True)
    for sentence in dict.fromkeys(plan.unpretrained.crop_notice(plan.unpretrained.segments("train")) for plan in plans):
        if sentence:
            notice(sentence)
    file = out / results.RESULTS_FILE
    rows = processes.of_first(lambda: results.read(file)["runs"] if file.exists() else [])

    def left(rows: Sequence[dict]) -> int:
        return round(sum(plan.left(rows) for plan in plans))

    whole = left(())
    speech = {"unit": " s of speech", "unit_scale": True, "smoothing": 0}  # the mean rate, since parts go at rates of their own
    with tqdm(total=whole, initial=whole - left(rows), desc="comparing", leave=False, disable=None, **speech) as bar:

        def advance(plan: _Plan, cells: Sequence[Cell], share: float) -> None:
            bar.update(round(share * plan.seconds(cells)))

        for before, plan in zip([plans[0], *plans], plans, strict=False):
            if plan.variant != before.variant:
                programs.forget()  # variants may differ in their pretext tasks, whose programs would add up
            if known_already := plan.answered_by(rows):
                rows += known_already
                results.write(file, rows, config)
            missing = plan.missing(rows)
            bar.update(whole - left(rows) - bar.n)
            if not missing:
                continue
            study = Study.make(plan.config, plan.pretrain())
            if plan.pretrains and plan.trains and not processes.of_first((out / results.ILLUSTRATION).exists):
                _illustrate(study, plan)
            for mechanism, cells in itertools.groupby(missing, lambda cell: ARMS[cell.arm].mechanism):
                under_way = out / _IN_PROGRESS / plan.place
                told = functools.partial(advance, plan)
                for answered in _MECHANISMS[mechanism](study, list(cells), under_way, plan.words, told):
                    rows += [plan.row(study, cell, answer) for cell, answer in answered]
                    results.write(file, rows, config)
                    bar.update(whole - left(rows) - bar.n)
                    preemption.stop_if_requested()
    if processes.first():
        shutil.rmtree(out / _IN_PROGRESS, ignore_errors=True)
    print("\n".join(dict.fromkeys(plan.context() for plan in plans)))
    print(processes.of_first(lambda: report.write(out)))
    return rows


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One variant on one corpus and one rotation of its folds: its cells, its pretraining, its rows.

    Attributes:
      folders: workdirs of the pretrainings.
      unpretrained: its fine-tunings, had they no pretraining.
      twins: variants of which it differs in the pretraining alone, so that other arms' rows are the same.
    """

    config: ml_collections.ConfigDict
    out: Path
    variant: str
    rotation: str
    folders: Sequence[Path]
    unpretrained: Experiment
    cells: Sequence[Cell]
    twins: Sequence[str]

    @classmethod
    def make(cls, whole: ml_collections.ConfigDict, out: Path, variant: tuple, data: dict[str, str], known: dict[str, Any]) -> Self:
        """`known` keeps, for the next plans, who pretrains where and which variants train alike."""
        name, fields = variant
        config = configs.varied(whole, name, fields, data)
        experiment, rotation = build(configs.part(config, "finetune")), Path(data["folds"]).stem
        require(experiment.corpus, config.compare.fold)
        cells = _cells(config, rotation, len(experiment.corpus.fold("train")))
        _check_judges(config.compare.validation, cells, experiment)
        first = out / "pretrain" / name / (corpora.short(data["corpus"]) if "+" in whole.data.corpus else "") / rotation
        source = config.compare.pretrain_on
        pretrainings = [configs.part(config, "pretrain", seed=config.seed + k) for k in range(config.compare.pretrainings)]
        own = [known.setdefault(p.to_json_best_effort(), first / (f"seed{p.seed}" if k else "")) for k, p in enumerate(pretrainings)]
        folders = [Path(source)] if processes.of_first(Path(source, "card.json").is_file) else own
        grid = {**config.compare, "arms": (), "label_counts": (), "seeds": 0, "variants": (), "pretrain_on": ""}
        twins = known.setdefault(repr((configs.part(config, "finetune").to_json_best_effort(), grid)), [])
        plan = cls(config, out, name, rotation, folders, experiment, cells, [*twins])
        twins.append(name)
        if plan.pretrains and plan.trains:
            pretraining = build(pretrainings[0])
            check_held_out(pretraining.card(), experiment.corpus, f"A pretraining on {source}")
            pretraining.check_batches(1)
        elif plan.pretrains:
            plan.pretrain()  # which is there: refused now where it does not fit
        return plan

    @property
    def pretrains(self) -> bool:
        return any(ARMS[arm].needs_pretraining for arm in self.config.compare.arms)

    @property
    def trains(self) -> bool:
        """Whether the pretraining is its own, not one that was there before."""
        return self.out in self.folders[0].parents

    def check_batches(self) -> None:
        """UserError where the devices cannot share the batches of its fine-tunings, those of one label count together."""
        cells = collections.Counter(cell.budget for cell in self.cells if ARMS[cell.arm].mechanism == "tuned")
        if members := max(cells.values(), default=0) * len(configs.trained_points(self.config.compare)):
            self.unpretrained.check_batches(members)

    def left(self, rows: Sequence[dict]) -> float:
        """Seconds of speech that are still to be trained on: the time goes by them."""
        missing = self.missing(rows)
        pretrains = self.pretrains and self.trains and len(missing) == len(self.cells)
        # Evaluations of a training alone cost as much: its segments are read from disk for it.
        pretraining = len(self.folders) * sum(self._seconds(self.config.pretrain.train)) if pretrains else 0.0
        return pretraining + self.seconds(missing)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Of speech that some cells take."""
        return sum(self._cell_seconds[cell] for cell in cells)

    @functools.cached_property
    def _cell_seconds(self) -> dict[Cell, float]:
        """Of speech for a cell's trainings and their answers; a linear read-out reads its labelled segments once."""
        grid, available, read = len(configs.trained_points(self.config.compare)), len(self.unpretrained.corpus.fold("train")), {}
        for budget in {cell.budget for cell in self.cells}:
            labels = num_labels(budget, available)
            learned, judged = self._seconds(configs.stretched(self.config.finetune.train, labels))
            linear = _UNLEARNED * labels * self._segment_seconds
            read[budget] = {"tuned": grid * (learned + _UNLEARNED * judged), "linear": linear, "constant": 0.0}
        return {cell: read[cell.budget][ARMS[cell.arm].mechanism] for cell in self.cells}

    def _seconds(self, train: ml_collections.ConfigDict) -> tuple[float, float]:
        """Of speech that a training learns from, and that its evaluations read."""
        valid, reported = (len(self.unpretrained.corpus.fold(fold)) for fold in ("valid", self.config.compare.fold))
        learned = train.steps * train.batch_size * min(train.crop or math.inf, self._segment_seconds)
        return learned, (train.steps / train.eval_every * valid + reported) * self._segment_seconds

    @property
    def _segment_seconds(self) -> float:
        corpus = self.unpretrained.corpus
        fold = corpus.fold("train")
        return len(fold.frames) * corpus.frame_seconds / len(fold)

    @property
    def compared(self) -> tuple[str, str]:
        """Its variant and corpus, which its rotations share."""
        return self.variant, self.unpretrained.name

    @property
    def place(self) -> Path:
        """Of its files among those of other plans."""
        return Path(self.variant, corpora.short(self.config.data.corpus), self.rotation)

    @property
    def words(self) -> str:
        return " ".join(filter(None, (self.variant, corpora.short(self.config.data.corpus), self.rotation)))

    @property
    def placement(self) -> str:
        """Where the model steps lie of which its fine-tunings read."""
        folds = dict.fromkeys(("train", "valid", self.config.compare.fold))
        size = nbytes([self.unpretrained.segments(fold) for fold in folds])
        return f"{self.unpretrained.name}: {placement(self.config.data.resident, size, together=True)}"

    def context(self) -> str:
        """What a reader must know to judge its rows."""
        whole = self.config.compare.validation == "fold"
        valid = self.unpretrained.segments("valid") if whole else None
        return evaluation.context(self.unpretrained, valid, self.config.compare.fold)

    def _own(self, row: dict, variant: str) -> bool:
        """Whether a row is one of `variant` on this corpus and rotation."""
        return (row.get("variant"), row["corpus"], row.get("folds")) == (variant, self.unpretrained.name, self.rotation)

    def answered_by(self, rows: Sequence[dict]) -> list[dict]:
        """Rows of twins that are this plan's, too: of its cells without a row and without pretraining."""
        missing = {(c.arm, c.budget, c.seed) for c in self.missing(rows) if not ARMS[c.arm].needs_pretraining}
        of_twins = [row for row in rows if any(self._own(row, twin) for twin in self.twins)]
        made = {cell: row for row in of_twins if (cell := (row["arm"], row["budget"], row["seed"])) in missing}
        return [row | {"variant": self.variant} for row in made.values()]

    def missing(self, rows: Sequence[dict]) -> list[Cell]:
        """The cells without a row: those of one mechanism together, and arms side by side, since some end early, to the devices' equal share."""
        done = {(row["arm"], row["budget"], row["seed"]) for row in rows if self._own(row, self.variant)}
        order = list(_MECHANISMS)
        return sorted(
            (cell for cell in self.cells if cell not in done), key=lambda c: (order.index(ARMS[c.arm].mechanism), c.budget, c.seed)
        )

    def pretrain(self) -> list[Experiment]:
        """The experiments that start from the pretrained encoders, which are trained now if they are not there."""
        if not self.pretrains:
            return [self.unpretrained]
        for k, folder in enumerate(self.folders if self.trains else ()):
            config = configs.part(self.config, "pretrain", seed=self.config.seed + k)
            processes.of_first(functools.partial(workdir.enter, folder, config))
            train.run(config, folder)
        return self.pretrained

    @functools.cached_property
    def pretrained(self) -> list[Experiment]:
        """The experiments that start from the encoders in `folders`; UserError where these do not fit the corpus."""
        return [build(configs.part(self.config, "finetune", init_from=str(own)), self.unpretrained.corpus) for own in self.folders]

    def row(self, study: Study, cell: Cell, answer: Answer) -> dict:
        """A row of results, its predictions kept beside it."""
        experiment, fold = study.experiment, self.config.compare.fold
        objective = experiment.objective
        labels, train_labels = study.reported.labels, study.segments["train"].labels
        place = {"variant": self.variant, "folds": self.rotation, "budget": cell.budget, "unit": experiment.corpus.unit}
        encoder = {"pretraining": (cell.seed - self.config.seed) % len(self.folders)}
        if answer.scores is None:
            made = objective.constant(labels, train_labels)
            return (
                results.row(experiment.name, experiment.synthetic, cell.arm, len(train_labels), cell.seed, fold, None, None, made) | place
            )
        made = objective.evaluate({"scores": answer.scores}, labels, answer.calibration)
        judge = "valid" if self.config.compare.validation == "fold" else "train"
        selection = {"fold": judge, "metric": objective.selection, "value": float(answer.value), **answer.details}
        if answer.evaluations:
            selection["evaluations"] = answer.evaluations
        kept = results.keep_predictions(
            self.out, self.place / f"{cell.arm}-{cell.budget:g}-{cell.seed}",
            **objective.decode(answer.scores, answer.calibration), target=objective.target(labels), recordings=study.reported.recordings,
        )  # fmt: skip
        labelled = num_labels(cell.budget, len(train_labels))
        row = results.row(experiment.name, experiment.synthetic, cell.arm, labelled, cell.seed, fold, answer.step, selection, made)
        return row | place | encoder | {"predictions": kept, "classes": list(objective.classes)}


def _constants(study: Study, cells: Sequence[Cell], *_) -> Iterator[list[tuple[Cell, Answer]]]:
    """The training fold's best constant for each metric looks at no features: it has no scores."""
    yield [(cell, Answer(None, None, None, None, None, {})) for cell in cells]


_MECHANISMS = {"constant": _constants, "linear": linear.answers, "tuned": tuned.answers}  # in the order of their cells


def _cells(config: ml_collections.ConfigDict, rotation: str, available: int) -> list[Cell]:
    """All cells; label counts beyond the fold are left out with a notice."""
    grid = config.compare
    budgets = budgets_within(grid.label_counts, available)
    for budget in (budget for budget in dict.fromkeys(grid.label_counts) if budget not in budgets):
        why = ", which is what 0 asks for," if budget == available else ""
        notice(f"{rotation or 'the training fold'} has {available} labelled segments: the label count {budget}{why} is left out.")
    if not budgets:
        raise UserError(f"Every one of compare.label_counts is beyond the {available} labelled segments of the training fold: lower them.")
    seeds = range(config.seed, config.seed + grid.seeds)
    return [Cell("constant", 0, config.seed), *(Cell(*own) for own in itertools.product(grid.arms, budgets, seeds))]


def _at_the_same_counts(plans: Sequence[_Plan]) -> list[_Plan]:
    """Without the label counts that some rotation of a plan's corpus leaves out, so that every count is answered on all its recordings."""
    common: dict[tuple[str, str], set[float]] = {}
    for plan in plans:
        own = {cell.budget for cell in plan.cells}
        common[plan.compared] = common.get(plan.compared, own) & own
    for plan in plans:
        for budget in sorted({cell.budget for cell in plan.cells} - common[plan.compared]):
            notice(f"{plan.words or plan.rotation}: the label count {budget:g} is left out, since another rotation has fewer segments.")
    return [dataclasses.replace(plan, cells=[cell for cell in plan.cells if cell.budget in common[plan.compared]]) for plan in plans]


def _check_tested_once(plans: Sequence[_Plan], fold: str) -> None:
    """Refuses rotations that report the same recording, as the report in the end would."""
    for alike in dict.fromkeys(plan.compared for plan in plans):
        rotations = {plan.rotation: plan.unpretrained.corpus for plan in plans if plan.compared == alike}
        tested = {rotation: corpus.units(corpus.fold(fold).recordings) for rotation, corpus in rotations.items()}
        check_tested_once(tested, "data.folds", next(iter(rotations.values())).unit)


def _check_classes(plans: Sequence[_Plan]) -> None:
    """Refuses rotations of a corpus that answer other classes, or corpora with other heads: they have no score in common."""
    for one, other in itertools.combinations(plans, 2):
        first, second = one.unpretrained.objective, other.unpretrained.objective
        places = [" ".join(filter(None, (plan.variant, plan.unpretrained.name, plan.rotation))) for plan in (one, other)]
        if first.head != second.head:
            raise UserError(
                f"{places[0]} answers by {first.head} and {places[1]} by {second.head}: give --config.finetune.objective.head=intensity for all."
            )
        if one.unpretrained.name == other.unpretrained.name and first.classes != second.classes:
            raise UserError(
                f"The training folds of {places[0]} and {places[1]} do not have the same classes ({', '.join(first.classes)}; "
                f"{', '.join(second.classes)}): divide the recordings so that each has all."
            )


def _check_judges(validation: str, cells: Sequence[Cell], experiment: Experiment) -> None:
    """Refuses what does not define the selection metric, as answers would in the end: the validation fold, or labels too few to hold their own."""
    corpus, objective = experiment.corpus, experiment.objective

    def define(labels: np.ndarray) -> bool:
        with contextlib.suppress(UserError):
            assess(objective, {"scores": np.zeros((len(labels), len(objective.classes)), np.float32)}, labels)
            return True
        return False

    if validation == "fold":
        if not define(experiment.segments("valid").labels):
            raise UserError(
                f"The validation fold of {corpus.name} does not define {objective.selection}: choose another finetune.objective.selection."
            )
        return
    train = corpus.fold("train")
    units = corpus.units(train.recordings)
    for budget, seed in sorted({(cell.budget, cell.seed) for cell in cells}):
        chosen = label_budget.choose(train.labels, num_labels(budget, len(train)), seed)
        judges = chosen[label_budget.held_out([units[i] for i in chosen], seed)]
        if not define(train.labels[judges]):
            raise UserError(
                f"compare.validation is budget, but the {len(judges)} of {len(chosen)} labels that validate (seed {seed}) do not define "
                f"{objective.selection}: raise compare.label_counts, or give fold."
            )


def _illustrate(study: Study, plan: _Plan) -> None:
    """Keeps what the report's pictures need: some segments of the pretext task, and of the reported before and after pretraining."""
    experiment, valid, reported = study.experiment, study.segments["valid"], study.reported
    some = np.linspace(0, len(reported) - 1, min(_MOST_SHOWN, len(reported))).round().astype(int)
    own, whole, prior = reported.take(some), reported.with_basis(), experiment.objective.standards_prior
    pretraining = build(configs.part(plan.config, "pretrain", data=plan.config.data.to_dict()), experiment.corpus)
    middle = np.argsort(valid.lengths, kind="stable")[[len(valid) // 4, len(valid) // 2, 3 * len(valid) // 4]]
    batch = valid.gather(Selection(middle, np.zeros(3, int), np.ones(3, np.float32), int(valid.lengths[middle].max())))
    pictures = pretraining.objective.illustrate(checkpoint.load_best(plan.folders[0]).variables, batch)
    frontend, shown = experiment.frontend, {}
    for source in ("random", "pretrained"):
        vectors = study.represented(source, plan.config.seed, plan.config.compare.fold)  # those of training segments are not needed
        shown[source] = standards.standardised(vectors, whole.basis, standards.overall(vectors), prior)[some]
    results.keep_predictions(
        plan.out, Path("illustration"), **pictures,
        features=batch["features"], num_steps=batch["num_steps"], stack=frontend.stack, hop=frontend.frame_seconds * frontend.pool,
        before=shown["random"], after=shown["pretrained"],
        emotion=np.array(category_names(own.labels, experiment.corpus.emotions)), recording=own.recordings,
    )  # fmt: skip
