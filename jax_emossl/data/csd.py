"""Read and write CMU computational sequences (`.csd`).

A computational sequence is an HDF5 file (layout of the CMU Multimodal SDK, github.com/CMU-MultiComp-Lab):

    /<root name>/data/<entry id>/features    (n, d)   numeric
    /<root name>/data/<entry id>/intervals   (n, 2)   seconds: start, end
    /<root name>/metadata/<key>              (1,)     JSON text
"""

import ast
import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from jax_emossl.errors import UserError

_MOST_PACKED = 1100  # times that gzip makes a chunk smaller, at most
_UNWRITTEN = 2**26  # bytes of chunks that were never written
# Whatever HDF5 or NumPy raises on a damaged file; h5py maps library errors to all of these.
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)


@contextlib.contextmanager
def _blame(where: str) -> Iterator[None]:
    """Turns a low-level read error into one sentence that says where it happened."""
    try:
        yield
    except _READ_ERRORS as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be read ({detail}): the file is damaged, fetch or write it anew.") from error


class Sequence(contextlib.AbstractContextManager):
    """An open computational sequence, to be used in a `with`; entries are read one at a time.

    Attributes:
      path: the file.
      root: name of the root group.
      ids: entry ids, in sorted order.
      metadata: decoded metadata; keys that hold neither JSON nor a Python literal are left out.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist or is not a file: give the path of a .csd file.")
        try:
            self._file = h5py.File(self.path, "r")
        except PermissionError as error:
            raise UserError(f"{self.path} cannot be opened: it is not readable by this user.") from error
        except _READ_ERRORS as error:
            raise UserError(
                f"{self.path} is not a readable HDF5 file: it is truncated or of another kind; fetch or write it anew."
            ) from error
        with contextlib.ExitStack() as failed:
            failed.push(self)
            with _blame(str(self.path)):
                self._open()
            failed.pop_all()

    def __exit__(self, *_) -> None:
        self._file.close()

    def _open(self) -> None:
        roots = list(self._file)
        if len(roots) != 1:
            raise UserError(f"{self.path} has {len(roots)} root groups where a .csd file has one: it is not a computational sequence.")
        self.root = roots[0]
        root = self._group(self._file, self.root)
        self._data = self._group(root, "data")
        self.ids: list[str] = sorted(self._data)
        odd = [entry for entry in self.ids if not entry.isprintable()]
        if odd:
            raise UserError(f"{self.path} has an entry named {odd[0]!r}: the file is damaged, fetch or write it anew.")
        self.metadata = self._read_metadata(self._group(root, "metadata")) if "metadata" in root else {}

    def _read_metadata(self, group: h5py.Group) -> dict:
        metadata = {}
        for key in group:
            with contextlib.suppress(*_READ_ERRORS, SyntaxError):
                text = group[key][0]
                try:
                    metadata[key] = json.loads(text)
                except ValueError:  # the SDK's own writer stores str(value)
                    metadata[key] = ast.literal_eval(text.decode())
        return metadata

    def _group(self, parent: h5py.Group, name: str) -> h5py.Group:
        if not _holds(parent, name, h5py.Group):
            path = f"{parent.name}/{name}".lstrip("/")
            raise UserError(f"{self.path} has no group {path!r}: it is not a computational sequence.")
        return parent[name]

    def __contains__(self, entry: str) -> bool:
        return entry in self._data

    def _where(self, entry: str) -> str:
        return f"{self.path}, entry '{entry}',"

    def _dataset(self, entry: str, name: str) -> h5py.Dataset:
        """Numbers of an entry, not yet read."""
        where = self._where(entry)
        with _blame(where):
            group = self._group(self._data, entry)
            if not _holds(group, name, h5py.Dataset):
                raise UserError(f"{where} has no '{name}': add it or remove the entry.")
            data = group[name]
            if data.dtype.kind not in "iuf":
                raise UserError(f"{where} has {name} of type {data.dtype} where numbers are needed.")
            if data.external or data.is_virtual:
                raise UserError(f"{where} keeps its {name} in another file: store them in the .csd file itself.")
            if data.nbytes > _MOST_PACKED * data.id.get_storage_size() + _UNWRITTEN:  # a damaged shape would fill the memory
                raise UserError(f"{where} has {name} of shape {data.shape}, which it does not hold: fetch or write the file anew.")
            if name == "intervals" and (data.ndim != 2 or data.shape[1] != 2):
                raise UserError(f"{where} has intervals of shape {data.shape} where (frames, 2) are needed.")
            if data.ndim != 2:
                raise UserError(f"{where} has {data.ndim}-D features where (frames, dimensions) are needed: reshape them.")
        return data

    def shape(self, entry: str) -> tuple[int, int]:
        """Shape (n, d) of an entry's features, from the headers alone; UserError where its two arrays are not what the layout asks for."""
        features, intervals = self._dataset(entry, "features"), self._dataset(entry, "intervals")
        if len(features) != len(intervals):
            lengths = f"{len(features)} features but {len(intervals)} intervals"
            raise UserError(f"{self._where(entry)} has {lengths}: their lengths must agree.")
        return features.shape

    def intervals(self, entry: str) -> Float[np.ndarray, "n 2"]:
        """Intervals in float64 seconds, in the file's order; UserError where a time is not finite or ends before it starts."""
        with _blame(self._where(entry)):
            intervals = self._dataset(entry, "intervals")[()].astype(np.float64, copy=False)
        bad = np.flatnonzero(~np.isfinite(intervals).all(1) | (intervals[:, 1] < intervals[:, 0]))
        if len(bad):
            times = "runs from {:g} s to {:g} s".format(*intervals[bad[0]])
            raise UserError(f"{self._where(entry)} row {bad[0]}, {times}: correct its interval or remove the row.")
        return intervals

    def read(self, entry: str) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n 2"]]:
        """Features as float32 and intervals as float64 seconds, in the file's order; UserError as of `shape` and `intervals`."""
        self.shape(entry)
        with _blame(self._where(entry)), np.errstate(all="ignore"):
            features = self._dataset(entry, "features")[()].astype(np.float32, copy=False)
        return features, self.intervals(entry)


def _holds(group: h5py.Group, name: str, kind: type) -> bool:
    """Whether a group has such a member; soft and external links, which could point into other files, are not followed."""
    return isinstance(group.get(name, getlink=True), h5py.HardLink) and isinstance(group[name], kind)


def write(
    path: str | Path,
    root: str,
    entries: Iterable[tuple[str, Float[np.ndarray, "n d"], Float[np.ndarray, "n 2"]]],
    metadata: dict | None = None,
) -> None:
    """Writes a computational sequence; `entries` yields (id, features, intervals in seconds)."""
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        data = file.create_group(f"{root}/data")
        for entry, features, intervals in entries:
            data.create_dataset(f"{entry}/features", data=features)
            data.create_dataset(f"{entry}/intervals", data=intervals)
        for key, value in {"root name": root, **(metadata or {})}.items():
            file[root].create_dataset(f"metadata/{key}", data=[json.dumps(value)], dtype=text)
