"""What a sweep is doing, on a terminal or line by line."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from apd.sweep.cell import Cell
from apd.sweep.lock import owner

LINES = 8  # running cells that are shown
INTERVAL = 1.0  # seconds


class Display:
    """A bar of cells and a line for each running one; where nobody watches, a line for each end.

    Args:
        file: for the lines of the ends.
    """

    def __init__(self, cells: list[Cell], output: str, file: TextIO | None = None) -> None:
        self.file = file or sys.stdout
        self.bar = tqdm(total=len(cells), unit="cell", desc=output, disable=None, position=0)
        self.lines: list[tqdm] = []
        self.told: set[Cell] = set()
        self.shown = 0.0

    def __call__(self, sweep) -> None:
        for cell in [cell for cell in sweep.ended if cell not in self.told]:
            self.told.add(cell)
            if self.bar.disable:
                state = sweep.ended[cell]
                line = f"{state.kind:8} {cell.folder} {state.note}".rstrip()
                print(line, file=self.file, flush=True)
            self.bar.update()
        over = not (sweep.waiting or sweep.running or sweep.elsewhere)
        if self.bar.disable or time.monotonic() - self.shown < INTERVAL and not over:
            return
        self.shown = time.monotonic()
        self.bar.set_postfix(
            running=len(sweep.running) + len(sweep.elsewhere),
            failed=sum(state.kind != "done" for state in sweep.ended.values()),
        )
        # what an executor has in its queue is not running yet
        running = [c for c in [*sweep.running, *sweep.elsewhere] if owner(c.folder)][:LINES]
        while len(self.lines) < len(running):
            self.lines.append(tqdm(bar_format="{desc}", position=len(self.lines) + 1, leave=False))
        for place, line in enumerate(self.lines):
            cell = running[place] if place < len(running) else None
            line.set_description_str(f"  {cell.folder}: {cell.progress()}" if cell else "")

    def close(self) -> None:
        for line in reversed(self.lines):
            line.close()
        self.bar.close()
