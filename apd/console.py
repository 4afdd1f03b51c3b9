"""Printing to standard streams that may be closed.

They may be closed from the start (``>&-``), or by their reader while we print (``| head -1``).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

silent = False  # whether errors are not printed, because another rank meets them too


class Console:
    """A text stream to which one can write without an error after its reader has closed it."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._to_nowhere_once_left():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._to_nowhere_once_left():
            self.stream.flush()

    def __getattr__(self, name: str):
        if name == "stream":  # not set yet; self.stream would call this method again
            raise AttributeError(name)
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _to_nowhere_once_left(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # the stream still has the text in its buffer, and will try to write it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """The body goes on, whether or not the standard streams are open."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed; its number may be another file's by now
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error is: no text is refused
        sys.stdout.reconfigure(errors="backslashreplace")
    consoles = {name: Console(stream) for name, stream in before.items()}
    vars(sys).update(consoles)
    try:
        yield
    finally:
        for name, console in consoles.items():
            console.flush()
            if getattr(sys, name) is console:  # not a log that writes to it
                setattr(sys, name, before[name])


def started() -> int:
    """How many processes torchrun has started; 1: none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def silence_nonzero_ranks() -> None:
    """Let only rank 0 print, also an error that every rank meets."""
    global silent
    if started() > 1 and int(os.environ["RANK"]):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        silent = True
