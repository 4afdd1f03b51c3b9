"""Files are written whole or not at all, and read without running anything in them."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apd.errors import UserError, disk_full, one_line


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark; line ends become newlines.

    Raises:
        UserError: it cannot be read, or is no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{os.fspath(path)} is no text in UTF-8 ({one_line(error)})") from error


def parse_json(text: str | bytes):
    """The value of a JSON text, with or without a byte-order mark.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has NaN or infinite numbers.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    return _bounded(value)


def read_json(path: str | os.PathLike):
    """The value in a JSON file (``parse_json``).

    Raises:
        OSError: it cannot be read.
        ValueError: as ``parse_json``.
    """
    return parse_json(Path(path).read_bytes())


def parse_yaml(text: str):
    """The value of a YAML text, which is plain data whatever its tags are.

    Raises:
        ValueError: it is no YAML, is nested too deeply or in itself (by an alias), grows by
            aliases beyond ten million values, has a key twice, or NaN or infinite numbers.
    """
    import yaml

    # C's is ten times as fast
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node, deep=False):
            nodes = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=True) for key in nodes]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                # the yaml package would silently drop the first one
                raise ValueError(f"{twice[0]} stands twice, line {node.start_mark.line + 1} on")
            return super().construct_mapping(node, deep)

        def construct_yaml_float(self, node):
            return _finite(super().construct_yaml_float(node))

    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    try:
        value = yaml.load(text, Loader)
    except Exception as error:  # dates and tags raise errors of many kinds
        raise ValueError(one_line(error)) from error
    return _bounded(value)


def read_yaml(path: str | os.PathLike) -> dict:
    """A YAML file that holds a mapping (``parse_yaml``); an empty file is an empty one.

    Raises:
        UserError: it cannot be read, is no mapping, or as ``parse_yaml``.
    """
    try:
        mapping = parse_yaml(read_text(path))
    except ValueError as error:
        raise UserError(f"{os.fspath(path)}: {error}") from error
    if not isinstance(mapping, (dict, type(None))):
        raise UserError(f"{os.fspath(path)}: it is no mapping of keys to values")
    return mapping or {}


_DEEPEST, _LARGEST = 50, 10_000_000  # most levels of a file's value, and most values of a level
_DEEP = f"it is nested more than {_DEEPEST} levels deep, or in itself"


def _finite(number: str | float) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value


def _bounded(value):
    """``value``, or ValueError if its lists and mappings are too deep or, by aliases, too many."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        below: list = []
        for item in level:
            if isinstance(item, (dict, list)):
                below += item.values() if isinstance(item, dict) else item
            if len(below) > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST:,} values")
        if not below:
            return value
        level = below
    raise ValueError(_DEEP)


def check_writable(folder: str | os.PathLike, option: str) -> None:
    """Raise UserError unless ``folder`` exists or can be made, and can be written to.

    Args:
        option: the flag or key that names it, for the message.
    """
    existing = Path(folder).absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(
            f"{option} {os.fspath(folder)}: {existing} is no folder: choose another place"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{option} {os.fspath(folder)}: {existing} cannot be written to")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, which replaces ``path`` on success.

    A reader sees the old file or the new one, never half of one; after an exception or a kill
    the old file is untouched. Missing parent folders are made.

    Raises:
        OSError: it cannot be written; where the disk is full, it names ``path``.
        UserError: ``path`` is a folder or a device.
    """
    path = Path(path)
    try:
        with _replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if disk_full(error):  # writing to an open file does not name it
            error.filename = os.fspath(path)
        raise


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    if path.exists() and not path.is_file():  # a device would be lost
        raise UserError(f"{path} is no file that can be replaced: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # same folder, so that the rename stays on one file system
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "r+b") as written:  # Windows syncs what may be written to
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_tensors(path: str | os.PathLike, value) -> None:
    """Write ``value`` by ``torch.save``, atomically."""
    import torch

    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # PyTorch raises it if the file cannot be written
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def temporary_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder`` that takes its place on success.

    ``folder`` must be missing or empty. After an exception nothing is left.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes private ones
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content``, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike, value) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Write ``rows``, one or more with the same keys, below a line of these, atomically."""
    with (
        atomic_write(path) as temporary,
        # the name of a file may hold any byte
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
