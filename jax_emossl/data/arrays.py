"""Frames that people already have: arrays in `.npy`, `.npz` or Parquet files, such as embeddings of a speech model."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from jax_emossl.data import folders
from jax_emossl.errors import UserError

SUFFIXES = (".npy", ".npz", ".parquet")
FILE_COLUMN = "file"  # of a Parquet file: which recording a row is of


@contextlib.contextmanager
def _damage(where: object) -> Iterator[None]:
    """A file within that cannot be read is a UserError which names it."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{where} needs the package pyarrow: pip install pyarrow.") from error
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist: correct the path.") from error
    except Exception as error:  # NumPy's, zip's and Parquet's readers raise whatever they stumble over
        detail = "Python objects, which are never loaded" if "pickle" in str(error) else " ".join(str(error).split())[:200]
        raise UserError(f"{where} holds no plain numbers that can be read ({detail}): write it anew.") from error


def read(path: Path) -> Float[np.ndarray, "n f"]:
    """The frames of one `.npy` file; UserError where they are none."""
    with _damage(path):
        return checked(np.load(path, allow_pickle=False), path)


def checked(frames: np.ndarray, where: object) -> Float[np.ndarray, "n f"]:
    """Frames as float32; UserError where they are not numbers in two dimensions, some of them finite."""
    if not isinstance(frames, np.ndarray) or frames.dtype.kind not in "iuf":
        raise UserError(f"{where} holds {getattr(frames, 'dtype', 'several arrays')} where numbers are needed: write it anew.")
    if frames.ndim != 2 or 0 in frames.shape:
        raise UserError(f"{where} has the shape {frames.shape} where (frames, dimensions) are needed: reshape it.")
    if not np.isfinite(frames).any():
        raise UserError(f"{where} holds no number that is finite: make it anew, or leave it out.")
    with np.errstate(over="ignore"):
        return frames.astype(np.float32)


def readers(source: Path) -> dict[str, Callable[[], Float[np.ndarray, "n f"]]]:
    """By name, what reads each recording: of a folder of `.npy` files, of one `.npz`, or of a Parquet file with a column `file`.

    The other columns of a Parquet file are the dimensions, its rows the frames in order. UserError where there is none of these.
    """
    if source.is_dir():
        if not (found := folders.files(source, (".npy",))):
            raise UserError(f"{source} has no .npy file: give a folder with one array (frames, dimensions) per recording, or an .npz.")
        return {str(path.relative_to(source)): lambda path=path: read(path) for path in found}
    if source.suffix.lower() == ".npz":
        with _damage(source), np.load(source, allow_pickle=False) as arrays:
            return {name: lambda name=name: _member(source, name) for name in sorted(arrays.files)}
    if source.suffix.lower() == ".parquet":
        with _damage(source):
            table = pd.read_parquet(source)
            if FILE_COLUMN in table.index.names:
                table = table.reset_index(FILE_COLUMN)
        return _rows_of(table, source)
    raise UserError(f"{source} is neither a folder of .npy files nor an .npz or .parquet file: give one of these.")


def _rows_of(table: pd.DataFrame, source: Path) -> dict[str, Callable[[], Float[np.ndarray, "n f"]]]:
    """By name of the recording, what gives its rows; UserError where a row is of none, or a column holds no numbers."""
    if FILE_COLUMN not in table:
        raise UserError(f"{source} has no column '{FILE_COLUMN}' that names the recording of each frame: add it.")
    if table[FILE_COLUMN].isna().any():
        row = int(table[FILE_COLUMN].isna().argmax())
        raise UserError(f"{source}, row {row}, names no recording in the column '{FILE_COLUMN}': name one, or remove the row.")
    for column, dtype in table.drop(columns=FILE_COLUMN).dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            raise UserError(f"{source}, column '{column}', holds {dtype} where numbers are needed: leave it out.")

    def frames(name: str, own: pd.DataFrame) -> Float[np.ndarray, "n f"]:
        return checked(own.drop(columns=FILE_COLUMN).to_numpy(float, na_value=np.nan), f"{source}, recording '{name}',")

    return {str(name): functools.partial(frames, name, own) for name, own in table.groupby(FILE_COLUMN, sort=True)}


def _member(source: Path, name: str) -> Float[np.ndarray, "n f"]:
    where = f"{source}, array '{name}',"
    with _damage(where), np.load(source, allow_pickle=False) as arrays:
        return checked(arrays[name], where)
