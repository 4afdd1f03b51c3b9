"""One owner for a run's folder, on one machine or on many that share a file system."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from apd.errors import UserError
from apd.files import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = "sweep.lock"
HEARTBEAT = 15.0  # seconds between two signs of life
STALE = 180.0  # seconds without one, after which an owner on another host is dead


class Lock:
    """The right to run in ``folder``. It belongs to this process, and ends with it.

    A living owner's lock is never taken. An owner on this host is dead when its process is (it may
    be stopped for as long as it likes), one on another host when its heart has not beaten for
    ``STALE`` seconds.

    Args:
        folder: of the run; made if it is not there.
        output: a folder above it, the same for all who want the lock.

    Raises:
        UserError: this system has no such locks.
    """

    def __init__(self, folder: str | os.PathLike, output: str | os.PathLike) -> None:
        check_system()
        self.path = Path(folder, LOCK_NAME)
        self.guard = Path(output, ".sweep.guard")
        self.mine = {**_self(), "token": os.urandom(8).hex()}
        self.released = threading.Event()

    def acquire(self) -> bool:
        """Whether this process owns the folder now.

        Raises:
            OSError: the lock cannot be written; then there is none.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone() as now:
            if _living(self.path, now):
                return False
            self.path.unlink(missing_ok=True)
            try:  # exclusively, for file systems where the guard guards nothing
                file = open(self.path, "x", encoding="utf-8")
            except FileExistsError:
                return False
            try:
                with file:
                    json.dump(self.mine, file)
            except OSError as error:
                self.path.unlink()  # an empty lock looks like one that is just being written
                error.filename = str(self.path)
                raise
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        self.released.set()
        with self._alone():
            if _read(self.path) == self.mine:
                self.path.unlink()

    @contextlib.contextmanager
    def _alone(self):
        """Nobody else looks at a lock and takes it in here. Yields the file system's time."""
        with open(self.guard, "a", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # no such locks here
                fcntl.flock(file, fcntl.LOCK_EX)
            os.utime(self.guard)
            yield self.guard.stat().st_mtime

    def _beat(self) -> None:
        while not self.released.wait(HEARTBEAT):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path)
            if _read(self.path) != self.mine and not self.released.is_set():
                # this host slept for so long that another one has the job
                print(f"error: {self.path} is gone or another's: stopped", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)


def check_system() -> None:
    """Raise UserError on systems without the locks that processes need beside each other."""
    if fcntl is None:
        raise UserError(
            "sweeps and shards need file locks, which this system does not have: train and "
            "evaluate run by run (apd-train, apd-eval without --shards), or use Linux, macOS or WSL"
        )


def owner(folder: str | os.PathLike) -> dict | None:
    """The living owner of ``folder``: host, pid, start and token."""
    return _living(Path(folder, LOCK_NAME), time.time())


def _living(path: Path, now: float) -> dict | None:
    try:
        beat = path.stat().st_mtime
    except FileNotFoundError:
        return None
    found = _read(path)
    if found and found["host"] == _self()["host"]:
        return found if _start(found["pid"]) == found["start"] else None
    if now - beat > STALE:
        return None
    return found or {"host": "?", "pid": "?"}  # just being written


def _read(path: Path) -> dict | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"host", "pid", "start"} <= found.keys() else None


def _self() -> dict:
    host = socket.gethostname()
    with contextlib.suppress(OSError):  # two containers may share a name, but not their processes
        host += " " + os.readlink("/proc/self/ns/pid")
    return {"host": host, "pid": os.getpid(), "start": _start(os.getpid())}


def _start(pid: int) -> int | None:
    """When a living process started, so that a later one with its number is not taken for it.

    None: there is none. On systems without /proc 0 for every living process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    if fcntl is None:  # Windows, where the signal 0 would end processes
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
