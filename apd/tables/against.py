"""Our figures beside published ones, where both are about the same thing."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean

from apd.errors import UserError, counted, listed
from apd.results.comparable import learns
from apd.results.published import Figure, Paper
from apd.results.words import classes_said, header, images_said, shots_said
from apd.tables.grid import Accuracy, Grid, Numbers, Topic, average, harmonic
from apd.tables.write import Table

# of PGD, where a paper says nothing else
_USUAL = {
    **{"norm": "linf", "source": "white-box", "precision": "fp32", "last_iterate": False},
    **{"loss": "ce", "restarts": 1, "random_start": True},
}


def against(runs: dict[Path, dict], paper: Paper) -> list[Table]:
    """One row per published figure that ours can be held against: theirs, ours and the difference.

    Ours must be on the same backbone, data sets, classes and shots, of prompts trained on the same
    data set, on all test images, and under the paper's threat model; what the paper does not say of
    that is taken to be usual. What does not agree is told below the table, each reason once; of
    figures that no run is about, the nearest.

    Raises:
        UserError: nothing can be compared; it tells why, and which figures are nearest.
    """
    rows, reasons, distant = [], defaultdict(list), {}
    for figure in paper.figures:
        for kind, theirs in (("clean", figure.clean), ("robust", figure.robust)):
            if theirs is None:
                continue
            try:
                column, ours = _ours(runs, paper, figure, kind)
            except _Elsewhere as reason:
                distant[figure] = reason.odds
                continue
            except _Incomparable as reason:
                reasons[str(reason)].append(_said(figure, kind))
                continue
            ours.difference = mean(ours) - theirs
            cells = {"published": Numbers([Accuracy(theirs)]), "ours": ours}
            cells["published"].n = ours.n  # of as many seeds as it may be, which is not said
            rows.append(_labels(figure) | {"evaluation": column.removesuffix(" (%)")} | cells)
    notes = [f"not compared, {reason}: {listed(what, 4)}" for reason, what in reasons.items()]
    notes += _nearest(distant)
    if not rows:
        raise UserError(f"nothing to hold against {paper.name}: {'; '.join(notes)}")
    notes = [f"published: {paper.source}", *notes]
    if assumed := [
        f"{key} {value}" for key, value in _USUAL.items() if key not in paper.threat_model
    ]:
        notes.insert(1, f"not said by the paper of its attack, taken to be: {listed(assumed)}")
    table = Table("against", f"ours and published, {paper.title}, {paper.backbone}", rows, notes)
    table.baseline, table.ranked = "the published figure", False
    return [table]


def _nearest(distant: dict[Figure, list[str]]) -> list[str]:
    """A note on figures that no run is about: how many, and those that fewest things keep away."""
    if not distant:
        return []
    order = sorted(distant, key=lambda figure: _distance(distant[figure]))
    nearest = [
        f"{' on '.join(_labels(figure).values())} (ours: {', '.join(distant[figure])})"
        for figure in order
        if _distance(distant[figure]) == _distance(distant[order[0]])
    ]
    return [f"no run for {counted(len(distant), 'figure')}, nearest: {listed(nearest, 3)}"]


def _distance(odds: list[str]) -> tuple:
    return len(odds), any(odd.startswith("method") for odd in odds)


def published(paper: Paper) -> Table:
    """A paper's figures as a table of their own."""
    rows = []
    for figure in paper.figures:
        cells = {}
        for column, value in (("clean (%)", figure.clean), (_column(paper), figure.robust)):
            if column:
                cells[column] = Numbers([] if value is None else [Accuracy(value)])
        rows.append({**_labels(figure), "table": figure.table, **cells})
    table = Table(
        "published",
        f"published, not ours: {paper.title}, {paper.backbone}",
        rows,
        [f"published: {paper.source}"],
    )
    table.ranked = False
    return table


def add_rows(tables: list[Table], runs: dict[Path, dict], paper: Paper) -> None:
    """Give tables of our runs the paper's rows, "METHOD (PAPER)", where a column has a figure.

    The same must agree as in ``against``; columns without such a figure stay empty.
    """
    if {run["backbone"] for run in runs.values()} != {paper.backbone}:
        return
    kinds = {"clean (%)": "clean"}
    for one in (one for run in runs.values() for one in run["evaluations"]):
        if one["threat_model"] and not images_said(one) and not _odd(one, paper.threat_model):
            kinds[header(one)] = "robust"
    for table in tables:
        label, *others = table.labels
        ours = len(table.rows)
        for method in dict.fromkeys(figure.method for figure in paper.figures):
            figures = [figure for figure in paper.figures if figure.method == method]
            row: dict = {label: f"{method} ({paper.name})", **dict.fromkeys(others, "published")}
            for column in table.measured:
                cells = [_theirs(figures, topic, kinds) for topic in table.about.get(column, ())]
                row[column] = harmonic(cells) if len(cells) > 1 else (cells or [Numbers()])[0]
            if any(row[column] for column in table.measured):
                table.rows.append({column: row[column] for column in table.rows[0]})
        if len(table.rows) > ours:
            table.notes.append(f"({paper.name}): published, not ours: {paper.source}")


