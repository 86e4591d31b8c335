"""The report of a comparison, made from results.json and the predictions kept beside it alone.

    python -m jax_emossl.report WORKDIR

writes WORKDIR/report.md and report.html (self-contained), tables/*.csv and *.tex (booktabs), figures/*.png and *.pdf.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jax_emossl import figures, results, significance
from jax_emossl.errors import UserError
from jax_emossl.metrics import LOWER_IS_BETTER, UNSEEN
from jax_emossl.significance import Estimate, Metric, Runs, Scored

_MOST_UNSEEN = 1000  # classes that training does not know; labels never have as many
_BASELINES = ("scratch", "functionals")  # what pretrained is compared with


@dataclasses.dataclass(frozen=True)
class Table:
    name: str
    caption: str
    rows: list[list[str]]  # the first is the header


@dataclasses.dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    draw: Callable  # () -> matplotlib Figure


@dataclasses.dataclass(frozen=True)
class Text:
    words: str
    heading: bool = False


class Comparison:
    """A results.json whose rows are those of a comparison, and the estimates that follow from it.

    Raises:
      UserError: the results are those of another task, not comparable or none yet, or predictions are missing or damaged.
    """

    def __init__(self, out: Path):
        file = out / results.RESULTS_FILE
        table = results.read(file)
        cells = [row for row in table["runs"] if "budget" in row]
        if not cells:
            raise UserError(
                f"{out} holds no comparison: give the workdir of a run of experiments/label_fraction.py or configs/quickstart.py."
            )
        self.constants = [row for row in cells if row["arm"] == "constant"]
        self.rows = [row for row in cells if row["arm"] != "constant"]
        if not self.rows:
            raise UserError(f"{file} has no finished cell yet: run its command again to go on.")
        _check_alike(file, self.rows)
        first = self.rows[0]
        self.out, self.version, self.command = out, table["version"], table.get("command", "")
        self.corpus, self.synthetic = first["corpus"], first["synthetic"]
        self.fold = {"valid": "validation"}.get(first["fold"], first["fold"])
        self.transductive = _prior(file, table["config"]) < math.inf
        self.category = "uar" in first["metrics"]
        self.classes = tuple(first["classes"])
        self.headline = ["uar", "f1_macro", "accuracy"] if self.category else ["auroc", "mae", "accuracy4"]
        self.variants = list(dict.fromkeys(row["variant"] for row in self.rows))
        self.rotations = list(dict.fromkeys(row["folds"] for row in self.rows))
        self.seeds = sorted({row["seed"] for row in self.rows})
        self._scored = self._load()
        self.metrics = self._metrics()
        self._runs: dict[tuple, Runs] = {}

    def arms(self, variant: str) -> list[str]:
        present = {row["arm"] for row in self.rows if row["variant"] == variant}
        return [arm for arm in results.ARMS if arm in present]

    def budgets(self, variant: str, *arms: str) -> list[float]:
        """Label counts, ascending, that all these arms have."""
        return sorted(set.intersection(*(self._budgets(variant, arm) for arm in arms)), key=self.labels)

    def all_budgets(self, variant: str) -> list[float]:
        """Label counts, ascending, that any arm has."""
        return sorted(set.union(*(self._budgets(variant, arm) for arm in self.arms(variant))), key=self.labels)

    def _budgets(self, variant: str, arm: str) -> set[float]:
        return {row["budget"] for row in self.rows if (row["variant"], row["arm"]) == (variant, arm)}

    def labels(self, budget: float) -> float:
        """Labelled segments behind a budget, mean over rotations."""
        return float(np.mean([row["num_labels"] for row in self.rows if row["budget"] == budget]))

    def budget_name(self, budget: float) -> str:
        if budget == 0:
            return f"all ({self.labels(0):.0f})"
        return f"{budget:.2g} ({self.labels(budget):.0f})" if budget < 1 else f"{budget:g}"

    def runs(self, variant: str, arm: str, budget: float, metric: str) -> Runs:
        key = (variant, arm, budget, metric)
        if key not in self._runs:
            own = [r for r in self.rows if (r["variant"], r["arm"], r["budget"]) == key[:3]]
            seeds = set.intersection(*({r["seed"] for r in own if r["folds"] == rotation} for rotation in {r["folds"] for r in own}))
            scored = {(r["folds"], r["seed"]): self._scored[r["predictions"]] for r in own if r["seed"] in seeds}
            self._runs[key] = Runs(scored, self.metrics[metric])
        return self._runs[key]

    def estimate(self, variant: str, arm: str, budget: float, metric: str) -> Estimate:
        return self.runs(variant, arm, budget, metric).estimate()

    def difference(self, variant: str, arm: str, other: str, budget: float, metric: str) -> Estimate | None:
        """None where the arms do not (yet) have the same rotations and seeds."""
        one, two = (self.runs(variant, a, budget, metric) for a in (arm, other))
        return one.difference(two) if (one.rotations, one.seeds) == (two.rotations, two.seeds) else None

    def constant(self, metric: str) -> float | None:
        values = [row["metrics"].get(metric) for row in self.constants if row["variant"] == self.variants[0]]
        return float(np.mean(values)) if values and None not in values else None

    def confusion(self, arm: str, budget: float) -> np.ndarray:
        """(C, C): sum of the confusion matrices over rotations and seeds, true classes, those that training knows, in rows."""
        runs = self.runs(self.variants[0], arm, budget, "uar")
        weights = [np.ones((1, len(own))) for own in runs.recordings]
        size = len(self.classes)
        return sum(own.sum((0, 1)) for own in runs.sums(weights)).reshape(-1, size)[:size]

    def illustration(self) -> dict[str, np.ndarray] | None:
        """Reconstructions and embeddings, where the run has left them."""
        file = self.out / results.ILLUSTRATION
        return results.load_arrays(file) if file.exists() else None

    @property
    def source(self) -> str:
        """One line under every table and figure."""
        rotations = f"{len(self.rotations)} rotations of the folds" if len(self.rotations) > 1 else "one set of folds"
        synthetic = " (SYNTHETIC)" if self.synthetic else ""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return f"Corpus {self.corpus}{synthetic}, {self.fold} fold, {rotations}, {seeds}; jax_emossl {self.version}; {self.command}"

    def _load(self) -> dict[str, Scored]:
        """All predictions by their path; those of one rotation must be of the same segments."""
        loaded, firsts = {}, {}
        for row in self.rows:
            file = self.out / row["predictions"]
            own = loaded[row["predictions"]] = _read_scored(file, len(self.classes), self.category)
            first = firsts.setdefault((row["variant"], row["folds"]), own)
            if not (np.array_equal(own.recordings, first.recordings) and np.array_equal(own.target, first.target)):
                raise UserError(
                    f"{file} is of other segments than the predictions before it: "
                    "the corpus has changed meanwhile, so run the experiment anew in another --workdir."
                )
        return loaded

    def _metrics(self) -> dict[str, Metric]:
        if not self.category:
            return significance.intensity_metrics(self.classes)
        targets = np.unique(np.concatenate([own.target for own in self._scored.values()]))
        return significance.category_metrics(self.classes, targets[targets <= UNSEEN])


def _check_alike(file: Path, rows: Sequence[dict]) -> None:
    """Only segments of one corpus and fold, told apart into the same classes, can be judged together."""
    for row, name in itertools.product(rows, ("corpus", "fold", "classes")):
        if row[name] != rows[0][name]:
            one, two = (f"rotation {r['folds']!r} (variant {r['variant']!r}) has {r[name]!r}" for r in (rows[0], row))
            raise UserError(f"{file}: the {name} of its rows differ, {one}, {two}: give each a --workdir of its own.")


def _prior(file: Path, config: dict) -> float:
    """The prior of the normalisation in seconds, infinite where no recording's own frames are used."""
    try:
        return float(config["data"]["norm_prior"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file} has no number as config.data.norm_prior: run the experiment anew.") from error


def _read_scored(file: Path, size: int, category: bool) -> Scored:
    """The predictions of one row for `size` classes or emotions."""
    arrays = results.load_arrays(file)
    try:
        scored = Scored(*(arrays[name] for name in ("scores", "target", "recordings")))
    except KeyError as error:
        raise UserError(f"{file} lacks {error}: run the experiment anew.") from error
    segments = scored.recordings.shape
    fits = (
        len(segments) == 1
        and segments > (0,)
        and scored.scores.shape == (*segments, size)
        and scored.target.shape == (segments if category else (*segments, size))
        and "".join(array.dtype.kind for array in (scored.scores, scored.target, scored.recordings)) == ("fiU" if category else "ffU")
        and scored.recordings.dtype.kind == "U"
        and (not category or UNSEEN - _MOST_UNSEEN < scored.target.min() <= scored.target.max() < size)
    )
    if not fits:
        raise UserError(f"{file} does not fit results.json: run the experiment anew.")
    return scored


def write(out: Path) -> str:
    """Remakes the whole report; returns its first table as text and where the rest lies.

    Raises:
      UserError: the folder holds no comparison, or what it holds is damaged.
    """
    comparison = Comparison(out)
    blocks = list(_blocks(comparison))
    for folder in ("tables", "figures"):
        (out / folder).mkdir(exist_ok=True)
    pictures = {}
    for block in blocks:
        if isinstance(block, Table):
            _write_csv(out / "tables" / f"{block.name}.csv", block)
            (out / "tables" / f"{block.name}.tex").write_text(_latex(block, comparison.source), encoding="utf-8")
        elif isinstance(block, Figure):
            pictures[block.name] = figures.save(block.draw(), out / "figures" / block.name, comparison.source)
    (out / "report.md").write_text(_markdown(comparison, blocks), encoding="utf-8")
    (out / "report.html").write_text(_html(comparison, blocks, pictures), encoding="utf-8")
    first = next(block for block in blocks if isinstance(block, Table))
    differences = [block for block in blocks if isinstance(block, Table) and block.name.startswith("difference")][:1]
    shown = "\n\n".join(f"{results.align(table.rows)}\n{table.caption}" for table in (first, *differences))
    return f"{shown}\nReport: {out / 'report.md'}, {out / 'report.html'}"


def _blocks(c: Comparison):
    """The report in order."""
    main = c.variants[0]
    arms = c.arms(main)
    yield Text("Scores", heading=True)
    for metric in c.headline:
        yield _score_table(c, main, metric)
        yield Figure(
            f"learning_curve_{metric}",
            f"{figures.name_of(metric)} against the number of labels; bars are 95 % intervals, the dotted line is the best constant.",
            lambda metric=metric: figures.learning_curve(c, main, metric),
        )
    for other in _BASELINES:
        if "pretrained" in arms and other in arms:
            yield Text(f"Pretrained less {other}", heading=True)
            yield _difference_table(c, main, other)
            efficiency = _efficiency_table(c, main, other)
            if len(efficiency.rows) > 1:
                yield efficiency
    if {"pretrained", "scratch"} <= set(arms):
        yield Text("Per emotion", heading=True)
        yield _emotion_table(c, main)
        yield Figure(
            "gains_per_emotion",
            "Pretrained less scratch per emotion, with 95 % intervals; to the right of the line pretraining helps.",
            lambda: figures.gains_per_emotion(c, main),
        )
    if c.category and {"pretrained", "scratch"} <= set(arms):
        budgets = c.budgets(main, "pretrained", "scratch")
        for budget in dict.fromkeys((budgets[min(1, len(budgets) - 1)], budgets[-1])):
            yield Figure(
                f"confusion_{'all' if budget == 0 else f'{budget:g}'}",
                f"Confusion at {c.budget_name(budget)} labels in per cent of the true class, over all rotations and seeds.",
                lambda budget=budget: figures.confusions(c, budget),
            )
    if set(arms) & set(results.TUNED):
        yield Text("What validation chose", heading=True)
        yield _choice_table(c, main)
    for variant in c.variants[1:]:
        yield Text(f"Variant: {variant}", heading=True)
        yield _score_table(c, variant, c.headline[0])
        for other in _BASELINES:
            if {"pretrained", other} <= set(c.arms(variant)):
                yield _difference_table(c, variant, other)
    illustration = c.illustration()
    if illustration is not None:
        yield Text("What the encoder has learned", heading=True)
        yield Figure(
            "reconstruction",
            "Three validation segments: the normalised features, what masking leaves of them, and the reconstruction (masked steps only are reconstructed).",
            lambda: figures.reconstructions(illustration),
        )
        yield Figure(
            "embedding_map",
            f"t-SNE of the {c.fold} segments' pooled statistics, standardised per recording: random encoder and pretrained encoder, by emotion and by recording.",
            lambda: figures.embedding_map(illustration),
        )
    yield Text("How to read this", heading=True)
    yield Text(_reading(c))


def _score_table(c: Comparison, variant: str, metric: str) -> Table:
    arms = c.arms(variant)
    budgets = c.all_budgets(variant)
    rows = [["arm", *(c.budget_name(b) for b in budgets)]]
    for arm in arms:
        have = c.budgets(variant, arm)
        rows.append([arm, *(_with_interval(c.estimate(variant, arm, b, metric)) if b in have else "-" for b in budgets)])
    constant = c.constant(metric)
    rows.append(["constant", *(["-" if constant is None else f"{constant:.3f}"] * len(budgets))])
    best = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    caption = f"{figures.name_of(metric)} ({best}) by number of labelled training segments: mean over seeds [95 % interval]."
    return Table(_slug(f"{metric} {variant}"), caption, rows)


def _difference_table(c: Comparison, variant: str, other: str) -> Table:
    rows = [["labels", *(figures.name_of(metric) for metric in c.headline)]]
    for budget in c.budgets(variant, "pretrained", other):
        rows.append([c.budget_name(budget), *(_with_p(c.difference(variant, "pretrained", other, budget, m)) for m in c.headline)])
    return Table(
        _slug(f"difference {other} {variant}"), f"pretrained less {other}: difference [95 % interval], p of a permutation test.", rows
    )


def _efficiency_table(c: Comparison, variant: str, other: str) -> Table:
    rows = [["labels, pretrained", *(f"labels, {other}: {figures.name_of(metric)}" for metric in c.headline)]]
    budgets = c.budgets(variant, "pretrained", other)
    for budget in budgets if len(budgets) > 1 else ():
        cells = []
        for metric in c.headline:
            curve = [c.estimate(variant, other, b, metric).value for b in budgets]
            own = c.estimate(variant, "pretrained", budget, metric).value
            count = significance.label_efficiency([c.labels(b) for b in budgets], curve, own, metric in LOWER_IS_BETTER)
            cells.append("fewer than any tried" if count is None else "more than all" if math.isinf(count) else f"{count:.0f}")
        rows.append([c.budget_name(budget), *cells])
    return Table(_slug(f"label efficiency {other}"), f"How many labels {other} needs to reach what pretrained reaches.", rows)


def _emotion_table(c: Comparison, variant: str) -> Table:
    rows = [["emotion", "labels", "pretrained", "scratch", "difference"]]
    names = figures.emotion_metrics(c)
    for metric in names:
        for budget in c.budgets(variant, "pretrained", "scratch"):
            one, two = (c.estimate(variant, arm, budget, metric).value for arm in ("pretrained", "scratch"))
            difference = c.difference(variant, "pretrained", "scratch", budget, metric)
            rows.append([metric, c.budget_name(budget), f"{one:.3f}", f"{two:.3f}", _with_p(difference)])
    return Table("per_emotion", "Per emotion: mean over seeds, and the paired difference [95 % interval], p of a permutation test.", rows)


def _choice_table(c: Comparison, variant: str) -> Table:
    own = [row for row in c.rows if row["variant"] == variant and row["arm"] in results.TUNED]

    def choice(row: dict) -> str:
        rate = row["selection"].get("learning_rate")
        return row["selection"]["strategy"] + (f", rate {rate:g}" if rate else "")

    choices = sorted({choice(row) for row in own})
    rows = [["arm", "labels", *choices]]
    for arm in results.TUNED:
        for budget in c.budgets(variant, arm):
            made = [choice(row) for row in own if (row["arm"], row["budget"]) == (arm, budget)]
            rows.append([arm, c.budget_name(budget), *(str(made.count(name)) for name in choices)])
    return Table("choices", "How often validation chose each strategy and learning rate, over rotations and seeds.", rows)


def _reading(c: Comparison) -> str:
    first = c.rows[0]
    recordings = sum(map(len, c.runs(first["variant"], first["arm"], first["budget"], c.headline[0]).recordings))
    together = f"; the rotations' {c.fold} recordings are judged together, each by the model that was not trained on it"
    pooled = together if len(c.rotations) > 1 else ""
    few = " Few recordings were resampled, so the intervals are wide and still approximate." if recordings < 20 else ""
    reported = (
        "the reported fold is this one, so the values are optimistic and only to be compared with one another."
        if c.fold == "validation"
        else "the reported fold was scored once per cell."
    )
    transductive = f"with each recording's own frames, {c.fold} recordings too (transductive)"
    normalised = transductive if c.transductive else "by the training fold alone"
    synthetic = " **The corpus is SYNTHETIC: these numbers say that the program works, not that the method does.**" if c.synthetic else ""
    return (
        f"Intervals: hierarchical bootstrap of {significance.REPLICATES:,} replicates over the {_plural(recordings, f'{c.fold} recording')}, then over the "
        f"{_plural(len(c.seeds), 'seed')} of labels, heads and batches{pooled}; percentiles expanded for few recordings (Hesterberg 2015).{few} "
        "The pretraining has one seed per rotation, which is not resampled. Differences are paired by recording and seed; p: the two arms "
        "change places in random recordings. No correction is made for the number of comparisons. Steps, learning rates, strategies, "
        f"regularisation and thresholds are chosen on the validation fold; {reported} "
        "`frozen`: logistic (ridge) regression on the frozen encoder's pooled statistics; `random`: the same on an encoder that was never "
        "trained; `functionals`: the same on means, deviations, percentiles, slopes and changes of the same features. "
        f"Unless a variant says otherwise, features, pooled statistics and functionals are normalised {normalised}.{synthetic}"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _with_interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "-"
    return f"{estimate.value:.3f}" + (f" [{estimate.low:.3f}, {estimate.high:.3f}]" if math.isfinite(estimate.low) else "")


def _with_p(estimate: Estimate | None) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return "-"
    inner = f" [{estimate.low:+.3f}, {estimate.high:+.3f}]" if math.isfinite(estimate.low) else ""
    return f"{estimate.value:+.3f}{inner}" + _p(estimate.p)


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"


def _slug(words: str) -> str:
    return re.sub(r"\W+", "_", words.strip())[:100]


def _title(c: Comparison) -> str:
    return f"What pretraining buys on {c.corpus}{' (SYNTHETIC)' if c.synthetic else ''}"


def _markdown(c: Comparison, blocks: Sequence) -> str:
    parts = [f"# {_title(c)}", c.source]
    for block in blocks:
        if isinstance(block, Text):
            parts.append(f"## {block.words}" if block.heading else block.words)
        elif isinstance(block, Figure):
            parts.append(f"![{block.caption}](figures/{block.name}.png)\n\n*{block.caption}*")
        else:
            lines = ["| " + " | ".join(row) + " |" for row in block.rows]
            lines.insert(1, "|" + "---|" * len(block.rows[0]))
            parts.append("\n".join(lines) + f"\n\n*{block.caption}*")
    return "\n\n".join(parts) + "\n"


_STYLE = """body{font:16px/1.5 Georgia,serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1,h2{font-family:Helvetica,Arial,sans-serif}table{border-collapse:collapse;font-size:.85rem;margin:1rem 0}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
th{border-bottom:2px solid #222;border-top:2px solid #222}img{max-width:100%}figure{margin:1.5rem 0}
caption,figcaption,.source{color:#555;font-size:.85rem;text-align:left;caption-side:bottom}"""


def _html(c: Comparison, blocks: Sequence, pictures: dict[str, bytes]) -> str:
    parts = [f"<h1>{html.escape(_title(c))}</h1><p class=source>{html.escape(c.source)}</p>"]
    for block in blocks:
        if isinstance(block, Text):
            parts.append(f"<h2>{html.escape(block.words)}</h2>" if block.heading else f"<p>{html.escape(block.words)}</p>")
        elif isinstance(block, Figure):
            data = base64.b64encode(pictures[block.name]).decode()
            caption = html.escape(block.caption)
            parts.append(f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')
        else:
            header, *body = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(block.rows)]
            rows = "".join(f"<tr>{row}</tr>" for row in body)
            parts.append(f"<table><caption>{html.escape(block.caption)}</caption><tr>{header}</tr>{rows}</table>")
    head = f"<meta charset=utf-8><title>{html.escape(_title(c))}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _tagged(rows: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [("th" if i == 0 else "td", row) for i, row in enumerate(rows)]


def _write_csv(path: Path, table: Table) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(table.rows)
    path.write_text(stream.getvalue(), encoding="utf-8")


def _latex(table: Table, source: str) -> str:
    header, *body = [" & ".join(map(_escape_latex, row)) + r" \\" for row in table.rows]
    lines = [
        f"% {source}",
        r"\begin{table}\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(table.rows[0]) - 1)}}}",
        r"\toprule", header, r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_escape_latex(table.caption)}}}",
        r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _escape_latex(words: str) -> str:
    return "".join(rf"\{letter}" if letter in "%_&#${}" else letter for letter in words)


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) == 2 else 2)
    try:
        print(write(Path(sys.argv[1])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
