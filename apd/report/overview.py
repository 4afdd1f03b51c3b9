"""The report's first table, all methods by robust accuracy, and the cards above it."""

from __future__ import annotations

from statistics import stdev

from apd.errors import UserError, counted, listed
from apd.results.comparable import shots_rank
from apd.results.words import classes_text, shots_text, signed
from apd.tables.cells import Cell, Measurement
from apd.tables.compare import over_data_sets, paired_interval
from apd.tables.grid import Topic
from apd.tables.write import Table


class Overview:
    """One row per method, with one number of each evaluation, the most robust method first.

    Args:
        tables: of one kind, with ``Table.about``. Of each evaluation that column is taken which is
            about both halves of the classes, most data sets (their average), and most shots.
        backbone: for the title.
        baseline: a method; the table gets columns with the differences to it.

    Attributes:
        table: with the attributes of any table.
        clean, robust: names of the columns of clean accuracy and of the attack that most methods
            were evaluated under, by which rows are ranked; "": there is none.

    Raises:
        UserError: no row is the baseline.
        ValueError: no column of the tables says what it is about, or none has a number.
    """

    def __init__(self, tables: list[Table], backbone: str, baseline: str = "") -> None:
        columns = _columns(tables)
        self._topics = {name: topics for name, (_, _, topics) in columns.items()}
        self._sources = [table for table, _, _ in columns.values()]
        self._cells: dict[str, dict[str, Cell]] = {}  # method -> column -> its numbers
        for name, (table, column, _) in columns.items():
            for row in table.rows:
                cells = self._cells.setdefault(row[table.labels[0]], {})
                if row[column].measurements:
                    cells[name] = row[column]
        names = [name for name in columns if self._ranked(name)]
        if not names:
            raise ValueError("no table says what its numbers are about")
        if baseline and baseline not in self._cells:
            raise UserError(f"no method {baseline} here: there are {listed(self._cells)}")
        self._baseline = baseline
        self.clean = next(filter(_is_clean, names), "")
        attacks = [name for name in names if not _is_clean(name)]
        self.robust = max(attacks, key=lambda name: len(self._ranked(name)), default="")
        main = self.robust or self.clean
        order = dict.fromkeys([*self._ranked(main), *self._cells])
        rows: list[dict] = [{"method": method, **self._row(method, names)} for method in order]
        title = f"{_title(self._topics[main], backbone)}, by {_short(main)}"
        notes = [note for table in tables for note in table.notes] + self._notes(rows)
        averaged = len(self._topics[main][0].datasets) > 1
        over = "data sets" if averaged else "images"
        self.table = Table("overview", title, rows, [*dict.fromkeys(notes)], over=over)

    def holds(self, table: Table) -> bool:
        """Whether this table has all accuracies of ``table``."""
        return table in self._sources and set(table.about) <= set(self.table.rows[0])

    def cards(self) -> list[dict[str, str]]:
        """The best clean, robust and AutoAttack accuracy, and a difference between two methods.

        Each has a "title", a "value", a "name" (of the method) and a "note" (on the evaluation).
        """
        titles = {self.clean: "best clean", self.robust: "best robust"}
        for name in filter(self._ranked, self._topics):
            if name.startswith("AutoAttack"):
                titles.setdefault(name, "best under AutoAttack")
        cards = [self._best(title, name) for name, title in titles.items() if name]
        return [*cards, *self._lead()]

    def _ranked(self, name: str) -> list[str]:
        """The methods that have numbers in this column, best first."""
        with_numbers = [method for method in self._cells if name in self._cells[method]]
        return sorted(with_numbers, key=lambda method: -self._cells[method][name].mean)

    def _row(self, method: str, names: list[str]) -> dict[str, Cell]:
        """A method's numbers, each followed by its difference to the baseline, if there is one."""
        row = {}
        for name in names:
            row[name] = self._cells[method].get(name, Cell())
            if self._baseline:
                column = f"{_short(name)}, to {self._baseline}"
                row[column] = self._difference(method, self._baseline, name)
        return row

    def _difference(self, method: str, other: str, name: str) -> Cell:
        """The difference of two methods in one column, in points, with its 95 % interval."""
        cell, base = (self._cells[m].get(name) for m in (method, other))
        if method == other or not cell or not base:
            return Cell()
        over = over_data_sets(cell, base)
        interval = (over.low, over.high) if over else paired_interval(cell, base)
        difference = Measurement(cell.mean - base.mean)
        return Cell((difference,), interval=interval, runs_per_number=0)

    def _interval_over(self, name: str) -> str:
        count = len(self._topics[name][0].datasets)
        return f"95 % interval over {f'{count} data sets' if count > 1 else 'test images'}"

    def _notes(self, rows: list[dict]) -> list[str]:
        if not self._baseline:
            return []
        intervals = any(getattr(cell, "interval", None) for row in rows for cell in row.values())
        names = [name for name in self._topics if self._ranked(name)]
        over = dict.fromkeys(map(self._interval_over, names)) if intervals else {}
        return [", ".join([f"to {self._baseline}: the difference in points", *over])]

    def _best(self, title: str, name: str) -> dict[str, str]:
        methods = self._ranked(name)
        # as in tables, numbers that lack runs are not the best, unless all of them do
        complete = [method for method in methods if not self._cells[method][name].missing]
        method = (complete or methods)[0]
        cell = self._cells[method][name]
        spread = f" ± {stdev(cell.values):.1f}" if len(cell.values) > 1 else ""
        notes = [_short(name)]
        if len(methods) < len(self._cells):
            notes.append(f"of {len(methods)} of {counted(len(self._cells), 'method')}")
        if flags := sorted({flag for m in cell.measurements for flag in m.flags}):
            notes.append(f"flagged: {listed(flags)}")
        value = f"{cell.mean:.1f}{spread} %"
        return {"title": title, "value": value, "name": method, "note": "; ".join(notes)}

    def _lead(self) -> list[dict[str, str]]:
        """The most robust method's lead over the baseline or, if there is none, the second."""
        first, *others = self._ranked(self.robust) or [""]
        if not others:
            return []
        other = self._baseline if self._baseline in others else others[0]
        effect = self._difference(first, other, self.robust)
        value, note = signed(effect.mean), f"points of {_short(self.robust)}"
        if effect.interval:
            low, high = map(signed, effect.interval)
            value += f" [{low},\N{NO-BREAK SPACE}{high}]"
            note += f"; {self._interval_over(self.robust)}"
        if other != self._baseline:
            note += "; chosen because they are first and second"
        return [{"title": "lead", "value": value, "name": f"{first} over {other}", "note": note}]


def _columns(tables: list[Table]) -> dict[str, tuple[Table, str, tuple[Topic, ...]]]:
    """Name of a column of the overview -> its table, its column there, and what it is about."""
    chosen: dict = {}
    for table in tables:
        for column, topics in table.about.items():
            header, datasets, _, shots, _ = topics[0]
            size = (len(topics), len(datasets), shots_rank(shots))
            if header not in chosen or size >= chosen[header][0]:
                chosen[header] = size, (table, column, topics)
    return {
        f"{'H ' if len(source[2]) > 1 else ''}{header}": source
        for header, (_, source) in chosen.items()
    }


def _is_clean(name: str) -> bool:
    return name.removeprefix("H ").startswith("clean")


def _short(name: str) -> str:
    return name.removesuffix(" (%)")


def _title(topics: tuple[Topic, ...], backbone: str) -> str:
    _, datasets, subsample, shots, source = topics[0]
    count = len(datasets)
    texts = [datasets[0] if count == 1 else f"average of {count} data sets"]
    if len(topics) == 1 and subsample != "all":
        texts.append(classes_text(subsample))
    if source:
        texts.append(f"trained on {source}")
    if shots:
        texts.append(shots_text(shots))
    return ", ".join([*texts, backbone])
