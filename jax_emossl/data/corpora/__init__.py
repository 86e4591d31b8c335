"""Named corpora, one file each, and the way from a config to a prepared corpus.

A file `corpora/<name>.py` offers `files() -> Files`: where its features, labels and folds lie. It may offer `SETTINGS`, a dict
of dotted fields of a comparison's config and their values on this corpus; those of `pretrain` and `finetune` hold for a run alone, too.

A folder that `encode` made is a corpus, too: its path is the corpus's name in a config.
"""

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from jax_emossl.data import account, corpus, prepared, tfds
from jax_emossl.data.folds import read_folds, read_speakers
from jax_emossl.errors import UserError, notice


@dataclasses.dataclass(frozen=True)
class Files:
    """Where a corpus lies: `.csd` files, and a JSON file of folds or 'cmu_mosei'; labels are "" where there are none.

    Several files of features are joined by commas; the first has the frames.
    """

    features: str
    labels: str
    folds: str
    rotations: tuple[str, ...] = ()  # further files of folds, which together test every recording once
    searches: tuple[str, ...] = ()  # files of folds on whose validation folds recipes may be searched for
    create: Callable[[], None] | None = None  # makes the files, where that can be done
    speakers: str = ""  # JSON file of each recording's speaker; "" = not known

    @property
    def search(self) -> tuple[str, ...]:
        """The first of the searches, where all of them would take too long."""
        return self.searches[:1]


OWN = ("features", "labels", "folds", "speakers", "words", "label_names", "prepared")  # fields of `config.data` that belong to one corpus
FEATURES, LABELS, FOLDS, SPEAKERS = "features.csd", "labels.csd", "folds.json", "speakers.json"  # of a folder that `encode` made
SETS = ("rotations", "searches", "search")  # of folds, by which `data.folds` may name them


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


def settings(corpus: str) -> dict[str, Any]:
    """What the corpus of this name sets; of several, what all set alike. Nothing where there is none."""
    own, *others = [getattr(module(name), "SETTINGS", {}) if name in names() else {} for name in corpus.split("+")]
    return {field: value for field, value in own.items() if all(other.get(field) == value for other in others)}


