"""Finished runs, with all their evaluations and, image by image, their verdicts."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from apd.errors import UserError, one_line
from apd.results.schema import EVALUATIONS, RESULTS_NAME, WRONG, read_results


def load_runs(folders: list[str | Path], split: str | None = None) -> dict[Path, dict]:
    """The results of all complete runs in or below ``folders``, by run folder.

    "evaluations" has those of results.json, then what ``apd-eval`` added of the same prompts;
    with ``split``, those of that split only, and the runs that have some.

    Raises:
        UserError: a folder holds none, or a file cannot be read.
    """
    runs: dict[Path, dict] = {}
    for folder in folders:
        paths = _run_folders(folder)
        for path in sorted(paths - runs.keys()):
            if (results := read_results(path))["complete"] is True:
                results["evaluations"] += _added(path, results)
                runs[path] = results
        if not paths & runs.keys():
            raise UserError(f"no finished run ({RESULTS_NAME}) in {folder}")
    return runs if split is None else _of(split, runs)


def _of(split: str, runs: dict[Path, dict]) -> dict[Path, dict]:
    found = {}
    for folder, run in runs.items():
        if evaluations := [one for one in run["evaluations"] if one["split"] == split]:
            found[folder] = {**run, "evaluations": evaluations}
    if not found:
        raise UserError(f"none of these runs has an evaluation on {split} images")
    return found


def _run_folders(folder: str | Path) -> set[Path]:
    walk = os.walk(Path(folder).resolve())
    return {Path(path) for path, _, files in walk if RESULTS_NAME in files}


def _added(folder: Path, results: dict) -> list[dict]:
    """Records in the run's evaluations/ that results.json lacks, of the same prompts."""
    try:
        stems = {Path(name).stem for name in os.listdir(folder / EVALUATIONS) if _is_one(name)}
    except FileNotFoundError:
        return []
    known = {record.get("key") for record in results["evaluations"]}
    if not (added := sorted(stems - known)):
        return []  # the usual case: nothing has to be read
    model = results.get("fingerprint")
    if model is None and (own := sorted(stems & known)):  # results of an older version
        model = _read(folder, own[0])["identity"]["model"]
    kept = [_read(folder, key) for key in added]
    records = [one["record"] for one in kept if one["identity"]["model"] == model]
    return sorted(records, key=lambda r: (r["attack"], r["threat_model"]["eps"], r["key"]))


def _is_one(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def _path(folder: Path, key: str) -> Path:
    return folder / EVALUATIONS / f"{key}.json"


def _read(folder: Path, key: str) -> dict:
    path = _path(folder, key)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["record"]["threat_model"]["eps"], found["identity"]["model"], found["lost_to"]
        found["record"].setdefault("split", "test")  # older ones do not say
        return found  # with all that is read from it
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}): delete it and evaluate again"
        ) from error


def judged(folder: Path, evaluation: dict) -> tuple[np.ndarray, str] | None:
    """(N,) bool, which images are robust (clean: right), and their digest; None: not kept."""
    if evaluation["threat_model"] is not None:
        kept = _kept_of(folder, evaluation)
        return kept and (kept.lost == 0, kept.digest)
    # A clean evaluation keeps no file, but an attack on the same images tells which of them were
    # wrong before it (unless it attacked those too: then it does not know of as many).
    for path in sorted((folder / EVALUATIONS).glob("*.json")):
        kept = _kept(folder, path.stem)
        right = kept.lost != WRONG
        counts = (right.sum(), len(right))
        if images_of(kept.record) == images_of(evaluation) and counts == (
            evaluation["correct"], evaluation["total"],
        ):  # fmt: skip
            return right, kept.digest
    return None


def clean_accuracy(folder: Path, run: dict, evaluation: dict) -> float | None:
    """In %, on the images of ``evaluation``; None if it is not known."""
    for other in run["evaluations"]:
        if other["threat_model"] is None and images_of(other) == images_of(evaluation):
            return other["accuracy"]
    # with the last iterate counted, images that were wrong when clean are attacked too
    if evaluation["threat_model"]["last_iterate"]:
        return None
    kept = _kept_of(folder, evaluation)
    return kept and 100 * float((kept.lost != WRONG).mean())


class _Kept(NamedTuple):
    record: dict
    lost: np.ndarray  # (N,) int8
    digest: str  # of the images


def _kept_of(folder: Path, evaluation: dict) -> _Kept | None:
    """What the evaluation's own file says, if it has one."""
    key = evaluation.get("key")  # older results do not say
    return _kept(folder, key) if key and _path(folder, key).exists() else None


@lru_cache(maxsize=None)  # each is compared with many others; small, once it is an array
def _kept(folder: Path, key: str) -> _Kept:
    found = _read(folder, key)
    lost = np.asarray(found["lost_to"], dtype=np.int8)
    return _Kept(found["record"], lost, found["identity"]["images"])


def header_of(evaluation: dict) -> str:
    """An evaluation's column in a table: the attack and what else tells it from others."""
    threat, images = evaluation["threat_model"], images_of(evaluation)
    part = f", {images}" if images else ""
    if threat is None:
        return f"{evaluation['attack']}{part} (%)"
    norm = "" if threat["norm"] == "linf" else f" {threat['norm'].upper()}"
    last = ", last iterate" if threat["last_iterate"] else ""
    source = f", {threat['source']}" if threat["source"] != "white-box" else ""
    half = f", {threat['precision']}" if threat["precision"] != "fp32" else ""
    return f"{attack_of(evaluation)}{norm} eps={threat['eps']:g}/255{last}{source}{half}{part} (%)"


def attack_of(evaluation: dict) -> str:
    """The attack's name as papers write it."""
    return {"autoattack": "AutoAttack"}.get(evaluation["attack"], evaluation["attack"].upper())


def images_of(evaluation: dict) -> str:
    """What part of which images it is about; empty: all test images."""
    images = evaluation.get("images", "all")  # older results do not say
    validation = "validation " if evaluation["split"] == "val" else ""
    if images == "all":
        return f"{validation}images" if validation else ""
    return f"{images['count']:,} {validation}images"
