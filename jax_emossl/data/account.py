"""The account of a preparation: what was kept, dropped, repaired and clipped, counted and told."""

from collections.abc import Mapping, Sequence

EXAMPLES = 5  # ids that are named per reason


class Account:
    """Counts what was dropped, repaired or clipped, per reason, with the first few ids."""

    def __init__(self):
        self._rows: dict[str, dict] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        if count:
            row = self._rows.setdefault(reason, {"reason": reason, "count": 0, "examples": []})
            row["count"] += int(count)
            row["examples"] = [*row["examples"], example][:EXAMPLES]

    def rows(self) -> list[dict]:
        return [row for _, row in sorted(self._rows.items())]


def describe(summary: Mapping) -> str:
    """The summary of a prepared corpus as text for people."""
    lines = ["fold              recordings  segments      frames    hours"]
    for fold, row in summary["folds"].items():
        lines.append(f"{fold:<16}  {row['recordings']:>10,}  {row['segments']:>8,}  {row['frames']:>10,}  {row['hours']:>7.2f}")
    if "speakers" in summary:
        lines.append("speakers: " + ", ".join(f"{number:,} {fold}" for fold, number in summary["speakers"].items()))
    outside = summary["outside"]
    if outside["recordings"]:
        examples = _some(outside["examples"], outside["recordings"])
        lines.append(f"outside the folds: {outside['segments']:,} segments of {outside['recordings']:,} recordings ({examples})")
    lines += [f"{row['reason']}: {row['count']:,} ({_some(row['examples'], row['count'])})" for row in summary["account"]]
    return "\n".join(lines)


def _some(ids: Sequence[str], total: int) -> str:
    return ", ".join([*ids, *(["..."] if total > len(ids) else [])])
