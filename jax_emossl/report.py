"""The report of a comparison, made from results.json and the predictions kept beside it alone.

    python -m jax_emossl.report WORKDIR [--readme]

writes WORKDIR/report.md and report.html (self-contained), tables/*.csv and *.tex (booktabs), figures/*.png and *.pdf.
With --readme it also puts the main tables into README.md of the current folder, see readme.py.
The document, with its order, its captions and its prose, is templates/report.md; here are the tables that it asks for.
"""

import argparse
import base64
import collections
import math
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from jax_emossl import figures, readme, significance
from jax_emossl.arms import ARMS
from jax_emossl.comparison import Comparison
from jax_emossl.errors import one_sentence
from jax_emossl.metrics import FULL_NAMES, LOWER_IS_BETTER
from jax_emossl.significance import Estimate


@threadpool_limits.wrap(limits=1)  # in products this small, more threads wait for each other
def write(out: Path) -> str:
    """Remakes the whole report; returns its first table, first differences, and where the rest lies. UserError without a sound comparison."""
    c = Comparison(out)
    title = f"{'What pretraining buys' if c.pretrained else 'Labels and scores'} on {c.corpus}"
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_emossl"), autoescape=jinja2.select_autoescape(), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    with tqdm(desc="report", unit=" tables and figures", leave=False, disable=None) as bar:
        files = _Files(c, bar)
        document = templates.get_template("report.md").render(
            c=c, title=title, table=files.table, figure=files.figure, figures=figures, replicates=significance.REPLICATES,
            scores=scores, differences=differences, beside_first=beside_first, labels_needed=labels_needed, emotions=emotions,
            choices=choices, full_names=FULL_NAMES, lower_is_better=LOWER_IS_BETTER,
        )  # fmt: skip
    document = re.sub(r"\n{3,}", "\n\n", document).strip() + "\n"
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(document)
    body = re.sub(r'src="figures/([^"]+)\.png"', lambda found: f'src="data:image/png;base64,{files.pictures[unquote(found[1])]}"', body)
    (out / "report.md").write_text(document, encoding="utf-8")
    (out / "report.html").write_text(templates.get_template("report.html").render(title=title, body=body), encoding="utf-8")
    first, *others = files.tables
    shown = "\n\n".join(files.tables[name] for name in (first, *[name for name in others if name.startswith("difference")][:1]))
    return f"{shown}\nReport: {out / 'report.md'}, {out / 'report.html'}"


class _Files:
    """Writes the tables and figures that the template asks for, and gives it the Markdown that shows them.

    Both are kept by name: `tables` as plain text, `pictures` as base64. The caption is what stands within the template's call.
    """

    def __init__(self, c: Comparison, bar: tqdm):
        self.out, self.source, self.bar, self.tables, self.pictures = c.out, c.source, bar, {}, {}
        for folder in ("tables", "figures"):
            (self.out / folder).mkdir(exist_ok=True)

    def table(self, name: str, frame: pd.DataFrame, caller: Callable[[], str]) -> str:
        name, caption = _slug(name), caller().strip()
        path, numbers = self.out / "tables" / name, len(frame.columns) - 1
        frame.to_csv(path.with_suffix(".csv"), index=False, lineterminator="\n")
        escaped = re.sub(r"([%_&#${}])", r"\\\1", caption)  # pandas escapes the cells alone
        cells = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
        latex = cells.to_latex(hrules=True, position_float="centering", column_format="l" + "r" * numbers, caption=escaped)
        path.with_suffix(".tex").write_text(f"% {self.source}\n{latex}", encoding="utf-8")
        form = {"index": False, "disable_numparse": True, "colalign": ["left"] + ["right"] * numbers}
        self.tables[name] = f"{frame.to_markdown(tablefmt='plain', **form)}\n{caption}"
        markdown = frame.replace(r"\|", r"\\|", regex=True).to_markdown(**form)
        self.bar.update()
        return f"{markdown}\n\n*{caption}*\n\n"

    def figure(self, name: str, picture: Figure, caller: Callable[[], str]) -> str:
        name, caption = _slug(name), caller().strip()
        self.pictures[name] = base64.b64encode(figures.save(picture, self.out / "figures" / name, self.source)).decode()
        self.bar.update()
        return f"![{caption}](figures/{name}.png)\n\n*{caption}*\n\n"


def scores(c: Comparison, variant: str, metric: str) -> pd.DataFrame:
    """Arms by label counts."""
    budgets, rows = c.budgets(variant), []
    for arm in c.arms(variant):
        have = c.budgets(variant, arm)
        rows.append([arm, *(_cell(c.estimate(variant, arm, b, metric)) if b in have else "-" for b in budgets)])
    rows.append(["constant", *[_number(c.constant(metric))] * len(budgets)])
    return pd.DataFrame(rows, columns=["arm", *map(c.budget_name, budgets)])