def _theirs(figures: list[Figure], topic: Topic, kinds: dict[str, str]) -> Numbers:
    """The published accuracy that a column of ours is about; empty if there is none."""
    for figure in figures:
        untrained = figure.method.startswith("ZeroshotCLIP")
        value = getattr(figure, kinds.get(topic.header, ""), None)
        if (
            value is not None
            and set(figure.datasets) == set(topic.datasets)
            and figure.subsample == topic.subsample
            and (untrained or figure.trained_on == topic.source)
            and (untrained or figure.shots in (None, topic.shots))
        ):
            return Numbers([Accuracy(value)])
    return Numbers()


class _Incomparable(Exception):
    pass


class _Elsewhere(Exception):
    """No run is about what a figure is about; ``odds``: where the nearest one is not, in words."""

    def __init__(self, odds: list[str]) -> None:
        super().__init__(", ".join(odds))
        self.odds = odds


def _column(paper: Paper) -> str:
    threat = paper.threat_model
    if not threat:
        return ""
    threat = {**_USUAL, **threat}
    evaluation = {"attack": threat["attack"], "threat_model": threat, "split": "test"}
    return header(evaluation)


def _labels(figure: Figure) -> dict:
    places = figure.datasets
    name = places[0] if len(places) == 1 else f"average of {len(places)}"
    classes = "" if figure.subsample == "all" else f", {figure.subsample} classes"
    source = f", from {figure.trained_on}" if figure.trained_on else ""
    shots = f", {shots_said(figure.shots)}" if figure.shots else ""
    return {"method": figure.method, "data set": f"{name}{classes}{source}{shots}"}


def _said(figure: Figure, kind: str) -> str:
    return f"{' on '.join(_labels(figure).values())} ({kind})"


def _ours(runs: dict[Path, dict], paper: Paper, figure: Figure, kind: str) -> tuple[str, Numbers]:
    """The column of our evaluation, and our accuracies; an average has those of each seed."""
    if paper.backbone not in {run["backbone"] for run in runs.values()}:
        names = sorted({run["backbone"] for run in runs.values()})
        raise _Incomparable(f"of {paper.backbone}, and ours of {listed(names)}")
    odds = {f: _odds(run, figure) for f, run in runs.items() if run["backbone"] == paper.backbone}
    found = {folder: runs[folder] for folder in odds if not odds[folder]}
    if not found:
        raise _Elsewhere(min(odds.values(), key=_distance))
    lacking = set(figure.datasets) - {run["dataset"] for run in found.values()}
    if lacking:
        raise _Incomparable(f"no such runs on {listed(sorted(lacking), 3)}")
    shots = {run["shots"] for run in found.values() if learns(run)}
    if len(shots) > 1:
        raise _Incomparable("runs with several numbers of shots, and the paper does not say which")
    columns = set()
    for run in found.values():
        columns.add(_evaluation(run, paper, kind))
    if len(columns) > 1:
        raise _Incomparable(f"evaluations of several kinds: {listed(sorted(columns))}")
    (column,) = columns
    grid = Grid(found, same=())
    (row,) = grid.rows
    cells = [grid.accuracies(row, place, column) for place in grid.places]
    ours = average(cells) if len(cells) > 1 else Numbers(cells[0])
    if not ours:
        raise _Incomparable("no seed that all its data sets have")
    return column, ours


def _odds(run: dict, figure: Figure) -> list[str]:
    """Where a run is not about what a figure is about, in words; evaluations are not looked at."""
    about = {"method": (run["method"], figure.method)}
    if run["dataset"] not in figure.datasets:
        about["data set"] = run["dataset"], listed(figure.datasets, 1)
    about["classes"] = run["subsample"], figure.subsample
    if learns(run):
        # prompts for new classes come from a run on the base classes
        half = "base" if figure.subsample == "new" else figure.subsample
        theirs = f"{classes_said(half)} of {figure.trained_on or run['dataset']}"
        record, ours = run.get("trained_on"), "what is not known"
        if record:
            ours = f"{classes_said(record['subsample'])} of {record['dataset']}"
        about["trained on"] = ours, theirs
        about["shots"] = run["shots"], run["shots"] if figure.shots is None else figure.shots
    return [f"{what} {a}, published {b}" for what, (a, b) in about.items() if a != b]


def _evaluation(run: dict, paper: Paper, kind: str) -> str:
    """The column of a run's evaluation that is the paper's."""
    whole = [one for one in run["evaluations"] if not images_said(one)]
    if kind == "clean":
        for one in whole:
            if one["attack"] == "clean":
                return header(one)
        raise _Incomparable("no clean evaluation on all test images")
    attacks = [one for one in whole if one["threat_model"]]
    differing = []
    for one in attacks:
        if not (odd := _odd(one, paper.threat_model)):
            return header(one)
        differing.append(odd)
    if not differing:
        raise _Incomparable("no attack on all test images")
    raise _Incomparable(f"under another threat model ({'; '.join(min(differing, key=len))})")


def _odd(evaluation: dict, published: dict) -> list[str]:
    """Where an attack of ours is not the published one, in words.

    What the paper does not say is taken to be usual, of attacks that have it.
    """
    ours = {**evaluation["threat_model"], "attack": evaluation["attack"]}
    assumed = {key: value for key, value in _USUAL.items() if ours.get(key) is not None}
    return [
        f"{key} {ours.get(key)}, published {value}"
        + ("" if key in published else " (not said, but usual)")
        for key, value in {**assumed, **published}.items()
        if not _same(ours.get(key), value)
    ]


def _same(ours, theirs) -> bool:
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return abs(ours - theirs) < 1e-3  # 2.667 and 8/3
    return ours == theirs
