"""Tables, and their formats: text, Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import stdev

from tabulate import tabulate

from apd.errors import UserError, counted
from apd.results.words import signed
from apd.tables.cells import IN_MEAN, Cell, Comparison, Missing, has_accuracies
from apd.tables.grid import Topic


@dataclass(frozen=True)
class Table:
    """A table of numbers of runs; functions that add to one return another.

    Attributes:
        name: its kind, as --table takes it, or "against", "published", "frontier points",
            "frontier at a radius" or "overview" (of a report).
        title: one line on what it shows.
        rows: columns by name, the same in all rows. Labels are str or int, measured columns are
            ``Cell``s. The first label names the row.
        notes: lines below it, in addition to footnotes.
        baseline: the row that differences are to; None: there are none.
        over: what intervals of differences sample: "images", "seeds" or "data sets".
        extra: further fields in JSON.
        ranked: whether the best numbers of each column are emphasised.
        about: column -> its topic; a column with two topics is their harmonic mean.
    """

    name: str
    title: str
    rows: Sequence[dict]
    notes: Sequence[str] = ()
    baseline: str | None = None
    over: str = "images"
    extra: Mapping = field(default_factory=dict)
    ranked: bool = True
    about: Mapping[str, tuple[Topic, ...]] = field(default_factory=dict)

    def format(self, style: str = "simple") -> str:
        """As text: "simple" (terminal), "pipe" (Markdown), "latex", "html", "csv" or "json"."""
        return write([self], style)

    def with_notes(self, *notes: str) -> Table:
        return replace(self, notes=(*self.notes, *notes))

    @property
    def measured(self) -> list[str]:
        """Names of the columns that hold cells."""
        return [name for name, value in self.rows[0].items() if isinstance(value, Cell)]

    @property
    def labels(self) -> list[str]:
        return [name for name in self.rows[0] if name not in self.measured]

    @property
    def missing(self) -> list[Missing]:
        """The runs that its cells lack, in the order of the cells."""
        per_cell = (row[name].missing for row in self.rows for name in self.measured)
        return list(dict.fromkeys(run for cell in per_cell for run in sorted(cell)))


def write(tables: list[Table], style: str) -> str:
    """Several tables as one text, in a style of ``Table.format``.

    Raises:
        UserError: an unknown style.
    """
    if style in ("csv", "json"):
        return {"csv": _csv, "json": _json}[style](tables)
    if style not in _STYLES:
        raise UserError(f"unknown table style {style}: use {', '.join(_STYLES)}, csv, json")
    return "\n\n".join(_text(table, _STYLES[style]) for table in tables)


def plain(table: Table) -> tuple[list[str], list[list[str]], list[str]]:
    """Headers, rows and notes as text, without emphasis, for what is no whole table."""
    parts: list = []

    def lay_out(title, headers, body, is_text, notes) -> str:
        parts.extend((headers, body, notes))
        return ""

    _text(table, _Style(lay_out))
    headers, body, notes = parts
    return headers, body, notes


# -- text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
    """``lay_out`` gets title, headers, rows of strings, which columns are text, and notes."""

    lay_out: Callable[[str, list[str], list[list[str]], list[bool], list[str]], str]
    escape: Callable[[str], str] = str
    best: str = "{}"
    second: str = "{}"
    signed: str = "{}"
    plus_minus: str = " ± "
    mark: str = "†{}"


class _Footnotes:
    """The marks at a table's numbers, one for each kind of note, numbered as they first occur."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._sentences: dict[str, list[str]] = {}  # by kind

    def marks(self, notes: list[tuple[str, str]]) -> str:
        """The marks of a cell that has these notes, each a kind and a sentence or ""."""
        for kind, sentence in notes:
            self._sentences.setdefault(kind, []).append(sentence)
        numbers = sorted({list(self._sentences).index(kind) + 1 for kind, _ in notes})
        return "".join(" " + self._mark.format(number) for number in numbers)

    def lines(self, escape: Callable[[str], str]) -> list[str]:
        """A line for each mark; where its sentences differ, the first and how many they are."""
        return [
            f"{self._mark.format(number)} {escape(self._line(kind, sentences))}"
            for number, (kind, sentences) in enumerate(self._sentences.items(), start=1)
        ]

    @staticmethod
    def _line(kind: str, sentences: list[str]) -> str:
        own = [sentence for sentence in sentences if sentence != IN_MEAN] or sentences[:1]
        if len(set(own)) > 1:
            return f"{kind}, {len(own):,} evaluations, the first: {own[0]}"
        return ": ".join(filter(None, [kind, own[0]]))


