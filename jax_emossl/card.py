"""The card of a run: all that its encoder and its head need besides their weights, so that prediction needs no corpus."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from jax_emossl import processes
from jax_emossl.checkpoint import FOLDER
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import texts
from jax_emossl.errors import UserError
from jax_emossl.workdir import write_atomically

FILE = "card.json"
NOT_A_CARD = (LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)


@contextlib.contextmanager
def _undamaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, *NOT_A_CARD) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): train anew.") from error


@dataclasses.dataclass(frozen=True)
class Card:
    """What belongs to a trained encoder besides its weights.

    Attributes:
      model: the config fields that fix its shapes.
      frontend: its feature normalisation, with the names of the features and the duration of a frame.
      corpus, emotions: those it was trained on.
      recordings: the training recordings it has seen.
      judges: the validation recordings by which its step was chosen.
      head: the kind of answer, "" for a pretraining.
      classes: what the head answers; empty for a pretraining.
      reference: what the head's scores are relative to.
      num_labels: labelled segments it was trained on.
      extractor: what made the features of the corpus, so that it can be asked for those of other recordings.
      calibration: what was chosen on the validation fold; None until the training has ended.
    """

    model: dict
    frontend: Frontend
    corpus: str
    emotions: tuple[str, ...]
    recordings: tuple[str, ...]
    judges: tuple[str, ...] = ()
    head: str = ""
    classes: tuple[str, ...] = ()
    reference: dict = dataclasses.field(default_factory=dict)
    num_labels: int = 0
    calibration: Any = None
    extractor: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, workdir: Path) -> None:
        write_atomically(workdir / FILE, json.dumps(self.to_json(), indent=1, allow_nan=False))

    def to_json(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {"frontend": self.frontend.to_json()}

    @classmethod
    def load(cls, workdir: Path) -> Self:
        """Raises UserError where `workdir`, which of several processes the first reads, is not that of a run that has trained an encoder."""
        file = workdir / FILE

        def read() -> dict:
            if not file.is_file() or not (workdir / FOLDER).is_dir():
                raise UserError(f"init_from is '{workdir}', which holds no checkpoint: give the workdir of a finished pretraining.")
            with _undamaged(file):
                return json.loads(file.read_text(encoding="utf-8"))

        table = processes.of_first(read)
        with _undamaged(file):
            return cls.from_json(table)

    @classmethod
    def from_json(cls, table: dict) -> Self:
        """Raises one of `NOT_A_CARD` on anything that `to_json` does not write."""
        lists = {name: table[name] for name in ("emotions", "recordings", "judges", "classes")}
        parts = [*lists.values(), table["frontend"]["names"], [table["corpus"], table["head"]]]
        if not all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in parts):
            raise ValueError("a list of names is something else")
        if not isinstance(table["num_labels"], int):
            raise ValueError("the number of labels is none")
        own = {
            "frontend": Frontend.from_json(table["frontend"]),
            "model": dict(table["model"]),
            "reference": dict(table["reference"]),
            "extractor": texts(table["extractor"]),
        }
        return cls(**table | {name: tuple(part) for name, part in lists.items()} | own)
