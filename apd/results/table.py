"""One table of many runs.

    apd-table RUN [RUN...] [--protocol NAME] [--markdown FILE] [--csv FILE] [--plot FILE]

RUN is a run's folder, or a folder above several. Runs of one method that differ in the seed make
one row: mean and sample standard deviation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from statistics import mean, stdev

from tabulate import tabulate

from apd.errors import UserError, exit_codes
from apd.files import atomic_write
from apd.results.schema import RESULTS_NAME, is_complete, read_results

_ORDER = (
    *("ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "VPT", "IVLP", "MaPLe", "APT", "AdvPT", "AdvVPT"),
    *("AdvIVLP", "AdvMaPLe", "FAP", "APD"),
)
_SAME = ("dataset", "subsample", "backbone")  # must agree within a table
_MARK = "†"
_FIXED = {"method", "prompts", "parameters", "runs", "dataset", "images"}  # are not measured


class Accuracy(float):
    """In percent, with the flags of its evaluation: names, each with a sentence."""

    flags: dict = {}

    @classmethod
    def of(cls, evaluation: dict) -> Accuracy:
        value = cls(evaluation["accuracy"])
        value.flags = evaluation.get("flags", {})
        return value


def load_runs(folders: list[str | Path]) -> dict[Path, dict]:
    """The results of all complete runs in or below ``folders``, by run folder.

    Raises:
        UserError: a folder holds none, or a results.json cannot be read.
    """
    runs = {}
    for folder in folders:
        paths = {path.resolve().parent for path in Path(folder).rglob(RESULTS_NAME)}
        found = {run: read_results(run) for run in sorted(paths) if is_complete(run)}
        if not found:
            raise UserError(f"no finished run ({RESULTS_NAME}) in {folder}")
        runs.update(found)
    return runs


def build_table(runs: dict[Path, dict]) -> list[dict]:
    """One row a method, baselines first, APD last; all rows have the same columns.

    A measured column holds the list of its values, one a run (empty: not evaluated), and the
    others one value.

    Raises:
        UserError: the runs cannot be compared: another dataset, classes, backbone or number of
            shots, another threat model under the same attack's name, or one seed twice.
    """
    check_comparable(runs)
    attacks = {e["attack"]: header_of(e) for run in runs.values() for e in run["evaluations"]}
    rows = []
    for method in sorted({run["method"] for run in runs.values()}, key=rank):
        same = sorted((r for r in runs.values() if r["method"] == method), key=lambda r: r["seed"])
        row = {
            "method": method,
            "prompts": same[0]["modality"],
            "parameters": same[0]["trainable_parameters"],
            "runs": len(same),
        }
        for attack, header in attacks.items():
            row[header] = [
                Accuracy.of(e) for run in same for e in run["evaluations"] if e["attack"] == attack
            ]
        row["seconds"] = [run["seconds"] for run in same]
        rows.append(row)
    return rows


def check_comparable(
    runs: dict[Path, dict], same: tuple[str, ...] = _SAME, apart: tuple[str, ...] = ()
) -> None:
    """Raise UserError unless all runs agree in the fields ``same``, shots and threat models.

    ``apart``: fields in which they may differ; only runs that agree in those must have equally
    many images, and seeds of their own.
    """
    first: dict = {}  # what must be equal -> the folder that said so first, and what it said

    def check(what: str, value, folder: Path) -> None:
        where, expected = first.setdefault(what, (folder, value))
        if value != expected:
            if isinstance(value, dict):  # say what differs only
                keys = [k for k in {**expected, **value} if expected.get(k) != value.get(k)]
                expected, value = ({k: d.get(k) for k in keys} for d in (expected, value))
            raise UserError(
                f"one table cannot hold two values of {what}: {expected} in {where}, "
                f"{value} in {folder}"
            )

    for folder, run in runs.items():
        part = tuple(run[field] for field in apart)
        for field in same:
            check(field, run[field], folder)
        if run["trainable_parameters"]:  # zero-shot has no use for shots
            check("shots", run["shots"], folder)
        where, _ = first.setdefault(("run", run["method"], run["seed"], part), (folder, None))
        if where != folder:
            raise UserError(f"{run['method']} has seed {run['seed']} twice: {where}, {folder}")
        for evaluation in run["evaluations"]:
            threat = dict(evaluation["threat_model"] or {})
            threat.pop("seed", None)
            check(f"the threat model of {evaluation['attack']}", threat, folder)
            what = " ".join(("the number of images of", evaluation["attack"], *part))
            check(what, evaluation["total"], folder)


def header_of(evaluation: dict) -> str:
    threat = evaluation["threat_model"]
    if threat is None:
        return f"{evaluation['attack']} (%)"
    norm = "" if threat["norm"] == "linf" else f" {threat['norm'].upper()}"
    last = ", last iterate" if threat["last_iterate"] else ""
    source = f", {threat['source']}" if threat["source"] != "white-box" else ""
    half = f", {threat['precision']}" if threat["precision"] != "fp32" else ""
    attack = {"autoattack": "AutoAttack"}.get(evaluation["attack"], evaluation["attack"].upper())
    return f"{attack}{norm} eps={threat['eps']:g}/255{last}{source}{half} (%)"


def rank(method: str) -> tuple:
    """Sort key: baselines first, APD last."""
    return (_ORDER.index(method), "") if method in _ORDER else (len(_ORDER), method)


def format_table(rows: list[dict], tablefmt: str = "simple") -> str:
    """The table as text, in any of tabulate's formats, and a footnote for each flag."""
    several = any(row.get("runs", 1) > 1 for row in rows)
    headers = [h for h in rows[0] if h != "runs" or several]
    notes: list[str] = []
    body = [[_format(h, row[h]) + _marks(row[h], notes) for h in headers] for row in rows]
    align = ["left" if isinstance(rows[0][h], str) else "right" for h in headers]
    table = tabulate(body, headers, tablefmt=tablefmt, disable_numparse=True, colalign=align)
    footnotes = [f"{_MARK}{i} {note}" for i, note in enumerate(notes, start=1)]
    return "\n\n".join([table, *footnotes])


