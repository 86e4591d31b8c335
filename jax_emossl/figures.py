"""Figures of a comparison, legible in print and to colour-blind readers."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from jax_emossl.arms import ARMS
from jax_emossl.comparison import Comparison
from jax_emossl.metrics import FULL_NAMES, LOWER_IS_BETTER

# Okabe & Ito's colours, told apart by colour-blind readers; markers carry the same in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999")
_MARKERS = "os^Dv*PX<"
_MOST = 2000  # segments on a map


def save(figure: Figure, path: Path, source: str) -> bytes:
    """Writes PATH.png and PATH.pdf with their source beneath; returns the PNG."""
    width = int(figure.get_figwidth() * 20)
    figure.text(0.01, -0.01, textwrap.fill(source, width), fontsize=5.5, color="#555555", va="top")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, bbox_inches="tight")
    path.with_suffix(".png").write_bytes(stream.getvalue())
    figure.savefig(path.with_suffix(".pdf"), bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    return stream.getvalue()


def learning_curve(c: Comparison, variant: str, metric: str) -> Figure:
    """Metric against label count for all arms and the constant predictor, and beneath it what pretraining adds.

    With the intervals of the arms that train an encoder, or of the first two, and of the differences, which are paired.
    """
    arms, pairs, budgets = c.arms(variant), c.main_pairs(variant), c.budgets(variant)
    size, heights = ((6.2, 6), (5, 2)) if pairs else ((6.2, 4.2), (1,))
    figure, panels = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, sharex=True, squeeze=False, layout="constrained")
    axes, lowest = panels[0, 0], panels[-1, 0]
    main = [arm for arm in arms if ARMS[arm].mechanism == "tuned"] or arms[:2]  # more than these would hide each other
    for arm in arms:
        have, style = c.budgets(variant, arm), ARMS[arm].style
        estimates, x = [c.estimate(variant, arm, b, metric) for b in have], [c.labels(b) for b in have]
        width, marker = (1.8, 6) if arm in main else (1.0, 4)
        axes.plot(x, [e.value for e in estimates], label=arm, linewidth=width, markersize=marker, zorder=3 if arm in main else 2, **style)
        if arm in main:
            low, high = zip(*((e.low, e.high) for e in estimates), strict=True)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    constant = c.constant(metric)
    if constant is not None:
        axes.axhline(constant, label="constant predictor", **ARMS["constant"].style)
    if pairs:
        _gains(lowest, c, variant, pairs, metric)
    axes.set_xscale("log")
    lowest.set_xticks([c.labels(b) for b in budgets], [c.budget_name(b) for b in budgets])
    lowest.get_xticklabels()[-1].set_horizontalalignment("left")  # all labels may be hardly more than the count before
    lowest.minorticks_off()
    lowest.set_xlabel("labelled training segments")
    axes.set_ylabel(FULL_NAMES[metric] + (" (lower is better)" if metric in LOWER_IS_BETTER else ""))
    rotations = f", {c.divisions}" if c.divisions else ""
    axes.set_title(f"{c.corpus}, {c.fold} fold{rotations}, {len(c.seeds)} seed{'s' if len(c.seeds) > 1 else ''}", fontsize=10)
    said = [sum(own, []) for own in zip(*(own.get_legend_handles_labels() for own in panels[:, 0]), strict=True)]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.38 if pairs else -0.14)}  # below: it hides nothing
    lowest.legend(*said, **place, ncols=3, frameon=False, fontsize=8)
    for own in panels[:, 0]:
        own.spines[["top", "right"]].set_visible(False)
    return figure


def _gains(axes: Axes, c: Comparison, variant: str, pairs: Sequence[tuple[str, str]], metric: str) -> None:
    """One arm less another against label count, with intervals, pairs a little apart."""
    for shift, (arm, other) in zip(0.03 * (np.arange(len(pairs)) - (len(pairs) - 1) / 2), pairs, strict=True):
        made = [(c.labels(b), c.difference(variant, arm, other, b, metric)) for b in c.budgets(variant, arm, other)]
        known = [(x * 10**shift, e) for x, e in made if e is not None and np.isfinite(e.value)]
        style, x = ARMS[arm].style, [x for x, _ in known]
        axes.vlines(x, [e.low for _, e in known], [e.high for _, e in known], color=style["color"], linewidth=1.4)
        axes.plot(x, [e.value for _, e in known], label=f"{arm} less {other}", markersize=4, **style | {"linestyle": ""})
    axes.axhline(0, color="#555555", linestyle=":", linewidth=1)
    axes.set_ylabel("difference")


def validation(c: Comparison, variant: str, arms: Sequence[str]) -> Figure:
    """Validation score against the step, mean over the trainings behind the answers: one panel per arm, one line per label count."""
    figure, panels = plt.subplots(1, len(arms), figsize=(1 + 3.2 * len(arms), 3.4), sharey=True, layout="constrained", squeeze=False)
    metric = next(row["selection"]["metric"] for row in c.rows if row["arm"] == arms[0])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for axes, arm in zip(panels[0], arms, strict=True):
        made = {budget: own for budget in c.budgets(variant, arm) if (own := c.evaluations(variant, arm, budget))}
        for (budget, trainings), shade in zip(made.items(), np.linspace(0, 0.85, len(made)), strict=True):
            turns = [[own[turn] for own in trainings if len(own) > turn] for turn in range(max(map(len, trainings)))]
            line = [np.mean(own, 0) for own in turns if 2 * len(own) >= len(trainings)]  # rotations differ a little in their steps
            chosen = np.bincount([np.argmax(sign * own[:, 1]) for own in trainings], minlength=len(turns))[: len(line)]
            color = matplotlib.colormaps["viridis"](shade)
            axes.plot(*np.transpose(line), color=color, linewidth=1.2, label=f"{c.budget_name(budget)} labels")
            axes.scatter(*np.transpose(line), s=90 * chosen / len(trainings), color=color)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(arm, fontsize=10)
        axes.set_xlabel("training step", fontsize=9)
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(f"validation {FULL_NAMES.get(metric, metric)}\n{c.corpus}", fontsize=9)
    return figure


def gains_per_emotion(c: Comparison, variant: str, arm: str, other: str) -> Figure:
    """One arm less another per emotion, in recall or mean absolute error: one panel per label count, positive where `arm` is better."""
    names, budgets = c.emotion_metrics[: len(c.classes)], c.budgets(variant, arm, other)
    size = (1.2 + 1.6 * len(budgets), 0.6 + 0.4 * len(names))
    figure, panels = plt.subplots(1, len(budgets), figsize=size, sharey=True, sharex=True, layout="constrained", squeeze=False)
    sign, color = 1 if c.category else -1, ARMS[arm].style["color"]  # a lower error is a gain
    for axes, budget in zip(panels[0], budgets, strict=True):
        for y, name in enumerate(names):
            e = c.difference(variant, arm, other, budget, name)
            if e is not None and np.isfinite(e.value):
                axes.plot([sign * e.low, sign * e.high], [y, y], color=color, linewidth=1.2)
                axes.plot(sign * e.value, y, "o", color=color, markersize=5)
        axes.axvline(0, color="#555555", linestyle=":", linewidth=1)
        axes.set_title(f"{c.budget_name(budget)} labels", fontsize=9)
        axes.set_yticks(range(len(names)), [name.split(" of ")[1] for name in names])
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    what = f"recall, {arm} less {other}" if c.category else f"mean absolute error, {other} less {arm}"
    figure.supxlabel(f"{what} ({c.corpus})", fontsize=9)
    return figure


def confusions(c: Comparison, variant: str, arms: tuple[str, ...], budget: float) -> Figure:
    """Confusion matrices of some arms side by side, in per cent of the true class."""
    figure, panels = plt.subplots(1, len(arms), figsize=(4 * len(arms), 4), layout="constrained", sharey=True)
    for axes, arm in zip(panels, arms, strict=True):
        matrix = c.confusion(variant, arm, budget)
        share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(share):
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 65 else "black")
        axes.set_xticks(range(len(c.classes)), c.classes, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(c.classes)), c.classes, fontsize=8)
        axes.set_title(f"{arm}, {c.budget_name(budget)} labels", fontsize=10)
        axes.set_xlabel("predicted", fontsize=9)
    panels[0].set_ylabel(f"true ({c.corpus})", fontsize=9)
    return figure


def reconstructions(illustration: dict[str, np.ndarray]) -> Figure:
    """Heat-maps of a few segments: features by time, as they are, masked, and reconstructed in the masked steps."""
    features, masked, rebuilt, counts = (illustration[name] for name in ("features", "masked", "reconstructed", "num_steps"))
    stack, hop = int(illustration["stack"]), float(illustration["hop"])
    palette = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#DDDDDD")
    figure, panels = plt.subplots(len(features), 3, figsize=(9, 1.9 * len(features)), layout="constrained", squeeze=False)
    for row, (own, hidden, made, count) in enumerate(zip(features, masked, rebuilt, counts, strict=True)):
        pictures = own, np.where(hidden[:, None], np.nan, own), np.where(hidden[:, None], made, own)
        for axes, picture, title in zip(panels[row], pictures, ("features", "masked", "reconstructed"), strict=True):
            frames = picture[:count].reshape(count * stack, -1)
            extent = (0, len(frames) * hop, frames.shape[1], 0)
            image = axes.imshow(frames.T, aspect="auto", cmap=palette, vmin=-2.5, vmax=2.5, interpolation="nearest", extent=extent)
            axes.set_title(title if row == 0 else "", fontsize=9)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)
        panels[row][0].set_ylabel("features", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    figure.colorbar(image, ax=panels, label="standard deviations from the mean", shrink=0.6)
    return figure


def embedding_map(illustration: dict[str, np.ndarray], unit: str) -> Figure:
    """Segments in the plane, by the random and by the pretrained encoder, coloured by emotion and by recording, which is called `unit`.

    They are the reported fold's or, of more than 2,000, as many, chosen evenly along their emotions and recordings; t-SNE needs four.
    """
    kinds = {kind: illustration[kind].astype(str) for kind in ("emotion", "recording")}
    order = np.lexsort((kinds["recording"], kinds["emotion"]))
    chosen = np.sort(order[np.linspace(0, len(order) - 1, min(_MOST, len(order))).round().astype(int)])
    figure, panels = plt.subplots(2, 2, figsize=(8.5, 7.5), layout="constrained")
    for column, (name, title) in enumerate((("before", "random encoder"), ("after", "pretrained encoder"))):
        vectors = illustration[name][chosen]
        perplexity = min(30.0, max(2.0, (len(vectors) - 1) / 4))
        with threadpool_limits(1):  # the places would depend on the number of threads, which wait for each other on a busy machine
            place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
        for axes, (kind, all_groups) in zip(panels[:, column], kinds.items(), strict=True):
            groups = all_groups[chosen]
            names, counts = np.unique(groups, return_counts=True)
            shown = np.sort(names[np.argsort(-counts, kind="stable")][: len(_COLOURS)])  # the largest
            for group, marker, color in zip(shown, _MARKERS, _COLOURS, strict=False):
                axes.plot(*place[groups == group].T, marker, color=color, markersize=3, alpha=0.7, linestyle="", label=group)
            rest = ~np.isin(groups, shown)
            if rest.any():
                axes.plot(*place[rest].T, ".", color="#CCCCCC", markersize=2, zorder=0, label=f"{len(names) - len(shown)} others")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{title}, by {unit if kind == 'recording' else kind}", fontsize=10)
            if column:
                axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), markerscale=1.6)
    return figure
