"""Checkpoints as our peers' projects write them, from their names and shapes.

Widths are those of the tiny CLIP: 64 for text, 128 for vision; 2 layers each.
"""

import clip
import numpy as np
import torch
from torch import nn

NAMES = ("circle", "square", "star", "triangle")
TEXT, VISION = 64, 128


def draw(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.3)


def tokens(weights, words, n_ctx, names=NAMES):
    """The embedded prompts without their contexts: start token, and the rest of 77."""
    ids = clip.tokenize([f"{words} {name.replace('_', ' ')}." for name in names])
    embedding = weights["token_embedding.weight"][ids]
    return {"token_prefix": embedding[:, :1, :], "token_suffix": embedding[:, 1 + n_ctx :, :]}


def frozen(weights):
    """What ``image_encoder``, ``text_encoder`` and ``logit_scale`` of a CustomCLIP hold."""
    text = ("transformer.", "positional_embedding", "ln_final.", "text_projection")
    held = {"logit_scale": weights["logit_scale"]}
    for name, value in weights.items():
        if name.startswith("visual."):
            held[name.replace("visual.", "image_encoder.", 1)] = value
        elif name.startswith(text):
            held[f"text_encoder.{name}"] = value
    return held


def learner(**parts):
    return {f"prompt_learner.{name}": value for name, value in parts.items()}


def coop(weights, words="X X X X", names=NAMES, classes=()):
    """CoOp, APT, AdvPT, AdvCoOp; ``classes`` (C,) for CSC."""
    return "prompt_learner", {
        "ctx": draw(*classes, 4, TEXT),
        **tokens(weights, words, 4, names),
    }


def maple(weights, words="a photo of a", names=NAMES):
    """MaPLe, AdvMaPLe; N_CTX 2, PROMPT_DEPTH 2."""
    return "MultiModalPromptLearner", {
        "prompt_learner.ctx": draw(2, TEXT),
        "prompt_learner.proj.weight": draw(VISION, TEXT),
        "prompt_learner.proj.bias": draw(VISION),
        "prompt_learner.compound_prompts_text.0": draw(2, TEXT),
        "prompt_learner.compound_prompt_projections.0.weight": draw(VISION, TEXT),
        "prompt_learner.compound_prompt_projections.0.bias": draw(VISION),
        **learner(**tokens(weights, words, 2, names)),
        **frozen(weights),
    }


def fap(weights, words="a photo of a {}.", names=NAMES):
    return "MultiModalPromptLearner", {
        "prompt_learner.ctx": draw(2, TEXT),
        "prompt_learner.proj.weight": draw(VISION, TEXT),
        "prompt_learner.proj.bias": draw(VISION),
        "prompt_learner.compound_prompts_image.0": draw(2, VISION),
        "prompt_learner.compound_prompt_projections.0.weight": draw(TEXT, VISION),
        "prompt_learner.compound_prompt_projections.0.bias": draw(TEXT),
        **learner(**tokens(weights, words, 2, names)),
        **frozen(weights),
    }


def mmop(weights, experts=5):
    """MMoP's MoEAdvIVLP; N_CTX 2 + 2, PROMPT_DEPTH 2."""
    folder, state = ivlp(weights)
    for encoder, width in (("text_encoder", TEXT), ("image_encoder", VISION)):
        block = f"{encoder}.transformer.resblocks.1"
        del state[f"{block}.VPT_shallow"]
        shapes = {"base_prompt": (2, width), "expert_prompts": (experts, 2, width)}
        shapes |= {"gate.weight": (experts, width), "gate.bias": (experts,)}
        shapes |= {"tau": (1,), "alpha": (1,)}
        state |= {f"{block}.{name}": draw(*shape) for name, shape in shapes.items()}
    return folder, state


def vpt(weights):
    """VPT, AdvVPT."""
    return "prompt_learner", {
        "image_encoder.VPT": draw(2, VISION),
        "image_encoder.transformer.resblocks.1.VPT_shallow": draw(2, VISION),
        **frozen(weights),
    }


def ivlp(weights, words="a photo of a", names=NAMES):
    """IVLP, AdvIVLP."""
    return "VLPromptLearner", {
        "prompt_learner.ctx": draw(2, TEXT),
        "text_encoder.transformer.resblocks.1.VPT_shallow": draw(2, TEXT),
        "image_encoder.VPT": draw(2, VISION),
        "image_encoder.transformer.resblocks.1.VPT_shallow": draw(2, VISION),
        **learner(**tokens(weights, words, 2, names)),
        **frozen(weights),
    }


def save(run, folder, state, epoch=5, half=True, **more):
    """Write ``state`` as Dassl does after training with warm-up: the scheduler's state holds the
    next scheduler itself, and that its optimiser."""
    if half:
        state = {name: value.detach().half() for name, value in state.items()}
    parameters = [draw(2, TEXT)]
    optimizer = torch.optim.SGD(parameters, lr=0.0035, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    parameters[0].sum().backward()
    optimizer.step()
    successor.step()
    path = run / folder / f"model.pth.tar-{epoch}"
    path.parent.mkdir(parents=True)
    checkpoint = {
        "state_dict": state,
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor, "warmup_epoch": 1, "last_epoch": 1},
        "val_result": np.float64(71.5),
        **more,
    }
    torch.save(checkpoint, path)
    (path.parent / "checkpoint").write_text(f"{path.name}\n")
    return run
