"""Data sets that write their images under the data root themselves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from apd.errors import UserError


def store(name: str, folder: Path, files: dict[Path, Callable[[Path], object]]) -> None:
    """Write files of a data set.

    Each file appears whole or not at all. A killed run leaves some, and the next run writes the
    others. Two runs at once write the same bytes.

    Args:
        name: of the data set, for the error.
        folder: it holds all of ``files``.
        files: path -> function that writes the file to the path that it is given.

    Raises:
        UserError: they cannot be written.
    """
    if not files:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            for path, write in files.items():
                whole = Path(scratch, path.name)
                write(whole)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(whole, path)
    except OSError as error:
        raise UserError(
            f"{name}: cannot write {folder} ({error.strerror}): point --root at a folder that you "
            "may write to"
        ) from error
