"""Make configs/trainers/ from one table: python scripts/make_configs.py

The files stay whole, because CoOp's ``merge_from_file`` knows no base. The table has a row for each
CLIP and one for each method; a file is where the two meet. A new mini CLIP is a row in ``CLIPS``, a
new method a row in ``METHODS``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "trainers"
SCHEDULE = {
    "LR_SCHEDULER": "cosine",
    "WARMUP_EPOCH": 1,
    "WARMUP_TYPE": "constant",
    "WARMUP_CONS_LR": "1.0e-5",
}
UNPUBLISHED = "No setting is published for {clip}: {other}'s is carried over [O]."
TESTED_ALIKE = "AT.TEST is MAPT's [P], the same for every method, so that they compare [O]."
MARKS = "[P] published, [O] our choice."
UNITS = "EPS and ALPHA are in units of 1/255."


# -- CLIPs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A CLIP with published settings, in files named after it.

    Attributes:
        name: MODEL.BACKBONE.NAME.
        like: file of the CLIP whose settings it has, where none are published for it; "": its own.
        test_batch: images of a batch in evaluations.
    """

    name: str
    like: str = ""
    size: int = 224
    workers: int = 8
    test_batch: int = 100
    print_freq: int = 20
    test: dict = field(default_factory=lambda: {"EPS": 1.0, "ALPHA": 1.0, "STEPS": 100})


@dataclass(frozen=True)
class Mini(Clip):
    """A mini CLIP, on which every setting is our choice: ``Method.mini``, and here

    Attributes:
        about: what it is, as the comment in its files begins.
        lr_from: how the learning rates of adversarial methods were chosen.
        lr: of the methods, where it is not ``Mini.usual_lr``.
        train: attack of training; AdvPT's has EPS and ten steps of EPS/10 * 1.25.
        clip_norm: OPTIM.CLIP_NORM.
        special: method -> config keys that differ for it.
    """

    size: int = 32
    workers: int = 0
    print_freq: int = 5
    test: dict = field(default_factory=lambda: {"EPS": 4.0, "ALPHA": 1.0, "STEPS": 100})
    about: str = ""
    lr_from: str = ""
    usual_lr: float = 0.0035
    lr: dict[str, float] = field(default_factory=dict)
    epochs: int = 50
    train: dict = field(default_factory=lambda: {"EPS": 4.0, "ALPHA": 2.0, "STEPS": 3})
    clip_norm: float = 0.0
    special: dict[str, dict] = field(default_factory=dict)


def chosen(table: str) -> dict[str, dict]:
    """What the search of a table in JSON chose, as ``apd-sweep --chosen`` reads it."""
    (found,) = json.loads((ROOT / table).read_text(encoding="utf-8"))["tables"]
    return found["chosen"]


CLIPS = {
    "rn50": Clip("RN50"),
    "rn101": Clip("RN101"),
    "vit_b32": Clip("ViT-B/32"),
    "vit_b16": Clip("ViT-B/16"),
    "vit_l14": Clip("ViT-L/14", test_batch=32),
    "mini": Mini(
        "mini",
        about="The mini CLIP that comes with the package: our choice throughout [O]",
        lr_from="OPTIM.LR is the one of 0.001, 0.0035, 0.01 and 0.03 with the highest robust "
        "accuracy on the digits' validation images",
        lr={
            "CoOp": 0.002,
            "APT": 0.01,
            "AdvIVLP": 0.01,
            "AdvMaPLe": 0.01,
            "CBAFAPT": 0.001,
            "APD": 0.03,
        },
        special={"APD": {"TRAINER.APD.TEACHER.LR": 1.0}},
    ),
    "mini_photo": Mini(
        "mini-photo",
        about="The mini CLIP of photographs: our choice throughout [O], that of docs/study.md's "
        "search where it has searched",
        usual_lr=0.01,
        train={"EPS": 2.0, "ALPHA": 1.0, "STEPS": 2},
        test={"EPS": 2.0, "ALPHA": 0.5, "STEPS": 100},
        clip_norm=1.0,
        special=chosen("docs/study/search.json"),
    ),
}


