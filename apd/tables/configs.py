"""The config keys in which the runs of a method differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from apd.results.comparable import settings

DEFAULT = "default"  # the name of a config that changes no key


def config_changes(
    runs: dict[Path, dict], free: Collection[str] = ()
) -> tuple[dict[Path, dict], dict]:
    """The keys and values that each run of a method changes, and the values without a change.

    The latter are each key's most common value. Keys of the data set and those in ``free`` are
    ignored.
    """
    all_settings = {folder: settings(run) for folder, run in runs.items()}
    # of equally common values, that of the run with the shortest folder name is the default
    folders = sorted(runs, key=lambda folder: len(runs[folder]["config"].get("OUTPUT_DIR", "")))
    default = {}
    for key in sorted(set.intersection(*map(set, all_settings.values()))):
        counts = Counter(repr(all_settings[folder][key]) for folder in folders)
        if len(counts) > 1 and not key.startswith("DATASET.") and key not in free:
            usual = counts.most_common(1)[0][0]
            default[key] = next(s[key] for s in all_settings.values() if repr(s[key]) == usual)
    changes = {
        folder: {key: setting[key] for key in default if setting[key] != default[key]}
        for folder, setting in all_settings.items()
    }
    return changes, default


def assigned(values: dict) -> str:
    """Keys and values as text; DEFAULT, if there are none."""
    texts = (f"{key.removeprefix('TRAINER.')}={value}" for key, value in values.items())
    return ", ".join(texts) or DEFAULT
