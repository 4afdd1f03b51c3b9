"""The galleries of the report: images under the attacks of two evaluations."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from apd.errors import UserError, one_line
from apd.figures.points import setting_of
from apd.results.verdicts import gallery_path, verdicts_keys
from apd.results.words import described, unusual


def chosen(runs: dict[Path, dict]) -> list[tuple[Path, dict]]:
    """The evaluations whose images are shown, each with its run's folder.

    They have the most and the least robust accuracy under that white-box attack, in that setting,
    which most runs have verdicts of.
    """
    groups = defaultdict(list)
    for folder, run in runs.items():
        stored = set(verdicts_keys(folder))
        for record in run["evaluations"]:
            if record.get("key") in stored and not unusual(record["threat_model"]):
                groups[setting_of(run), described(record)].append((folder, record))
    largest = max(groups.values(), key=len, default=[])
    ranked = sorted(largest, key=lambda folder_and_record: -folder_and_record[1]["accuracy"])
    return ranked if len(ranked) < 2 else [ranked[0], ranked[-1]]


def galleries(
    runs: dict[Path, dict], store: Callable[[Path, dict, str], None]
) -> tuple[list[dict], list[str]]:
    """The galleries as images for the page, and sentences that say why others are not there.

    Args:
        store: draws and stores a gallery that is not stored yet; its arguments are the run's
            folder and results, and the evaluation's key.
    """
    shown, refused = [], []
    for folder, record in chosen(runs):
        run, path = runs[folder], gallery_path(folder, record["key"])
        title = f"{run['method']}, seed {run['seed']}, {described(record)}"
        try:
            if not path.exists():
                store(folder, run, record["key"])
            image = base64.b64encode(path.read_bytes()).decode()
        except (OSError, UserError) as error:
            reason = one_line(error).replace(f"{folder}/", "")  # of no use on another machine
            refused.append(f"No gallery of {title}: {reason}")
            continue
        shown.append({"title": title, "source": f"data:image/png;base64,{image}"})
    return shown, refused
