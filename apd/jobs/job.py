"""``Job``: work that one process does, with a folder whose files state how far it is."""

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
    """How far a job is.

    Attributes:
        kind: one of
            done: its results are complete;
            blocked: its folder holds other or damaged results, which are not overwritten;
            running: a living process has the folder's lock;
            failed: it ended in an error, with exactly this command;
            partial: it has begun, and will go on where it was;
            missing: none of these.
        note: the reason, or the owner, in words.
        log: of a failed job: its last lines.
    """

    kind: str
    note: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Work that one process does; after a kill another process continues it.

    Args:
        folder: for its results, and for the files that tell its state.
        output: a folder above ``folder``, the same for all jobs that may have the same folder.
        needs: folder of the job that must be done before this one; "": none.
    """

    folder: str
    output: str
    needs: str = ""

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """The work, as words. A failure that is noted with another command is ignored."""

    @abstractmethod
    def done(self) -> State | None:
        """State "done" or "blocked", from the files in the folder; None: there is work left.

        Raises:
            UserError: the command is wrong.
        """

    @abstractmethod
    def run(self) -> int:
        """Do the work in this process, which has the folder's lock.

        Returns the exit code (130: interrupted); errors are raised.
        """

    def progress(self) -> str:
        """How far a running job is, in a few words; "": it does not say."""
        return ""

    def logs(self) -> list[Path]:
        """The log files of the job, the newest first; stderr is not among them."""
        return []

    def state(self) -> State:
        """The state that the folder's files state now.

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
        """Write a note that it ended in an error; ``log`` defaults to its last lines."""
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
        """Remove the note of ``fail``."""
        Path(self.folder, FAILED_NAME).unlink(missing_ok=True)

    def last_lines(self, count: int = 5, since: float = 0.0) -> list[str]:
        """The last lines of stderr, or of the log if stderr is empty.

        Args:
            since: a time; files that were last written before it are ignored.
        """
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
        except (KeyError, OSError, TypeError, ValueError):  # no note, or a file that is none
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
