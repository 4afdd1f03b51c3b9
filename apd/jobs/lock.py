"""Locks that give a job's folder one owner, on one machine or on many with a shared file system."""

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
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "sweep.lock"
HEARTBEAT = 15.0  # seconds after which an owner touches its lock's file again
STALE = 180.0  # seconds without that, after which an owner on another host counts as dead


class Lock:
    """The right to work in ``folder``. It belongs to this process, and ends with it.

    A living owner's lock is never taken over. An owner on this host is dead when its process has
    ended (a stopped process is alive). An owner on another host counts as dead when it has not
    touched the lock's file for ``STALE`` seconds.

    Args:
        folder: of the job; made if it does not exist.
        output: a folder above it, the same for all processes that may want the lock.

    Raises:
        UserError: this system has no file locks.
    """

    def __init__(self, folder: str | os.PathLike, output: str | os.PathLike) -> None:
        check_system()
        self.path = Path(folder, LOCK_NAME)
        self.guard = Path(output, ".sweep.guard")
        self.mine = {**_this_process(), "token": os.urandom(8).hex()}
        self.released = threading.Event()

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this process owns the folder now.

        Raises:
            OSError: the lock cannot be written; then it stays free.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone() as now:
            if _living(self.path, now):
                return False
            self.path.unlink(missing_ok=True)
            try:  # "x" refuses an existing file: for file systems on which flock does nothing
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
        """Keep other processes from taking a lock meanwhile. Yields the file system's time."""
        with open(self.guard, "a", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # a file system without flock
                fcntl.flock(file, fcntl.LOCK_EX)
            os.utime(self.guard)
            yield self.guard.stat().st_mtime

    def _beat(self) -> None:
        while not self.released.wait(HEARTBEAT):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path)
            if _read(self.path) != self.mine and not self.released.is_set():
                # this host was suspended for so long that another process took the job over
                print(f"error: {self.path} is gone or another's: stopped", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)


def check_system() -> None:
    """Raise UserError on systems without file locks, which several processes need."""
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
    holder = _read(path)
    if holder and holder["host"] == _this_process()["host"]:
        return holder if _start(holder["pid"]) == holder["start"] else None
    if now - beat > STALE:
        return None
    return holder or {"host": "?", "pid": "?"}  # just being written


def _read(path: Path) -> dict | None:
    try:
        holder = read_json(path)
    except (OSError, ValueError):
        return None
    return (
        holder if isinstance(holder, dict) and {"host", "pid", "start"} <= holder.keys() else None
    )


def _this_process() -> dict:
    host = socket.gethostname()
    with contextlib.suppress(OSError):  # two containers may share a name, but not their processes
        host += " " + os.readlink("/proc/self/ns/pid")
    return {"host": host, "pid": os.getpid(), "start": _start(os.getpid())}


def _start(pid: int) -> int | None:
    """When a living process started; None: no process has this number.

    The time tells it from a later process with the same number. Without /proc it is 0.
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
