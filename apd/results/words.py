"""Evaluations and shots in words: one wording for tables, figures, reports, flags and logs.

An evaluation is a record of ``apd.evaluate.evaluate``.
"""

from __future__ import annotations

from apd.errors import counted

ALL_IMAGES = -1  # as a number of shots
_USUAL = {"source": "white-box", "precision": "fp32"}  # goes without saying

_DRAWS = {  # of models whose logits are random
    "eot": "draws of a gradient",
    "draws": "draws of a verdict",
    "rule": "rule of a verdict",
    "backward": "gradients of the defence",
}


def attack_name(evaluation: dict) -> str:
    """The attack's name as papers write it."""
    names = {"autoattack": "AutoAttack", "autoattack-rand": "AutoAttack rand"}
    return names.get(evaluation["attack"], evaluation["attack"].upper())


def radius(threat: dict) -> str:
    return f"eps {threat['eps']:g}/255"


def images_said(evaluation: dict) -> str:
    """What part of which images it is about; empty: all test images."""
    images = evaluation.get("images", "all")  # older results do not say
    validation = "validation " if evaluation["split"] == "val" else ""
    if images == "all":
        return f"{validation}images" if validation else ""
    most = "at most " if images.get("at most") else ""  # of tables: not every set has so many
    return f"{most}{images['count']:,} {validation}images"


def unusual(threat: dict) -> list[str]:
    """Source and precision of an attack, where they are not the usual ones."""
    return [threat[key] for key, usual in _USUAL.items() if threat[key] != usual]


def described(evaluation: dict, eps: bool = True) -> str:
    """An attack and its conditions in a few words; without ``eps``, of a ball of any radius."""
    threat, images = evaluation["threat_model"], images_said(evaluation)
    if threat is None:
        return ", ".join(filter(None, [evaluation["attack"], images]))
    ball = f"{threat['norm']} {radius(threat)}" if eps else threat["norm"]
    last = "last iterate" if threat["last_iterate"] else ""
    parts = [attack_name(evaluation), ball, last, *unusual(threat), images]
    return ", ".join(filter(None, parts))


def header(evaluation: dict) -> str:
    """An evaluation's column in a table: as ``described``, but shorter."""
    threat, images = evaluation["threat_model"], images_said(evaluation)
    if threat is None:
        return ", ".join(filter(None, [evaluation["attack"], images])) + " (%)"
    norm = "" if threat["norm"] == "linf" else f" {threat['norm'].upper()}"
    last = "last iterate" if threat["last_iterate"] else ""
    attack = f"{attack_name(evaluation)}{norm} eps={threat['eps']:g}/255"
    return ", ".join(filter(None, [attack, last, *unusual(threat), images])) + " (%)"


def in_full(evaluation: dict) -> dict[str, str]:
    """An attack and all its conditions but the seed, by name; radius and step in 1/255."""
    threat = evaluation["threat_model"]
    return {
        "attack": attack_name(evaluation),
        "norm": threat["norm"],
        "eps": f"{threat['eps']:g}",
        "alpha": "its own" if threat["alpha"] is None else f"{threat['alpha']:g}",
        "steps": f"{threat['steps']}",
        "restarts": f"{threat['restarts']}",
        "random start": "yes" if threat["random_start"] else "no",
        "loss": threat["loss"],
        "counts": "last iterate" if threat["last_iterate"] else "any iterate",
        "source": threat["source"],
        "precision": threat["precision"],
        **{name: f"{threat[key]}" for key, name in _DRAWS.items() if threat.get(key)},
    }


def cited(evaluation: dict) -> str:
    """An evaluation and its result, in a flag of another one."""
    threat = evaluation["threat_model"]
    conditions = f"({radius(threat)}, {threat['source']})"
    return f"{evaluation['attack']} {conditions}, {evaluation['accuracy']:.1f} %"


def signed(difference: float) -> str:
    """In points, with its sign: to a tenth, and to up to a thousandth where that would be zero.

    So an interval that ends just below zero does not read as if it held zero.
    """
    difference = round(difference, 6) + 0.0  # without the last bits of sums, and never -0.0
    digits = next((d for d in (1, 2) if difference == 0 or round(difference, d)), 3)
    return f"{difference:+.{digits}f}"


def classes_said(subsample: str) -> str:
    return f"{subsample} classes"


def shots_said(count: int) -> str:
    return "all images" if count == ALL_IMAGES else counted(count, "shot")
