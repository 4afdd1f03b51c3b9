"""Properties of the attacks of evaluations, as plain data that needs no PyTorch.

``apd.attacks`` runs them; command lines and flags read here what they are. The order is that of
messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from apd.choices import NORMS

STANDARD_STEPS = 100  # of AutoAttack's gradient attacks


@dataclass(frozen=True, kw_only=True)
class KnownAttack:
    """The properties of an attack.

    Attributes:
        gradients: whether it follows gradients of the model; others see logits only.
        moves_all: whether it changes every image that it may change; others return the images that
            they do not fool as they were.
        steps_in_name: whether -<steps> follows the name: "optional", "required" or "never".
        parts: of an attack that is several: their names, in their order.
    """

    gradients: bool = True
    moves_all: bool = False
    steps_in_name: str = "optional"
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(KnownAttack):
    """An attack of torchattacks.

    Attributes:
        name: of its class there.
        arguments: what that class is given of "norm", "eps", "alpha" (pixel values), "steps" or
            "n_queries", "n_restarts", "n_classes", "eot_iter" and "seed", under these names.
        options: further arguments.
        steps: how many there are by default; of attacks without gradients, queries.
        loss: its name in records.
        random_start: whether it begins at a random point of the ball.
        norms: those that it has.
        one_by_one: whether images are attacked one at a time, because it stops by the sum of the
            loss over its batch.
    """

    name: str
    arguments: tuple[str, ...]
    options: dict = field(default_factory=dict)
    steps: int
    loss: str
    random_start: bool = False
    norms: tuple[str, ...] = NORMS
    one_by_one: bool = False


_AUTO = ("norm", "eps", "n_restarts", "seed")  # arguments that all of AutoAttack's parts have
_APGD = (*_AUTO, "steps", "eot_iter")

ATTACKS: dict[str, KnownAttack] = {
    "clean": KnownAttack(gradients=False, steps_in_name="never"),
    # ours, apd.attacks.pgd
    "fgsm": KnownAttack(moves_all=True, steps_in_name="never"),
    "pgd": KnownAttack(moves_all=True, steps_in_name="required"),
    "cw": KnownAttack(moves_all=True),
    # torchattacks'
    "difgsm": LibraryAttack(
        name="DIFGSM",
        arguments=("eps", "alpha", "steps"),
        steps=10,
        loss="ce",
        norms=("linf",),
        moves_all=True,
    ),
    "apgd-ce": LibraryAttack(
        name="APGD", arguments=_APGD, steps=STANDARD_STEPS, loss="ce", random_start=True
    ),
    "apgd-dlr": LibraryAttack(
        name="APGD",
        arguments=_APGD,
        options={"loss": "dlr"},
        steps=STANDARD_STEPS,
        loss="dlr",
        random_start=True,
    ),
    "apgd-t": LibraryAttack(
        name="APGDT",
        arguments=(*_APGD, "n_classes"),
        steps=STANDARD_STEPS,
        loss="dlr, targeted",
        random_start=True,
    ),
    "fab-t": LibraryAttack(
        name="FAB",
        arguments=(*_AUTO, "steps", "n_classes"),
        options={"multi_targeted": True},
        steps=STANDARD_STEPS,
        loss="distance, targeted",
    ),
    "square": LibraryAttack(
        name="Square",
        arguments=(*_AUTO, "n_queries"),
        steps=5000,
        loss="margin",
        random_start=True,
        gradients=False,
    ),
    "cw-l2": LibraryAttack(
        name="CW",
        arguments=("steps",),
        steps=50,
        loss="distance + margin",
        norms=("l2",),
        one_by_one=True,
    ),
    # AutoAttack (Croce and Hein 2020), and its version for models whose logits are random
    "autoattack": KnownAttack(parts=("apgd-ce", "apgd-t", "fab-t", "square")),
    "autoattack-rand": KnownAttack(parts=("apgd-ce", "apgd-dlr")),
}


def attack_names() -> list[str]:
    """The attacks as users write them; all but the first three take -<steps> too."""
    return [
        f"{name}-<steps>" if attack.steps_in_name == "required" else name
        for name, attack in ATTACKS.items()
    ]
