"""Signs that an evaluation says more about the attack, or a training that failed, than the model.

After Carlini et al. 2019 (arXiv 1902.06705, section 5), Athalye et al. 2018 (arXiv 1802.00420,
section 3) and the flags of AutoAttack's own code. A flagged number may be right, but is not to be
published before the sign is explained; ``robust-above-clean`` alone is impossible, and an error.
That training fell apart is told by clean accuracy: ``chance`` and ``below-zero-shot``, our choice.
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
TOLERANCE = 0.5  # points of accuracy that two attacks may differ by chance, and at least one image
STANDING = 5.0  # % of images that may stand under an unbounded attack
GUESSING = 0.01  # least probability of as many right answers by naming the commonest class
FALLEN = 0.5  # of zero-shot CLIP's clean accuracy, below which training has fallen apart

LARGE = 127.5  # an eps, in 1/255, within which every image has the same grey one
RESAMPLES = 2_000  # of the images, for a paired interval


def add_flags(records: list[dict], stands: Mapping[str, np.ndarray] | None = None) -> None:
    """Give every record of one model its "flags": names, each with a sentence.

    ``stands`` (N,) bool, by a record's key: which images stand, for flags that compare attacks
    image by image.
    """
    for record in records:
        record["flags"] = dict(_of_one(record))
    for other, record in permutations(records, 2):
        if (other["split"], other["images"]) == (record["split"], record["images"]):
            for name, text in _of_two(other, record):
                record["flags"].setdefault(name, text)
            if text := _overstated(record, other, stands or {}):
                record["flags"].setdefault("static-overstates", text)


def _of_one(record: dict) -> Iterator[tuple[str, str]]:
    checks = record.get("checks", {})
    if threat := record["threat_model"]:
        yield from threat_warnings(threat["eps"], threat["steps"])
    attack = _known(record)
    if checks.get("moved") == 0 and attack and attack.moves_all:
        yield "unmoved", "the attack changed none of the images"
    accuracy = record["accuracy"]
    if (commonest := checks.get("commonest")) is not None:
        right, total = record["correct"], record["total"]
        # as many or more of them by chance; scipy.stats has it too, and takes a second to import
        guessed = bdtrc(right - 1, total, commonest / 100)
        if guessed > GUESSING:
            share = f"{commonest:.1f} %, the share of the commonest class"
            told = f"not above {share} (binomial test, p = {guessed:.2g})"
            yield "chance", f"{accuracy:.1f} % is {told}"
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


def _of_two(other: dict, record: dict) -> Iterator[tuple[str, str]]:
    """Flags of ``record`` that the ``other`` one raises."""
    threat, compared = record["threat_model"], other["threat_model"]
    accuracy, reference = record["accuracy"], other["accuracy"]
    if threat and not compared and accuracy > reference:
        yield ERROR, f"more than on clean images, {reference:.1f} %"
    if not (threat and compared):
        return
    kind, against = _kind(record), _kind(other)
    than = f"than {cited(other)}"
    keys = (threat.keys() | compared.keys()) - {"seed"}
    apart = {key for key in keys if threat.get(key) != compared.get(key)}
    stronger = accuracy > reference + _chance(record)  # the other attack was

    if kind == against and apart == {"steps"} and threat["steps"] > compared["steps"]:
        if accuracy > reference:
            yield "steps", f"more steps, but more accuracy {than}"
    if record["attack"] == other["attack"] and {"eps"} <= apart <= {"eps", "alpha"}:
        if threat["eps"] > compared["eps"] and accuracy >= reference > TOLERANCE:
            yield "eps", f"a larger eps, but no less accuracy {than}"
    attack, stronger_attack = _known(record), _known(other)
    if not apart & {"norm", "eps", "source"} and stronger and attack and attack.gradients:
        if against == "fgsm":
            yield "steps", f"many steps, but more accuracy {than}"
        if stronger_attack and not stronger_attack.gradients:
            yield "black-box-beats-white-box", f"gradients, but more accuracy {than}"
    knows_less = threat["source"] == "adaptive" and compared["source"] == "static"
    if record["attack"] == other["attack"] and knows_less and stronger:
        if not apart & {"norm", "eps"}:
            text = f"through the defence, but more accuracy {than}"
            yield "black-box-beats-white-box", text
    transferred = compared["source"].startswith("transfer:") and threat["source"] == "white-box"
    if record["attack"] == other["attack"] and transferred and stronger:
        if apart <= {"source", "last_iterate"}:
            yield "transfer", f"on the model itself, but more accuracy {than}"


def _overstated(record: dict, other: dict, stands: Mapping[str, np.ndarray]) -> str:
    """What shows that a static ``record`` overstates: the adaptive ``other`` one finds more.

    By more than chance: the 95 % interval of the paired bootstrap over images is above 0.
    """
    ours, theirs = (stands.get(one.get("key", "")) for one in (record, other))
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
    return max(TOLERANCE, 100 / record["total"])


def _kind(record: dict) -> str:
    """The attack without its number of steps."""
    return re.sub(r"-\d+$", "", record["attack"])


def _known(record: dict) -> KnownAttack | None:
    return ATTACKS.get(_kind(record))
