"""The table of methods, printed row by row as the cells of a sweep end."""

from __future__ import annotations

from collections.abc import Iterable

from apd.errors import UserError
from apd.jobs.display import end_line
from apd.jobs.job import Job, State
from apd.results.runs import load_runs
from apd.sweep.training_job import TrainingJob
from apd.tables.kinds import methods
from apd.tables.write import plain


class Rows:
    """Makes a line of the table from a cell that is done; the header stands above the first.

    Columns are as wide as the names of all cells' methods and the header need, because later rows
    are not known. Footnotes stand below their row.

    Args:
        jobs: all that may end.
    """

    def __init__(self, jobs: Iterable[TrainingJob]) -> None:
        trainers = [job.similarity_key[2] for job in jobs]
        self._width = max(map(len, trainers))
        self._headers: list[str] = []

    def __call__(self, job: Job, state: State) -> str:
        if state.kind != "done":
            return end_line(job, state)
        try:
            table, *_ = methods(load_runs([job.folder]))
        except UserError as error:
            return f"{end_line(job, state)} ({error})"
        headers, (row,), notes = plain(table)
        is_text = [isinstance(value, str) for value in table.rows[0].values()]
        widths = [self._width, *(max(len(name), 13) for name in headers[1:])]

        def line(texts: list[str]) -> str:
            cells = zip(texts, widths, is_text)
            return "  ".join(t.ljust(w) if left else t.rjust(w) for t, w, left in cells).rstrip()

        lines = [line(row), *(f"  {note}" for note in notes)]
        if headers != self._headers:  # the first row, or a cell with other evaluations
            lines[:0] = [line(headers), line(["-" * width for width in widths])]
            self._headers = headers
        return "\n".join(lines)
