"""The report: tables and figures of runs, with the information a reader needs to check them."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections import Counter, defaultdict
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from apd import config
from apd.about import ASSETS
from apd.config import HARMLESS, flat
from apd.errors import UserError, counted, listed
from apd.figures.kinds import KINDS
from apd.figures.points import setting_of
from apd.figures.style import rendered_panels
from apd.methods import rank
from apd.report.overview import Overview
from apd.results.comparable import shots_of, shots_rank
from apd.results.words import ALL_IMAGES, described, in_full
from apd.tables.kinds import TABLES, fitting
from apd.tables.write import Table, write

TEMPLATE, SCRIPT = ASSETS / "report.html", ASSETS / "report.js"
_LONG = 20  # rows; longer tables are folded
_FIRST = 2  # figures of a kind that are shown; further ones are folded
_SHOWN_ELSEWHERE = HARMLESS | {"SEED", "TRAINER.NAME", "DATASET.NAME", "DATASET.NUM_SHOTS"}


def page(
    runs: dict[Path, dict],
    title: str = "",
    galleries: tuple[list[dict], list[str]] = ([], []),
    baseline: str = "",
) -> str:
    """The page as HTML, in which all text from the runs' files is escaped.

    A table or figure that cannot be made of these runs is named on the page, with the reason. The
    page loads nothing and runs one script, its own, which sorts tables; its policy (CSP) has
    browsers refuse anything else.

    Args:
        galleries: as ``apd.report.galleries.galleries`` gives them.
        baseline: a method that the first table compares all others with.

    Raises:
        UserError: there is no such method.
    """
    tables, refused = _tables(runs)
    backbone = listed(sorted({run["backbone"] for run in runs.values()}))
    overview = _overview(tables, backbone, baseline)
    if overview:
        tables = {
            kind: [table for table in of_kind if not overview.holds(table)]
            for kind, of_kind in tables.items()
        }
    figures, no_figures = _figures(runs)
    configs = _configs(runs)
    evaluations = [evaluation for run in runs.values() for evaluation in run["evaluations"]]
    data = sorted({run["dataset"] for run in runs.values()})
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = SCRIPT.read_text(encoding="utf-8").strip()
    further = [table for of_kind in tables.values() for table in of_kind]
    return (
        environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            title=title or f"Results on {data[0] if len(data) == 1 else f'{len(data)} data sets'}",
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            summary=_summary(runs),
            warnings=_warnings(runs),
            overview=overview and _table_fields(overview.table),
            cards=overview.cards() if overview else [],
            csv=_csv_link([*([overview.table] if overview else []), *further]),
            tables={
                kind: list(map(_table_fields, tables[kind])) for kind in tables if tables[kind]
            },
            refused=refused + no_figures,
            figures=figures,
            galleries=galleries[0],
            no_galleries=galleries[1],
            threats=_threats(runs),
            flags=_flags(runs),
            long=_LONG,
            flagged=sum(bool(evaluation.get("flags")) for evaluation in evaluations),
            evaluations=f"{len(evaluations):,}",
            methods=_methods(runs, configs),
            keys=_keys(configs),
            environments=_environments(runs),
        )
        + "\n"
    )


# -- tables and figures ----------------------------------------------------------------------------


def _tables(runs: dict[Path, dict]) -> tuple[dict[str, list[Table]], list[str]]:
    """The tables that suit the runs, by kind, and why others cannot be made."""
    tables, refused = {}, []
    for kind in fitting(runs):
        try:
            tables[kind] = TABLES[kind](runs)
        except UserError as error:
            refused.append(f"No table {kind}: {error}")
    return tables, refused


def _overview(tables: dict[str, list[Table]], backbone: str, baseline: str) -> Overview | None:
    """The first table; None: no kind of table has accuracies of methods."""
    for kind in tables.values():
        try:
            return Overview(kind, backbone, baseline)
        except ValueError:
            continue
    if baseline:
        raise UserError(f"--baseline {baseline}: these runs have no table of methods")
    return None


def _table_fields(table: Table) -> dict:
    """The fields of a table in the page's template."""
    return {
        "title": table.title,
        "html": table.format("html"),
        "long": len(table.rows) > _LONG,
        "csv": _csv_link([table]),
    }


