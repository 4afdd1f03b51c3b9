"""The names of prompts in checkpoints: ours, and those of other projects ("peers").

CoOp, APT, AdvPT and AdvCoOp save their prompt learner. MaPLe, FAP, VPT, IVLP, MMoP and MAPT's
AdvMaPLe, AdvVPT and AdvIVLP save the frozen CLIP as well. All of them also save the embedded class
names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from apd.errors import UserError, counted

_LAYERS = range(64)  # more than any CLIP has

_CTX = "prompt_learner.ctx"
_VISUAL = {
    "visual.0": "image_encoder.VPT",
    **{f"visual.{i}": f"image_encoder.transformer.resblocks.{i}.VPT_shallow" for i in _LAYERS[1:]},
}
_PROJECTIONS = {
    f"projections.{i}.{parameter}": f"prompt_learner.{name}.{parameter}"
    for i in _LAYERS
    for name in [f"compound_prompt_projections.{i - 1}" if i else "proj"]
    for parameter in ("weight", "bias")
}
_MIXTURES = {
    f"{modality}.{i}.{ours}": f"{encoder}.transformer.resblocks.{i}.{theirs}"
    for modality, encoder in (("text", "text_encoder"), ("visual", "image_encoder"))
    for i in _LAYERS[1:]
    for ours, theirs in (
        ("base", "base_prompt"),
        ("experts", "expert_prompts"),
        *((name, name) for name in ("gate.weight", "gate.bias", "tau", "alpha")),
    )
}

# kind of prompts -> the folder that peers save them in, and our name of each parameter -> theirs
PEERS = {
    "text": ("prompt_learner", {"text.0": "ctx"}),
    "visual": ("prompt_learner", _VISUAL),
    "text + visual": (
        "VLPromptLearner",
        {
            "text.0": _CTX,
            **{
                f"text.{i}": f"text_encoder.transformer.resblocks.{i}.VPT_shallow"
                for i in _LAYERS[1:]
            },
            **_VISUAL,
        },
    ),
    "text + visual mixtures": (
        "VLPromptLearner",
        {"text.0": _CTX, "visual.0": _VISUAL["visual.0"], **_MIXTURES},
    ),
    "text-to-visual": (
        "MultiModalPromptLearner",
        {
            "text.0": _CTX,
            **{f"text.{i}": f"prompt_learner.compound_prompts_text.{i - 1}" for i in _LAYERS[1:]},
            **_PROJECTIONS,
        },
    ),
    "visual-to-text": (
        "MultiModalPromptLearner",
        {
            "text.0": _CTX,
            **{f"visual.{i}": f"prompt_learner.compound_prompts_image.{i}" for i in _LAYERS},
            **_PROJECTIONS,
        },
    ),
}
_OURS = {theirs: ours for _, names in PEERS.values() for ours, theirs in names.items()}
_KNOWN = set(_OURS.values())

# prefix of the frozen CLIP's weights in a peer's model -> in ``clip.model.CLIP``
_FROZEN = {"image_encoder.": "visual.", "text_encoder.": "", "logit_scale": "logit_scale"}


@dataclass(frozen=True)
class SavedPrompts:
    """The prompts in a checkpoint.

    Attributes:
        prompts: by the names of ``apd.clip.contexts``.
        tokens: (C, 77 - M, D), the embedded prompts of the training classes without the M context
            vectors; None: the checkpoint does not have them.
        frozen: weights of the CLIP that they were trained on, by the names of ``clip.model.CLIP``.
        ours: whether the checkpoint has our layout.
    """

    prompts: dict[str, Tensor]
    tokens: Tensor | None = None
    frozen: dict[str, Tensor] = field(default_factory=dict)
    ours: bool = True

    @property
    def kind(self) -> str:
        """A key of ``PEERS``, or "deep text"."""
        groups = {name.partition(".")[0] for name in self.prompts}
        if not _MIXTURES.keys().isdisjoint(self.prompts):
            return "text + visual mixtures"
        if "projections" in groups:  # one layer looks the same in both directions
            return "visual-to-text" if "visual" in groups else "text-to-visual"
        if groups == {"text"} and len(self.prompts) > 1:
            return "deep text"
        return " + ".join(sorted(groups))

    def context(self, side: str) -> list[Tensor]:
        """The context vectors of "text" or "visual", a tensor a layer; of mixtures the base's."""
        names = ((f"{side}.{i}", f"{side}.{i}.base") for i in _LAYERS)
        layers = (self.prompts.get(name, self.prompts.get(base)) for name, base in names)
        return [vectors for vectors in layers if vectors is not None]

    @property
    def depth(self) -> int:
        """The number of layers with prompts, of the text encoder if it has any."""
        visual = self.context("visual")
        if self.kind == "visual-to-text":
            return len(visual) + 1
        return len(self.context("text") or visual)

    def __str__(self) -> str:
        text, visual = self.context("text"), self.context("visual")
        if self.kind == "visual-to-text":
            return (
                f"{_vectors(visual, 'visual')} in {counted(self.depth, 'layer')}, projected to text"
            )
        described = [
            f"{_vectors(layers, side)} in {counted(len(layers), 'layer')}"
            for side, layers in (("text", text), ("visual", visual))
            if layers
        ]
        if self.kind == "text-to-visual":
            width = self.prompts["projections.0.weight"].shape[0]
            described.append(f"projected to visual ones of width {width}")
        return ", ".join(described)