def _text(table: Table, style: _Style) -> str:
    footnotes = _Footnotes(style.mark)
    all_cells = [row[name] for row in table.rows for name in table.measured]
    counts = Counter(cell.stated_n for cell in all_cells if cell.stated_n)
    usual = max(counts, key=lambda n: (counts[n], n), default=1)
    ranks = {name: _ranks(table, name) for name in table.measured}
    digits = {name: _digits(table, name) for name in table.measured}
    body = []
    for number, row in enumerate(table.rows):
        cells = [row[name] for name in table.measured]
        alike = {cell.stated_n for cell in cells if cell.stated_n}
        # if all cells of a row have the same number of seeds, it is written once
        whole = alike.pop() if len(alike) == 1 else usual
        line: list[str] = []
        for name, value in row.items():
            if name not in table.measured:
                text = style.escape(f"{value:,}" if isinstance(value, int) else value)
                few = [(f"n = {whole}", "")] if not line and whole != usual else []
                line.append(text + footnotes.marks(few))
                continue
            text = _number(value, digits[name], style)
            mark = {1: style.best, 2: style.second}.get(ranks[name].get(number, 0), "{}")
            text = mark.format(text) + _difference(value.comparison, style)
            few = [(f"n = {value.n}", "")] if value.stated_n not in (0, usual, whole) else []
            flags = [flag for m in value.measurements for flag in m.flags.items()]
            line.append(text + footnotes.marks(few + flags))
        body.append(line)
    notes = [style.escape(note) for note in _notes(table, usual)] + footnotes.lines(style.escape)
    headers = [style.escape(name) for name in table.rows[0]]
    is_text = [isinstance(value, str) for value in table.rows[0].values()]
    return style.lay_out(style.escape(table.title), headers, body, is_text, notes)


def _number(cell: Cell, digits: int, style: _Style) -> str:
    if not cell.measurements:
        return "missing" if cell.absent else "-"
    values = cell.values
    if cell.interval or cell.n == 0:
        numbers = (*values, *(cell.interval or ()))
        value, *ends = (style.signed.format(_hundredths(x)) for x in numbers)
        return f"{value} [{', '.join(ends)}]" if ends else value
    spread = f"{style.plus_minus}{stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{cell.mean:.{digits}f}{spread}"


def p_text(p: float, equals: str = "") -> str:
    return f"{equals}{p:.3f}" if p >= 0.0005 else "< 0.001"


def _hundredths(number: float) -> str:
    return f"{number:+.2f}" if round(number, 2) else signed(number)


def _difference(comparison: Comparison | None, style: _Style) -> str:
    if comparison is None:
        return ""

    def ends(low: float, high: float) -> str:
        return ", ".join(style.signed.format(signed(end)) for end in (low, high))

    interval = f" [{ends(*comparison.interval)}]" if comparison.interval else ""
    sets = ""
    if over := comparison.over_sets:
        p = f"p {p_text(over.p, '= ')}"
        if over.p_holm is not None:
            p += f", by Holm {p_text(over.p_holm)}"
        sets = f"; over sets [{ends(over.low, over.high)}], {style.escape(p)}"
    return f" ({style.signed.format(signed(comparison.difference))}{interval}{sets})"


def _ranks(table: Table, name: str) -> dict[int, int]:
    """Row number -> rank (1: best) among cells without missing runs; equal ones share a rank."""
    means = {
        number: float(f"{row[name].mean:.1f}")
        for number, row in enumerate(table.rows)
        if table.ranked and has_accuracies(row[name]) and not row[name].missing
    }
    if len(means) < 2:
        return {}
    order = sorted(set(means.values()), reverse=True)
    return {number: order.index(value) + 1 for number, value in means.items()}


def _digits(table: Table, name: str) -> int:
    cells = [row[name] for row in table.rows]
    if any(map(has_accuracies, cells)):
        return 1
    return 0 if max((value for cell in cells for value in cell.values), default=0) >= 10 else 2


_OVER = {
    "images": (
        "test images (paired bootstrap; verdicts are averaged over seeds first, so it leaves out "
        "what other seeds would change)"
    ),
    "seeds": (
        "seeds (Student's t on the differences of equal seeds; it leaves out what other test "
        "images would change)"
    ),
}


def _notes(table: Table, usual: int) -> list[str]:
    cells = [row[name] for row in table.rows for name in table.measured]
    notes = list(table.notes)
    if usual > 1:
        notes.append(f"± is the sample standard deviation over seeds, n = {usual}")
    if comparisons := [cell.comparison for cell in cells if cell.comparison]:
        text = f"in brackets: the difference to {table.baseline} in points"
        if any(comparison.interval for comparison in comparisons):
            text += f", and its 95 % interval over {_OVER[table.over]}"
        if tests := [c.over_sets for c in comparisons if c.over_sets]:
            text += "; over sets: a 95 % interval (t) and a paired sign-flip test over data sets"
            if any(test.p_holm is not None for test in tests):
                text += ", by Holm: p adjusted for the tests of all rows of the column"
        notes.append(text)
    if missing := len(table.missing):
        notes.append(f"missing: {counted(missing, 'run')}")
    return notes


