"""Finished runs, with all their evaluations and, image by image, their verdicts."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from apd.errors import UserError
from apd.results.provenance import trained_on
from apd.results.schema import RESULTS_NAME, read_results
from apd.results.verdicts import Verdicts, read_verdicts, verdicts_keys, verdicts_path
from apd.results.words import images_said


def load_runs(folders: list[str | Path], split: str | None = None) -> dict[Path, dict]:
    """The results of all complete runs in or below ``folders``, by run folder.

    "evaluations" has those of results.json, then what ``apd-eval`` added of the same prompts;
    with ``split``, those of that split only, and the runs that have some. "trained_on" is there,
    if it can be known (``apd.results.provenance``), and "shots" and "seed" are what it says.

    Raises:
        UserError: a folder holds none, or a file cannot be read.
    """
    runs: dict[Path, dict] = {}
    for folder in folders:
        paths = _run_folders(folder)
        for path in sorted(paths - runs.keys()):
            if (results := load_run(path))["complete"] is True:
                runs[path] = results
        if not paths & runs.keys():
            raise UserError(f"no finished run ({RESULTS_NAME}) in {folder}")
    return runs if split is None else _of(split, runs)


def load_run(folder: Path) -> dict:
    """The results of one run; fields as ``load_runs`` gives them.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    results = read_results(folder)
    results["evaluations"] += _added(folder, results)
    record = results["trained_on"] = trained_on(folder, results)
    return {**results, **{key: record[key] for key in ("shots", "seed") if record}}


def _of(split: str, runs: dict[Path, dict]) -> dict[Path, dict]:
    found = {}
    for folder, run in runs.items():
        if evaluations := [one for one in run["evaluations"] if one["split"] == split]:
            found[folder] = {**run, "evaluations": evaluations}
    if not found:
        raise UserError(f"none of these runs has an evaluation on {split} images")
    return found


def _run_folders(folder: str | Path) -> set[Path]:
    found, seen = set(), set()
    for path, names, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # links go round
            names.clear()
        elif RESULTS_NAME in files:
            found.add(Path(real))
        seen.add(real)
    return found


def _refuse(error: OSError) -> None:
    if isinstance(error, PermissionError):  # others: no folder, or one that has just gone
        raise UserError(f"{error.filename}: {error.strerror}")


def _added(folder: Path, results: dict) -> list[dict]:
    """Records in the run's evaluations/ that results.json lacks, of the same prompts."""
    known = {record.get("key") for record in results["evaluations"]}
    keys = verdicts_keys(folder)
    if not (added := [key for key in keys if key not in known]):
        return []  # the usual case: nothing has to be read
    model = _model(folder, results)
    kept = [read_verdicts(verdicts_path(folder, key)) for key in added]
    records = [one.record for one in kept if one.identity["model"] == model]
    return sorted(records, key=lambda r: (r["attack"], r["threat_model"]["eps"], r["key"]))


def judged(folder: Path, evaluation: dict) -> tuple[np.ndarray, str] | None:
    """(N,) bool, which images are robust (clean: right), and their digest; None: not kept."""
    if evaluation["threat_model"] is not None:
        kept = _kept_of(folder, evaluation)
        return kept and (kept.stands, kept.identity["images"])
    # A clean evaluation keeps no file, but an attack on the same images tells which of them were
    # wrong before it (unless it attacked those too: then it does not know of as many).
    counts = (evaluation["correct"], evaluation["total"])
    model = _model_of(folder)
    for key in verdicts_keys(folder):
        kept = _kept(folder, key)
        same = images_said(kept.record) == images_said(evaluation)
        ours = model in (None, kept.identity["model"])
        if ours and same and counts == (kept.was_right.sum(), len(kept.was_right)):
            return kept.was_right, kept.identity["images"]
    return None


def clean_accuracy(folder: Path, run: dict, evaluation: dict) -> float | None:
    """In %, on the images of ``evaluation``; None if it is not known."""
    for other in run["evaluations"]:
        if other["threat_model"] is None and images_said(other) == images_said(evaluation):
            return other["accuracy"]
    # with the last iterate counted, images that were wrong when clean are attacked too
    if evaluation["threat_model"]["last_iterate"]:
        return None
    kept = _kept_of(folder, evaluation)
    return kept and 100 * float(kept.was_right.mean())


def _kept_of(folder: Path, evaluation: dict) -> Verdicts | None:
    """What the evaluation's own file says, if it has one."""
    key = evaluation.get("key")  # older results do not say
    return _kept(folder, key) if key and verdicts_path(folder, key).exists() else None


def _model(folder: Path, results: dict) -> str | None:
    """The fingerprint of the run's prompts; None: nothing tells it."""
    model = results.get("fingerprint")
    known = {record.get("key") for record in results["evaluations"]}
    if model is None and (own := [key for key in verdicts_keys(folder) if key in known]):
        model = _kept(folder, own[0]).identity["model"]  # of an older version
    return model


@lru_cache(maxsize=None)
def _model_of(folder: Path) -> str | None:
    return _model(folder, read_results(folder))


@lru_cache(maxsize=None)  # each is compared with many others
def _kept(folder: Path, key: str) -> Verdicts:
    return read_verdicts(verdicts_path(folder, key))