def read_prompts(checkpoint, where) -> SavedPrompts:
    """The prompts in a checkpoint of ours or of a peer, which are recognised by their names.

    Args:
        checkpoint: what ``load_checkpoint`` returned.
        where: what to call it in an error.

    Raises:
        UserError: no checkpoint of prompts, or prompts of an unknown kind.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{where} is not a checkpoint of prompts")
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"{where} has NaN or infinite values: choose another epoch or train again")
    # without the wrappers of DataParallel and torch.compile
    state = {
        ".".join(word for word in str(name).split(".") if word not in ("module", "_orig_mod")): v
        for name, v in state.items()
    }
    ours, frozen, vectors, unknown = {}, {}, {}, []
    tokens: object
    # MMoP's; its other mixtures of experts have no base
    mixtures = any(_MIXTURES[f"{word}.1.base"] in state for word in ("text", "visual"))
    for name, value in state.items():
        prefix = next((p for p in _FROZEN if name.startswith(p)), None)
        if name in _OURS and (mixtures or _OURS[name] not in _MIXTURES):
            ours[_OURS[name]] = value
        elif (last := name.removeprefix("prompt_learner.")) in ("token_prefix", "token_suffix"):
            vectors[last] = value
        elif prefix and "gate" not in name and "expert" not in name:
            frozen[_FROZEN[prefix] + name.removeprefix(prefix)] = value
        else:
            unknown.append(name)
    peers = bool(ours or frozen)
    if not peers:
        ours, unknown = dict(state), [name for name in state if name not in _KNOWN]
    if unknown or not ours:
        names = ", ".join(sorted(unknown)[:4]) or "no prompts"
        raise UserError(
            f"{where} holds {names}: these are not prompts of CoOp, APT, AdvPT, VPT, IVLP, MaPLe, "
            "FAP, MMoP or their adversarial trainers, which are what can be read here"
        )
    if len(vectors) == 2 and _alike(vectors["token_prefix"], vectors["token_suffix"]):
        tokens = torch.cat([vectors["token_prefix"], vectors["token_suffix"]], dim=1)
    else:
        tokens = vectors or checkpoint.get("token_vectors")
    wrong = [name for name, value in ours.items() if value.dim() not in _dimensions(name)]
    if wrong or not (tokens is None or isinstance(tokens, Tensor) and _alike(tokens, tokens)):
        raise UserError(f"{where} holds {', '.join(wrong) or 'class names'} of no sensible shape")
    saved = SavedPrompts(ours, tokens, frozen, ours=not peers)
    lacking = _lacking(saved)
    if lacking:
        raise UserError(f"{where} is not complete: it lacks {', '.join(lacking[:4])}")
    return saved


def peers_state_dict(saved: SavedPrompts) -> dict[str, Tensor]:
    """The prompts, and the embedded class names where they are known, by the peers' names."""
    _, names = PEERS[saved.kind]
    state = {names[name]: value for name, value in saved.prompts.items()}
    if saved.tokens is not None and "text.0" in saved.prompts:
        learner = names["text.0"].removesuffix("ctx")
        state[learner + "token_prefix"] = saved.tokens[:, :1]
        state[learner + "token_suffix"] = saved.tokens[:, 1:]
    return state


def _dimensions(name: str) -> tuple[int, ...]:
    """The numbers of dimensions that the parameter of this name (ours) may have."""
    if name.endswith(("bias", "tau", "alpha")):
        return (1,)
    if name.endswith("experts"):
        return (3,)
    return (2, 3) if name == "text.0" else (2,)  # 3: class-specific


def _alike(prefix: Tensor, suffix: Tensor) -> bool:
    """Whether both are (C, any, D), with the same C > 0 and D."""
    shapes = [tuple(tensor.shape) for tensor in (prefix, suffix)]
    classes_and_width = {(shape[0], shape[2]) if len(shape) == 3 else None for shape in shapes}
    return len(classes_and_width) == 1 and None not in classes_and_width and 0 not in shapes[0]


def _lacking(saved: SavedPrompts) -> list[str]:
    """Our names of parameters without which the prompts are not complete."""
    depth = {"text": 0, "visual": 0, "projections": 0}
    for name in saved.prompts:
        group, i, *_ = name.split(".")
        depth[group] = max(depth[group], int(i) + 1)
    if "-to-" in saved.kind:
        layers = max(depth["text"], depth["visual"] + 1, depth["projections"])
        if saved.kind == "text-to-visual":
            depth = {"text": layers, "projections": layers}
        else:
            depth = {"text": 1, "visual": layers - 1, "projections": layers}
    expected = [
        f"{group}.{i}{end}"
        for group, layers in depth.items()
        for i in range(layers)
        for end in _ends(saved.kind, group, i)
    ]
    return [name for name in expected if name not in saved.prompts]


def _ends(kind: str, group: str, layer: int) -> tuple[str, ...]:
    """The endings of the names of a layer's parameters."""
    if group == "projections":
        return (".weight", ".bias")
    if kind.endswith("mixtures") and layer:
        return (".base", ".experts", ".gate.weight", ".gate.bias", ".tau", ".alpha")
    return ("",)


def _vectors(layers: list[Tensor], side: str) -> str:
    *classes, count, width = layers[0].shape
    per_class = f" for each of {classes[0]} classes" if classes else ""
    return f"{count} {side} vectors of width {width}{per_class}"
