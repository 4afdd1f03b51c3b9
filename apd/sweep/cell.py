"""One run of a sweep, and what its folder says about it."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from apd.errors import UserError
from apd.files import read_json, write_json
from apd.sweep.lock import owner

FAILED_NAME = "failed.json"
STDERR_NAME = "stderr.txt"
_PROGRESS = re.compile(
    r"(?P<epoch>epoch \[\d+/\d+\]).*? (?P<eta>eta [\d:]+)"
    r"|(?P<evaluating>Evaluate on the \S+ set)|\* (?P<accuracy>(robust )?accuracy: [\d.]+%)"
)


class State(NamedTuple):
    """``kind`` is one of

    done: results.json is complete, for exactly this configuration;
    blocked: the folder holds another run's results, or damaged ones: nothing is overwritten;
    running: a living process has its lock;
    failed: it has ended in an error, with exactly this command;
    partial: it has begun, and will go on where it was;
    missing: none of these.
    """

    kind: str
    note: str = ""
    log: tuple[str, ...] = ()  # of a failed cell: its last lines


@dataclass(frozen=True)
class Cell:
    """A run: its folder and the arguments of ``train.py``."""

    folder: str
    argv: tuple[str, ...]
    output: str  # the sweep's folder, above ``folder``
    needs: str = ""  # folder of the run whose prompts it evaluates
    like: tuple = ()  # whether an evaluation only, data set, trainer, name of the config, shots

    def setup(self) -> tuple[Any, dict | None]:
        """Its config, and the prompts that it only evaluates (None: it trains its own).

        Raises:
            UserError: the cell's configuration is wrong.
        """
        from apd.train.command import evaluated_prompts, parse_args, setup_cfg

        args = parse_args(list(self.argv))
        return setup_cfg(args), evaluated_prompts(args)

    def state(self) -> State:
        """What the folder says now.

        Raises:
            UserError: the cell's configuration is wrong.
        """
        from apd.train.command import finished

        cfg, prompts_from = self.setup()
        try:
            if finished(cfg, prompts_from):
                return State("done")
        except UserError as error:
            return State("blocked", str(error))
        return self.unfinished()

    def unfinished(self) -> State:
        """``state`` of a cell that is not done."""
        if holder := owner(self.folder):
            return State("running", f"by process {holder['pid']} on {holder['host']}")
        failure = self._failure()
        if failure and failure.get("argv") == list(self.argv):
            return State("failed", failure["reason"], tuple(failure["log"]))
        return State("partial" if Path(self.folder, "log.txt").exists() else "missing")

    def run(self) -> int:
        """In this process, which has the cell's lock. Returns the exit code, errors are raised."""
        from apd.train.command import train

        return train(list(self.argv))

    def fail(self, reason: str, log: list[str] | None = None) -> None:
        """Note that the run has ended in an error; ``log`` defaults to its last lines."""
        log = self.last_lines() if log is None else log
        write_json(
            Path(self.folder, FAILED_NAME),
            {
                "reason": reason,
                "log": log,
                "argv": list(self.argv),
                "host": socket.gethostname(),
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            },
        )

    def forgive(self) -> None:
        """Take the note away."""
        Path(self.folder, FAILED_NAME).unlink(missing_ok=True)

    def last_lines(self, count: int = 5, since: float = 0.0) -> list[str]:
        """Of stderr, or else of the log; only of what was written after ``last_written``'s time."""
        for path in self._texts():
            lines = [line for line in _tail(path).splitlines() if line.strip()]
            if lines and path.stat().st_mtime > since:
                return lines[-count:]
        return []

    def last_written(self) -> float:
        """When the run last wrote to stderr or to its log; 0: it never did."""
        return max((path.stat().st_mtime for path in self._texts()), default=0.0)

    def _texts(self) -> list[Path]:
        paths = (Path(self.folder, STDERR_NAME), self._log())
        return [path for path in paths if path and path.exists()]

    def progress(self) -> str:
        """Epoch, remaining time of training, and last accuracy, as far as the log tells."""
        doing = accuracy = ""
        for match in _PROGRESS.finditer(_tail(self._log())):
            if match["epoch"]:
                doing = f"{match['epoch']}, {match['eta']}"
            elif match["evaluating"]:
                doing = "evaluating"
            else:
                accuracy = match["accuracy"]
        return ", ".join(filter(None, (doing, accuracy)))

    def _log(self) -> Path | None:
        # Dassl gives the log of a run that goes on the date as a suffix
        logs = Path(self.folder).glob("log.txt*")
        return max(logs, key=lambda path: path.stat().st_mtime, default=None)

    def _failure(self) -> dict | None:
        try:
            found = read_json(Path(self.folder, FAILED_NAME))
            return {**found, "reason": str(found["reason"]), "log": [*map(str, found["log"])]}
        except (KeyError, OSError, TypeError, ValueError):  # none, or none of ours
            return None


def _tail(path: Path | None, size: int = 8192) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - size, 0))
            return file.read().decode("utf-8", "replace")
    except (OSError, TypeError):  # no such file
        return ""
