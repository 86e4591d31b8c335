"""Named corpora, one file each, and the way from a config to a prepared corpus.

A file `corpora/<name>.py` offers `files() -> Files`: where its features, labels and folds lie.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import ml_collections

from jax_emossl.data import corpus as corpus_builder
from jax_emossl.data import prepared
from jax_emossl.errors import UserError, notice


@dataclasses.dataclass(frozen=True)
class Files:
    """Where a corpus lies: two `.csd` files, and a JSON file of folds or 'cmu_mosei'."""

    features: str
    labels: str
    folds: str
    rotations: tuple[str, ...] = ()  # further files of folds, which together test every recording once


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def cache_dir() -> Path:
    """Where corpora are prepared once: $EMOSSL_CACHE, or jax_emossl in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EMOSSL_CACHE") or Path(base) / "jax_emossl")


def data_dir() -> Path:
    """The folder of real corpora, $EMOSSL_DATA."""
    if not os.environ.get("EMOSSL_DATA"):
        raise UserError(
            "The environment variable EMOSSL_DATA is not set: set it to the folder of your corpora, or give data.features, data.labels and data.folds."
        )
    return Path(os.environ["EMOSSL_DATA"])


def load(config: ml_collections.ConfigDict) -> prepared.Corpus:
    """The corpus that `config.data` names, prepared on first use.

    Raises:
      UserError: there is no such corpus, or its files cannot be read.
    """
    if config.prepared:
        return prepared.load(config.prepared)
    files = _files(config)
    name = Path(files.features).stem if config.features and config.corpus == "demo" else config.corpus
    for path in (files.features, files.labels, *([] if files.folds == "cmu_mosei" else [files.folds])):
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist or is not a file: correct data.features, data.labels or data.folds.")
    label_names = [n for n in config.label_names.split(",") if n]
    sources = [files.features, files.labels, *([config.words] if config.words else [])]
    stamps = [(str(Path(p).absolute()), Path(p).stat().st_size, Path(p).stat().st_mtime_ns) for p in sources if Path(p).exists()]
    key = json.dumps([prepared.FORMAT, name, stamps, bool(config.words), corpus_builder.read_folds(files.folds), label_names])
    folder = cache_dir() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not prepared.is_prepared(folder):
        try:
            summary = corpus_builder.prepare(
                *(files.features, files.labels, files.folds, folder),
                words=config.words, label_names=label_names, unlabelled=True, name=name,
            )  # fmt: skip
            notice(f"prepared {folder}:\n{corpus_builder.describe(summary)}")
        except UserError:
            if not prepared.is_prepared(folder):  # else another process was faster
                raise
    return prepared.load(folder)


def rotations(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Name and value of each of the folds in `config.folds`: several files, comma-separated, or 'rotations' for the corpus's own."""
    own: Sequence[str] = config.folds.split(",")
    if config.folds == "rotations":
        if config.corpus not in names() or not (own := _module(config.corpus).files().rotations):
            raise UserError(f"The corpus '{config.corpus}' has no rotations of its folds: give the files of folds in data.folds.")
    named = [(Path(folds).stem, folds) for folds in own]
    for (name, one), (again, other) in itertools.combinations(named, 2):
        if name == again:
            raise UserError(f"data.folds names {one} and {other}, both '{name}': rename one, rotations are told apart by it.")
    return named


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _files(config: ml_collections.ConfigDict) -> Files:
    """The named corpus's files, each replaced by the config's where that is given."""
    if config.features and config.labels and config.folds:
        return Files(config.features, config.labels, config.folds)
    if config.corpus not in names():
        raise UserError(
            f"'{config.corpus}' is no known corpus: choose one of {', '.join(names())}, or give data.features, data.labels and data.folds."
        )
    own = _module(config.corpus).files()
    return dataclasses.replace(own, **{f: config[f] for f in ("features", "labels", "folds") if config[f]})
