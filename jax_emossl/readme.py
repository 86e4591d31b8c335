"""The tables of README.md, between markers, from small files that are kept with the code.

    <!-- results NAME -->
    ...
    <!-- end -->

holds what `experiments/results/NAME.json` says, which `update` writes of a comparison: estimates, command and commit.
"""

import json
import math
import re
from pathlib import Path

from jax_emossl.comparison import Comparison
from jax_emossl.errors import UserError
from jax_emossl.metrics import FULL_NAMES, LOWER_IS_BETTER
from jax_emossl.significance import Estimate
from jax_emossl.workdir import write_atomically

FOLDER = Path("experiments/results")


def update(page: Path, name: str, c: Comparison) -> str:
    """Writes the file of a comparison and its tables into the page; UserError where that has no markers of this name."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    summary = summarised(c)
    changed = inserted(text, name, rendered(summary), page)
    file = page.parent / FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_atomically(page, changed)
    return f"README: {page} and {file}"


def inserted(text: str, name: str, tables: str, page: Path) -> str:
    """A page with `tables` between its markers of this name."""
    markers = re.compile(rf"(<!-- results {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
    if not markers.search(text):
        raise UserError(f"{page} has no lines '<!-- results {name} -->' and '<!-- end -->': add them where the tables shall stand.")
    return markers.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", text, count=1)


def summarised(c: Comparison) -> dict:
    """The main variant's headline metrics as JSON: every arm, and what pretraining adds to scratch and to functionals, at every label count."""
    variant, tables = c.variants[0], {}
    arms = c.arms(variant)
    for metric in c.headline:
        tables[metric] = {"constant": c.constant(metric), "rows": []}
        for budget in c.budgets(variant):
            have = {arm: c.estimate(variant, arm, budget, metric) for arm in arms if budget in c.budgets(variant, arm)}
            row = {"labels": c.budget_name(budget), "arms": {arm: _numbers(own)[0] for arm, own in have.items()}}
            for pair in c.main_pairs(variant):
                gain = c.difference(variant, *pair, budget, metric) if {*pair} <= have.keys() else None
                row[" less ".join(pair)] = gain and _numbers(gain)
            tables[metric]["rows"].append(row)
    about = {name: getattr(c, name) for name in ("corpus", "fold", "seeds", "recordings", "unit", "command", "version", "commit")}
    return about | {"tables": tables}


def _numbers(estimate: Estimate) -> list[float | None]:
    return [
        round(number, 6) if number is not None and number == number else None for number in (estimate.value, estimate.low, estimate.high)
    ]


def rendered(summary: dict) -> str:
    """The tables of a summary in Markdown, the best arm of each row in bold."""
    parts = []
    for metric, table in summary["tables"].items():
        arms = list(table["rows"][0]["arms"])
        best = min if metric in LOWER_IS_BETTER else max
        gains = [name for name in table["rows"][0] if " less " in name]
        lines = [["labels", *arms, "constant", *(f"{name} [95 %]" for name in gains)]]
        for row in table["rows"]:
            winner = best((value for value in row["arms"].values() if value is not None), default=math.nan)
            cells = [f"**{row['arms'][arm]:.3f}**" if row["arms"].get(arm) == winner else _number(row["arms"].get(arm)) for arm in arms]
            lines.append([row["labels"], *cells, _number(table["constant"]), *(_interval(row[name]) for name in gains)])
        body = ["| " + " | ".join(line) + " |" for line in lines]
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        head = f"{FULL_NAMES[metric][0].upper()}{FULL_NAMES[metric][1:]}, {better} is better:"
        parts.append("\n".join([head, "", body[0], "|" + "---|" * len(lines[0]), *body[1:]]))
    seeds, recordings = len(summary["seeds"]), summary["recordings"]
    made = f"made by `{summary['command']}` at commit {summary['commit'] or 'unknown'}"
    about = f"{summary['corpus']}, {recordings} {summary['fold']} {summary.get('unit', 'recording')}s, mean over {seeds} seed{'s' if seeds > 1 else ''}; {made}."
    return "\n\n".join([*parts, f"*{about}*"]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(estimate: list[float | None] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = estimate
    return f"{value:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
