"""The parser of command lines, whose errors are one line like all others."""

from __future__ import annotations

import argparse
from typing import NoReturn

from apd.errors import UserError, one_line


class Parser(argparse.ArgumentParser):
    """argparse's parser; it keeps the line breaks of the description."""

    def __init__(self, **options) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)} (--help tells the flags)")