def _csv_link(tables: list[Table]) -> str:
    """The tables as CSV, in an address that needs no other file."""
    text = write(tables, "csv") if tables else ""
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _figures(runs: dict[Path, dict]) -> tuple[list[dict], list[str]]:
    """The figures that suit the runs, by kind, and why others cannot be drawn."""
    figures, refused = [], []
    for name, kind in KINDS.items():
        try:
            # training curves of the most shots only, because those of all would be too many
            drawn = kind.draw(_most_shots(runs) if name == "training" else runs)
        except UserError as error:
            refused.append(f"No figure {name}: {error}")
            continue
        inlined = [_inlined(figure) for figure in drawn.values()]
        if inlined:
            figures.append({"first": inlined[:_FIRST], "more": inlined[_FIRST:]})
    return figures, refused


# -- further sections ------------------------------------------------------------------------------


def _summary(runs: dict[Path, dict]) -> str:
    """Counts and names of runs, methods, data sets, shots, seeds, backbones and hosts."""

    def line(field: str, noun: str) -> str:
        values = sorted({run[field] for run in runs.values()})
        return f"{noun if len(values) == 1 else f'{noun}s'}: {listed(map(str, values))}"

    methods = sorted({run["method"] for run in runs.values()}, key=rank)
    shots = sorted({n for run in runs.values() if (n := shots_of(run)) is not None})
    items = [
        counted(len(runs), "run"),
        f"{counted(len(methods), 'method')}: {listed(methods, 15)}",
        line("dataset", "data set"),
        line("seed", "seed"),
        line("backbone", "backbone"),
        line("host", "host"),
    ]
    if shots:
        numbers = listed("all images" if n == ALL_IMAGES else str(n) for n in shots)
        items.insert(3, f"shots: {numbers}")
    return "; ".join(items) + "."


def _warnings(runs: dict[Path, dict]) -> list[str]:
    """Sentences on runs of several commits or hosts, and of files that were not committed."""
    commits = {run["git_commit"] for run in runs.values()}
    dirty = sum((run["git_commit"] or "").endswith("-dirty") for run in runs.values())
    warnings = []
    if len(commits) > 1:
        warnings.append(f"These runs are of {len(commits)} git commits: see Versions.")
    if dirty:
        warnings.append(f"Files had changed since the git commit of {dirty:,} of the runs.")
    if None in commits:
        warnings.append("The git commit of some runs is not known.")
    hosts = {run["host"] for run in runs.values()}
    if len(hosts) > 1:
        warnings.append(f"These runs are of {len(hosts)} hosts: {listed(sorted(hosts))}.")
    return warnings


def _most_shots(runs: dict[Path, dict]) -> dict[Path, dict]:
    """Of each setting the runs with the most shots."""
    most: dict = defaultdict(int)
    for run in runs.values():
        setting = setting_of(run)
        most[setting] = max(most[setting], shots_of(run) or 0, key=shots_rank)
    return {folder: run for folder, run in runs.items() if shots_of(run) == most[setting_of(run)]}


def _inlined(figure: Figure) -> dict:
    """A figure's title, and its panels and legend as images."""
    title = figure.get_suptitle().replace("\n", ": ")
    names = [axes.get_title() or axes.get_ylabel() for axes in figure.axes]
    names += ["legend"] * len(figure.legends)
    images = [base64.b64encode(svg).decode() for svg in rendered_panels(figure)]
    return {
        "title": title,
        "panels": [
            {"name": name, "source": f"data:image/svg+xml;base64,{image}"}
            for name, image in zip(names, images)
        ],
    }


