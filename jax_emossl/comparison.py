"""What a comparison has measured: its rows and predictions, checked, and the estimates that tables and figures ask for."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_emossl import results, significance
from jax_emossl.arms import ARMS
from jax_emossl.data import normalisation
from jax_emossl.data.folds import check_tested_once
from jax_emossl.data.prepared import RECORDING
from jax_emossl.errors import UserError
from jax_emossl.metrics import LOWER_IS_BETTER, UNSEEN
from jax_emossl.significance import Curve, Estimate, Metric, Pool, Runs, Scored

_MOST_UNSEEN = 1000  # classes that training does not know; labels never have as many


class Comparison:
    """The results.json of a comparison and the predictions beside it. A budget is a label count asked for, 0 for all labels.

    Of several corpora, estimates are means in which every recording weighs the same, and `parts` are the comparisons on each alone.

    Attributes:
      rows: the rows of all arms but the constant predictor, whose rows are `constants`.
      corpus: its name, marked if it is synthetic, or their names.
      fold: "test" or "validation", the fold that was scored; the first variant scores so many `recordings` of it.
      unit: what a recording is called: speaker, where those are known and count as one, video or recording.
      normalised: by what, in words.
      reads_functionals: whether the heads of trained arms read functionals beside the encoder.
      category: whether categories were predicted, not intensities.
      metrics: all by name; `headline` names those that come first.

    Raises:
      UserError: the results are those of another task, not comparable or none yet, or predictions are missing or damaged.
    """

    def __init__(self, out: Path, corpus: str | None = None):
        self.out, self.file = out, out / results.RESULTS_FILE
        table = results.read(self.file)
        cells = [row for row in table["runs"] if "budget" in row and corpus in (None, row["corpus"])]
        if not cells:
            raise UserError(
                f"{out} holds no comparison: give the workdir of a run of experiments/label_fraction.py or configs/quickstart.py."
            )
        for row in cells:
            if row["arm"] not in ARMS:
                raise UserError(f"{self.file} has rows of the arm '{row['arm']}', which is none of {', '.join(ARMS)}: add it to arms.ARMS.")
        self.constants = [row for row in cells if ARMS[row["arm"]].mechanism == "constant"]
        self.rows = [row for row in cells if ARMS[row["arm"]].mechanism != "constant"]
        if not self.rows:
            raise UserError(f"{self.file} has no finished cell yet: run its command again to go on.")
        names = list(dict.fromkeys(row["corpus"] for row in self.rows))
        _check_alike(self.file, self.rows, ("fold",) if len(names) > 1 else ("fold", "classes"))
        first = self.rows[0]
        self.version, self.command, self.commit = table["version"], table.get("command", ""), table.get("commit")
        self.synthetic = any(row["synthetic"] for row in self.rows)
        marked = dict.fromkeys(row["corpus"] + (" (SYNTHETIC)" if row["synthetic"] else "") for row in self.rows)
        self.corpus = " + ".join(marked)
        self.fold = {"valid": "validation"}.get(first["fold"], first["fold"])
        units = {row.get("unit", RECORDING) for row in self.rows}
        self.unit = units.pop() if len(units) == 1 else RECORDING
        self.normalised = _normalised(self.file, table["config"], self.fold, self.unit)
        self.reads_functionals = "functionals" in _reads(table["config"])
        judges = {row["selection"]["fold"]: row["selection"]["fold"] == row["fold"] for row in self.rows}
        self.by_reported = any(judges.values())  # whether the reported fold chose, too
        own = {"valid": "the validation fold", "train": f"about a quarter of the labels, of {self.unit}s of their own"}
        self.judge = ", or where a variant says so on ".join(own[fold] for fold in judges)
        self.category = "uar" in first["metrics"]
        self.classes = tuple(first["classes"])
        self.headline = ["uar", "f1_macro", "accuracy"] if self.category else ["auroc", "mae", "accuracy4"]
        self.variants = list(dict.fromkeys(row["variant"] for row in self.rows))
        self.rotations = list(dict.fromkeys(row["folds"] for row in self.rows))
        self.seeds = sorted({row["seed"] for row in self.rows})
        self.pretrainings = len({row.get("pretraining", 0) for row in self.rows})
        self.runs = functools.cache(self._runs)
        self.parts = [self] if len(names) == 1 else [Comparison(out, name) for name in names]
        self._stream = 0
        if len(names) > 1:
            self.recordings = sum(part.recordings for part in self.parts)
            for stream, part in enumerate(self.parts):
                part._stream = stream
                if part.category != self.category:
                    kinds = [f"{own.corpus} in {'categories' if own.category else 'intensities'}" for own in self.parts]
                    raise UserError(f"{self.file} answers {' and '.join(kinds)}: choose one finetune.objective.head for all.")
            return
        self._scored = self._load()
        self.recordings = [self._tested_once(variant) for variant in self.variants][0]
        targets = np.unique(np.concatenate([own.target for own in self._scored.values()]))
        unseen = [targets[targets <= UNSEEN]] if self.category else []
        made = significance.category_metrics if self.category else significance.intensity_metrics
        self.metrics: dict[str, Metric] = made(self.classes, *unseen)

    @property
    def source(self) -> str:
        """One line under every table and figure."""
        rotations = f"{self.divisions} of the folds" if self.divisions else "one set of folds"
        rotations += " each" if len(self.parts) > 1 and " and " not in rotations else ""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return f"Corpus {self.corpus}, {self.fold} fold, {rotations}, {seeds}; jax_emossl {self.version}; {self.command}"

    @property
    def divisions(self) -> str:
        """How many rotations the corpora have, one number where they have as many; nothing where each has one set of folds."""
        numbers = [len(part.rotations) for part in self.parts]
        alike = numbers[:1] if len(set(numbers)) == 1 else numbers
        return f"{' and '.join(map(str, alike))} rotations" if alike != [1] else ""

    @property
    def pretrained(self) -> bool:
        """Whether an arm has a pretrained encoder."""
        return any(ARMS[row["arm"]].needs_pretraining for row in self.rows)

    @property
    def emotion_metrics(self) -> list[str]:
        """The metrics of each emotion: recall, or first mean absolute errors and then 4-class accuracies."""
        kinds = ("recall of ",) if self.category else ("mae of ", "accuracy4 of ")
        return [name for kind in kinds for name in self.metrics if name.startswith(kind)]

    def arms(self, variant: str) -> list[str]:
        """Arms that have rows (of several corpora, in each), in the order of the registry, without the constant predictor."""
        present = {row["arm"] for row in self.rows if row["variant"] == variant}
        if len(self.parts) > 1:
            present = present.intersection(*(part.arms(variant) for part in self.parts))
        return [arm for arm in ARMS if arm in present]

    def pairs(self, variant: str) -> list[tuple[str, str]]:
        """Arms to be compared: `pretrained` with every baseline, and what reads its encoder beside something else with what reads that alone."""
        arms = [ARMS[arm] for arm in self.arms(variant)]
        made = [("pretrained", other.name) for other in arms if other.baseline and "pretrained" in self.arms(variant)]
        for arm, other in itertools.product(arms, arms):
            alike = (arm.mechanism, arm.self_trained) == (other.mechanism, other.self_trained)
            if alike and arm.reads == ("pretrained", *other.reads):
                made.append((arm.name, other.name))
        return made

    def main_pairs(self, variant: str) -> list[tuple[str, str]]:
        """Those that say what pretraining adds: to scratch, and to what is read beside its encoder."""
        return [(arm, other) for arm, other in self.pairs(variant) if other == "scratch" or arm != "pretrained"]

    def budgets(self, variant: str, *arms: str) -> list[float]:
        """Budgets that all these arms have, or without arms those that any has, from few labels to many."""
        have = [
            {row["budget"] for row in self.rows if (row["variant"], row["arm"]) == (variant, arm)} for arm in arms or self.arms(variant)
        ]
        own = set.intersection(*have) if arms else set().union(*have)
        if len(self.parts) > 1:  # what each of them has
            own = own.intersection(*(part.budgets(variant, *arms) for part in self.parts))
        return sorted(own, key=self.labels)

    def labels(self, budget: float) -> float:
        """Labelled segments behind a budget, mean over rotations."""
        return float(np.mean([row["num_labels"] for row in self.rows if row["budget"] == budget]))

    def budget_name(self, budget: float) -> str:
        if budget == 0 and len(self.parts) > 1:
            return "all"
        if budget == 0:
            return f"all ({self.labels(0):.0f})"
        return f"{budget:.2g} ({self.labels(budget):.0f})" if budget < 1 else f"{budget:g}"

    def evaluations(self, variant: str, arm: str, budget: float) -> list[np.ndarray]:
        """Of every training behind the answers, all rotations and seeds together, its validated steps and their values (n, 2)."""
        rows = [row for row in self.rows if (row["variant"], row["arm"], row["budget"]) == (variant, arm, budget)]
        return [np.array(own, float) for row in rows for own in row["selection"].get("evaluations", ()) if own]

    def validated(self, variant: str) -> list[str]:
        """Arms whose trainings have left their evaluations."""
        trained = [arm for arm in self.arms(variant) if ARMS[arm].mechanism == "tuned"]
        return [arm for arm in trained if any(self.evaluations(variant, arm, budget) for budget in self.budgets(variant, arm))]

    def alike(self, variant: str) -> bool:
        """Whether a variant scores the very segments that the first does, so that the two can be paired."""
        if len(self.parts) > 1:
            return all(part.alike(variant) for part in self.parts)
        one, two = map(self._tested, (self.variants[0], variant))
        return one.keys() == two.keys() and all(_of_same_segments(own, two[rotation]) for rotation, own in one.items())

    def estimate(self, variant: str, arm: str, budget: float, metric: str) -> Estimate:
        return self.runs(variant, arm, budget, metric).estimate()

    def difference(self, variant: str, arm: str, other: str, budget: float, metric: str, of: str | None = None) -> Estimate | None:
        """One arm less another, `of` the same variant unless said; None where they do not (yet) have the same rotations and seeds."""
        one, two = self.runs(variant, arm, budget, metric), self.runs(variant if of is None else of, other, budget, metric)
        return one.difference(two) if (one.rotations, one.seeds) == (two.rotations, two.seeds) else None

    def overall(self, variant: str, arm: str, other: str, metric: str, of: str | None = None) -> Estimate | None:
        """One arm less another in the mean over their label counts, on a logarithmic scale; None until they have the same runs."""
        of = variant if of is None else of
        budgets = [budget for budget in self.budgets(variant, arm) if budget in self.budgets(of, other)]
        labels = [self.labels(budget) for budget in budgets]
        if not budgets:
            return None
        try:
            one, two = (Curve([self.runs(*own, budget, metric) for budget in budgets], labels) for own in ((variant, arm), (of, other)))
            return one.difference(two)
        except ValueError:  # some are not there yet
            return None

    def labels_needed(self, variant: str, arm: str, other: str, budget: float, metric: str) -> Estimate | None:
        """How many labels `other` needs to reach what `arm` has; None where its learning curve cannot say, see `significance.labels_needed`."""
        budgets = self.budgets(variant, other)
        points, labels = [self.runs(variant, other, own, metric) for own in budgets], [self.labels(own) for own in budgets]
        return significance.labels_needed(points, labels, self.runs(variant, arm, budget, metric), -1 if metric in LOWER_IS_BETTER else 1)

    def constant(self, metric: str) -> float | None:
        """What the best constant reaches, of one emotion too, mean over rotations; of several corpora, over recordings."""
        if len(self.parts) > 1:
            values = [part.constant(metric) for part in self.parts]
            return None if None in values else float(np.average(values, weights=[part.recordings for part in self.parts]))
        name, _, emotion = metric.partition(" of ")
        reports = [row["metrics"] for row in self.constants if row["variant"] == self.variants[0]]
        values = [(report.get("per_emotion", {}).get(emotion, {}) if emotion else report).get(name) for report in reports]
        return float(np.mean(values)) if values and None not in values else None

    def confusion(self, variant: str, arm: str, budget: float) -> np.ndarray:
        """(C, C): sum of the confusion matrices over rotations and seeds, true classes, those that training knows, in rows."""
        runs, size = self.runs(variant, arm, budget, "uar"), len(self.classes)
        return sum(sums.sum((0, 1)) for sums in runs.sums(runs.split(np.ones((1, runs.total))))).reshape(-1, size)[:size]

    def illustration(self) -> dict[str, np.ndarray] | None:
        """Reconstructions and embeddings, where the run has left them."""
        file = self.out / results.ILLUSTRATION
        return results.load_arrays(file) if file.exists() else None

    def _runs(self, variant: str, arm: str, budget: float, metric: str) -> Runs | Pool:
        """The runs of one arm at one budget, of the seeds that every rotation has by now; `runs` keeps them."""
        if len(self.parts) > 1:
            return Pool([part.runs(variant, arm, budget, metric) for part in self.parts])
        own = [row for row in self.rows if (row["variant"], row["arm"], row["budget"]) == (variant, arm, budget)]
        seeds = set.intersection(*({r["seed"] for r in own if r["folds"] == rotation} for rotation in {r["folds"] for r in own}))
        if not seeds:
            raise UserError(f"{self.file}: the rotations of {arm} with {budget:g} labels have no seed in common: run its command again.")
        scored = {(r["folds"], r["seed"]): self._scored[r["predictions"]] for r in own if r["seed"] in seeds}
        return Runs(scored, self.metrics[metric], self._stream, {r["seed"]: r.get("pretraining", 0) for r in own})

    def _load(self) -> dict[str, Scored]:
        """All predictions by their path; those of one rotation must be of the same segments."""
        loaded, firsts = {}, {}
        for row in self.rows:
            file = self.out / row["predictions"]
            own = _read_scored(file, len(self.classes), self.category)
            first = firsts.setdefault((row["variant"], row["folds"]), own)
            if not _of_same_segments(own, first):
                raise UserError(
                    f"{file} is of other segments than the predictions before it: "
                    "the corpus has changed meanwhile, so run the experiment anew in another --workdir."
                )
            loaded[row["predictions"]] = dataclasses.replace(own, target=first.target, recordings=first.recordings)  # kept once
        return loaded

    def _tested(self, variant: str) -> dict[str, Scored]:
        """Of every rotation of a variant one run, which scores the segments that all of them do."""
        files = {row["folds"]: row["predictions"] for row in self.rows if row["variant"] == variant}
        return {rotation: self._scored[file] for rotation, file in files.items()}

    def _tested_once(self, variant: str) -> int:
        """How many recordings a variant has tested."""
        return check_tested_once({rotation: own.recordings for rotation, own in self._tested(variant).items()}, self.file, self.unit)


def _of_same_segments(one: Scored, other: Scored) -> bool:
    return np.array_equal(one.recordings, other.recordings) and np.array_equal(one.target, other.target)


def _check_alike(file: Path, rows: Sequence[dict], fields: Sequence[str]) -> None:
    """Only segments of one fold and, of one corpus, told apart into the same classes, can be judged together."""
    for row, name in itertools.product(rows, fields):
        if row[name] != rows[0][name]:
            one, two = (f"rotation {r['folds']!r} (variant {r['variant']!r}) has {r[name]!r}" for r in (rows[0], row))
            raise UserError(f"{file}: the {name} of its rows differ, {one}, {two}: give each a --workdir of its own.")


def _normalised(file: Path, config: dict, fold: str, unit: str) -> str:
    """By what, in words; earlier results lack the fields that need not be there."""
    try:
        prior = float(config["data"]["norm_prior"])
        objective = config.get("finetune", {}).get("objective", {})
        by = config["data"].get("normalise_by", normalisation.RECORDING)
        return normalisation.words(by, fold, prior, float(objective.get("standards_prior", prior)), unit=unit)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} has no number as config.data.norm_prior: run the experiment anew.") from error


def _reads(config: dict) -> str:
    """What the heads of trained arms read."""
    try:
        return str(config["finetune"]["objective"]["reads"])
    except (KeyError, TypeError):
        return "encoder"


def _fits_scores(array: np.ndarray, kind: str, scored: Scored) -> bool:
    return array.shape == scored.scores.shape and array.dtype.kind == kind


def _read_scored(file: Path, size: int, category: bool) -> Scored:
    """The predictions of one row for `size` classes or emotions."""
    arrays = results.load_arrays(file)
    try:
        scored = Scored(*(arrays[name] for name in ("scores", "target", "recordings", *(() if category else ("median", "four_class")))))
    except KeyError as error:
        raise UserError(f"{file} lacks {error}: run the experiment anew.") from error
    segments = scored.recordings.shape
    fits = (
        len(segments) == 1
        and segments > (0,)
        and scored.scores.shape == (*segments, size)
        and scored.target.shape == (segments if category else (*segments, size))
        and "".join(array.dtype.kind for array in (scored.scores, scored.target, scored.recordings)) == ("fiU" if category else "ffU")
        and (category or _fits_scores(scored.median, "f", scored) and _fits_scores(scored.four_class, "i", scored))
        and (not category or UNSEEN - _MOST_UNSEEN < scored.target.min() <= scored.target.max() < size)
    )
    if not fits:
        raise UserError(f"{file} does not fit results.json: run the experiment anew.")
    return scored
