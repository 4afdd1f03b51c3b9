"""Tables of the protocols that put one run's prompts before other classes or datasets.

* base-to-new (CoCoOp, Zhou 2022, section 4.1): trained on the first half of the classes, tested on
  both halves; H is the harmonic mean of the two means.
* transfer (the same, sections 4.2 and 4.3): trained on one dataset, tested on others; cross-dataset
  where these have other classes, domain shift where they have the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import harmonic_mean, mean

from apd.errors import UserError
from apd.results.table import Accuracy, check_comparable, header_of, rank


def base_to_new(runs: dict[Path, dict]) -> list[dict]:
    """One row a dataset and method: base, new and H, for clean images and each attack.

    Raises:
        UserError: no run of either half, or runs that cannot be compared.
    """
    check_comparable(runs, same=("backbone",), apart=("dataset", "subsample"))
    halves = {"base", "new"}
    if found := {run["subsample"] for run in runs.values()} - halves:
        raise UserError(f"base-to-new compares base and new classes, there are runs of {found}")
    cells = _cells(runs.values(), lambda run: (run["dataset"], run["method"]))
    rows = []
    for dataset, method in sorted(cells, key=lambda key: (key[0], rank(key[1]))):
        row = {"dataset": dataset, "method": method}
        for header in _headers(runs.values()):
            half = {name: cells[dataset, method].get((name, header), []) for name in halves}
            row |= {f"base {header}": half["base"], f"new {header}": half["new"]}
            means = [mean(values) for values in half.values() if values]
            row[f"H {header}"] = [harmonic_mean(means)] if len(means) == 2 else []
        rows.append(row)
    return rows


def transfer(runs: dict[Path, dict]) -> list[dict]:
    """One row a method and kind of image: the source dataset, the others, and their average.

    Raises:
        UserError: no source or several, or runs that cannot be compared.
    """
    check_comparable(runs, same=("backbone", "subsample"), apart=("dataset",))
    learned = [run for run in runs.values() if run["trainable_parameters"]]
    sources = {run["dataset"] for run in learned if not run.get("prompts_from")}
    if len(sources) != 1:
        names = ", ".join(sorted(sources)) or "none"
        raise UserError(f"transfer is from one dataset that was trained on, here from: {names}")
    (source,) = sources
    targets = list(dict.fromkeys(r["dataset"] for r in runs.values() if r["dataset"] != source))
    cells = _cells(runs.values(), lambda run: run["method"], "dataset")
    rows = []
    for header in _headers(runs.values()):
        for method in sorted(cells, key=rank):
            row = {"images": header.removesuffix(" (%)"), "method": method}
            row[f"{source} (source, %)"] = cells[method].get((source, header), [])
            for target in targets:
                row[f"{target} (%)"] = cells[method].get((target, header), [])
            means = [mean(v) for t in targets if (v := cells[method].get((t, header)))]
            row["average of targets (%)"] = [mean(means)] if len(means) == len(targets) > 0 else []
            rows.append(row)
    return rows


def _cells(runs: Iterable[dict], row: Callable[[dict], object], column: str = "subsample") -> dict:
    """Accuracies over seeds: row -> (column, header of the evaluation) -> values."""
    cells: dict = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run["seed"]):
        for evaluation in run["evaluations"]:
            cells[row(run)][run[column], header_of(evaluation)].append(Accuracy.of(evaluation))
    return cells


def _headers(runs: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(header_of(e) for run in runs for e in run["evaluations"]))


PROTOCOLS = {"base-to-new": base_to_new, "transfer": transfer}