def _threats(runs: dict[Path, dict]) -> list[dict]:
    """A row for each attack and its conditions; evaluations that differ in the data set or the seed
    share one."""
    seeds: dict = defaultdict(set)
    images: dict = defaultdict(lambda: defaultdict(dict))
    count: Counter = Counter()
    for run in runs.values():
        for evaluation in run["evaluations"]:
            if threat := evaluation["threat_model"]:
                row = tuple(in_full(evaluation).items())
                subset = evaluation.get("images", "all")
                drawn = "" if subset == "all" else f", drawn with seed {subset['seed']}"
                number = f"{evaluation['total']:,} {evaluation['split']}{drawn}"
                images[row][number][run["dataset"]] = None
                seeds[row].add(threat["seed"])
                count[row] += 1
    return [
        {
            **dict(row),
            "seeds": ", ".join(map(str, sorted(seeds[row]))),
            "evaluations": f"{count[row]:,}",
            "images": "; ".join(f"{n}: {', '.join(data)}" for n, data in images[row].items()),
        }
        for row in count
    ]


def _flags(runs: dict[Path, dict]) -> list[dict]:
    """A row for each flag of each evaluation."""
    return [
        {
            "method": run["method"],
            "data set": run["dataset"],
            "shots": run["shots"],
            "seed": run["seed"],
            "attack": described(evaluation),
            "accuracy (%)": f"{evaluation['accuracy']:.1f}",
            "flag": name,
            "sign": text,
        }
        for run in sorted(runs.values(), key=lambda run: rank(run["method"]))
        for evaluation in run["evaluations"]
        for name, text in evaluation.get("flags", {}).items()
    ]


def _configs(runs: dict[Path, dict]) -> dict[str, dict[str, list]]:
    """Method -> key -> the values of its runs, each once."""
    configs: dict = {}
    for method in sorted({run["method"] for run in runs.values()}, key=rank):
        values_of_key: dict[str, list] = defaultdict(list)
        configs[method] = values_of_key
        for run in runs.values():
            if run["method"] == method:
                for key, value in flat(run["config"]):
                    if value not in values_of_key[key]:
                        values_of_key[key].append(value)
    return configs


def _methods(runs: dict[Path, dict], configs: dict[str, dict[str, list]]) -> list[dict]:
    """Of each method its name, the command of its first run, and its config as text."""
    commands = {run["method"]: run.get("argv") for run in reversed(runs.values())}
    return [
        {
            "name": method,
            "command": (argv := commands[method]) and f"train.py {shlex.join(map(str, argv))}",
            "config": "\n".join(
                f"{key}: {_format_values(values[key], 20)}" for key in sorted(values)
            ),
        }
        for method, values in configs.items()
    ]


def _keys(configs: dict[str, dict[str, list]]) -> tuple[list[dict], list[dict]]:
    """The keys that have another value than their default, a row each.

    Returns:
        The keys in which the methods differ, with a column for each method that is empty where it
        has the default; and those in which the methods agree. Models that are no runs have no
        config, and no column.
    """
    configs = {method: of_method for method, of_method in configs.items() if of_method}
    default = dict(flat(config.default()))
    differing, shared = [], []
    for key in sorted(
        {key for of_method in configs.values() for key in of_method} - _SHOWN_ELSEWHERE
    ):
        defaults = [default[key]] if key in default else []
        # runs of an earlier version lack some keys, whose defaults hold for them
        values = {method: of_method.get(key, defaults) for method, of_method in configs.items()}
        row = {"key": key, "default": _format_values(defaults)}
        if len({_format_values(value, 99) for value in values.values()}) > 1:
            texts = {
                m: "" if value == defaults else _format_values(value) for m, value in values.items()
            }
            differing.append(row | texts)
        elif (value := next(iter(values.values()))) != defaults:
            shared.append(row | {"value": _format_values(value)})
    return differing, shared


def _format_values(values: list, most: int = 5) -> str:
    texts = [value if isinstance(value, str) and value else json.dumps(value) for value in values]
    return listed(texts, most) or "–"


def _environments(runs: dict[Path, dict]) -> list[dict]:
    """A row for each combination of host, commit and versions, with the number of its runs."""
    count = Counter(
        (("host", run["host"]), ("git commit", run["git_commit"] or "not known"))
        + tuple((name, version or "–") for name, version in run["versions"].items())
        for run in runs.values()
    )
    return [{"runs": f"{number:,}", **dict(row)} for row, number in count.items()]
