"""Evaluations and shots as text, worded the same in tables, figures, reports, flags and logs.

An evaluation is a record of ``apd.evaluate.evaluate``.
"""

from __future__ import annotations

from apd.errors import counted

ALL_IMAGES = -1  # as a number of shots
_USUAL = {"source": "white-box", "precision": "fp32"}  # left out of texts

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


def images_text(evaluation: dict) -> str:
    """The images of an evaluation, such as "200 validation images"; "": all test images."""
    images = evaluation.get("images", "all")  # older results do not say
    validation = "validation " if evaluation["split"] == "val" else ""
    if images == "all":
        return f"{validation}images" if validation else ""
    most = "at most " if images.get("at most") else ""  # in tables: some sets have fewer images
    return f"{most}{images['count']:,} {validation}images"


def unusual(threat: dict) -> list[str]:
    """Source and precision of an attack, if they are not white-box and fp32."""
    return [threat[key] for key, usual in _USUAL.items() if threat[key] != usual]


def described(evaluation: dict, eps: bool = True) -> str:
    """An attack and its conditions in a few words; with ``eps`` False, without the radius."""
    threat, images = evaluation["threat_model"], images_text(evaluation)
    if threat is None:
        return ", ".join(filter(None, [evaluation["attack"], images]))
    ball = f"{threat['norm']} {radius(threat)}" if eps else threat["norm"]
    last = "last iterate" if threat["last_iterate"] else ""
    parts = [attack_name(evaluation), ball, last, *unusual(threat), images]
    return ", ".join(filter(None, parts))


def attack_text(name: str, conditions: dict) -> str:
    """A white-box attack that is no evaluation's, with its ball."""
    threat = {**conditions, **_USUAL}
    evaluation = {"attack": name, "threat_model": threat, "split": "test"}
    return f"{described(evaluation)}, {threat['source']}"


def header(evaluation: dict) -> str:
    """The header of an evaluation's column in a table: as ``described``, but shorter."""
    threat, images = evaluation["threat_model"], images_text(evaluation)
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
    """An evaluation and its result, as the flag of another evaluation mentions it."""
    threat = evaluation["threat_model"]
    conditions = f"({radius(threat)}, {threat['source']})"
    return f"{evaluation['attack']} {conditions}, {evaluation['accuracy']:.1f} %"


def signed(difference: float) -> str:
    """A difference in points, with its sign, rounded to a tenth.

    If that would be zero, it is rounded to a hundredth or a thousandth, so that an interval which
    ends just below zero does not look as if it contained zero.
    """
    difference = round(difference, 6) + 0.0  # without the last bits of sums, and never -0.0
    digits = next((d for d in (1, 2) if difference == 0 or round(difference, d)), 3)
    return f"{difference:+.{digits}f}"


def classes_text(subsample: str) -> str:
    return f"{subsample} classes"


def shots_text(count: int) -> str:
    return "all images" if count == ALL_IMAGES else counted(count, "shot")