# -- methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method's published setting.

    Attributes:
        source: where it is from; {file} is the published file's stem.
        section: of TRAINER; "": it has no keys and is not trained.
        prompts: the keys in it.
        mini: the same on a mini CLIP.
        train: attack of training, if it has one.
        carried: file -> the file whose setting it has, because none is published, as ``why`` says.
        special: file -> fields that differ in it.
        visual: whether it needs a ViT.
        clip_norm: OPTIM.CLIP_NORM.
        warmup: OPTIM.WARMUP_EPOCH; on a mini CLIP 1.
        trained: False: a test-time defence, whose keys are in ``prompts``.
    """

    source: str
    section: str = ""
    prompts: dict = field(default_factory=dict)
    mini: dict = field(default_factory=dict)
    lr: float = 0.0
    epochs: int = 0
    batch: int = 32
    transforms: str = "[random_resized_crop, random_flip]"
    train: dict = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)
    why: str = UNPUBLISHED
    special: dict[str, dict] = field(default_factory=dict)
    visual: bool = True
    clip_norm: float = 0.0
    warmup: int = SCHEDULE["WARMUP_EPOCH"]
    trained: bool = True


def both(n_ctx: int, visual: int, text: int) -> dict:
    """Keys of independent bimodal prompts."""
    return {
        "N_CTX_VISION": n_ctx,
        "N_CTX_TEXT": n_ctx,
        "PROMPT_DEPTH_VISION": visual,
        "PROMPT_DEPTH_TEXT": text,
    }


ONE_STEP = {"EPS": 1.0, "ALPHA": 1.0, "STEPS": 2}
COOPS_EPOCHS = "Its epochs by shots: 50 for 1, 100 for 2 and 4, 200 for 8 and 16; 50 for ImageNet."
MAPLES = "multimodal-prompt-learning's published setting of"
FROM_B16 = {"vit_b32": "vit_b16", "vit_l14": "vit_b16"}
MAPT = Method(
    "MAPT's published setting [P] (its configs/trainers/",
    lr=0.0035,
    epochs=100,
    train={**ONE_STEP, "AT_LOSS_TYPE": "adv_half"},
    carried={"vit_l14": "vit_b16"},
)
FAP = Method(
    "FAP's published few-shot setting [P] (its scripts/Adv/fap/few_shot.sh and "
    "configs/trainers/FAP/{file}_ep10_batch4_2ctx_notransform.yaml); 5 epochs for "
    "cross-dataset. TRAINER.FAP.LAMBDA is its LAMBDA_1.",
    section="FAP",
    prompts={"N_CTX": 2, "PROMPT_DEPTH": 9, "LAMBDA": 1.5},
    mini={"N_CTX": 4, "PROMPT_DEPTH": 3},
    lr=0.0035,
    epochs=10,
    batch=4,
    transforms="[]",
    train=ONE_STEP,
    carried={"vit_b16": "vit_b32", "vit_l14": "vit_b32"},
)

TTC = {"EPS": 4.0, "ALPHA": 1.0, "STEPS": 2, "TAU": 0.2, "BETA": 2.0}
RTPT = {"VIEWS": 64, "CONFIDENT": 0.1, "STEPS": 1, "LR": 0.005, "NEIGHBOURS": 20}
TAPT = {
    "VIEWS": 64,
    "CONFIDENT": 0.1,
    "STEPS": 1,
    "LR": 0.0005,
    "DISTR_W": 100.0,
    "GAMMA": 0.5,
    "LAYER_TO": 9,
}
NOT_TRAINED = "Nothing is trained: --model-dir puts the prompts of a run under it."

METHODS = {
    "ZeroshotCLIP": Method("Zero-shot CLIP: nothing is trained.", visual=False),
    "ZeroshotCLIP2": Method(
        "Zero-shot CLIP with CoOp's ensemble of templates: nothing is trained.", visual=False
    ),
    "CoOp": Method(
        "CoOp's published setting [P] (its configs/trainers/CoOp/{file}.yaml). " + COOPS_EPOCHS,
        section="COOP",
        prompts={"N_CTX": 16},
        mini={"N_CTX": 16},
        lr=0.002,
        epochs=200,
        carried={"vit_l14": "vit_b16"},
        visual=False,
    ),
    "VPT": Method(
        f"{MAPLES} deep VPT [P] (its configs/trainers/VPT/{{file}}_c2_ep5_batch4_4.yaml).",
        section="VPT",
        prompts={"N_CTX_VISION": 8, "PROMPT_DEPTH_VISION": 12},
        mini={"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 4},
        lr=0.0025,
        epochs=5,
        batch=4,
        carried=FROM_B16,
    ),
    "IVLP": Method(
        f"{MAPLES} independent V-L prompting [P] (its "
        "configs/trainers/IVLP/{file}_c2_ep5_batch4_2+2ctx.yaml).",
        section="IVLP",
        prompts=both(2, visual=12, text=12),
        mini=both(4, visual=4, text=3),
        lr=0.0035,
        epochs=5,
        batch=4,
        carried=FROM_B16,
    ),
    "MaPLe": Method(
        f"{MAPLES} MaPLe [P] (its configs/trainers/MaPLe/{{file}}_c2_ep5_batch4_2ctx.yaml).",
        section="MAPLE",
        prompts={"N_CTX": 2, "PROMPT_DEPTH": 9},
        mini={"N_CTX": 4, "PROMPT_DEPTH": 3},
        lr=0.0035,
        epochs=5,
        batch=4,
        carried=FROM_B16,
    ),
    "APT": Method(
        "APT's published setting [P] (its train.py and configs/trainers/APT/{file}.yaml) at its "
        "smaller radius; its runs are on TeCoA's weights (MODEL.BACKBONE.ROBUST), with EPS 4, "
        "ALPHA 2.667 on those of radius 4. Its epochs by shots: 50 to 200.",
        section="COOP",
        prompts={"N_CTX": 16},
        mini={"N_CTX": 16},
        lr=0.002,
        epochs=200,
        train={"EPS": 1.0, "ALPHA": 0.667, "STEPS": 3},
        carried={"rn101": "rn50", "vit_b16": "vit_b32", "vit_l14": "vit_b32"},
        why="Its code has no weights for {clip}: {other}'s setting is carried over [O].",
        visual=False,
    ),
    "AdvPT": Method(
        "AdvPT's published setting [P] (its train.py, scripts/main.sh and "
        "configs/trainers/AdvPT/{file}.yaml): attack step EPS/10 * 1.25. It trains on all training "
        "images, not on few shots.",
        section="ADV",
        prompts={"N_CTX": 32},
        mini={"N_CTX": 16},
        lr=0.002,
        epochs=100,
        transforms="[]",
        train={"EPS": 8.0, "ALPHA": 1.0, "STEPS": 10},
        carried={"rn101": "vit_b16", "vit_b32": "vit_b16"},
        why="Its {stem}.yaml is CoOp's file: {other}'s setting is carried over [O].",
        special={
            "rn50": {
                "lr": 0.01,
                "epochs": 10,
                "batch": 512,
                "more": "With few shots these are too few steps: take vit_b16.yaml's LR, "
                "MAX_EPOCH and BATCH_SIZE.",
            }
        },
        visual=False,
    ),
    "AdvVPT": replace(
        MAPT,
        source=MAPT.source + "AdvVPT/{file}_c2_ep100_batch32_2ctx_9depth.yaml).",
        section="AdvVPT",
        prompts={"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 9},
        mini={"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 4},
    ),
    "AdvIVLP": replace(
        MAPT,
        source=MAPT.source + "AdvIVLP/{file}_c2_ep100_batch32_2+2ctx_9depth.yaml).",
        section="AdvIVLP",
        prompts=both(2, visual=9, text=9),
        mini=both(4, visual=4, text=3),
    ),
    "AdvMaPLe": replace(
        MAPT,
        source=MAPT.source + "AdvMaPLe/{file}_c2_ep100_batch32_2ctx_9depth_cross_datasets.yaml).",
        section="AdvMaPLe",
        prompts={"N_CTX": 2, "PROMPT_DEPTH": 9},
        mini={"N_CTX": 4, "PROMPT_DEPTH": 3},
    ),
    "FAP": FAP,
    "CBAFAPT": replace(
        FAP,
        source="CBA-FAPT's published setting [P] (AAAI 2026, implementation details); 5 epochs for "
        "cross-dataset. It does not give batch and transforms: FAP's, whose setting it says to "
        "follow [O].",
        section="CBAFAPT",
        prompts={"N_CTX": 2, "PROMPT_DEPTH": 9},
    ),
    "MMoP": Method(
        "MMoP's published setting [P] (xinwong/MMoP, configs/trainers/MoEAdvIVLP/"
        "{file}_c2_ep100_batch32_2+2ctx_*depth.yaml).",
        section="MMoP",
        prompts={**both(2, visual=9, text=9), "NUM_EXPERTS": 5},
        mini={**both(4, visual=4, text=3), "NUM_EXPERTS": 5},
        lr=0.0035,
        epochs=100,
        train={**ONE_STEP, "AT_LOSS_TYPE": "adv_half"},
        special={
            "vit_b32": {"warmup": 5},
            "vit_b16": {"more": "It evaluates epoch 80 (--load-epoch 80)."},
            "vit_l14": {
                "warmup": 10,
                "prompts": {**both(2, visual=18, text=12), "NUM_EXPERTS": 5},
                "more": "It evaluates epoch 20 (--load-epoch 20); its PROMPT_DEPTH_TEXT of 18 is "
                "all of the 12 layers.",
            },
        },
    ),
    "TTC": Method(
        "TTC's published setting [P] (Sxing2/CLIP-Test-time-Counterattacks, TTC.sh). "
        + NOT_TRAINED,
        section="TTC",
        prompts=TTC,
        mini=TTC,
        transforms="[]",
        carried=dict.fromkeys(("rn50", "rn101", "vit_b16", "vit_l14"), "vit_b32"),
        visual=False,
        trained=False,
    ),
    "RTPT": Method(
        "R-TPT's published setting [P] (TomSheng21/R-TPT, rtpt.py and README). " + NOT_TRAINED,
        section="RTPT",
        prompts=RTPT,
        mini=RTPT,
        transforms="[]",
        carried=dict.fromkeys(("rn101", "vit_b32", "vit_b16", "vit_l14"), "rn50"),
        visual=False,
        trained=False,
    ),
    "TAPT": Method(
        "TAPT's published setting [P] (xinwong/TAPT, configs/trainers/TAPTVLI/TAPT_{file}_c2_ep100_"
        "batch32_2ctx_9depth_l1_cross_datasets_step1_adv.yaml). AT.TRAIN attacks the training "
        "images whose statistics it knows; it is MAPT's [O]. " + NOT_TRAINED,
        section="TAPT",
        prompts=TAPT,
        mini={**TAPT, "LAYER_TO": 4},
        transforms="[]",
        train=ONE_STEP,
        carried={"vit_l14": "vit_b16"},
        trained=False,
    ),
    "APD": Method(
        "Our choice [O]: no source that we can read fixes APD's setting. Prompts, optimiser and "
        "attack are MAPT's (the authors' later work) with 50 epochs; loss weights are the defaults "
        "of apd/config.py.",
        section="APD",
        prompts=both(2, visual=9, text=9),
        mini=both(4, visual=4, text=3),
        lr=0.0035,
        epochs=50,
        train=ONE_STEP,
        clip_norm=1.0,
    ),
}


# -- files -----------------------------------------------------------------------------------------


def files() -> Iterator[tuple[str, str]]:
    """Paths below ``FOLDER``, and what stands in them."""
    for name, method in METHODS.items():
        for stem, clip in CLIPS.items():
            if not (method.visual and stem.startswith("rn")):
                make = _mini if isinstance(clip, Mini) else _published
                yield f"{name}/{stem}.yaml", make(name, method, stem, clip)


def _published(name: str, method: Method, stem: str, clip: Clip) -> str:
    settings = clip.like or stem
    special = dict(method.special.get(settings, {}))
    file = method.carried.get(settings, settings)
    said = [method.source.format(file=file), special.pop("more", "")]
    if file != stem:
        said.append(method.why.format(clip=clip.name, other=CLIPS[file].name, stem=stem))
    method = replace(method, **special)
    comments = [" ".join(filter(None, said)), TESTED_ALIKE, f"{MARKS} {UNITS}"]
    return _file(comments, method, clip)


def _mini(name: str, method: Method, stem: str, clip: Mini) -> str:
    said = clip.about
    if method.train and method.trained and clip.lr_from:
        said += f"; {clip.lr_from}"
    if name == "AdvPT":
        eps = clip.train["EPS"]
        train = {"EPS": eps, "ALPHA": eps / 10 * 1.25, "STEPS": 10}
    else:
        train = clip.train if method.train else {}
    ours = {
        "prompts": method.mini,
        "lr": clip.lr.get(name, clip.usual_lr),
        "epochs": clip.epochs,
        "batch": 32,
        "transforms": "[]",
        "train": train,
        "clip_norm": clip.clip_norm,
        "warmup": SCHEDULE["WARMUP_EPOCH"],
    }
    return _file([f"{said}.", UNITS], replace(method, **ours), clip, clip.special.get(name))


def _file(comments: list[str], method: Method, clip: Clip, special: dict | None = None) -> str:
    config = {
        "DATALOADER": {
            "TRAIN_X": {"BATCH_SIZE": method.batch},
            "TEST": {"BATCH_SIZE": clip.test_batch},
            "NUM_WORKERS": clip.workers,
        },
        "INPUT": {
            "SIZE": f"({clip.size}, {clip.size})",
            "INTERPOLATION": "bicubic",
            "TRANSFORMS": method.transforms,
        },
        "MODEL": {"BACKBONE": {"NAME": clip.name}},
    }
    if method.section and method.trained:
        optim = {"NAME": "sgd", "LR": method.lr, "MAX_EPOCH": method.epochs, **SCHEDULE}
        optim["WARMUP_EPOCH"] = method.warmup
        if method.clip_norm:
            optim["CLIP_NORM"] = method.clip_norm
        config |= {
            "OPTIM": optim,
            "TRAIN": {"PRINT_FREQ": clip.print_freq},
        }
    if method.section:
        config["TRAINER"] = {method.section: method.prompts}
    attack = {"TRAIN": method.train} if method.train else {}
    config["AT"] = {**attack, "TEST": clip.test}
    config = deepcopy(config)
    for key, value in (special or {}).items():
        *above, last = key.split(".")
        reduce(lambda node, name: node.setdefault(name, {}), above, config)[last] = value
    lines = [line for text in comments for line in _comment(text)]
    for key, value in config.items():
        lines += ["", *_yaml(key, value)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, 98, break_long_words=False, break_on_hyphens=False)]


def _yaml(key: str, value, indent: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        yield f"{indent}{key}:"
        for inner, part in value.items():
            yield from _yaml(inner, part, indent + "  ")
    else:
        yield f"{indent}{key}: {value}"


if __name__ == "__main__":
    for path, text in files():
        (FOLDER / path).parent.mkdir(exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")
