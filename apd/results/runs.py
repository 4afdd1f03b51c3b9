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
from apd.results.words import images_text


def load_runs(folders: list[str | Path], split: str | None = None) -> dict[Path, dict]:
    """The results of all complete runs in or below ``folders``, by run folder.

    "evaluations" has those of results.json, then those that ``apd-eval`` added for the same
    prompts. "trained_on" is filled in where it can be known (``apd.results.provenance``), and
    "shots" and "seed" are taken from it. With ``split``, only evaluations on that split are
    returned, and only runs that have some.

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
    return runs if split is None else _of_split(split, runs)


def load_run(folder: Path) -> dict:
    """The results of one run; fields as ``load_runs`` gives them.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    results = read_results(folder)
    results["evaluations"] += _added(folder, results)
    record = results["trained_on"] = trained_on(folder, results)
    return {**results, **{key: record[key] for key in ("shots", "seed") if record}}


def _of_split(split: str, runs: dict[Path, dict]) -> dict[Path, dict]:
    selected = {}
    for folder, run in runs.items():
        if evaluations := [
            evaluation for evaluation in run["evaluations"] if evaluation["split"] == split
        ]:
            selected[folder] = {**run, "evaluations": evaluations}
    if not selected:
        raise UserError(f"none of these runs has an evaluation on {split} images")
    return selected


def _run_folders(folder: str | Path) -> set[Path]:
    folders, visited = set(), set()
    for path, names, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:  # a link to a folder above it
            names.clear()
        elif RESULTS_NAME in files:
            folders.add(Path(real))
        visited.add(real)
    return folders


def _refuse(error: OSError) -> None:
    if isinstance(error, PermissionError):  # other errors: the folder does not exist
        raise UserError(f"{error.filename}: {error.strerror}")


def _added(folder: Path, results: dict) -> list[dict]:
    """Records of the same prompts that are in the run's evaluations/, but not in results.json."""
    in_results = {record.get("key") for record in results["evaluations"]}
    keys = verdicts_keys(folder)
    if not (added := [key for key in keys if key not in in_results]):
        return []  # the usual case: nothing has to be read
    model = _model(folder, results)
    verdicts = [read_verdicts(verdicts_path(folder, key)) for key in added]
    records = [v.record for v in verdicts if v.identity["model"] == model]
    return sorted(records, key=lambda r: (r["attack"], r["threat_model"]["eps"], r["key"]))


def image_verdicts(folder: Path, evaluation: dict) -> tuple[np.ndarray, str] | None:
    """The verdict on each image, and the digest of the images.

    Returns:
        (N,) bool, whether the image is classified correctly (attacked, if the evaluation is), and
        the digest; None: the run has no file that tells.
    """
    if evaluation["threat_model"] is not None:
        verdicts = _verdicts_of(folder, evaluation)
        return (verdicts.stands, verdicts.identity["images"]) if verdicts else None
    # A clean evaluation writes no file, but that of an attack on the same images says which were
    # wrong before the attack. Not so if it attacked these too; then the counts differ.
    counts = (evaluation["correct"], evaluation["total"])
    model = _model_of(folder)
    for key in verdicts_keys(folder):
        verdicts = _verdicts(folder, key)
        same_images = images_text(verdicts.record) == images_text(evaluation)
        same_prompts = model in (None, verdicts.identity["model"])
        if (
            same_prompts
            and same_images
            and counts == (verdicts.was_right.sum(), len(verdicts.was_right))
        ):
            return verdicts.was_right, verdicts.identity["images"]
    return None


def clean_accuracy(folder: Path, run: dict, evaluation: dict) -> float | None:
    """The run's clean accuracy, in %, on the images of ``evaluation``; None: it is not known."""
    for other in run["evaluations"]:
        if other["threat_model"] is None and images_text(other) == images_text(evaluation):
            return other["accuracy"]
    # an attack that counts the last iterate also attacks images that were wrong before it
    if evaluation["threat_model"]["last_iterate"]:
        return None
    verdicts = _verdicts_of(folder, evaluation)
    return 100 * float(verdicts.was_right.mean()) if verdicts else None


def _verdicts_of(folder: Path, evaluation: dict) -> Verdicts | None:
    """The verdicts in the evaluation's own file; None: it has none."""
    key = evaluation.get("key")  # older results do not say
    return _verdicts(folder, key) if key and verdicts_path(folder, key).exists() else None


def _model(folder: Path, results: dict) -> str | None:
    """The fingerprint of the run's model; None: it is not known."""
    model = results.get("fingerprint")
    in_results = {record.get("key") for record in results["evaluations"]}
    if model is None and (own := [key for key in verdicts_keys(folder) if key in in_results]):
        # results.json is of an earlier version, which did not state it
        model = _verdicts(folder, own[0]).identity["model"]
    return model


@lru_cache(maxsize=None)
def _model_of(folder: Path) -> str | None:
    return _model(folder, read_results(folder))


@lru_cache(maxsize=None)  # a table compares each file with many others
def _verdicts(folder: Path, key: str) -> Verdicts:
    return read_verdicts(verdicts_path(folder, key))
