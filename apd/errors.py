"""Errors that are the user's to mend."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import TypeGuard

from apd import console
from apd.console import lasting


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints it as ``error: <message>`` and exits with code 2.
    """


class NonFiniteLoss(Exception):
    """Training met a NaN or infinite loss; checkpoints written before it are kept."""


class ImpossibleResult(Exception):
    """A result that cannot be right, such as robust above clean; it is kept, with its flag."""


class WorkerFailed(Exception):
    """A process that does a part of the work has ended in an error; the others' work is kept."""


def one_line(error: object, most: int = 300) -> str:
    """Another library's error, or a user's value, as part of a one-line message."""
    # str() of a KeyError is its key in quotes
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    # what a terminal would not print as it is, is escaped; names of files may hold any byte
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Iterable[str], most: int = 10) -> str:
    """Join names for a message of one line; beyond ``most`` of them, say how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: int, noun: str) -> str:
    """Say "1 run" or "1,200 runs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def similar(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """At most three of ``names`` that are most like ``name``, whatever their case.

    Args:
        cutoff: least likeness, from 0 to 1, as of ``difflib.get_close_matches``.
    """
    by_lower = {known.lower(): known for known in names}
    return [by_lower[near] for near in get_close_matches(name.lower(), by_lower, 3, cutoff)]


def either(names: Iterable[str]) -> str:
    """Join names as "A, B or C"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


TOLD = (UserError, NonFiniteLoss, ImpossibleResult, WorkerFailed)


def disk_full(error: object) -> TypeGuard[OSError]:
    """Whether the error says that a file system, or the user's share of it, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def tell(error: Exception) -> int | None:
    """Print an error of ``TOLD`` or of a file in one line, and return the exit code.

    It is 2 for what is the user's to mend, 1 for a full disk and the others of ``TOLD``; None, and
    nothing is printed, for any other error.
    """
    message, code = str(error), 1
    if isinstance(error, UserError):
        # from a worker of a data loader it comes with that process's traceback
        message, code = one_line(message.rpartition("apd.errors.UserError: ")[2], most=3000), 2
    elif disk_full(error):
        where = f"{one_line(error.filename)}: " if error.filename else ""
        message = f"{where}{error.strerror}: make room, and the same command goes on"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        message, code = f"{one_line(error.filename)}: {error.strerror}", 2
    elif not isinstance(error, TOLD):
        return None
    _print(message)
    return code


def exit_codes(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command: what goes wrong is one line, and exit code 2 (UserError) or 1.

    It goes on where its output is not read (any more): ``>&-``, ``| head -1``.
    """

    @wraps(main)
    def command(argv: list[str] | None = None) -> int:
        try:
            with lasting():
                return main(argv)
        except Exception as error:
            if code := tell(error):
                return code
            raise

    return command


def tell_uncaught() -> None:
    """End a program that none of our commands runs, as they end: with one line and exit code.

    Any other error that nobody catches goes to the hook that was there before.
    """
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)


class _Hook:
    def __init__(self, before: Callable[..., object]) -> None:
        self.before = before

    def __call__(self, kind, error, traceback) -> None:
        if isinstance(error, TOLD) or disk_full(error):
            sys.exit(tell(error))
        self.before(kind, error, traceback)


def _print(message: str) -> None:
    if not console.silent:
        print(f"error: {message}", file=sys.stderr)