def _tabulated(tablefmt, title, headers, body, is_text, notes) -> str:
    align = ["left" if text else "right" for text in is_text]
    table = tabulate(body, headers, tablefmt, disable_numparse=True, colalign=align)
    return "\n\n".join([title, table, *notes])


def _latex(title, headers, body, is_text, notes) -> str:
    lines = [" & ".join(line) + r" \\" for line in [headers, *body]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{title}}}",
            rf"\begin{{tabular}}{{{''.join('l' if text else 'r' for text in is_text)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip{{\footnotesize {note}}}" for note in notes),
            r"\end{table}",
        ]
    )


def _html(title, headers, body, is_text, notes) -> str:
    def line(tag: str, cells: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells)) + "</tr>"

    # a page keeps averages in sight where a table is wider than it
    classes = ["number average" if name.startswith("average") else "number" for name in headers]
    kinds = ["" if text else f' class="{name}"' for text, name in zip(is_text, classes)]

    return "\n".join(
        [
            "<table>",
            f"<caption>{title}</caption>",
            f"<thead>{line('th', headers)}</thead>",
            "<tbody>",
            *(line("td", cells) for cells in body),
            "</tbody>",
            "</table>",
            *(f'<p class="note">{note}</p>' for note in notes),
        ]
    )


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _escape_pipe(text: str) -> str:
    """Escape for Markdown; "<" becomes an entity, because a backslash is not always enough."""
    return re.sub(r"([|*`\[\\])", r"\\\1", html.escape(text, quote=False))


_STYLES = {
    "simple": _Style(partial(_tabulated, "simple")),
    # <ins> is the only way to underline in GitHub's Markdown
    "pipe": _Style(
        partial(_tabulated, "pipe"), _escape_pipe, best="**{}**", second="<ins>{}</ins>"
    ),
    "latex": _Style(
        _latex,
        _escape_latex,
        best=r"\textbf{{{}}}",
        second=r"\underline{{{}}}",
        signed="${}$",
        plus_minus=r" $\pm$ ",
        mark=r"$^{{\dagger {}}}$",
    ),
    "html": _Style(_html, html.escape, best="<b>{}</b>", second="<u>{}</u>", mark="<sup>†{}</sup>"),
}


# -- numbers ---------------------------------------------------------------------------------------


def _csv(tables: list[Table]) -> str:
    """One line per cell, so that tables with different columns fit in one file."""
    labels = list(dict.fromkeys(label for table in tables for label in table.labels))
    numbers = ["mean", "std", "n", "missing", "difference", "low", "high", "over"]
    text = io.StringIO()
    columns = ["table", "title", *labels, "column", *numbers]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for name in table.measured:
                cell = _plain(row[name])
                low, high = cell["interval"] or (None, None)
                line: dict = {"table": table.name, "title": table.title, "column": name}
                line |= {label: row[label] for label in table.labels}
                line |= {key: cell[key] for key in numbers[:-3]} | {"low": low, "high": high}
                line["over"] = table.over if cell["interval"] else None
                writer.writerow(line)
    return text.getvalue().removesuffix("\n")


def _json(tables: list[Table]) -> str:
    return json.dumps(
        {
            "tables": [
                {
                    "name": table.name,
                    "title": table.title,
                    "notes": list(table.notes),
                    "baseline": table.baseline,
                    "intervals_over": table.over if table.baseline else None,
                    "rows": [
                        {name: row[name] for name in table.labels}
                        | {name: _plain(row[name]) for name in table.measured}
                        for row in table.rows
                    ],
                    **table.extra,
                }
                for table in tables
            ]
        },
        indent=2,
        ensure_ascii=False,
    )


def _plain(cell: Cell) -> dict:
    values, comparison = cell.values, cell.comparison
    flags: dict = {}
    for measurement in cell.measurements:
        flags |= measurement.flags
    interval = comparison.interval if comparison else cell.interval
    over_sets = comparison.over_sets if comparison else None
    return {
        "mean": _rounded(cell.mean) if values else None,
        "std": _rounded(stdev(values)) if len(values) > 1 else None,
        "n": cell.n,
        "values": [_rounded(value) for value in values],
        "seeds": cell.seeds,
        "missing": len(cell.missing),
        "flags": flags,
        "difference": _rounded(comparison.difference) if comparison else None,
        "interval": interval and [_rounded(end) for end in interval],
        "over_sets": over_sets and over_sets._asdict(),
    }


def _rounded(number: float) -> float:
    """Rounded to 6 digits: the last bits depend on the order of sums."""
    return round(number, 6)
