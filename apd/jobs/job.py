"""A piece of work with a folder of its own, and what that folder says about it."""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from apd.files import read_json, write_json
from apd.jobs.lock import owner

FAILED_NAME = "failed.json"
STDERR_NAME = "stderr.txt"


class State(NamedTuple):
    """``kind`` is one of

    done: what the job is to leave is complete;
    blocked: the folder holds another job's results, or damaged ones: nothing is overwritten;
    running: a living process has the folder's lock;
    failed: it has ended in an error, with exactly this command;
    partial: it has begun, and will go on where it was;
    missing: none of these.
    """

    kind: str
    note: str = ""
    log: tuple[str, ...] = ()  # of a failed job: its last lines


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Work that a process does at one go, and goes on with if it was killed.

    Args:
        folder: where it leaves what it has found, and says how far it is.
        output: a folder above that, the same for all jobs whose processes may meet.
        needs: folder of the job that has to be done before; "": none.
    """

    folder: str
    output: str
    needs: str = ""

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """What is to be done: a failure of another command is none of this job's."""

    @abstractmethod
    def done(self) -> State | None:
        """State "done" or "blocked", by what the folder holds; None: there is work left.

        Raises:
            UserError: the command is wrong.
        """

    @abstractmethod
    def run(self) -> int:
        """Do it in this process, which has the folder's lock.

        Returns the exit code (130: interrupted); errors are raised.
        """

    def progress(self) -> str:
        """How far a running job is, in a few words; "": it does not say."""
        return ""

    def logs(self) -> list[Path]:
        """Files that the job writes what it does to, beside stderr; the last one first."""
        return []

    def state(self) -> State:
        """What the folder says now.

        Raises:
            UserError: the command is wrong.
        """
        return self.done() or self._unfinished()

    def _unfinished(self) -> State:
        if holder := owner(self.folder):
            return State("running", f"by process {holder['pid']} on {holder['host']}")
        failure = self._failure()
        if failure and failure.get("argv") == list(self.command):
            return State("failed", failure["reason"], tuple(failure["log"]))
        return State("partial" if self.logs() else "missing")

    def fail(self, reason: str, log: list[str] | None = None) -> None:
        """Note that it has ended in an error; ``log`` defaults to its last lines."""
        log = self.last_lines() if log is None else log
        write_json(
            Path(self.folder, FAILED_NAME),
            {
                "reason": reason,
                "log": log,
                "argv": list(self.command),
                "host": socket.gethostname(),
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            },
        )

    def clear_failure(self) -> None:
        """Take the note away."""
        Path(self.folder, FAILED_NAME).unlink(missing_ok=True)

    def last_lines(self, count: int = 5, since: float = 0.0) -> list[str]:
        """Of stderr, or else of the log; only of what was written after ``last_written``'s time."""
        for path in self._texts():
            lines = [line for line in tail(path).splitlines() if line.strip()]
            if lines and path.stat().st_mtime > since:
                return lines[-count:]
        return []

    def last_written(self) -> float:
        """When the job last wrote to stderr or to its log; 0: it never did."""
        return max((path.stat().st_mtime for path in self._texts()), default=0.0)

    def _texts(self) -> list[Path]:
        stderr = Path(self.folder, STDERR_NAME)
        return [path for path in (stderr, *self.logs()[:1]) if path.exists()]

    def _failure(self) -> dict | None:
        try:
            note = read_json(Path(self.folder, FAILED_NAME))
            return {**note, "reason": str(note["reason"]), "log": [*map(str, note["log"])]}
        except (KeyError, OSError, TypeError, ValueError):  # none, or none of ours
            return None


def tail(path: Path, size: int = 8192) -> str:
    """The last ``size`` bytes of a text; "": there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - size, 0))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
