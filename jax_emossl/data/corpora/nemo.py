"""nEMO: acted emotional speech in Polish, 9 speakers (Christop 2024, LREC-COLING), as `.csd` files."""

from pathlib import Path

from jax_emossl.data.corpora import Files, data_dir


def files() -> Files:
    """openSMILE eGeMAPSv02 descriptors at 100 Hz, in $EMOSSL_DATA/nemo.

    For searches, two of every rotation's five training speakers join its validation fold.
    """
    folder = data_dir() / "nemo"
    rotations = tuple(str(folder / f"folds_rotation{i}.json") for i in (1, 2, 3))
    searches = tuple(str(Path(__file__).with_name(f"nemo_search{i}.json")) for i in (1, 2, 3))
    return Files(str(folder / "NEMO_eGeMAPSv02.csd"), str(folder / "NEMO_Labels.csd"), str(folder / "folds.json"), rotations, searches)
