"""Errors that users can mend, and the one line in which they are reported."""

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
    """Bad input. Its message is one line: what is wrong, where, and how to mend it.

    The command line prints it as ``error: <message>`` and exits with code 2.
    """


class NonFiniteLoss(Exception):
    """Training met a NaN or infinite loss; checkpoints written before it are kept."""


class ImpossibleResult(Exception):
    """A result that cannot be right, such as robust above clean; it is stored with its flag."""


class WorkerFailed(Exception):
    """A process that did a part of the work failed; the results of the others are stored."""


def one_line(error: object, most: int = 300) -> str:
    """Another library's error, or a user's value, to be part of a message of one line."""
    # str() of a KeyError is its key in quotes
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    # file names may hold any byte: characters that a terminal cannot print are escaped
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
    """The names most similar to ``name``, ignoring case; at most three.

    Args:
        cutoff: least similarity, from 0 to 1, as of ``difflib.get_close_matches``.
    """
    by_lower = {candidate.lower(): candidate for candidate in names}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, 3, cutoff)]


def either(names: Iterable[str]) -> str:
    """Join names as "A, B or C"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


ONE_LINE_ERRORS = (UserError, NonFiniteLoss, ImpossibleResult, WorkerFailed)


def disk_full(error: object) -> TypeGuard[OSError]:
    """Whether the error says that a file system, or the user's share of it, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def report_error(error: Exception) -> int | None:
    """Print one of ``ONE_LINE_ERRORS``, or a file's error, in one line; return the exit code.

    The exit code is 2 for errors that the user can mend; it is 1 for a full disk and the others of
    ``ONE_LINE_ERRORS``. For any other error nothing is printed, and None is returned.
    """
    message, code = str(error), 1
    if isinstance(error, UserError):
        # an error from a worker of a data loader has that process's traceback in its message
        message, code = one_line(message.rpartition("apd.errors.UserError: ")[2], most=3000), 2
    elif disk_full(error):
        where = f"{one_line(error.filename)}: " if error.filename else ""
        message = f"{where}{error.strerror}: make room, and the same command goes on"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        message, code = f"{one_line(error.filename)}: {error.strerror}", 2
    elif not isinstance(error, ONE_LINE_ERRORS):
        return None
    if not console.silent:
        print(f"error: {message}", file=sys.stderr)
    return code


def exit_codes(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command: an error is reported in one line, with exit code 2 (UserError) or 1.

    The command also goes on when nobody reads its output, as with ``>&-`` and ``| head -1``.
    """

    @wraps(main)
    def command(argv: list[str] | None = None) -> int:
        try:
            with lasting():
                return main(argv)
        except Exception as error:
            if code := report_error(error):
                return code
            raise

    return command


def report_uncaught() -> None:
    """Make a program of others, such as CoOp's train.py, report our errors as our commands do.

    Any other uncaught error goes to the previous ``sys.excepthook``.
    """
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)


class _Hook:
    def __init__(self, before: Callable[..., object]) -> None:
        self.before = before

    def __call__(self, kind, error, traceback) -> None:
        if isinstance(error, ONE_LINE_ERRORS) or disk_full(error):
            sys.exit(report_error(error))
        self.before(kind, error, traceback)
