"""Brings every cell to its end, whatever happens to single ones."""

from __future__ import annotations

import time
from collections import Counter

from apd.sweep.cell import Cell, State

ATTEMPTS = 3  # processes that a cell may lose (no memory, preempted, killed) before it has failed
ENDS = ("done", "failed", "blocked")
ELSEWHERE = 5.0  # seconds between two looks at cells that another sweep runs


class Sweep:
    """Cells, and how far they are.

    Args:
        cells: those that need another one's run may stand anywhere.
        executor: see ``apd.sweep.executors``.
        show: called now and then with this object.
    """

    def __init__(self, cells: list[Cell], executor, show=lambda sweep: None) -> None:
        self.executor, self.show = executor, show
        self.waiting = list(cells)
        self.running: dict[Cell, object] = {}  # and the executor's handle
        self.elsewhere: list[Cell] = []  # another process has their locks
        self.ended: dict[Cell, State] = {}
        self.lost = Counter()  # processes, by cell
        self.before: dict[Cell, float] = {}  # when its files were written to before it was started
        self.interrupted = False  # by ``interrupt``

    def run(self) -> dict[Cell, State]:
        """Run all; every cell's end: done, failed, blocked, or missing for want of another run.

        Raises:
            KeyboardInterrupt: ``interrupt`` was called.
        """
        looked = time.monotonic()
        while self.waiting or self.running or self.elsewhere:
            self._collect()
            if self.interrupted:
                raise KeyboardInterrupt
            if self.elsewhere and time.monotonic() - looked > ELSEWHERE:
                looked = time.monotonic()
                self.waiting, self.elsewhere = self.elsewhere + self.waiting, []
            self._start()
            self.show(self)
            if self.running or self.elsewhere:
                time.sleep(self.executor.pause)
        return self.ended

    def interrupt(self, *_) -> None:
        """A signal's handler: stop before the next start; at once, if it is the second signal."""
        if self.interrupted:
            raise KeyboardInterrupt
        # not at once: a process that is being started would be lost sight of
        self.interrupted = True

    def _collect(self) -> None:
        for cell, handle in list(self.running.items()):
            how = self.executor.poll(handle)
            if how is None:
                continue
            del self.running[cell]
            state = cell.state()
            if state.kind in ENDS:
                self.ended[cell] = state
                continue
            if state.kind != "running":  # it died without a word
                self.lost[cell] += 1
                if self.lost[cell] == ATTEMPTS:
                    lines = cell.last_lines(since=self.before[cell])
                    cell.fail(f"{how or 'its process ended'}, {ATTEMPTS} times", lines)
            self.waiting.insert(0, cell)

    def _start(self) -> None:
        """Start the cells that there is room for, in order."""
        room, ready = self.executor.room(len(self.running)), []
        ends = {cell.folder: state for cell, state in self.ended.items()}
        waiting, self.waiting = self.waiting, []
        open_folders = {cell.folder for cell in [*waiting, *self.running, *self.elsewhere]}
        for place, cell in enumerate(waiting):
            if len(ready) >= room:
                self.waiting += waiting[place:]
                break
            if cell.needs in open_folders:
                self.waiting.append(cell)
                continue
            if cell.needs and (end := ends.get(cell.needs)) and end.kind != "done":
                self.ended[cell] = State("missing", f"needs {cell.needs}, which is {end.kind}")
                open_folders.discard(cell.folder)
                continue
            state = cell.state()
            if state.kind in ENDS:
                self.ended[cell] = state
            elif state.kind == "running":
                self.elsewhere.append(cell)
            else:
                ready.append(cell)
        for cell in ready:
            self.before.setdefault(cell, cell.last_written())
        if ready:
            self.running |= zip(ready, self.executor.start(ready))
