"""The tables and the figure of docs/test_time.md, from the runs of scripts/test_time.sh.

python scripts/test_time.py OUTPUT SET... --output DIR    # also written to DIR, with static.png
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
PGD, MORE_STEPS, SQUARE, EPS, WHOLE_BOX = "pgd-20", "pgd-40", "square-100", 2.0, 128.0
RESAMPLES = 2_000
STRONGER = Path("flowers5", "RTPT-20")  # the run that a stronger attack is tried on

Arm = tuple[str, str]  # row, column
QUESTIONS: dict[str, list[tuple[Arm, Arm]]] = {  # each a list of comparisons
    "1. static overstates": [
        ((row, "static"), (row, "adaptive")) for row in ("TTC", "RTPT", "TAPT-AdvIVLP")
    ],
    "2. a defence of zero-shot CLIP against APD": [
        ((row, "adaptive"), ("APD", "adaptive")) for row in ("TTC", "RTPT")
    ],
    "3. a defence on APD against APD": [
        ((f"{defence}-APD", what), ("APD", what))
        for what in ("adaptive", "clean")
        for defence in ("TTC", "RTPT", "TAPT")
    ],
}


def evaluations(folder: Path, eps: float = EPS) -> dict[tuple[str, str], dict]:
    """(attack, source) -> record, of the attacks with radius ``eps`` (in 1/255), and the clean."""
    ((folder, results),) = load_runs([folder]).items()
    found = {}
    for record in results["evaluations"]:
        threat = record["threat_model"]
        if threat is None:
            found["clean", ""] = record
        elif threat["eps"] == eps:
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


def differences(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[np.ndarray]:
    """Of each image's verdicts, set by set: 1, 0 or -1."""
    return [a.astype(int) - b for a, b in zip(ours, theirs)]


def cell(parts: list[np.ndarray], sign: str = "") -> str:
    value, low, high = interval(parts)
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def table(root: Path, sets: list[str]) -> str:
    rows = []
    for row, name in ROWS.items():
        found = {what: verdicts(root, sets, row, what) for what in COLUMNS}
        cells = {what: cell(parts) for what, parts in found.items()}
        paired = differences(found["static"], found["adaptive"])
        cells["static - adaptive"] = "-" if row in UNDEFENDED else cell(paired, "+")
        records = [evaluations(root / s / row)["clean", ""] for s in sets]
        rate = sum(r["total"] for r in records) / sum(r["seconds"] for r in records)
        rows.append({"": name, **cells, "clean images/s": f"{rate:.1f}"})
    return tabulate(rows, "keys", "github", disable_numparse=True)


def answers(root: Path, sets: list[str]) -> str:
    """The differences that docs/test_time.md asks for, paired by image."""
    rows = []
    for question, comparisons in QUESTIONS.items():
        for (row, what), (other, other_what) in comparisons:
            ours, theirs = verdicts(root, sets, row, what), verdicts(root, sets, other, other_what)
            paired = differences(ours, theirs)
            _, low, high = interval(paired)
            rows.append(
                {
                    "question": question,
                    "difference": f"{ROWS[row]}, {what}, minus {ROWS[other]}, {other_what}",
                    "points": cell(paired, "+"),
                    "answer": "higher" if low > 0 else "lower" if high < 0 else "undecided",
                }
            )
    return tabulate(rows, "keys", "github", disable_numparse=True)


def checks(root: Path, name: str) -> str:
    """How the adaptive attack does with more steps, at a large radius, and by its last iterates."""
    rows = []
    for row in (row for row in ROWS if row not in (*UNDEFENDED, "TTC-published")):
        records = evaluations(root / name / row)
        large = evaluations(root / name / row, WHOLE_BOX)
        last = root / name / f"{row}-last"
        values = {
            "static": records.get((PGD, "static")),
            "adaptive": records.get((PGD, "adaptive")),
            "adaptive, last iterate": evaluations(last).get((PGD, "adaptive"))
            if (last / "results.json").exists()
            else None,
            MORE_STEPS: records.get((MORE_STEPS, "adaptive")),
            f"{MORE_STEPS}, eps {WHOLE_BOX:g}/255": large.get((MORE_STEPS, "adaptive")),
        }
        shown = {what: f"{r['accuracy']:.1f}" if r else "-" for what, r in values.items()}
        rows.append({"row": ROWS[row], **shown})
    return tabulate(rows, "keys", "github", disable_numparse=True)


def stronger(root: Path) -> str:
    """The adaptive attacks on the images of ``STRONGER``, by steps and draws of a gradient."""
    if not (root / STRONGER / "results.json").exists():
        return "has not run yet"
    records = [record for record in evaluations(root / STRONGER).values() if record["threat_model"]]
    rows = [
        {
            "attack": record["attack"],
            "draws of a gradient": record["threat_model"]["eot"],
            "images": record["total"],
            "robust (%)": f"{record['accuracy']:.1f}",
        }
        for record in records
    ]
    return tabulate(rows, "keys", "github", disable_numparse=True)


def flags(root: Path, sets: list[str]) -> str:
    """Each flag that a record has, with its sets."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for name in sets:
        for row in ROWS:
            ((_, results),) = load_runs([root / name / row]).items()
            for record in results["evaluations"]:
                threat = record["threat_model"]
                attack = record["attack"]
                if threat is not None:
                    attack += f" ({threat['source']}, eps {threat['eps']:g}/255)"
                for flag in record.get("flags", {}):
                    names.setdefault((flag, ROWS[row], attack), []).append(name)
    rows = [(*key, ", ".join(where)) for key, where in sorted(names.items())]
    return tabulate(rows, ("flag", "row", "attack", "sets"), "github")


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
    texts = {
        "table": table(args.root, args.sets),
        "answers": answers(args.root, args.sets),
        "checks": checks(args.root, args.sets[0]),
        "stronger": stronger(args.root),
        "flags": flags(args.root, args.sets),
    }
    print(*texts.values(), sep="\n\n")
    if args.output:
        for name, text in texts.items():
            (args.output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        draw(args.root, args.sets, args.output / "static.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
