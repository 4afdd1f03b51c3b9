"""Caches of file lists and few-shot draws: ours are JSON, CoOp's pickles are read as plain data."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from apd.datasets.fewshot import Entry
from apd.errors import UserError, one_line
from apd.files import atomic_write, parse_json

# the classes that a pickle may name: Dassl's Datum, and the embedded host's
DATUM = (("dassl.data.datasets.base_dataset", "Datum"), ("apd.host.embedded.dataset", "Datum"))


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts in this order, its first 32 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        # a hash of hashes, so that ("ab", "c") and ("a", "bc") differ
        total.update(hashlib.sha256(encoded).digest())
    return total.hexdigest()[:32]


def cached(path: Path, key: str, make: Callable[[], dict]) -> dict:
    """Return ``make()``, or what the JSON file ``path`` holds if it was made for the same ``key``.

    A new value is written to ``path`` with its hash, so that a damaged file is noticed, reported
    and made again. Where ``path`` cannot be written, as on a shared read-only data root, each run
    makes the value again.
    """
    try:
        head, _, encoded = path.read_bytes().partition(b', "value": ')
        header, encoded = parse_json(head + b"}"), encoded[:-1]
        if header["key"] == key and "hash" in header:  # earlier versions wrote no hash
            if header["hash"] == digest(encoded):
                return parse_json(encoded)
            raise ValueError("another hash")
    except OSError:  # usually: there is no such file yet
        pass
    except (ValueError, KeyError, TypeError):
        print(f"note: {path} is damaged: it is made again")
    value = make()
    text = json.dumps(value)
    start = json.dumps({"key": key, "hash": digest(text)})
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(f'{start[:-1]}, "value": {text}}}', encoding="utf-8")
    except OSError as error:
        print(f"note: {path} is not kept ({error.strerror}): it is made again in each run")
    return value


def read_pickle(path: Path) -> dict[str, list[Entry]]:
    """Read one of CoOp's pickles: a dict of lists of Dassl's ``Datum``, and nothing else.

    A pickle can name any class or function, and loading it would run that. So no name but
    ``Datum`` is allowed, and an empty class stands in for it.

    Raises:
        UserError: the file names another class or function, or is not such a pickle.
    """
    stand_in = type("Datum", (), {})

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in DATUM:
                raise UserError(
                    f"{path} is refused: it names {module}.{name}, where CoOp's caches hold "
                    "Dassl's Datum only, and loading it could run code; remove it"
                )
            return stand_in

    try:
        with path.open("rb") as file:
            content = Unpickler(file).load()
        return {
            str(split): [
                Entry(_posix(str(item._impath)), int(item._label), 0, str(item._classname))
                for item in items
            ]
            for split, items in content.items()
        }
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(
            f"{path} cannot be read as one of CoOp's caches ({one_line(error)}): remove it"
        ) from error


def _posix(path: str) -> str:
    """The path with forward slashes; CoOp writes absolute paths, on Windows with backslashes."""
    windows = PureWindowsPath(path)
    return windows.as_posix() if windows.drive else path
