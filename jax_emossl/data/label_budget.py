"""Which segments get a label when only N labels are affordable."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_emossl.errors import UserError

_VALIDATES = 0.25  # of a budget, where it holds its own validation


def choose(labels: Float[np.ndarray, "s e"], num_labels: int, seed: int) -> Int[np.ndarray, "n"]:
    """Positions of a seeded, stratified choice of segments; a smaller budget's choice is a prefix of a larger's. 0 chooses all.

    Greedily, the next segment comes from the stratum (an emotion present, or neutral: no emotion) that is furthest below its
    share of the fold; within a stratum the order is random. Raises UserError where the fold has fewer segments.
    """
    total = len(labels)
    if num_labels < 0 or num_labels > total:
        raise UserError(f"num_labels is {num_labels}, but the training fold has {total} labelled segments: give 0 (all) to {total}.")
    if num_labels == 0:
        return np.arange(total)
    present = labels > 0
    member = np.column_stack([present, ~present.any(1)])
    member = member[:, member.any(0)]
    share = member.mean(0)
    order = np.random.default_rng(seed).permutation(total)
    queues = [list(order[member[order, c]][::-1]) for c in range(member.shape[1])]
    taken = np.zeros(total, bool)
    counts = np.zeros(member.shape[1])
    chosen = []
    while len(chosen) < num_labels:
        shortfall = share * (len(chosen) + 1) - counts
        for stratum in np.argsort(-shortfall, kind="stable"):
            queue = queues[stratum]
            while queue and taken[queue[-1]]:
                queue.pop()
            if queue:
                break
        segment = queue.pop()
        taken[segment] = True
        counts += member[segment]
        chosen.append(segment)
    return np.array(chosen)


def held_out(recordings: Sequence[str], seed: int) -> Bool[np.ndarray, "n"]:
    """Which of a budget's segments validate: those of recordings that, in random order, bring them nearer to a quarter; UserError with one."""
    names = sorted(set(recordings))
    if len(names) < 2:
        raise UserError(
            f"compare.validation is budget, but the {len(recordings)} labels are of one recording, or speaker: raise compare.label_counts, or give fold."
        )
    wanted, taken = _VALIDATES * len(recordings), np.zeros(len(recordings), bool)
    for name in np.random.default_rng((seed, 1)).permutation(names):
        own = np.asarray(recordings) == name
        if abs(taken.sum() + own.sum() - wanted) <= abs(taken.sum() - wanted):
            taken |= own
    return taken
