"""The commands that make the runs which tables lack."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from apd.results.words import shots_said
from apd.tables.grid import Missing


def commands(missing: Iterable[Missing], runs: dict[Path, dict]) -> list[str]:
    """A line of the shell for each missing run, and comments (#) before some.

    Each is made from the command of the most similar run of the same row. Tables name a run that
    trains before those that evaluate what it trained, and so does this.
    """
    return [line for one in missing for line in _command(one, runs)]


def _command(missing: Missing, runs: dict[Path, dict]) -> list[str]:
    place, seed = missing.place, missing.seed
    name = f"{missing.row}, {place.dataset}, {shots_said(place.shots)}, seed {seed}"
    at_place = [
        run
        for run in runs.values()
        if (run["dataset"], run["subsample"]) == (place.dataset, place.subsample)
    ]
    evaluates = any(run.get("prompts_from") for run in at_place)
    like = [
        run
        for run in (runs[folder] for folder in missing.siblings)
        if run.get("argv")
        and run["subsample"] == place.subsample
        and bool(run.get("prompts_from")) == evaluates
    ]
    if not like:
        return [f"# {name}: no similar run of this row knows its command"]
    run = max(
        like,
        key=lambda run: (
            run["shots"] == place.shots,
            run["dataset"] == place.dataset,
            -abs(run["shots"] - place.shots),
        ),
    )
    lines = []
    if run["shots"] != place.shots:
        lines.append(
            f"# from a run with {shots_said(run['shots'])}: settings that depend on the shots "
            "(epochs) may have to change"
        )
    argv = _split(run["argv"])
    old_file = Path(_option(argv, "--dataset-config-file") or "")
    new_file = old_file
    if run["dataset"] != place.dataset:
        files = [
            _option(_split(other.get("argv") or []), "--dataset-config-file") for other in at_place
        ]
        if not any(files):
            return [f"# {name}: no run on {place.dataset} knows its command"]
        new_file = Path(next(filter(None, files)))
        _set(argv, "--dataset-config-file", str(new_file))
    _set(argv, "--seed", str(seed))
    if run["shots"] != place.shots:
        _set(argv, "DATASET.NUM_SHOTS", str(place.shots))
    for flag in ("--output-dir", "--model-dir"):
        if (folder := _option(argv, flag)) is not None:
            renamed = {
                f"seed{run['seed']}": f"seed{seed}",
                f"shots_{run['shots']}": f"shots_{place.shots}",
            }
            if old_file != new_file:
                renamed[old_file.stem] = new_file.stem
            parts = [renamed.get(part, part) for part in folder.split("/")]
            ours, theirs = f"_{run['shots']}shots", f"_{place.shots}shots"
            parts = [p.removesuffix(ours) + theirs if p.endswith(ours) else p for p in parts]
            if flag == "--output-dir" and parts == folder.split("/"):
                lines.append("# give it another --output-dir: this one holds another run")
            _set(argv, flag, "/".join(parts))
    return [*lines, shlex.join(["python", "train.py", *argv])]


def _split(argv: list[str]) -> list[str]:
    """``--flag=value`` as two arguments."""
    return [
        part
        for argument in argv
        for part in (argument.split("=", 1) if argument.startswith("--") else [argument])
    ]


def _option(argv: list[str], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


def _set(argv: list[str], name: str, value: str) -> None:
    """Change the value after ``name``, in place; a new flag comes first, a new key last."""
    if name in argv:
        argv[argv.index(name) + 1] = value
    elif name.startswith("--"):
        argv[:0] = [name, value]
    else:
        argv += [name, value]