def split(config: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """`config.data` of each of the corpora that it names, as in nemo+ravdess; files and folds that are given are the first one's."""
    first, *others = config.corpus.split("+")
    bare = {**config, **dict.fromkeys(OWN, "")}
    return [ml_collections.ConfigDict(own) for own in ({**config, "corpus": first}, *({**bare, "corpus": name} for name in others))]


def targets(config: ml_collections.ConfigDict) -> list[dict[str, str]]:
    """The fields of `config.data` that a comparison on several corpora has for each of them, and for each division into folds."""
    names = config.corpus.split("+")
    each = [ml_collections.ConfigDict({**config, "corpus": name}) for name in names]
    return [{"corpus": own.corpus, "folds": folds} for own in each for _, folds in rotations(own)]


def name(config: ml_collections.ConfigDict) -> str:
    """The corpora's name in results: the one given, else the features' file's. A prepared corpus knows its own."""
    return "+".join(short(own.corpus) or Path(own.prepared or listed(own.features)[0]).stem for own in split(config))


def listed(features: str) -> list[str]:
    """The files of features, which commas join."""
    return [features] if Path(features).is_file() else features.split(",")  # one file's path may have commas


def short(corpus: str) -> str:
    """A corpus's name, of a folder without those it lies in."""
    return Path(corpus).absolute().name if _is_folder(corpus) else corpus


def _is_folder(corpus: str) -> bool:
    return bool(corpus) and Path(corpus, FEATURES).is_file()


def check(corpus: str) -> None:
    """UserError where there is no corpus of this name, and no folder of one."""
    if not _is_folder(corpus):
        module(corpus)


def _own_files(corpus: str) -> Files:
    """Those of a named corpus (UserError if unknown), or in a folder."""
    if not _is_folder(corpus):
        return module(corpus).files()
    folder = Path(corpus)
    rotations = tuple(map(str, sorted(folder.glob("folds_rotation*.json"), key=lambda path: (len(path.name), path.name))))
    labels, speakers = (str(folder / name) if (folder / name).is_file() else "" for name in (LABELS, SPEAKERS))
    return Files(str(folder / FEATURES), labels, str(folder / FOLDS), rotations, speakers=speakers)


def files(config: ml_collections.ConfigDict) -> Files:
    """The files that `config.data` names: the corpus's (UserError if unknown), each replaced by the config's where that is given."""
    given = {field: config[field] for field in ("features", "labels", "folds", "speakers") if config[field]}
    if not config.corpus or {"features", "labels", "folds"} <= given.keys():
        return Files(**{"labels": "", **given})
    return dataclasses.replace(_own_files(config.corpus), **given)


def missing(files: Files) -> list[str]:
    """Those of the files that are not there."""
    folds = [] if files.folds == "cmu_mosei" else [files.folds]
    maybe = [path for path in (files.labels, files.speakers) if path]
    return [path for path in (*listed(files.features), *maybe, *folds) if not Path(path).is_file()]


def folder(config: ml_collections.ConfigDict, files: Files) -> Path:
    """Where the corpus of these files is prepared: another folder for whatever changes the result."""
    sources = [path for path in (*listed(files.features), files.labels, config.words) if path]
    stamps = [(str(Path(p).absolute()), Path(p).stat().st_size, Path(p).stat().st_mtime_ns) for p in sources if Path(p).exists()]
    folds = read_folds(files.folds)
    who = [read_speakers(files.speakers)] if files.speakers else []
    key = json.dumps([prepared.FORMAT, name(config), stamps, bool(config.words), folds, _label_names(config), *who])
    return cache_dir() / f"{name(config)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def load(config: ml_collections.ConfigDict) -> prepared.Corpus:
    """The corpus that `config.data` names, prepared on first use; UserError where there is none, or its files cannot be read."""
    if config.prepared:
        return prepared.load(_local(config.prepared))
    own = files(config)
    if missing(own) and own.create:
        own.create()
    for path in missing(own):
        raise UserError(f"{path} does not exist or is not a file: correct data.features, data.labels, data.folds or data.speakers.")
    out = folder(config, own)
    if not prepared.is_prepared(out):
        try:
            summary = corpus.build(
                *(listed(own.features), own.labels, own.folds, out),
                words=config.words, label_names=_label_names(config), unlabelled=True, name=name(config), speakers=own.speakers,
            )  # fmt: skip
            notice(f"prepared {out}:\n{account.describe(summary)}")
        except UserError:
            if not prepared.is_prepared(out):  # else another process was faster
                raise
    return prepared.load(out)


def copy_of(source: str) -> Path:
    """Where the TFDS dataset of `tfds:DIR` is copied to, once."""
    return cache_dir() / f"tfds-{tfds.identity(source)[:16]}"


def _local(source: str) -> Path:
    """The folder of a prepared corpus; of a TFDS dataset, its copy, which is made on first use."""
    if not source.startswith(tfds.PREFIX):
        return Path(source)
    out = copy_of(source)
    if not prepared.is_prepared(out):
        try:
            tfds.copy(source, out)
        except UserError:
            if not prepared.is_prepared(out):  # else another process was faster
                raise
    return out


def rotations(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Name and value of each of the folds in `config.folds`: several files, or the name of a set of the corpus's own.

    A corpus without such a set, and a prepared one, has its one division into folds, without a name.
    """
    own: Sequence[str] = config.folds.split(",")
    if config.folds in SETS:
        known = config.corpus in names() or _is_folder(config.corpus)
        own = known and getattr(_own_files(config.corpus), config.folds) or [""]
    named = [(Path(folds).stem, folds) for folds in own]
    for (one, path), (other, again) in itertools.combinations(named, 2):
        if one == other:
            raise UserError(f"data.folds names {path} and {again}, both '{one}': rename one, rotations are told apart by it.")
    return named


def module(corpus: str) -> ModuleType:
    if corpus not in names():
        raise UserError(
            f"'{corpus}' is no known corpus: choose one of {', '.join(names())}, or give data.features, data.labels and data.folds, "
            "or the folder of a corpus that encode made."
        )
    return importlib.import_module(f"{__name__}.{corpus}")


def _label_names(config: ml_collections.ConfigDict) -> list[str]:
    return [name.strip() for name in config.label_names.split(",") if name.strip()]
