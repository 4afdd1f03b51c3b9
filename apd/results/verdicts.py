"""evaluations/<key>.json of a run: an attack's record, and its verdict on every image.

Its fields:
    record: as in results.json.
    identity: all that the verdicts depend on: attack, threat_model, fingerprints of the model
        (model) and of the models that the attack was made on (made_on), digest of the images
        (images), and which images these are (places: all, or size and seed of the subset).
    lost_to: for each image 0: classified correctly under attack; k: it fell to the attack's k-th
        stage; -1: classified wrongly before the attack.
    labels: of the images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apd.errors import UserError, one_line
from apd.files import read_json, write_json
from apd.results.schema import record_faults

EVALUATIONS = "evaluations"  # folder, in a run's
WRONG = -1  # in lost_to: classified wrongly before the attack


@dataclass
class Verdicts:
    """The contents of one such file; ``lost_to`` is (N,) int8, and ``labels`` (N,) int64."""

    record: dict
    identity: dict
    lost_to: np.ndarray
    labels: np.ndarray

    @property
    def stands(self) -> np.ndarray:
        """(N,) bool, which images are classified correctly under attack."""
        return self.lost_to == 0

    @property
    def was_right(self) -> np.ndarray:
        """(N,) bool, which images were classified correctly before the attack."""
        return self.lost_to != WRONG


def verdicts_path(run_dir: str | Path, key: str) -> Path:
    """The file of a run's evaluation."""
    return Path(run_dir) / EVALUATIONS / f"{key}.json"


def gallery_path(run_dir: str | Path, key: str) -> Path:
    """The gallery of a run's evaluation, which the report shows."""
    return verdicts_path(run_dir, key).with_suffix(".png")


def verdicts_keys(run_dir: str | Path) -> list[str]:
    """Keys of the run's finished evaluations, sorted."""
    try:
        names = os.listdir(Path(run_dir) / EVALUATIONS)
    except FileNotFoundError:
        return []
    # files that are still being written begin with a dot
    return sorted(Path(n).stem for n in names if n.endswith(".json") and not n.startswith("."))


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Write the file, atomically."""
    lists = {"lost_to": verdicts.lost_to.tolist(), "labels": verdicts.labels.tolist()}
    write_json(path, {**vars(verdicts), **lists})


def read_verdicts(path: Path) -> Verdicts:
    """Read the file.

    Raises:
        UserError: it is damaged.
        FileNotFoundError: there is none.
    """
    try:
        content = read_json(path)
        verdicts = Verdicts(
            content["record"],
            content["identity"],
            np.asarray(content["lost_to"], dtype=np.int8),
            np.asarray(content["labels"], dtype=np.int64),
        )
        if faults := record_faults(verdicts.record):
            raise ValueError(faults[0])
        if (
            type(verdicts.identity["model"]) is not str
            or type(verdicts.identity["images"]) is not str
        ):
            raise ValueError("no fingerprint")
        if verdicts.lost_to.ndim != 1 or verdicts.lost_to.shape != verdicts.labels.shape:
            raise ValueError("not one verdict and label per image")
        counts = int(verdicts.stands.sum()), len(verdicts.lost_to)
        if counts != (verdicts.record["correct"], verdicts.record["total"]):
            raise ValueError("its verdicts are not those of its record")
        verdicts.record["threat_model"]["eps"]  # raises, for clean evaluations have no such file
        verdicts.record.setdefault("split", "test")  # files of earlier versions do not state it
        verdicts.record.setdefault("key", path.stem)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}): delete it and evaluate again"
        ) from error
    return verdicts