def differences(c: Comparison, variant: str, arm: str, other: str) -> pd.DataFrame:
    """One arm less another: label counts by metrics, and their mean; p-values of the counts are corrected for their number."""
    budgets = c.budgets(variant, arm, other)
    columns = [significance.holm([c.difference(variant, arm, other, b, metric) for b in budgets]) for metric in c.headline]
    rows = [[c.budget_name(b), *(_cell(own[i], "+.3f") for own in columns)] for i, b in enumerate(budgets)]
    rows.insert(0, ["mean", *(_cell(c.overall(variant, arm, other, metric), "+.3f") for metric in c.headline)])
    return pd.DataFrame(rows, columns=["labels", *(FULL_NAMES[metric] for metric in c.headline)])


def beside_first(c: Comparison, metric: str) -> pd.DataFrame:
    """Every other variant less the first, arm by arm: the mean over label counts, and each; what is the same in both is left out."""
    first, rows = c.variants[0], []
    for variant in (own for own in c.variants[1:] if c.alike(own)):
        for arm in (own for own in c.arms(variant) if own in c.arms(first)):
            overall = c.overall(variant, arm, arm, metric, first)
            if overall is None or overall.value == 0 and not overall.low < 0:  # the same answers
                continue
            have = {*c.budgets(variant, arm)} & {*c.budgets(first, arm)}
            each = significance.holm([c.difference(variant, arm, arm, b, metric, first) if b in have else None for b in c.budgets(first)])
            rows.append([f"{variant}: {arm}", *(_cell(own, "+.3f") for own in (overall, *each))])
    return pd.DataFrame(rows, columns=["variant: arm", "mean", *map(c.budget_name, c.budgets(first))])


def labels_needed(c: Comparison, variant: str, arm: str, other: str) -> pd.DataFrame:
    """How many labels another arm needs for what one has: label counts by metrics; rows and columns without a number are left out."""
    budgets = c.budgets(variant, arm)
    labels = [c.labels(b) for b in c.budgets(variant, other)]
    made = {
        FULL_NAMES[metric]: [_labels_cell(c.labels_needed(variant, arm, other, b, metric), min(labels), max(labels)) for b in budgets]
        for metric in c.headline
    }
    frame = pd.DataFrame({"labels": [c.budget_name(b) for b in budgets], **made})
    known = frame.drop(columns="labels") != "-"
    return frame.loc[known.any(axis=1), ["labels", *known.columns[known.any()]]]


def emotions(c: Comparison, variant: str, arm: str, other: str) -> pd.DataFrame:
    """Two arms, their difference and the constant: emotions and label counts in rows."""
    rows = []
    for metric in c.emotion_metrics:
        for budget in c.budgets(variant, arm, other):
            values = [*(c.estimate(variant, name, budget, metric).value for name in (arm, other)), c.constant(metric)]
            rows.append(
                [metric, c.budget_name(budget), *map(_number, values), _cell(c.difference(variant, arm, other, budget, metric), "+.3f")]
            )
    return pd.DataFrame(rows, columns=["emotion", "labels", arm, other, "constant", "difference"])


def choices(c: Comparison, variant: str) -> pd.DataFrame:
    """How often each strategy and learning rate was chosen: arms and label counts in rows."""
    arms = [arm for arm in c.arms(variant) if ARMS[arm].mechanism == "tuned"]
    made = collections.Counter()
    for row in (row for row in c.rows if row["variant"] == variant and row["arm"] in arms):
        rate = row["selection"].get("learning_rate")
        made[row["arm"], row["budget"], row["selection"]["strategy"] + (f", rate {rate:g}" if rate else "")] += 1
    names = sorted({name for _, _, name in made})
    rows = [[arm, c.budget_name(b), *(str(made[arm, b, name]) for name in names)] for arm in arms for b in c.budgets(variant, arm)]
    return pd.DataFrame(rows, columns=["arm", "labels", *names])


def _slug(words: str) -> str:
    return re.sub(r"\W+", "_", words).strip("_")[:100]


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(e: Estimate | None, form: str = ".3f") -> str:
    """Value [95 % interval], p, as far as they are defined."""
    if e is None or not math.isfinite(e.value):
        return "-"
    bounds = f" [{e.low:{form}}, {e.high:{form}}]" if math.isfinite(e.low) else ""
    p = "" if e.p is None else ", p < 0.001" if e.p < 0.001 else f", p = {e.p:.3f}"
    return f"{e.value:{form}}{bounds}{p}"


def _labels_cell(e: Estimate | None, fewest: float, most: float) -> str:
    """Label counts [95 % interval], which may be open."""
    if e is None:
        return "-"
    value, low, high = (
        f"< {fewest:,.0f}" if own == 0 else f"> {most:,.0f}" if own == math.inf else f"{own:,.0f}" for own in (e.value, e.low, e.high)
    )
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="that of a comparison")
    parser.add_argument("--readme", action="store_true", help="also put its tables between the markers of its name in README.md")
    args = parser.parse_args()
    with one_sentence():
        print(write(args.workdir))
        if args.readme:
            print(readme.update(Path("README.md"), args.workdir.resolve().name, Comparison(args.workdir)))


if __name__ == "__main__":
    main()
