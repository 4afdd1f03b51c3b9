"""Errors that are the user's to mend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints it as ``error: <message>`` and exits with code 2.
    """


class NonFiniteLoss(Exception):
    """Training met a NaN or infinite loss; checkpoints written before it are kept."""


class ImpossibleResult(Exception):
    """A result that cannot be right, such as robust above clean; it is kept, with its flag."""


def one_line(error: Exception) -> str:
    """Another library's error as part of a one-line message."""
    # str() of a KeyError is its key in quotes
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def listed(names: Iterable[str], most: int = 10) -> str:
    """Join names for a message of one line; beyond ``most`` of them, say how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def either(names: Iterable[str]) -> str:
    """Join names as "A, B or C"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def exit_codes(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command: what goes wrong is one line, and exit code 2 (UserError) or 1."""

    @wraps(main)
    def command(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            # from a worker of a data loader it comes with that process's traceback
            message = str(error).splitlines()[-1].removeprefix("apd.errors.UserError: ")
            print(f"error: {message}", file=sys.stderr)
            return 2
        except (NonFiniteLoss, ImpossibleResult) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return command
