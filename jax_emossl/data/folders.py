"""The files under a folder."""

import os
from collections.abc import Collection
from pathlib import Path


def files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Those with one of these suffixes, in lower or upper case, in sorted order; linked folders are entered, and each folder once."""
    root, entered, found = folder.resolve(), set(), []

    def is_new(path: Path) -> bool:
        real = path.resolve()
        if real in entered or (path.is_symlink() and (real.is_relative_to(root) or root.is_relative_to(real))):
            return False  # its files are found, or the search was begun, where the link leads
        entered.add(real)
        return True

    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(Path(here, name))]
        found += [path for name in names if (path := Path(here, name)).suffix.lower() in suffixes and path.is_file()]
    return sorted(found)
