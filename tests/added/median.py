"""The median over tasks of a difference of two arms (made up)."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from apd.tables.arms import Design, curves
from apd.tables.cells import number_cell
from apd.tables.frontier import differences
from apd.tables.write import Table


def median_over_tasks(runs: dict[Path, dict], design: Design) -> list[Table]:
    """A table for each attack, with a row for each difference of the design."""
    tables = []
    for curve_set in curves(runs, design):
        rows = []
        for first, second in design.pairs(list(curve_set.points)):
            matches, _ = differences(curve_set, first, second)
            middle = median(match.value for match in matches.values())
            rows.append({"difference": f"{first} - {second}", "median": number_cell([middle])})
        tables.append(Table("median", f"median difference, {curve_set.header}", rows))
    return tables
