"""Made-up results."""

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


def record(attack, accuracy, threat=None, total=500):
    return {
        "attack": attack,
        "threat_model": threat,
        "correct": round(accuracy * total / 100),
        "total": total,
        "accuracy": accuracy,
        "seconds": 1.5,
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
