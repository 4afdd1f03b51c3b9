"""The description of a classifier: all that defines it except weights. It needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from apd.errors import UserError, listed

LIBRARY = "apd-clip"  # in config.json and the model card
CONFIG = "config.json"
HUB = "hf:"  # the prefix of a classifier's name on the hub


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP.

    Attributes:
        name: MODEL.BACKBONE.NAME.
        robust: MODEL.BACKBONE.ROBUST, a file with an adversarially fine-tuned image encoder.
        resolution: MODEL.BACKBONE.RESOLUTION, in pixels; 0: what the CLIP was trained on.
        sha256: of the weights and geometry of the CLIP that these make
            (``apd.clip.backbone_sha256``); "": not known.
    """

    name: str
    robust: str = ""
    resolution: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Description:
    """A classifier without the weights of its CLIP and without its learned vectors.

    Attributes:
        method: the trainer's name.
        class_names: in the order of the logits.
        prompts: further arguments of ``build_prompted_clip``: number, depth and place of the
            context vectors, hand-written templates.
        backbone: the frozen CLIP.
        interpolation: of the resize in ``preprocess``: bicubic, bilinear or nearest.
        threat_model: "train" and "test", each the threat model as in results.json, or None.
        results: contents of the run's results.json; empty if there is no run.
    """

    method: str
    class_names: tuple[str, ...]
    prompts: dict
    backbone: Backbone
    interpolation: str = "bicubic"
    threat_model: dict = field(default_factory=lambda: {"train": None, "test": None})
    results: dict = field(default_factory=dict)

    @property
    def learned(self) -> bool:
        """Whether there are learned prompts."""
        return bool(self.prompts.get("n_ctx_text") or self.prompts.get("n_ctx_visual"))

    def check_renamed(self) -> None:
        """Raise UserError if the prompts cannot be used with other class names."""
        if self.prompts.get("class_specific"):
            raise UserError(
                f"the context of {self.method} is class-specific: it has vectors for "
                f"{listed(self.class_names, 3)}, in this order, and not for other classes"
            )
