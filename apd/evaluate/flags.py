"""Flags: signs that an accuracy is a property of the attack or of a failed training, not the model.

After Carlini et al. 2019 (arXiv 1902.06705, section 5), Athalye et al. 2018 (arXiv 1802.00420,
section 3) and the flags of AutoAttack's own code. A flagged number may be right, but is not to be
published before the sign is explained; ``robust-above-clean`` alone is impossible, and an error.
Signs of a failed training are ``chance`` and ``below-zero-shot``, of clean accuracy (our choice).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np
from scipy.special import bdtrc

from apd.attack_catalog import ATTACKS, KnownAttack
from apd.attacks.threat import threat_warnings
from apd.results.words import cited

ERROR = "robust-above-clean"
TOLERANCE = 0.5  # points of accuracy by which two attacks may differ, one image at least
STANDING = 5.0  # % of images that may stand under an attack without a bound
GUESSING = 0.01  # p-value above which clean accuracy may be that of naming the commonest class
FALLEN = 0.5  # share of zero-shot CLIP's clean accuracy, below which training has failed

LARGE = 127.5  # an eps, in 1/255, at which the same grey image is within reach of every image
RESAMPLES = 2_000  # of the bootstrap over images


def add_flags(records: list[dict], stands: Mapping[str, np.ndarray] | None = None) -> None:
    """Set "flags" of every record: sentences by the flag's name.

    Args:
        records: of one model; they are changed in place.
        stands: by a record's key, (N,) bool, the images that stand, for the flag
            ``static-overstates``, which compares attacks image by image.
    """
    for record in records:
        record["flags"] = dict(_flags_of_record(record))
    for other, record in permutations(records, 2):
        if (other["split"], other["images"]) == (record["split"], record["images"]):
            for name, text in _flags_by_comparison(record, other):
                record["flags"].setdefault(name, text)
            if text := _overstated(record, other, stands or {}):
                record["flags"].setdefault("static-overstates", text)


def _flags_of_record(record: dict) -> Iterator[tuple[str, str]]:
    """Names and sentences of the flags that a record raises by itself."""
    checks = record.get("checks", {})
    if threat := record["threat_model"]:
        yield from threat_warnings(threat["eps"], threat["steps"])
    attack = _known_attack(record)
    if checks.get("moved") == 0 and attack and attack.moves_all:
        yield "unmoved", "the attack changed none of the images"
    accuracy = record["accuracy"]
    if (commonest := checks.get("commonest")) is not None:
        right, total = record["correct"], record["total"]
        # the probability of as many right ones or more; scipy.stats takes a second to import
        p = bdtrc(right - 1, total, commonest / 100)
        if p > GUESSING:
            guess = f"{commonest:.1f} %, the share of the commonest class"
            yield "chance", f"{accuracy:.1f} % is not above {guess} (binomial test, p = {p:.2g})"
    zero_shot = checks.get("zero_shot")
    if zero_shot is not None and accuracy < FALLEN * zero_shot:
        yield "below-zero-shot", f"less than half of zero-shot CLIP's accuracy, {zero_shot:.1f} %"
    if share := checks.get("zero_gradients"):
        yield "zero-gradients", f"the gradient was all zeros on {share:.1f} % of the images"
    if share := checks.get("broken_gradients"):
        yield "broken-gradients", f"the gradient was not finite on {share:.1f} % of the images"
    if checks.get("random_logits"):
        yield "random-logits", "the same images gave different logits"
    if checks.get("probabilities"):
        yield "probabilities", "the model gives probabilities, where attacks expect logits"
    if (standing := checks.get("unbounded")) is not None and standing > STANDING:
        yield "unbounded", f"{standing:.0f} % of the images stand when the attack may do anything"
    if threat and threat["source"] in ("white-box", "adaptive") and threat["norm"] == "linf":
        if threat["eps"] >= LARGE and accuracy > STANDING:
            reach = "within this eps every image may become the same grey one"
            yield "not-zero-at-large-eps", f"{reach}, but {accuracy:.1f} % stand"
    felled = record.get("fell_to", {}).get("square", 0)
    if 100 * felled > _chance(record) * record["total"]:
        yield "square", f"square felled {felled:,} images that no gradient attack did"


def _flags_by_comparison(record: dict, other: dict) -> Iterator[tuple[str, str]]:
    """Names and sentences of the flags that ``record`` has because of the ``other`` one."""
    threat, compared = record["threat_model"], other["threat_model"]
    accuracy, reference = record["accuracy"], other["accuracy"]
    if threat and not compared and accuracy > reference:
        yield ERROR, f"more than on clean images, {reference:.1f} %"
    if not (threat and compared):
        return
    same_attack = record["attack"] == other["attack"]
    than = f"than {cited(other)}"
    keys = (threat.keys() | compared.keys()) - {"seed"}
    differing = {key for key in keys if threat.get(key) != compared.get(key)}
    other_is_stronger = accuracy > reference + _chance(record)

    if _kind(record) == _kind(other) and differing == {"steps"}:
        if threat["steps"] > compared["steps"] and accuracy > reference:
            yield "steps", f"more steps, but more accuracy {than}"
    if same_attack and {"eps"} <= differing <= {"eps", "alpha"}:
        if threat["eps"] > compared["eps"] and accuracy >= reference > TOLERANCE:
            yield "eps", f"a larger eps, but no less accuracy {than}"
    if not other_is_stronger:
        return
    attack, other_attack = _known_attack(record), _known_attack(other)
    if not differing & {"norm", "eps", "source"} and attack and attack.gradients:
        if _kind(other) == "fgsm":
            yield "steps", f"many steps, but more accuracy {than}"
        if other_attack and not other_attack.gradients:
            yield "black-box-beats-white-box", f"gradients, but more accuracy {than}"
    if same_attack and not differing & {"norm", "eps"}:
        if (threat["source"], compared["source"]) == ("adaptive", "static"):
            text = f"through the defence, but more accuracy {than}"
            yield "black-box-beats-white-box", text
    if same_attack and differing <= {"source", "last_iterate"}:
        if threat["source"] == "white-box" and compared["source"].startswith("transfer:"):
            yield "transfer", f"on the model itself, but more accuracy {than}"


def _overstated(record: dict, other: dict, stands: Mapping[str, np.ndarray]) -> str:
    """The sentence of ``static-overstates``, or "".

    A static ``record`` overstates robustness if the adaptive ``other`` attack fools more images,
    and the 95 % interval of the difference (paired bootstrap over images) is above 0.
    """
    ours, theirs = stands.get(record.get("key", "")), stands.get(other.get("key", ""))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return ""
    threat, compared = record["threat_model"], other["threat_model"]
    if (threat["source"], compared["source"]) != ("static", "adaptive"):
        return ""
    if (threat["norm"], threat["eps"]) != (compared["norm"], compared["eps"]):
        return ""
    difference = ours.astype(int) - theirs
    values, counts = np.unique(difference, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(difference), counts / len(difference), size=RESAMPLES)
    low, high = np.quantile(drawn @ values / len(difference), [0.025, 0.975])
    if low <= 0:
        return ""
    more = f"{100 * difference.mean():.1f} points (95 % interval {100 * low:.1f} to"
    return f"{cited(other)}, which knows the defence, finds {more} {100 * high:.1f}) more"


def _chance(record: dict) -> float:
    """Points of accuracy by which two attacks may differ without a flag."""
    return max(TOLERANCE, 100 / record["total"])


def _kind(record: dict) -> str:
    """The attack's name without its number of steps."""
    return re.sub(r"-\d+$", "", record["attack"])


def _known_attack(record: dict) -> KnownAttack | None:
    """The record's attack in the catalog; None: it is an attack of the caller's own."""
    return ATTACKS.get(_kind(record))
