"""Properties of the methods that tables, figures and estimates need, as plain data.

The order is that of tables. A method without a row here can be trained, evaluated and drawn too: it
comes last in tables, gets an unused colour, and its cost is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too pale on white
BLACK, GREY = "#000000", "#777777"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
RED, PURPLE = "#D55E00", "#CC79A7"


@dataclass(frozen=True)
class Method:
    """The properties of a method.

    Attributes:
        section: the section of TRAINER whose keys it reads.
        prompts: their kind: "text", "visual", "text + visual" (independent), "text-to-visual" or
            "visual-to-text" (projected), "text + visual mixtures" (of experts); "": none is
            trained.
        attacks: when training attacks its images: "each step", "once" (before it) or "never".
        image_passes: passes of a training image through the image encoder, without those of the
            attack; a backward pass counts as one.
        class_passes: passes of a class through the text encoder in a training step.
        colour, marker: in figures; methods that train on attacked images have solid lines and
            filled markers, the others dashed lines and open markers.
        defence: whether it acts at test time, on prompts that another method trained.
    """

    section: str
    prompts: str
    attacks: str
    image_passes: int
    class_passes: int
    colour: str
    marker: str
    defence: bool = False

    @property
    def adversarial(self) -> bool:
        """Whether it trains on attacked images."""
        return self.attacks != "never"


METHODS = {  # baselines first, test-time defences before APD
    "ZeroshotCLIP": Method("COOP", "", "never", 0, 0, BLACK, "x"),
    "ZeroshotCLIP2": Method("COOP", "", "never", 0, 0, BLACK, "+"),
    "CoOp": Method("COOP", "text", "never", 1, 2, ORANGE, "s"),
    "VPT": Method("VPT", "visual", "never", 2, 1, SKY, "^"),
    "IVLP": Method("IVLP", "text + visual", "never", 2, 2, GREEN, "D"),
    "MaPLe": Method("MAPLE", "text-to-visual", "never", 2, 2, BLUE, "v"),
    "APT": Method("COOP", "text", "each step", 1, 2, ORANGE, "s"),
    "AdvPT": Method("ADV", "text", "once", 1, 2, GREY, "X"),
    "AdvVPT": Method("AdvVPT", "visual", "each step", 2, 1, SKY, "^"),
    "AdvIVLP": Method("AdvIVLP", "text + visual", "each step", 2, 2, GREEN, "D"),
    "AdvMaPLe": Method("AdvMaPLe", "text-to-visual", "each step", 2, 2, BLUE, "v"),
    "FAP": Method("FAP", "visual-to-text", "each step", 5, 2, PURPLE, "P"),
    "CBAFAPT": Method("CBAFAPT", "visual-to-text", "each step", 4, 2, BLACK, "*"),
    "MMoP": Method("MMoP", "text + visual mixtures", "each step", 2, 2, GREY, "h"),
    "TTC": Method("TTC", "", "never", 0, 0, SKY, "1", defence=True),
    "RTPT": Method("RTPT", "", "never", 0, 0, GREEN, "2", defence=True),
    "TAPT": Method("TAPT", "", "once", 0, 0, BLUE, "3", defence=True),
    "APD": Method("APD", "text + visual", "each step", 4, 4, RED, "o"),
}


def rank(method: str) -> tuple[int, str]:
    """A sort key: first the order of ``METHODS``, then other methods by name."""
    return place(method, METHODS)


def place(name: str, table: dict) -> tuple[int, str]:
    """A sort key: first the order of ``table``, then other names."""
    return (list(table).index(name), "") if name in table else (len(table), name)
