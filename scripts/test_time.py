"""The table and the figure of docs/test_time.md, from the runs of scripts/test_time.sh.

python scripts/test_time.py OUTPUT SET... --output DIR    # table.md and static.png
python scripts/test_time.py --chosen OUTPUT SET...        # TTC's TAU by the development sets
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
from tabulate import tabulate

from apd.errors import UserError, exit_codes
from apd.results.runs import image_verdicts, load_runs

ROWS = {  # folder -> name
    "ZeroshotCLIP": "zero-shot CLIP",
    "TTC-published": "TTC, published TAU",
    "TTC": "TTC",
    "RTPT": "R-TPT",
    "AdvIVLP": "AdvIVLP",
    "TAPT-AdvIVLP": "TAPT on AdvIVLP",
    "APD": "APD",
    "TTC-APD": "TTC on APD",
    "RTPT-APD": "R-TPT on APD",
    "TAPT-APD": "TAPT on APD",
}
UNDEFENDED = ("ZeroshotCLIP", "AdvIVLP", "APD")
PGD, SQUARE, EPS = "pgd-20", "square-100", 2.0
RESAMPLES = 2_000


def evaluations(folder: Path) -> dict[tuple[str, str], dict]:
    """(attack, source) -> record, at the table's radius."""
    ((folder, results),) = load_runs([folder]).items()
    found = {}
    for record in results["evaluations"]:
        threat = record["threat_model"]
        if threat is None:
            found["clean", ""] = record
        elif threat["eps"] == EPS:
            found[record["attack"], threat["source"]] = record
    return found


def column(row: str, what: str) -> tuple[str, str]:
    """The record of a row that a column is about."""
    plain = row in UNDEFENDED
    through = "white-box" if plain else "adaptive"
    return {
        "clean": ("clean", ""),
        "static": (PGD, through if plain else "static"),
        "adaptive": (PGD, through),
        "AutoAttack": ("autoattack-10" if plain else "autoattack-rand-10", through),
        "Square": (SQUARE, through),
    }[what]


COLUMNS = ("clean", "static", "adaptive", "AutoAttack", "Square")


def verdicts(root: Path, sets: list[str], row: str, what: str) -> list[np.ndarray]:
    """Which images are right, set by set.

    Raises:
        UserError: a run or an attack is missing.
    """
    found = []
    for name in sets:
        folder = root / name / row
        record = evaluations(folder).get(column(row, what))
        judgement = record and image_verdicts(folder, record)
        if judgement is None:
            raise UserError(f"{folder} has no evaluation for the column {what}: run the script")
        found.append(judgement[0])
    return found


def interval(parts: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean over sets in %, and the 95 % percentile bootstrap over each set's images."""
    rng, means = np.random.default_rng(0), []
    for part in parts:
        values, counts = np.unique(part.astype(int), return_counts=True)
        drawn = rng.multinomial(len(part), counts / len(part), size=RESAMPLES)
        means.append(drawn @ values / len(part))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return 100 * mean(float(part.mean()) for part in parts), 100 * low, 100 * high


def cell(parts: list[np.ndarray], sign: str = "") -> str:
    value, low, high = interval(parts)
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def table(root: Path, sets: list[str]) -> str:
    rows = []
    for row, name in ROWS.items():
        found = {what: verdicts(root, sets, row, what) for what in COLUMNS}
        cells = {what: cell(parts) for what, parts in found.items()}
        apart = [a.astype(int) - b for a, b in zip(found["static"], found["adaptive"])]
        cells["static - adaptive"] = "-" if row in UNDEFENDED else cell(apart, "+")
        records = [evaluations(root / s / row)["clean", ""] for s in sets]
        rate = sum(r["total"] for r in records) / sum(r["seconds"] for r in records)
        rows.append({"": name, **cells, "clean images/s": f"{rate:.1f}"})
    return tabulate(rows, "keys", "github", disable_numparse=True)


def draw(root: Path, sets: list[str], path: Path) -> None:
    """Static against adaptive accuracy of each defended row, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in ROWS if row not in UNDEFENDED]
    figure, axes = pyplot.subplots(figsize=(6, 0.5 * len(rows) + 1))
    for what, marker, shift in (("static", "o", -0.12), ("adaptive", "s", 0.12)):
        found = [interval(verdicts(root, sets, row, what)) for row in rows]
        values = np.array([value for value, *_ in found])
        errors = np.array([[v - low, high - v] for v, low, high in found]).T
        at = np.arange(len(rows)) + shift
        axes.errorbar(values, at, xerr=errors, fmt=marker, capsize=3, label=what)
    axes.set_yticks(range(len(rows)), [ROWS[row] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"robust accuracy, {PGD.upper()}, eps {EPS:g}/255 (%), mean of {len(sets)} sets"
    )
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def chosen(root: Path, sets: list[str]) -> str:
    """The TAU with the highest mean, over sets, of the harmonic mean of clean and adaptive."""
    values = {}
    for folder in sorted(root.glob(f"{sets[0]}/TTC-*")):
        scores = []
        for name in sets:
            found = evaluations(root / name / folder.name)
            clean, robust = found["clean", ""]["accuracy"], found[PGD, "adaptive"]["accuracy"]
            scores.append(2 * clean * robust / max(clean + robust, 1e-9))
        values[folder.name.removeprefix("TTC-")] = mean(scores)
    if not values:
        raise UserError(f"{root} has no runs of the search: PARTS=search first")
    return max(values, key=values.__getitem__)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, metavar="OUTPUT")
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--output", type=Path, metavar="DIR")
    parser.add_argument("--chosen", action="store_true", help="print TTC's TAU only")
    args = parser.parse_args(argv)
    if args.chosen:
        print(chosen(args.root, args.sets))
        return 0
    text = table(args.root, args.sets)
    print(text)
    if args.output:
        (args.output / "table.md").write_text(text + "\n", encoding="utf-8")
        draw(args.root, args.sets, args.output / "static.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
