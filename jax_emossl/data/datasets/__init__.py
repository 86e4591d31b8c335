"""Public corpora of audio, one file each: what their file names say.

A file `datasets/<name>.py` offers `WHERE`, where to get the corpus, `EMOTIONS`, the columns of its labels, and `parse(stem)`, which
turns the stem of a file name into an `Utterance`, or None where the name is not one of the corpus's.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pandas as pd

from jax_emossl.data.labels import Table
from jax_emossl.errors import UserError

MOSEI_ORDER = ("happy", "sad", "anger", "surprise", "disgust", "fear")


class Utterance(NamedTuple):
    """Who speaks, and what is acted: "" for none, with an intensity in [0, 3]."""

    speaker: str
    emotion: str
    intensity: float = 3.0


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"'{name}' is no corpus whose file names are known: choose one of {', '.join(names())}, or give --labels.")
    return importlib.import_module(f"{__name__}.{name}")


def places() -> str:
    """All names, and where to get the corpora, for people."""
    return "\n".join(f"  {name:<8} {module(name).WHERE}" for name in names())


def table(name: str, files: Sequence[str], folder: Path) -> Table:
    """The labels of a corpus's files, from their names; UserError, saying where to get the corpus, where a name is not one of its."""
    own, rows = module(name), []
    for file in files:
        said = own.parse(Path(file).stem)
        if said is None:
            raise UserError(f"{folder / file} has no name of a file of {name}: remove it, or get the corpus anew from {own.WHERE}.")
        intensities = {emotion: said.intensity * (emotion == said.emotion) for emotion in own.EMOTIONS}
        rows.append({"file": file, "speaker": said.speaker, **intensities})
    return Table.of(pd.DataFrame(rows), f"{name} in {folder}")
