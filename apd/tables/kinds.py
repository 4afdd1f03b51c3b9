"""The kinds of tables: methods, shots, two protocols, ablation, search and cost.

* base-to-new (CoCoOp, Zhou 2022, section 4.1): trained on the first half of the classes, tested on
  both halves; H is the harmonic mean of the two means.
* transfer (the same, sections 4.2 and 4.3): trained on one data set, tested on others;
  cross-dataset where these have other classes, domain shift where they have the same ones.

Each function takes runs by folder (``apd.results.runs.load_runs``), and raises UserError if they
cannot be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import harmonic_mean

from apd.errors import UserError, listed
from apd.methods import rank
from apd.results.comparable import learns, trained_where
from apd.results.words import classes_text, shots_text
from apd.tables.cells import Cell, Place, accuracy_cell, average, harmonic
from apd.tables.compare import compare
from apd.tables.configs import DEFAULT, assigned, config_changes
from apd.tables.grid import Grid, Topic, source_notes, sources, unknown_sources
from apd.tables.write import Table


def methods(runs: dict[Path, dict]) -> list[Table]:
    """One row per method.

    Evaluations on a subset of the images which some methods lack are in a table of their own. With
    several data sets there is a table for each evaluation.
    """
    grid, elsewhere = Grid(runs, same=("backbone", "subsample", "shots")), sources(runs)
    title = _title(runs, "dataset", "shots", "backbone")
    if len(grid.places) > 1:
        tables = []
        for header in grid.headers:
            rows, notes = _over_data_sets(grid, header), source_notes(runs)
            columns = {place.dataset: [place] for place in grid.places} | {"average": grid.places}
            about = {name: (_topic(header, places, elsewhere),) for name, places in columns.items()}
            tables.append(Table("methods", f"{header}, {title}", rows, notes, about=about))
        return tables
    main, *others = _headers_by_images(grid)
    rows, notes = _of_one_data_set(grid, main[1], with_seconds=True), source_notes(runs)
    about = {header: (_topic(header, grid.places, elsewhere),) for header in main[1]}
    tables = [Table("methods", title, rows, notes, about=about)]
    for images, headers in others:
        rows = _of_one_data_set(grid, headers)
        about = {header: (_topic(header, grid.places, elsewhere),) for header in headers}
        tables.append(Table("methods", f"{title}, {images}", rows, notes, about=about))
    return tables


def _topic(header: str, places: list[Place], elsewhere: dict[str, str]) -> Topic:
    first = places[0]
    names = tuple(place.dataset for place in places)
    trained = {elsewhere[name] for name in names if name in elsewhere}
    return Topic(header, names, first.subsample, first.shots, "; ".join(sorted(trained)))


def _headers_by_images(grid: Grid) -> list[tuple[str, list[str]]]:
    """The images and columns of each table.

    The first has the columns on all images, and those on a subset that all methods have. Each
    further table has the other columns on one subset.
    """
    (place,) = grid.places
    main, *others = grid.headers_by_images().items()
    for images, headers in list(others):
        if all(
            grid.accuracies(method, place, name).measurements
            for method in grid.rows
            for name in headers
        ):
            main[1].extend(headers)
            others.remove((images, headers))
    return [main, *others]


def _of_one_data_set(grid: Grid, headers: list[str], with_seconds: bool = False) -> list[dict]:
    (place,) = grid.places
    rows = []
    for method in grid.rows:
        run = grid.first(method)
        row = {"method": method, "prompts": run["modality"]}
        row["parameters"] = run["trainable_parameters"]
        cells = {header: grid.accuracies(method, place, header) for header in headers}
        if with_seconds:
            cells["seconds"] = grid.numbers(method, place, lambda run: run["seconds"])
        if any(cell.measurements for cell in cells.values()):
            rows.append(row | cells)
    return rows


def _over_data_sets(grid: Grid, header: str) -> list[dict]:
    rows = []
    for method in grid.rows:
        cells = {place.dataset: grid.accuracies(method, place, header) for place in grid.places}
        rows.append({"method": method, **cells, "average": average(list(cells.values()))})
    return rows


def few_shot(runs: dict[Path, dict]) -> list[Table]:
    """Methods by shots: for each evaluation, a table per data set and one of their average."""
    grid, elsewhere = Grid(runs, same=("backbone", "subsample")), sources(runs)
    data_sets, shots = grid.values("dataset"), grid.values("shots")
    (subsample,) = grid.values("subsample")

    def table(header: str, group: list[str]) -> Table:
        rows = []
        for method in grid.rows:
            row: dict = {"method": method}
            for k in shots:
                places = [Place(name, subsample, k) for name in group]
                row[shots_text(k)] = _mean([grid.accuracies(method, p, header) for p in places])
            rows.append(row)
        title = ", ".join([header, _named(group), _title(runs)])
        about = {
            shots_text(k): (
                _topic(header, [Place(name, subsample, k) for name in group], elsewhere),
            )
            for k in shots
        }
        return Table("few-shot", title, rows, source_notes(runs), about=about)

    groups = _with_all([[dataset] for dataset in data_sets])
    return [table(header, group) for header in grid.headers for group in groups]


def base_to_new(runs: dict[Path, dict]) -> list[Table]:
    """Base, new and H of every evaluation: a table per data set, and one of their average.

    The average's H is that of the averages of base and new.
    """
    if unknown := {run["subsample"] for run in runs.values()} - {"base", "new"}:
        raise UserError(f"base-to-new compares base and new classes, there are runs of {unknown}")
    for folder, run in runs.items():
        record = run.get("trained_on")
        if record and (record["dataset"], record["subsample"]) != (run["dataset"], "base"):
            raise UserError(
                f"{folder}: its prompts were trained on {record['dataset']}, "
                f"{classes_text(record['subsample'])}; base-to-new tests those of the base classes "
                f"of {run['dataset']}: evaluate them with --eval-only --model-dir BASE_RUN"
            )
    grid, notes = Grid(runs, same=("backbone", "shots")), unknown_sources(runs)
    data_sets, (shots,) = grid.values("dataset"), grid.values("shots")

    def table(group: list[str]) -> Table:
        rows = []
        for method in grid.rows:
            row: dict = {"method": method}
            for header in grid.headers:
                halves = ([Place(name, half, shots) for name in group] for half in ("base", "new"))
                base, new = (
                    _mean([grid.accuracies(method, place, header) for place in places])
                    for places in halves
                )
                row |= {f"base {header}": base, f"new {header}": new}
                row[f"H {header}"] = harmonic([base, new])
            rows.append(row)
        about: dict[str, tuple[Topic, ...]] = {}
        for header in grid.headers:
            of_base, of_new = (Topic(header, tuple(group), half, shots) for half in ("base", "new"))
            about |= {f"base {header}": (of_base,), f"new {header}": (of_new,)}
            about[f"H {header}"] = of_base, of_new
        title = f"base-to-new, {_named(group)}, {_title(runs, 'shots', 'backbone')}"
        return Table("base-to-new", title, rows, notes, about=about)

    return [table(group) for group in _with_all([[dataset] for dataset in data_sets])]


def transfer(runs: dict[Path, dict]) -> list[Table]:
    """For each evaluation: the source data set, the others, and their average."""
    grid, elsewhere = Grid(runs, same=("backbone", "subsample", "shots")), sources(runs)
    if len(_trained(runs)) != 1:
        names = "; ".join(sorted(_trained(runs))) or "none"
        raise UserError(f"transfer is from one data set that was trained on, here from: {names}")
    (trained,) = _trained(runs)
    places = {place.dataset: place for place in grid.places}
    columns = {f"{trained} (source)": trained} if trained in places else {}
    targets = [name for name in places if name != trained]
    columns |= {name: name for name in targets}
    tables = []
    for header in grid.headers:
        rows = []
        for method in grid.rows:
            cells = {
                column: grid.accuracies(method, places[name], header)
                for column, name in columns.items()
            }
            whole = average([cells[name] for name in targets]) if targets else Cell()
            rows.append({"method": method, **cells, "average of targets": whole})
        title = f"{header}, transfer from {trained}, {_title(runs, 'shots', 'backbone')}"
        averaged_over = {column: [places[name]] for column, name in columns.items()}
        if targets:
            averaged_over["average of targets"] = [places[name] for name in targets]
        about = {column: (_topic(header, of, elsewhere),) for column, of in averaged_over.items()}
        tables.append(Table("transfer", title, rows, unknown_sources(runs), about=about))
    return tables


def _trained(runs: dict[Path, dict]) -> set[str]:
    """The data sets that prompts were trained on."""
    return set(map(trained_where, runs.values())) - {""}


def ablation(runs: dict[Path, dict]) -> list[Table]:
    """One row per config of a method, named by the keys that it changes.

    Differences are to the default, which has every key's most common value. There is a table per
    data set, and one of their average.
    """
    tables = []
    for method in dict.fromkeys(run["method"] for run in runs.values()):
        same = _of_method(runs, method)
        changes, default = config_changes(same)
        names = {folder: assigned(changed) for folder, changed in changes.items()}
        if len(set(names.values())) == 1:
            continue
        grid = Grid(same, ("backbone", "subsample", "shots"), lambda folder, _: names[folder])
        grid.rows.sort(key=lambda name: (name != DEFAULT, name))
        for group in _with_all([[place] for place in grid.places]):
            rows = [
                {"config": name}
                | {
                    header: _mean([grid.accuracies(name, place, header) for place in group])
                    for header in grid.headers
                }
                for name in grid.rows
            ]
            data = _named([place.dataset for place in group])
            title = f"{method}, {data}, {_title(same, 'shots', 'backbone')}"
            table = Table("ablation", title, rows, [f"{DEFAULT}: {assigned(default)}"])
            tables += compare([table], DEFAULT) if DEFAULT in grid.rows else [table]
    if not tables:
        raise UserError("an ablation compares configs of a method, these runs have one each")
    return tables


CRITERIA: dict[str, Callable[[float, float], float]] = {  # of clean and robust accuracy
    "mean": lambda clean, robust: (clean + robust) / 2,
    "harmonic": lambda clean, robust: harmonic_mean([clean, robust]),
    "robust": lambda clean, robust: robust,
}


def search(
    runs: dict[Path, dict], criterion: str = "mean", within: float | None = None
) -> list[Table]:
    """All trials of all methods on validation images, averaged over data sets, and the choice.

    The choice is a method's trial with the highest criterion (see ``CRITERIA``) among those with
    all runs; with ``within``, only trials count that are at most so many points of clean accuracy
    below the method's best. A trial has the same keys on all data sets. ``Table.extra`` has the
    criterion and the choice: method -> config keys and values, or None if no trial is complete.

    Raises:
        UserError: evaluations on test images, which must not be used to choose, or no attack.
    """
    evaluations = [item for run in runs.values() for item in run["evaluations"]]
    if {item["split"] for item in evaluations} != {"val"}:
        raise UserError("a search chooses on validation images: run it with TEST.SPLIT val")
    methods = {run["method"]: None for run in runs.values()}
    changes: dict[Path, dict] = {}
    varied = {}
    for method in methods:
        changed, varied[method] = config_changes(_of_method(runs, method))
        changes |= changed
    trials = {folder: (runs[folder]["method"], assigned(c)) for folder, c in changes.items()}
    same = ("backbone", "subsample", "shots")
    grid = Grid(runs, same, lambda folder, _: ": ".join(trials[folder]))
    clean, *attacks = sorted(grid.headers, key=lambda name: not name.startswith("clean"))
    if not attacks:
        raise UserError("a search needs an attack: AT.TEST.EPS is not set")
    robust = attacks[0]
    rows: dict[str, list[dict]] = {method: [] for method in sorted(methods, key=rank)}
    for method, trial in sorted(set(trials.values()), key=lambda item: (item[1] != DEFAULT, item)):
        row = {"method": method, "trial": trial}
        for header in (clean, robust):
            row[header] = _mean(
                [grid.accuracies(f"{method}: {trial}", place, header) for place in grid.places]
            )
        row[criterion] = Cell()
        if row[clean].measurements and row[robust].measurements:
            value = CRITERIA[criterion](row[clean].mean, row[robust].mean)
            row[criterion] = accuracy_cell(value, row[clean].n)
        rows[method].append(row | {"chosen": ""})
    chosen: dict[str, dict | None] = dict.fromkeys(rows)
    for method, tried in rows.items():
        whole = [row for row in tried if not (row[clean].missing or row[robust].missing)]
        best = max((row[clean].mean for row in whole), default=0)
        close = [row for row in whole if within is None or row[clean].mean >= best - within]
        if close:
            row = max(close, key=lambda row: row[criterion].mean)
            row["chosen"] = "yes"
            folder_of_choice = next(
                f for f, trial in trials.items() if trial == (method, row["trial"])
            )
            chosen[method] = varied[method] | changes[folder_of_choice]
    names = grid.values("dataset")
    means = {"mean": "mean of clean and robust", "harmonic": "harmonic mean of clean and robust"}
    rule = f"highest {means.get(criterion, criterion)} accuracy"
    if within is not None:
        rule += f", of trials at most {within:g} points of clean accuracy below the method's best"
    counts = {method: len(tried) for method, tried in rows.items()}
    budget = f"{min(counts.values())} a method"
    if len(set(counts.values())) > 1:
        budget = "NOT as many for every method: " + assigned(counts)
    notes = [f"chosen by the {rule}, validation images of {listed(names, 20)}", f"trials: {budget}"]
    notes += [f"{DEFAULT} of {name}: {assigned(varied[name])}" for name in rows if varied[name]]
    title = f"search, {_named(names)}, {_title(runs, 'shots', 'backbone')}"
    extra = {"criterion": rule, "chosen": chosen}
    return [Table("search", title, sum(rows.values(), []), notes, extra=extra)]


def cost(runs: dict[Path, dict]) -> list[Table]:
    """Parameters, time and memory of each method, by shots: a table per data set."""
    grid = Grid(runs, same=("backbone", "subsample"))
    several = len(grid.values("shots")) > 1
    tables = []
    for dataset in grid.values("dataset"):
        rows = []
        for method in grid.rows:
            first = grid.first(method)
            places = [place for place in grid.places if place.dataset == dataset]
            # zero-shot is the same at every number of shots
            for place in places if learns(first) else places[:1]:
                row: dict = {"method": method}
                if several:
                    row["shots"] = shots_text(place.shots) if learns(first) else "-"
                row["parameters"] = first["trainable_parameters"]
                for name, number in _COSTS.items():
                    row[name] = grid.numbers(method, place, number)
                rows.append(row)
        titles = ("backbone",) if several else ("shots", "backbone")
        tables.append(Table("cost", f"cost, {dataset}, {_title(runs, *titles)}", rows))
    return tables


def _epoch_seconds(run: dict) -> float | None:
    epochs = run.get("epochs") or run["config"].get("OPTIM", {}).get("MAX_EPOCH")
    return run["train_seconds"] / epochs if run["train_seconds"] and epochs else None


_COSTS: dict[str, Callable[[dict], float | None]] = {
    "seconds per epoch": _epoch_seconds,
    "training (s)": lambda run: run["train_seconds"] or None,
    "evaluation (s)": lambda run: run["seconds"] - run["train_seconds"],
    "peak memory (MiB)": lambda run: run["peak_memory"] / 2**20 if run.get("peak_memory") else None,
}

TABLES: dict[str, Callable[[dict[Path, dict]], list[Table]]] = {
    "methods": methods,
    "few-shot": few_shot,
    "base-to-new": base_to_new,
    "transfer": transfer,
    "ablation": ablation,
    "search": search,
    "cost": cost,
}


def fitting(runs: dict[Path, dict]) -> list[str]:
    """The names of the tables that suit these runs, the main one first.

    A table may still raise UserError if the runs cannot be compared.
    """
    if _varied(runs):
        splits = {evaluation["split"] for run in runs.values() for evaluation in run["evaluations"]}
        return ["search" if splits == {"val"} else "ablation"]
    if {run["subsample"] for run in runs.values()} != {"all"}:
        return ["base-to-new"]
    evaluated = {run["dataset"] for run in runs.values() if learns(run)}
    if len(_trained(runs)) == 1 and evaluated - _trained(runs):
        return ["transfer", "cost"]
    shots = {run["shots"] for run in runs.values() if learns(run)}
    return ["few-shot" if len(shots) > 1 else "methods", "cost"]


def _varied(runs: dict[Path, dict]) -> bool:
    """Whether a method was run with several configs on the same data and seed."""
    counts = Counter(
        (run["method"], run["dataset"], run["subsample"], run["shots"], run["seed"])
        for run in runs.values()
    )
    methods = {method for (method, *_), count in counts.items() if count > 1}
    return any(config_changes(_of_method(runs, method))[1] for method in methods)


def _of_method(runs: dict[Path, dict], method: str) -> dict[Path, dict]:
    return {folder: run for folder, run in runs.items() if run["method"] == method}


def _title(runs: dict[Path, dict], *fields: str) -> str:
    """The values of ``fields`` (default: the backbone) in which all runs agree."""
    texts = []
    for field in fields or ("backbone",):
        values = {run[field] for run in runs.values() if field != "shots" or learns(run)}
        if len(values) == 1:
            (value,) = values
            texts.append(shots_text(value) if field == "shots" else value)
    return ", ".join(texts)


def _with_all(groups: list[list]) -> list[list]:
    """The groups, and one group of all their members if there are several groups."""
    return [*groups, sum(groups, [])] if len(groups) > 1 else groups


def _mean(cells: list[Cell]) -> Cell:
    return average(cells) if len(cells) > 1 else cells[0]


def _named(data_sets: list[str]) -> str:
    return data_sets[0] if len(data_sets) == 1 else f"average of {len(data_sets)} data sets"
