"""Lists and draws kept on disk: ours as JSON, CoOp's pickles read as plain data."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from apd.datasets.fewshot import Entry
from apd.errors import UserError, one_line
from apd.files import atomic_write, parse_json

# a Datum of Dassl, and one of the embedded host
DATUM = (("dassl.data.datasets.base_dataset", "Datum"), ("apd.host.embedded.dataset", "Datum"))


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, as a short text."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        total.update(hashlib.sha256(part).digest())  # of each, so that ("ab", "c") is not "abc"
    return total.hexdigest()[:32]


def cached(path: Path, key: str, make: Callable[[], dict]) -> dict:
    """Return ``make()``, kept as JSON in ``path`` for as long as ``key`` stays the same.

    The file has a hash of the value too, so that a damaged one is told and made again. Where
    ``path`` cannot be written, as on a shared read-only data root, nothing is kept.
    """
    try:
        head, _, kept = path.read_bytes().partition(b', "value": ')
        found, kept = parse_json(head + b"}"), kept[:-1]
        if found["key"] == key and "hash" in found:  # earlier versions kept none
            if found["hash"] == digest(kept):
                return parse_json(kept)
            raise ValueError("another hash")
    except OSError:  # absent, as a rule
        pass
    except (ValueError, KeyError, TypeError):
        print(f"note: {path} is damaged: it is made again")
    value = make()
    text = json.dumps(value)
    head = json.dumps({"key": key, "hash": digest(text)})
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(f'{head[:-1]}, "value": {text}}}', encoding="utf-8")
    except OSError as error:
        print(f"note: {path} is not kept ({error.strerror}): it is made again in each run")
    return value


def read_pickle(path: Path) -> dict[str, list[Entry]]:
    """Read one of CoOp's pickles: a dict of lists of Dassl's ``Datum``, and nothing else.

    No class but ``Datum`` is looked up, and that one is replaced, so that a pickle which was
    made to run code cannot.

    Raises:
        UserError: the file names something else, or is not such a pickle.
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
    """A path with slashes, also if it was written on Windows: CoOp's are absolute."""
    windows = PureWindowsPath(path)
    return windows.as_posix() if windows.drive else path
