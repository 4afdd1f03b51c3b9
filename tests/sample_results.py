"""Made-up results."""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "tables" / "golden"

THREAT = {
    "norm": "linf",
    "eps": 2,
    "alpha": 1,
    "steps": 100,
    "restarts": 1,
    "random_start": True,
    "loss": "ce",
    "units": "1/255",
    "source": "white-box",
    "precision": "fp32",
    "seed": 1,
    "last_iterate": False,
}


def record(attack, accuracy, threat=None, total=500, **fields):
    return {
        "attack": attack,
        "threat_model": threat,
        "correct": round(accuracy * total / 100),
        "total": total,
        "accuracy": accuracy,
        "seconds": 1.5,
        "split": "test",
        **fields,
    }


def results(method="APD", clean=85.0, robust=42.0, threat=None, **fields):
    return {
        "method": method,
        "modality": "text + visual",
        "trainable_parameters": 12345,
        "dataset": "Digits",
        "classes": 10,
        "subsample": "all",
        "shots": 16,
        "seed": 1,
        "backbone": "mini",
        "host": "embedded 1",
        "evaluations": [
            record("clean", clean),
            record("pgd-100", robust, {**THREAT, **(threat or {})}),
        ],
        "train_seconds": 20.0,
        "seconds": 31.4,
        "config": {"SEED": 1, "INPUT": {"SIZE": [32, 32]}},
        **fields,
    }


def trained_elsewhere(dataset="Digits", method="APD", subsample="all", shots=16, seed=1):
    """What an evaluation of another run's prompts says of them."""
    record = {"method": method, "dataset": dataset, "subsample": subsample}
    record |= {"shots": shots, "seed": seed, "keys": {}, "backbone_sha256": None}
    return {"prompts_from": {"model_dir": "elsewhere", "epoch": None}, "trained_on": record}


def keep_verdicts(run, evaluation, lost, images="i", model="m"):
    """Write verdicts, as apd-eval does; ``lost`` (N,): see ``apd.results.verdicts``."""
    path = Path(run) / "evaluations" / f"{evaluation['key']}.json"
    path.parent.mkdir(exist_ok=True)
    identity = {"model": model, "images": images}
    evaluation = {**evaluation, "correct": list(lost).count(0), "total": len(lost)}
    kept = {"record": evaluation, "identity": identity, "lost_to": lost, "labels": [0] * len(lost)}
    path.write_text(json.dumps(kept))
    return path


def check_golden(name, text):
    """Compare with the file of that name in tables/golden/; UPDATE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")
