"""Our accuracies beside published ones, where both have the same conditions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from apd.errors import UserError, counted, listed
from apd.results.comparable import learns
from apd.results.published import Figure, Paper
from apd.results.words import classes_text, header, images_text, shots_text
from apd.tables.cells import Cell, Comparison, accuracy_cell, average, harmonic
from apd.tables.grid import Grid, Topic
from apd.tables.write import Table

# conditions of PGD that are assumed where a paper does not say them
_USUAL = {
    **{"norm": "linf", "source": "white-box", "precision": "fp32", "last_iterate": False},
    **{"loss": "ce", "restarts": 1, "random_start": True},
}


def against(runs: dict[Path, dict], paper: Paper) -> list[Table]:
    """One row per published figure that has a counterpart in our runs: both and the difference.

    The counterpart has the same backbone, data sets, classes, shots, training data and threat
    model, and is on all test images. Conditions that the paper does not say are assumed, as in
    ``_USUAL``.
    Notes below the table say, each reason once, why figures were not compared, and which figures
    without a run come nearest to one.

    Raises:
        UserError: no figure can be compared; it says why, and which figures come nearest.
    """
    rows, reasons, distant = [], defaultdict(list), {}
    for figure in paper.figures:
        for kind, theirs in (("clean", figure.clean), ("robust", figure.robust)):
            if theirs is None:
                continue
            try:
                column, ours = _own_accuracy(runs, paper, figure, kind)
            except _Elsewhere as reason:
                distant[figure] = reason.odds
                continue
            except _Incomparable as reason:
                name = " on ".join(_labels(figure).values())
                reasons[str(reason)].append(f"{name} ({kind})")
                continue
            # the paper does not say its number of seeds: it counts as the same
            cells = {"published": accuracy_cell(theirs, ours.n)}
            cells["ours"] = replace(ours, comparison=Comparison(ours.mean - theirs))
            rows.append(_labels(figure) | {"evaluation": column.removesuffix(" (%)")} | cells)
    notes = [f"not compared, {reason}: {listed(figures, 4)}" for reason, figures in reasons.items()]
    notes += _nearest(distant)
    if not rows:
        raise UserError(f"nothing to hold against {paper.name}: {'; '.join(notes)}")
    notes = [f"published: {paper.source}", *notes]
    if assumed := [
        f"{key} {value}" for key, value in _USUAL.items() if key not in paper.threat_model
    ]:
        notes.insert(1, f"not said by the paper of its attack, taken to be: {listed(assumed)}")
    title = f"ours and published, {paper.title}, {paper.backbone}"
    baseline = "the published figure"
    return [Table("against", title, rows, notes, baseline=baseline, ranked=False)]


def _nearest(distant: dict[Figure, list[str]]) -> list[str]:
    """A note on figures without a run: how many there are, and which differ least from a run."""
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
                cells[column] = accuracy_cell(value)
        rows.append({**_labels(figure), "table": figure.table, **cells})
    title = f"published, not ours: {paper.title}, {paper.backbone}"
    return Table("published", title, rows, [f"published: {paper.source}"], ranked=False)


def with_published(tables: list[Table], runs: dict[Path, dict], paper: Paper) -> list[Table]:
    """Tables of our runs, with rows "METHOD (PAPER)" of the paper's figures.

    The same conditions must agree as in ``against``; columns without such a figure stay empty.
    """
    if {run["backbone"] for run in runs.values()} != {paper.backbone}:
        return tables
    kinds = {"clean (%)": "clean"}
    for evaluation in (evaluation for run in runs.values() for evaluation in run["evaluations"]):
        if (
            evaluation["threat_model"]
            and not images_text(evaluation)
            and not _attack_differences(evaluation, paper.threat_model)
        ):
            kinds[header(evaluation)] = "robust"
    return [_with_published(table, paper, kinds) for table in tables]


def _with_published(table: Table, paper: Paper, kinds: dict[str, str]) -> Table:
    label, *further = table.labels
    rows: list[dict] = []
    for method in dict.fromkeys(figure.method for figure in paper.figures):
        figures = [figure for figure in paper.figures if figure.method == method]
        row: dict = {label: f"{method} ({paper.name})", **dict.fromkeys(further, "published")}
        for column in table.measured:
            cells = [
                _published_accuracy(figures, topic, kinds) for topic in table.about.get(column, ())
            ]
            row[column] = harmonic(cells) if len(cells) > 1 else (cells or [Cell()])[0]
        if any(row[column].measurements for column in table.measured):
            rows.append({column: row[column] for column in table.rows[0]})
    if not rows:
        return table
    note = f"({paper.name}): published, not ours: {paper.source}"
    return replace(table, rows=[*table.rows, *rows]).with_notes(note)


def _published_accuracy(figures: list[Figure], topic: Topic, kinds: dict[str, str]) -> Cell:
    """The published accuracy with the conditions of a column of ours; empty if there is none."""
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
            return accuracy_cell(value)
    return Cell()


class _Incomparable(Exception):
    pass


class _Elsewhere(Exception):
    """A figure has no run; ``odds`` says, in words, in what the nearest run differs."""

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
    shots = f", {shots_text(figure.shots)}" if figure.shots else ""
    return {"method": figure.method, "data set": f"{name}{classes}{source}{shots}"}


def _own_accuracy(
    runs: dict[Path, dict], paper: Paper, figure: Figure, kind: str
) -> tuple[str, Cell]:
    """The column of our evaluation, and our accuracies, one per seed (of averages too)."""
    if paper.backbone not in {run["backbone"] for run in runs.values()}:
        names = sorted({run["backbone"] for run in runs.values()})
        raise _Incomparable(f"of {paper.backbone}, and ours of {listed(names)}")
    odds = {
        f: _differences(run, figure) for f, run in runs.items() if run["backbone"] == paper.backbone
    }
    matching = {folder: runs[folder] for folder in odds if not odds[folder]}
    if not matching:
        raise _Elsewhere(min(odds.values(), key=_distance))
    lacking = set(figure.datasets) - {run["dataset"] for run in matching.values()}
    if lacking:
        raise _Incomparable(f"no such runs on {listed(sorted(lacking), 3)}")
    shots = {run["shots"] for run in matching.values() if learns(run)}
    if len(shots) > 1:
        raise _Incomparable("runs with several numbers of shots, and the paper does not say which")
    columns = set()
    for run in matching.values():
        columns.add(_evaluation(run, paper, kind))
    if len(columns) > 1:
        raise _Incomparable(f"evaluations of several kinds: {listed(sorted(columns))}")
    (column,) = columns
    grid = Grid(matching, same=())
    (row,) = grid.rows
    cells = [grid.accuracies(row, place, column) for place in grid.places]
    ours = average(cells) if len(cells) > 1 else cells[0]
    if not ours.measurements:
        raise _Incomparable("no seed that all its data sets have")
    return column, ours


def _differences(run: dict, figure: Figure) -> list[str]:
    """The differences between a run and a published figure, in words, apart from the evaluation."""
    fields: dict[str, tuple] = {"method": (run["method"], figure.method)}  # ours and theirs
    if run["dataset"] not in figure.datasets:
        fields["data set"] = run["dataset"], listed(figure.datasets, 1)
    fields["classes"] = run["subsample"], figure.subsample
    if learns(run):
        # prompts for new classes come from a run on the base classes
        half = "base" if figure.subsample == "new" else figure.subsample
        theirs = f"{classes_text(half)} of {figure.trained_on or run['dataset']}"
        record, ours = run.get("trained_on"), "what is not known"
        if record:
            ours = f"{classes_text(record['subsample'])} of {record['dataset']}"
        fields["trained on"] = ours, theirs
        fields["shots"] = run["shots"], run["shots"] if figure.shots is None else figure.shots
    return [f"{field} {a}, published {b}" for field, (a, b) in fields.items() if a != b]


def _evaluation(run: dict, paper: Paper, kind: str) -> str:
    """The column of the run's evaluation that has the paper's conditions."""
    whole = [evaluation for evaluation in run["evaluations"] if not images_text(evaluation)]
    if kind == "clean":
        for evaluation in whole:
            if evaluation["attack"] == "clean":
                return header(evaluation)
        raise _Incomparable("no clean evaluation on all test images")
    attacks = [evaluation for evaluation in whole if evaluation["threat_model"]]
    differing = []
    for evaluation in attacks:
        if not (differences := _attack_differences(evaluation, paper.threat_model)):
            return header(evaluation)
        differing.append(differences)
    if not differing:
        raise _Incomparable("no attack on all test images")
    fewest = min(differing, key=len)
    raise _Incomparable(f"under another threat model ({'; '.join(fewest)})")


def _attack_differences(evaluation: dict, published: dict) -> list[str]:
    """The differences between an attack of ours and the published one, in words.

    For conditions that the paper does not state, the usual values are assumed if our attack has
    these conditions.
    """
    ours = {**evaluation["threat_model"], "attack": evaluation["attack"]}
    assumed = {key: value for key, value in _USUAL.items() if ours.get(key) is not None}
    return [
        f"{key} {ours.get(key)}, published {value}"
        + ("" if key in published else " (not said, but usual)")
        for key, value in {**assumed, **published}.items()
        if not _same_setting(ours.get(key), value)
    ]


def _same_setting(ours, theirs) -> bool:
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return abs(ours - theirs) < 1e-3  # papers round: 2.667 is 8/3
    return ours == theirs
