"""What sets the runs of a method apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from apd.results.comparable import settings

DEFAULT = "default"  # of a method's configs: the one that changes nothing


def config_changes(
    runs: dict[Path, dict], free: Collection[str] = ()
) -> tuple[dict[Path, dict], dict]:
    """Keys and values that each run of a method changes, and those that it changes them from.

    The latter are each key's most common value. Keys of the data set and ``free`` ones are no
    changes.
    """
    found = {folder: settings(run) for folder, run in runs.items()}
    # of equally common values the default's run has the shorter name
    folders = sorted(runs, key=lambda folder: len(runs[folder]["config"].get("OUTPUT_DIR", "")))
    default = {}
    for key in sorted(set.intersection(*map(set, found.values()))):
        counts = Counter(repr(found[folder][key]) for folder in folders)
        if len(counts) > 1 and not key.startswith("DATASET.") and key not in free:
            usual = counts.most_common(1)[0][0]
            default[key] = next(s[key] for s in found.values() if repr(s[key]) == usual)
    changes = {
        folder: {key: setting[key] for key in default if setting[key] != default[key]}
        for folder, setting in found.items()
    }
    return changes, default


def assigned(values: dict) -> str:
    """Keys and values in words; DEFAULT, if there are none."""
    said = (f"{key.removeprefix('TRAINER.')}={value}" for key, value in values.items())
    return ", ".join(said) or DEFAULT
