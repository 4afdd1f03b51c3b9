"""Which runs may be compared in one table or figure, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from apd.config import HARMLESS, KEYS, flat, unread
from apd.errors import UserError
from apd.results.provenance import FIELDS
from apd.results.words import ALL_IMAGES, classes_text, header

_EPOCH_CHOICE = (
    "TEST.FINAL_MODEL"  # an evaluation's key, but it decides which prompts are evaluated
)
# config keys in which the runs of one row may differ; attacks and images are compared separately
_MAY_DIFFER = HARMLESS | {"SEED", "DATASET.NUM_SHOTS", "DATALOADER.NUM_WORKERS", "USE_CUDA"}


def learns(run: dict) -> bool:
    """Whether the run's method learns anything; zero-shot methods do not depend on shots."""
    return bool(run["trainable_parameters"])


def shots_of(run: dict) -> int | None:
    """The run's shots; None: its method is zero-shot, so that the number does not matter."""
    return run["shots"] if learns(run) else None


def trained_where(run: dict) -> str:
    """The data set on which the run's prompts were trained, in words.

    The classes are named too, if they are another part (base, new) than the run's own. "": it is
    not known, or nothing was trained.
    """
    if not (record := run.get("trained_on")):
        return ""
    half = "" if record["subsample"] == run["subsample"] else classes_text(record["subsample"])
    return ", ".join(filter(None, [record["dataset"], half]))


def settings(run: dict) -> dict:
    """A run's config keys and values that rows of tables are told apart by.

    Left out are keys of evaluations, those in which runs of a row may differ, and those that the
    method does not read. Where a run evaluates another run's prompts, the keys of training have the
    values of that other run. Keys that a run of an earlier version lacks have their defaults.
    """
    own = _defaults(run["method"]) | _compared(run["config"], run["method"])
    return own | {k: v for k, v in _source_settings(run).items() if k in own}


def _source_settings(run: dict) -> dict:
    """The settings that trained the prompts which a run evaluates.

    Empty if the run trained them itself, or if the settings are not known.
    """
    record = run.get("trained_on") if run.get("prompts_from") else None
    return (record or {}).get("settings", {})


@cache
def _defaults(method: str) -> dict:
    return _compared(KEYS, method)


def _compared(config: dict, method: str) -> dict:
    skipped = ("AT.TEST.", "TEST.", "DATALOADER.TEST.", *unread(method))
    return {
        key: value
        for key, value in flat(config)
        if key == _EPOCH_CHOICE or key not in _MAY_DIFFER and not key.startswith(skipped)
    }


def changed_settings(run: dict, other: dict) -> list[str]:
    """The settings in which two runs of one method differ, as "KEY one and another"."""
    if _source_settings(run) == _source_settings(other):
        # only sections that differ: flattening equal ones would take most of a large table's time
        run, other = _unequal_sections(run, other), _unequal_sections(other, run)
    first, second = settings(run), settings(other)
    return [
        f"{key} {first[key]!r} and {second[key]!r}"
        for key in sorted(first.keys() & second.keys())  # each host has keys that the other lacks
        if first[key] != second[key]
    ]


def _unequal_sections(run: dict, other: dict) -> dict:
    """``run`` with only those sections of its config that differ from ``other``'s."""
    ours, theirs = run["config"], other["config"]
    unequal = [k for k in ours.keys() & theirs.keys() if ours[k] != theirs[k]]
    return {**run, "config": {k: ours[k] for k in unequal}}


def check_comparable(runs: dict[Path, dict], same: tuple[str, ...]) -> None:
    """Raise UserError unless all runs agree in the fields ``same``, hosts and threat models."""
    first: dict = {}  # name of a value that must be equal -> its first folder, and the value there

    def check(name: str, value, folder: Path) -> None:
        first_folder, expected = first.setdefault(name, (folder, value))
        if value != expected:
            if isinstance(value, dict):  # name only the keys that differ
                keys = [k for k in {**expected, **value} if expected.get(k) != value.get(k)]
                expected, value = ({k: d.get(k) for k in keys} for d in (expected, value))
            raise UserError(
                f"one table cannot hold two values of {name}: {expected} in {first_folder}, "
                f"{value} in {folder}"
            )

    for folder, run in runs.items():
        check("host", run["host"].split()[0], folder)  # without its version
        for field in same:
            if field != "shots" or learns(run):
                check(field, run[field], folder)
        if trained_on := trained_where(run):
            tested = f"{run['dataset']} ({classes_text(run['subsample'])})"
            check(f"what prompts tested on {tested} were trained on", trained_on, folder)
        for evaluation in run["evaluations"]:
            check("the split (--split chooses one)", evaluation["split"], folder)
            threat = dict(evaluation["threat_model"] or {})
            threat.pop("seed", None)
            column = header(evaluation).removesuffix(" (%)")
            check(f"the threat model of {column}", threat, folder)
            images = f"the number of images of {column}, {run['dataset']}, {run['subsample']}"
            check(images, evaluation["total"], folder)


def check_same_prompts(runs: dict[Path, dict], row: Callable[[Path, dict], str]) -> None:
    """Raise UserError if runs of one row have the same training record, but other prompts.

    A row may have several runs with one record: the prompts of one training, evaluated on several
    data sets or halves of the classes.
    """
    first: dict = {}  # row and record -> the first folder that has it, and its prompts' hash
    for folder, run in runs.items():
        record, prompts = run.get("trained_on"), run.get("prompts_sha256")
        if not record or not prompts:
            continue
        training = (row(folder, run), *(record[field] for field in FIELDS))
        first_folder, expected = first.setdefault(training, (folder, prompts))
        if prompts != expected:
            raise UserError(
                f"{first_folder} and {folder} are about different prompts of {run['method']}, seed "
                f"{record['seed']}, {record['dataset']}: evaluate those of one run, at one epoch"
            )


def shots_rank(shots: int) -> tuple:
    """A sort key by number of shots; "all images" comes last."""
    return (shots == ALL_IMAGES, shots)
