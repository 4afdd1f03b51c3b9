"""The commands that make runs that tables lack."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from apd.classes import folder_name
from apd.results.words import shots_text
from apd.tables.cells import Missing

_OF_DATA_SETS = ("--dataset-config-file", "DATASET.CLASSES", "DATASET.VAL_TO_TEST")


def commands(missing: Iterable[Missing], runs: dict[Path, dict]) -> list[str]:
    """A shell command for each missing run, and comments (#) before some.

    Each is made from the command of the most similar run of the same row. The order is that of the
    tables, in which a run that trains comes before those that evaluate its prompts.
    """
    return [line for run in missing for line in _command(run, runs)]


def _command(missing: Missing, runs: dict[Path, dict]) -> list[str]:
    place, seed = missing.place, missing.seed
    name = f"{missing.row}, {place.dataset}, {shots_text(place.shots)}, seed {seed}"
    at_place = [
        run
        for run in runs.values()
        if (run["dataset"], run["subsample"]) == (place.dataset, place.subsample)
    ]
    evaluates = any(run.get("prompts_from") for run in at_place)
    similar = [
        run
        for run in (runs[folder] for folder in missing.siblings)
        if run.get("argv")
        and run["subsample"] == place.subsample
        and bool(run.get("prompts_from")) == evaluates
    ]
    if not similar:
        return [f"# {name}: no similar run of this row knows its command"]
    run = max(
        similar,
        key=lambda run: (
            run["shots"] == place.shots,
            run["dataset"] == place.dataset,
            -abs(run["shots"] - place.shots),
        ),
    )
    lines = []
    if run["shots"] != place.shots:
        lines.append(
            f"# from a run with {shots_text(run['shots'])}: settings that depend on the shots "
            "(epochs) may have to change"
        )
    argv = _split(run["argv"])
    old_folder = new_folder = _folder(argv)
    if run["dataset"] != place.dataset:
        commands = [_split(other.get("argv") or []) for other in at_place]
        commands = [words for words in commands if _option(words, "--dataset-config-file")]
        if not commands:
            return [f"# {name}: no run on {place.dataset} knows its command"]
        for key in _OF_DATA_SETS:
            _set(argv, key, _option(commands[0], key))
        new_folder = _folder(argv)
    _set(argv, "--seed", str(seed))
    if run["shots"] != place.shots:
        _set(argv, "DATASET.NUM_SHOTS", str(place.shots))
    for flag in ("--output-dir", "--model-dir"):
        if (folder := _option(argv, flag)) is not None:
            renamed = {
                f"seed{run['seed']}": f"seed{seed}",
                f"shots_{run['shots']}": f"shots_{place.shots}",
            }
            renamed[old_folder] = new_folder
            path = [renamed.get(name, name) for name in folder.split("/")]
            ours, theirs = f"_{run['shots']}shots", f"_{place.shots}shots"
            path = [n.removesuffix(ours) + theirs if n.endswith(ours) else n for n in path]
            if flag == "--output-dir" and path == folder.split("/"):
                lines.append("# give it another --output-dir: this one holds another run")
            _set(argv, flag, "/".join(path))
    return [*lines, shlex.join(["python", "train.py", *argv])]


def _split(argv: list[str]) -> list[str]:
    """The arguments, with ``--flag=value`` as two."""
    return [
        text
        for argument in argv
        for text in (argument.split("=", 1) if argument.startswith("--") else [argument])
    ]


def _option(argv: list[str], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


def _folder(argv: list[str]) -> str:
    """The folder in which a sweep puts the runs of a data set."""
    dataset = Path(_option(argv, "--dataset-config-file") or "").stem
    return folder_name(dataset, _option(argv, "DATASET.CLASSES") or "")


def _set(argv: list[str], name: str, value: str | None) -> None:
    """Change the value after ``name``, in place; a new flag is put first, a new key last.

    ``value`` None removes both.
    """
    if value is None:
        if name in argv:
            at = argv.index(name)
            del argv[at : at + 2]
    elif name in argv:
        argv[argv.index(name) + 1] = value
    elif name.startswith("--"):
        argv[:0] = [name, value]
    else:
        argv += [name, value]