def _marks(values, notes: list[str]) -> str:
    """References to the flags of a cell's values, which are added to ``notes``."""
    flags = [getattr(v, "flags", {}) for v in values] if isinstance(values, list) else []
    found = dict.fromkeys(f"{name}: {text}" for part in flags for name, text in part.items())
    notes += [note for note in found if note not in notes]
    return "".join(f" {_MARK}{notes.index(note) + 1}" for note in found)


def _format(header: str, value) -> str:
    if header in _FIXED:
        return f"{value:,}" if isinstance(value, int) else value
    digits = 0 if header == "seconds" else 1
    if not value:
        return "-"
    spread = f" ± {stdev(value):.{digits}f}" if len(value) > 1 else ""
    return f"{mean(value):.{digits}f}{spread}"


def write_csv(rows: list[dict], path: str | Path) -> None:
    """The table as numbers: a measured column, then its standard deviation (empty for one run)."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        flat = [h for h in rows[0] for h in ([h] if h in _FIXED else [h, f"{h}, std"])]
        writer = csv.DictWriter(f, flat)
        writer.writeheader()
        for row in rows:
            cells = dict(row)
            for header in row.keys() - _FIXED:
                cells[header] = mean(row[header]) if row[header] else ""
                cells[f"{header}, std"] = stdev(row[header]) if len(row[header]) > 1 else ""
            writer.writerow(cells)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    parser.add_argument(
        "--protocol",
        choices=("base-to-new", "transfer"),
        help="base and new classes, or source and target data sets",
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    parser.add_argument("--plot", metavar="FILE", help="plot clean against robust (.png)")
    args = parser.parse_args(argv)
    runs = load_runs(args.runs)
    if args.protocol and args.plot:
        raise UserError("--plot draws the table of methods: leave out --protocol")
    if args.protocol:
        from apd.results.protocols import PROTOCOLS

        rows = PROTOCOLS[args.protocol](runs)
    else:
        rows = build_table(runs)
    print(format_table(rows))
    if args.markdown:
        with atomic_write(args.markdown) as temporary:
            temporary.write_text(format_table(rows, "pipe") + "\n", encoding="utf-8")
    if args.csv:
        write_csv(rows, args.csv)
    if args.plot:
        from apd.results.plot import plot  # matplotlib is slow to import

        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
