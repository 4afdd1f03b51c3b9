"""GPU hours of a sweep, by method, before anything has run (see ``apd.sweep.estimate``).

python -m apd.sweep.cost SPEC.yaml [options of apd-sweep]
"""

from __future__ import annotations

import sys

from tabulate import tabulate

import apd
from apd.errors import exit_codes
from apd.sweep.command import parse_args, read_cells
from apd.sweep.estimate import gpu_seconds


@exit_codes
def main(argv: list[str] | None = None) -> int:
    apd.register()
    cells = read_cells(parse_args(argv))
    hours: dict[str, list[float]] = {}
    for cell in cells:
        hours.setdefault(cell.similarity_key[2], []).append(gpu_seconds(cell) / 3600)
    hours["all"] = [one for trainer in hours.values() for one in trainer]
    table = [[name, len(cells), f"{sum(cells):,.1f}"] for name, cells in hours.items()]
    print(tabulate(table, ["trainer", "cells", "GPU hours"], colalign=["left", "right", "right"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
