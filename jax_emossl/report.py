"""Tables and figures of a comparison, made from the rows of results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from jax_emossl import metrics, results

_NAMES = {
    "mae": "mean absolute error",
    "auroc": "AUROC (mean over emotions)",
    "uar": "unweighted average recall",
    "accuracy4": "4-class accuracy",
    "f1_macro": "macro F1",
    "accuracy": "accuracy",
    "f1_weighted": "weighted F1",
}
# Okabe & Ito's colours, told apart by colour-blind readers; markers and dashes carry the same in print.
_STYLE = {
    "pretrained": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "scratch": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "constant": {"color": "#555555", "marker": None, "linestyle": ":"},
}


def table_metrics(rows: Sequence[dict]) -> list[str]:
    """The metrics to show for these rows: those of their head."""
    category = any("uar" in r["metrics"] for r in rows)
    return ["uar", "f1_macro", "accuracy"] if category else ["auroc", "mae", "accuracy4", "f1_weighted"]


def _values(rows: Sequence[dict], arm: str, num_labels: int, metric: str) -> np.ndarray:
    """One value per seed, in the order of the seeds."""
    chosen = {r["seed"]: r["metrics"][metric] for r in rows if r["arm"] == arm and r["num_labels"] == num_labels}
    return np.array([chosen[seed] for seed in sorted(chosen) if chosen[seed] is not None], float)


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % t-interval of the mean over seeds; NaN for fewer than two."""
    if len(values) < 2:
        return np.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def _cell(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    half = interval(values)
    return f"{values.mean():.3f}" + ("" if np.isnan(half) else f" ±{half:.3f}")


def _counts(rows: Sequence[dict], arm: str) -> list[int]:
    return sorted({r["num_labels"] for r in rows if r["arm"] == arm})


def comparison_table(rows: Sequence[dict], shown: Sequence[str]) -> str:
    """Mean over seeds per arm and label count, the paired difference, and the constant predictor."""
    seeds = sorted({r["seed"] for r in rows})
    lines = [["arm", "labels", *shown]]
    for count in _counts(rows, "scratch"):
        for arm in ("pretrained", "scratch"):
            lines.append([arm, str(count), *(_cell(_values(rows, arm, count, m)) for m in shown)])
        difference = [_values(rows, "pretrained", count, m) - _values(rows, "scratch", count, m) for m in shown]
        lines.append(["  difference", str(count), *(_cell(d) for d in difference)])
    for count in _counts(rows, "constant"):
        lines.append(["constant", str(count), *(_cell(_values(rows, "constant", count, m)[:1]) for m in shown)])
    fold = rows[0]["fold"]
    return (
        results.align(lines)
        + f"\n{fold} fold; mean over seeds {', '.join(map(str, seeds))} ± 95 % t-interval over them; "
        + "lower is better for mae, higher for the others"
    )


def learning_curve(rows: Sequence[dict], metric: str, path: Path) -> Path:
    """Draws metric against label count for both arms, with the constant predictor; returns where."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for arm in ("pretrained", "scratch"):
        counts = _counts(rows, arm)
        values = [_values(rows, arm, count, metric) for count in counts]
        axes.plot(counts, [v.mean() for v in values], label=arm, **_STYLE[arm])
        for count, points in zip(counts, values, strict=True):
            axes.plot([count] * len(points), points, ".", color=_STYLE[arm]["color"], alpha=0.5)
    constant = [r["metrics"][metric] for r in rows if r["arm"] == "constant" and r["metrics"].get(metric) is not None]
    if constant:
        axes.axhline(constant[0], label="constant predictor", **_STYLE["constant"])
    counts = _counts(rows, "scratch")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(c) for c in counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled training segments")
    axes.set_ylabel(_NAMES.get(metric, metric) + (" (lower is better)" if metric in metrics.LOWER_IS_BETTER else ""))
    first = rows[0]
    seeds = len({r["seed"] for r in rows})
    axes.set_title(f"{first['corpus']}{' (SYNTHETIC)' if first['synthetic'] else ''}, {first['fold']} fold, {seeds} seeds", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def write(out):
    from jax_emossl.results import RESULTS_FILE
    rows = results.read(out / RESULTS_FILE)["runs"]
    lines = [["variant", "arm", "budget", "n", "value"]]
    keys = sorted({(r["variant"], r["arm"], r["budget"]) for r in rows})
    for v, a, b in keys:
        x = [r["metrics"].get("uar", r["metrics"].get("auroc")) for r in rows if (r["variant"], r["arm"], r["budget"]) == (v, a, b)]
        lines.append([v, a, str(b), str(len(x)), f"{np.mean([i for i in x if i is not None] or [np.nan]):.3f}"])
    return results.align(lines)
