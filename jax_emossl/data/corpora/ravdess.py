"""RAVDESS: acted emotional speech in English, 24 actors (Livingstone & Russo 2018, PLoS ONE), as `.csd` files."""

from pathlib import Path

from jax_emossl.data.corpora import Files, data_dir


def files() -> Files:
    """openSMILE eGeMAPSv02 descriptors at 100 Hz, in $EMOSSL_DATA/ravdess; intensity 2 for "normal", 3 for "strong".

    For searches, every actor is in one of three validation folds of eight: those whom the rotation of the same number tests.
    """
    folder = data_dir() / "ravdess"
    rotations = tuple(str(folder / f"folds_rotation{i}.json") for i in (1, 2, 3))
    searches = tuple(str(Path(__file__).with_name(f"ravdess_search{i}.json")) for i in (1, 2, 3))
    return Files(
        str(folder / "RAVDESS_eGeMAPSv02.csd"), str(folder / "RAVDESS_Labels.csd"), str(folder / "folds.json"), rotations, searches
    )
