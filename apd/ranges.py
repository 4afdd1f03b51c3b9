"""Rules for the values of config keys and flags: a rule reads a value, or says what it takes."""

from __future__ import annotations

import argparse
import ast
import math
import re
from collections.abc import Callable


class Rule:
    """Reads values of one kind; also a type for argparse.

    Args:
        words: what it takes, such as "a whole number from 0"; errors say "use" before it.
        read: returns the value as a config holds it, also from a command line's text; raises
            ValueError for other values.
    """

    def __init__(self, words: str, read: Callable) -> None:
        self.words, self.read = words, read

    def __str__(self) -> str:
        return self.words

    def __call__(self, text: str):
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} is refused: use {self}") from error


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, note: str = ""
) -> Rule:
    """A finite number in [low, high], and above ``above``."""
    words = "a number" + _limits(low, high, above) + note

    def read(value):
        value = _plain(value, int, float)
        if not (math.isfinite(value) and low <= value <= high and value > above):
            raise ValueError(words)
        return value

    return Rule(words, read)


def whole(
    low: int | None = None, high: int | None = None, *, also: int | None = None, note: str = ""
) -> Rule:
    """A whole number in [low, high], or ``also``."""
    least, most = (-math.inf if low is None else low), (math.inf if high is None else high)
    words = "a whole number" + _limits(least, most) + (f", or {also}" if also is not None else "")

    def read(value):
        value = _plain(value, int)
        if not (least <= value <= most or value == also):
            raise ValueError(words)
        return value

    return Rule(words + note, read)


def one_of(*choices: str) -> Rule:
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def read(value):
        if value not in choices:
            raise ValueError(words)
        return value

    return Rule(words, read)


def per_255(rule: Rule) -> Rule:
    """``rule`` for a key in units of 1/255, where "4/255" is read as 4."""

    def read(value):
        if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*/\s*255\s*", value)):
            value = match[1]
        return rule.read(value)

    return Rule(f"{rule}, in units of 1/255", read)


def optional(rule: Rule) -> Rule:
    """``rule``, or None."""
    return Rule(
        f"{rule}, or None", lambda value: None if value in (None, "None") else rule.read(value)
    )


def several(rule: Rule, count: int | None = None, split: bool = False) -> Rule:
    """A list, of ``count`` values if that is given.

    Args:
        split: whether a text is split at its commas; else a text becomes a list of one value.
    """
    words = "a list" if rule is ANY else f"a list of {count or ''} values, each {rule}"

    def read(value):
        if isinstance(value, str):
            try:
                value = _plain(value, list, tuple)
            except ValueError:
                value = [text.strip() for text in value.split(",")] if split else [value]
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            raise ValueError(words)
        return type(value)(rule.read(item) for item in value)

    return Rule(words, read)


ANY = Rule("any value", lambda value: value)


def _read_text(value):
    if not isinstance(value, str):
        raise ValueError
    try:
        decoded = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return decoded if isinstance(decoded, str) else value  # quotes are taken off


def _limits(low: float, high: float, above: float = -math.inf) -> str:
    if above > -math.inf:
        return f" above {above}" + (f", to {high}" if high < math.inf else "")
    if high < math.inf:
        return f" from {low} to {high}"
    return f" from {low}" if low > -math.inf else ""


def _plain(value, *types: type):
    """A value of one of the types, also from its text; ValueError for others. True is no number."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(value) from error
    if type(value) not in types:
        raise ValueError(value)
    return value


TEXT = Rule("text (in YAML with quotes around a number)", _read_text)
SWITCH = Rule(
    "True or False",
    lambda value: _plain(value.capitalize() if value in ("true", "false") else value, bool),
)


def rule_like(value) -> Rule:
    """The rule for a key without one of its own: a value of the type of its default, ``value``."""
    if isinstance(value, bool):
        return SWITCH
    if isinstance(value, int):
        return whole()
    if isinstance(value, float):
        return number()
    if isinstance(value, str):
        return TEXT
    if isinstance(value, (list, tuple)):
        return several(ANY, split=True)
    return ANY
