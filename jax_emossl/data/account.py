"""The account of a preparation: what was kept, dropped, repaired and clipped, counted and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

EXAMPLES = 5  # ids that are named per reason


class Account:
    """Counts what was dropped, repaired or clipped, per reason, with the first few ids."""

    def __init__(self):
        self._count: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        if count:
            self._count[reason] += int(count)
            self._examples.setdefault(reason, []).append(example)

    def rows(self) -> list[dict]:
        return [{"reason": reason, "count": n, "examples": self._examples[reason][:EXAMPLES]} for reason, n in sorted(self._count.items())]


def describe(summary: Mapping) -> str:
    """The summary of a prepared corpus as text for people."""
    lines = ["fold              recordings  segments      frames    hours"]
    for fold, row in summary["folds"].items():
        lines.append(f"{fold:<16}  {row['recordings']:>10,}  {row['segments']:>8,}  {row['frames']:>10,}  {row['hours']:>7.2f}")
    outside = summary["outside"]
    if outside["recordings"]:
        examples = _some(outside["examples"], outside["recordings"])
        lines.append(f"outside the folds: {outside['segments']:,} segments of {outside['recordings']:,} recordings ({examples})")
    lines += [f"{row['reason']}: {row['count']:,} ({_some(row['examples'], row['count'])})" for row in summary["account"]]
    return "\n".join(lines)


def _some(ids: Sequence[str], total: int) -> str:
    return ", ".join([*ids, *(["..."] if total > len(ids) else [])])
