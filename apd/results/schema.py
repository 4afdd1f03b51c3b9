"""results.json: what a run was, and the records of its evaluations.

Fields (schema 1; files of earlier versions lack fingerprint, epochs, peak_memory, argv, those from
class_names to teacher, and the split of evaluations, which is filled in when they are read):
    schema: version of this list.
    complete: true; the file is written last, so a run is complete when it says so.
    method: trainer name.
    modality: of the prompts: "none", "text", "visual" or "text + visual".
    trainable_parameters: how many numbers the method learns.
    dataset, classes, subsample, shots, seed, backbone: what the run was made on; ``dataset`` says
        the classes too, where DATASET.CLASSES chose them ("Food101 3/10"), ``classes`` is how many,
        ``subsample`` is all, base or new.
    host: the toolbox and its version.
    evaluations: list of records of ``apd.evaluate.evaluate``: attack, threat_model, correct,
        total, accuracy (%), seconds, split (test or val), images, flags and, under attack, key
        and checks.
    fingerprint: of the model, as the files in evaluations/ have it.
    class_names: in the order of the labels.
    prompts: arguments of ``apd.clip.build_prompted_clip`` that make the method's prompts:
        templates, and what differs from its defaults.
    input: size (height, width) and interpolation of the images, and the mean and std that the
        model normalises them with.
    backbone_sha256: of the CLIP (``apd.clip.backbone_sha256``), its robust image encoder included.
    prompts_sha256: of the learned vectors (``apd.clip.weights_sha256``); None: there are none.
    prompts_from: model_dir and epoch of the prompts that a run loaded which only evaluates; None:
        the run trained its own.
    trained_on: what the prompts were trained on (``apd.results.provenance``).
    teacher: of APD with TEACHER.MODE auto: "taken" (frozen, mean or tuned), "right" (of each, the
        validation images that it is right on) and "images" (how many there are).
    epochs: that were trained.
    train_seconds, seconds: training alone, and training with evaluation.
    peak_memory: in bytes, of the process that finished the run: on the GPU, or else all of it;
        None: the system does not tell.
    argv: the command line, as a list; None if it was not train.py's.
    config: the whole config, as a dict.
    versions: of Python and of the packages that decide a result; None where not installed.
    git_commit: of the clone that the package ran from, "-dirty" after it if files had changed;
        None outside a clone.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from apd.about import CLONE, VERSION
from apd.errors import UserError, listed, one_line
from apd.files import read_json, write_json

SCHEMA_VERSION = 1
RESULTS_NAME = "results.json"
HISTORY_NAME = "history.csv"
SPLITS = ("test", "val")  # that an evaluation may be of

_NUMBER, _NONE = (int, float), type(None)
_FROM_RUN: dict[str, tuple[type, ...]] = {  # written by the run; this module adds _FILLED_IN
    **dict.fromkeys(("method", "modality", "dataset", "subsample", "backbone", "host"), (str,)),
    **dict.fromkeys(("trainable_parameters", "classes", "shots", "seed"), (int,)),
    **dict.fromkeys(("train_seconds", "seconds"), _NUMBER),
    "evaluations": (list,),
    "config": (dict,),
}
_FILLED_IN = {"complete": (bool,), "versions": (dict,), "git_commit": (str, _NONE)}
_LATER = {  # what earlier versions lack
    "prompts_from": (dict, _NONE),
    "fingerprint": (str,),
    "epochs": (int,),
    "peak_memory": (*_NUMBER, _NONE),
    "argv": (list, _NONE),
    "class_names": (list,),
    **dict.fromkeys(("prompts", "input"), (dict,)),
    "backbone_sha256": (str,),
    "prompts_sha256": (str, _NONE),
    "trained_on": (dict, _NONE),
    "teacher": (dict,),
}
_TRAINED_ON = {
    **dict.fromkeys(("method", "dataset", "subsample"), (str,)),
    **dict.fromkeys(("shots", "seed"), (int,)),
    "keys": (dict,),
    "backbone_sha256": (str, _NONE),
}
_TRAINED_ON_LATER = {"settings": (dict,)}
_EVALUATION = {
    "attack": (str,),
    "threat_model": (dict, _NONE),
    "correct": (int,),
    "total": (int,),
    "accuracy": _NUMBER,
    "seconds": _NUMBER,
}
_EVALUATION_LATER = {
    "split": (str,),
    "images": (str, dict),
    "flags": (dict,),
    "checks": (dict,),
    "key": (str,),
}
_THREAT = {
    **dict.fromkeys(("norm", "source", "precision"), (str,)),
    "eps": _NUMBER,
    "last_iterate": (bool,),
}
_THREAT_LATER = {  # what an attack need not have
    **dict.fromkeys(("steps", "restarts", "seed"), (int, _NONE)),
    "alpha": (*_NUMBER, _NONE),
    "random_start": (bool, _NONE),
    "loss": (str, _NONE),
    **dict.fromkeys(("randomised", "adapted"), (bool,)),
    **dict.fromkeys(("backward", "rule"), (str,)),
    **dict.fromkeys(("eot", "draws"), (int, _NONE)),
}
_SUBSET = {"count": (int,), "seed": (int,)}
_CLIP_PACKAGES = ("openai-clip", "clip-anytorch", "clip")  # all of them are ``import clip``


def write_results(run_dir: str | Path, results: dict) -> None:
    """Write ``results`` (see the module's docstring) to ``run_dir``, atomically.

    schema, complete, versions and git_commit are added; further fields are kept.

    Raises:
        ValueError: a field is missing.
    """
    if lacking := _FROM_RUN - results.keys():
        raise ValueError(f"results lack {', '.join(sorted(lacking))}")
    record = {"schema": SCHEMA_VERSION, "complete": True, **results, **environment()}
    write_json(Path(run_dir) / RESULTS_NAME, record)


def read_results(run_dir: str | Path) -> dict:
    """The results of a run.

    Raises:
        UserError: there is no results.json, or it is damaged, of another program or version.
    """
    path = Path(run_dir) / RESULTS_NAME
    try:
        results = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again") from error
    if not isinstance(results, dict) or "schema" not in results:
        raise UserError(f"{path} is not a result of this program: move it away")
    if results["schema"] != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema {results['schema']}, this version reads {SCHEMA_VERSION}: run again"
        )
    faults = kind_faults(results, _FROM_RUN | _FILLED_IN, _LATER)
    if not faults and results.get("trained_on"):
        faults = trained_on_faults(results["trained_on"])
    if not faults:
        faults = [fault for record in results["evaluations"] for fault in record_faults(record)]
    if faults:
        raise UserError(f"{path} {listed(sorted(set(faults)), 4)}: delete it and run again")
    config = results["config"].get("TEST", {})
    validated = isinstance(config, dict) and config.get("SPLIT") == "val"
    for record in results["evaluations"]:  # older results have no split: test, unless TEST.SPLIT
        record.setdefault("split", "val" if validated else "test")
    return results


def trained_on_faults(record) -> list[str]:
    """What is wrong with a ``trained_on`` record, as phrases such as "lacks shots"."""
    if not isinstance(record, dict):
        return ["has a record of training that is none"]
    faults = kind_faults(record, _TRAINED_ON, _TRAINED_ON_LATER)
    keys = [] if faults else [*record["keys"].items(), *record.get("settings", {}).items()]
    if not all(map(_plain, keys)):
        faults = ["has config keys that are none"]
    return faults


def _plain(value) -> bool:
    """Whether a key of a config can have this value."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or type(value) in (str, bool, int, float)


def record_faults(record) -> list[str]:
    """What is wrong with an evaluation's record, as phrases such as "lacks total"."""
    if not isinstance(record, dict):
        return ["has an evaluation that is none"]
    faults = kind_faults(record, _EVALUATION, _EVALUATION_LATER)
    if not faults and record["threat_model"] is not None:
        faults = kind_faults(record["threat_model"], _THREAT, _THREAT_LATER)
    if not faults and isinstance(record.get("images"), dict):
        faults = kind_faults(record["images"], _SUBSET, {})
    if not faults and not 0 <= record["correct"] <= record["total"]:
        faults = [f"counts {record['correct']} of {record['total']} images"]
    return faults


def kind_faults(fields: dict, needed: dict, later: dict) -> list[str]:
    """What is wrong with a file's fields, as phrases such as "lacks total" or "has total many".

    Args:
        needed: fields that there must be, and the types that each may have.
        later: fields that there may be.
    """
    missing = ", ".join(sorted(needed.keys() - fields.keys()))
    return [f"lacks {missing}"] * bool(missing) + [
        f"has {key} {one_line(fields[key], 20)}"
        for key, kinds in {**needed, **later}.items()
        if key in fields and type(fields[key]) not in kinds
    ]


def is_complete(run_dir: str | Path) -> bool:
    """Whether the run has finished: only its results.json says so, not that its folder exists.

    Raises:
        UserError: its results.json is damaged.
    """
    return (Path(run_dir) / RESULTS_NAME).exists() and read_results(run_dir)["complete"] is True


def environment() -> dict:
    """The fields versions and git_commit."""
    clip = next((name for name in _CLIP_PACKAGES if _version(name)), None)
    versions = {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "clip": clip and f"{clip} {_version(clip)}",
        "dassl": _version("dassl"),
        "apd": VERSION,
    }
    return {"versions": versions, "git_commit": _git_commit()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    if not CLONE or not (CLONE / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(CLONE),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
