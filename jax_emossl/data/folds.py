"""Which recording is in which fold: read from a JSON file, or CMU-MOSEI's standard folds from the CMU SDK; and who speaks in it."""

import importlib.util
import json
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jax_emossl.errors import UserError

FOLDS = ("train", "valid", "test")
CMU_MOSEI = "cmu_mosei"  # in place of a file


def read_folds(folds: str | Path) -> dict[str, list[str]]:
    """Recording ids per fold, sorted; UserError where the file is not a JSON object of lists, or an id is in two folds.

    Without a test fold a corpus can be pretrained on.
    """
    try:
        table = _standard_mosei_folds() if str(folds) == CMU_MOSEI else json.loads(Path(folds).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folds} cannot be read as a JSON file of folds ({' '.join(str(error).split())}).") from error
    if not isinstance(table, dict) or not {"train", "valid"} <= set(table) <= set(FOLDS):
        raise UserError(
            f"{folds} must hold exactly the folds train, valid and test, each a list of recording ids (a pretraining needs no test)."
        )
    table = {fold: table.get(fold, []) for fold in FOLDS}
    owner: dict[str, str] = {}
    for fold in FOLDS:
        if not isinstance(table[fold], list) or not all(isinstance(id_, str) for id_ in table[fold]):
            raise UserError(f"{folds}, fold '{fold}', must be a list of recording ids (text).")
        for recording in table[fold]:
            if owner.setdefault(recording, fold) != fold:
                raise UserError(f"{folds} has recording {recording!r} in two folds, {owner[recording]} and {fold}: keep it in one.")
    return {fold: sorted(set(table[fold])) for fold in FOLDS}


def check_tested_once(tested: Mapping[str, Iterable[str]], source: object, unit: str) -> int:
    """How many recordings several rotations test; UserError where two test the same one, which would count as two."""
    by: dict[str, str] = {}
    for rotation, recordings in tested.items():
        for name in sorted(set(recordings)):
            if by.setdefault(name, rotation) != rotation:
                raise UserError(
                    f"{source}: the rotations '{by[name]}' and '{rotation}' both test the {unit} '{name}', "
                    "which may be tested once: correct the folds and run the experiment in another --workdir."
                )
    return len(by)


def read_speakers(speakers: str | Path) -> dict[str, str]:
    """Who speaks in each recording; UserError where the file is not a JSON object of names."""
    try:
        table = json.loads(Path(speakers).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{speakers} cannot be read as a JSON file of speakers ({' '.join(str(error).split())}).") from error
    if not isinstance(table, dict) or not table:
        raise UserError(f'{speakers} must hold who speaks in each recording: write it as {{"recording": "speaker", ...}}.')
    for recording, who in table.items():
        if not isinstance(who, str) or not who.strip() or not who.isprintable():
            raise UserError(f"{speakers} gives the recording {recording!r} no name of a speaker: write one, or leave the recording out.")
    return table


def in_several(folds: str | Path, members: Mapping[str, Sequence[str]], speakers: Mapping[str, str]) -> list[str]:
    """Speakers that are in more than one fold: a UserError, but of CMU-MOSEI's standard folds, by which results are compared."""
    first: dict[str, tuple[str, str]] = {}
    shared = []
    for fold, ids in members.items():
        for recording in ids:
            who = speakers.get(recording, recording)
            other, its = first.setdefault(who, (fold, recording))
            if other != fold and str(folds) != CMU_MOSEI:
                raise UserError(
                    f"{folds} has the speaker {who!r} in two folds, {other} ({its}) and {fold} ({recording}): keep all of a speaker in one."
                )
            if other != fold and who not in shared:
                shared.append(who)
    return shared


def _standard_mosei_folds() -> dict[str, list[str]]:
    """The folds in a file of the SDK, which is run alone: importing the SDK needs PyTorch."""
    package = importlib.util.find_spec("mmsdk")
    source = "mmdatasdk/dataset/standard_datasets/CMU_MOSEI/cmu_mosei_std_folds.py"
    source = package and Path(package.submodule_search_locations[0]) / source
    if not (source and source.is_file()):
        raise UserError("The standard CMU-MOSEI folds come with the CMU SDK: pip install cmu-multimodal-sdk, or give --folds a JSON file.")
    lists = runpy.run_path(str(source))
    return {fold: lists[f"standard_{fold}_fold"] for fold in FOLDS}
