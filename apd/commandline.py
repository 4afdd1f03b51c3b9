"""Command lines: a parser whose errors are one line, and commands that read their flags first."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable
from typing import NoReturn

from apd.errors import UserError, exit_codes, one_line


class Parser(argparse.ArgumentParser):
    """argparse's parser; it keeps the line breaks of the description."""

    def __init__(self, **options) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)} (--help tells the flags)")


def command(
    parse_args: Callable[[list[str] | None], argparse.Namespace], work: str
) -> Callable[..., int]:
    """The ``main`` of a command that needs PyTorch, which takes seconds to import.

    Flags are parsed first, so that --help and wrong flags are answered at once.

    Args:
        parse_args: from arguments (None: those of the process) to flags.
        work: "module:function", imported after that; from flags to the exit code.
    """

    @exit_codes
    def main(argv: list[str] | None = None) -> int:
        args = parse_args(argv)
        return pkgutil.resolve_name(work)(args)

    return main
