"""The configuration keys of these trainers, beside CoOp's and MaPLe's own.

[P] marks a published setting, [O] our choice where no source that we can read fixes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from yacs.config import CfgNode

# eps and alpha are in units of 1/255. They have no default: a result must state its threat model.
_ATTACK = {
    "EPS": None,  # radius of the ball
    "ALPHA": None,  # step size
    "NORM": "linf",  # or l2
}

# CoOp's, MaPLe's and MAPT's keys keep their names, so that users' configs work.
_PREC = {"PREC": "fp32"}  # of training: fp32, amp (fp16 with a scaler; also read: fp16) or bf16
_COOP = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end", **_PREC}
_VPT = {"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 9, "CTX_INIT": "a photo of a", **_PREC}
_IVLP = {**_VPT, "N_CTX_TEXT": 2, "PROMPT_DEPTH_TEXT": 9}
_ADVPT = {**_COOP, "N_CTX": 32}
_MAPLE = {"N_CTX": 2, "PROMPT_DEPTH": 9, "CTX_INIT": "a photo of a", **_PREC}
_FAP = {
    **_MAPLE,
    # "": the dataset's template, as FAP's published code does whatever its CTX_INIT is
    "CTX_INIT": "",
    "LAMBDA": 1.5,  # weight of the consistency of clean and adversarial images [P]
}

_APD = {
    **_IVLP,  # prompts as MAPT's, the authors' later work [O]
    "COUPLED": False,  # True: MaPLe's text-to-vision projection [O: independent]
    "ATTACK_LOSS": "ce",  # or kl: move the student away from the teacher [O: ce]
    "LAMBDA_CE": 0.5,  # cross-entropy on adversarial images [O]
    "LAMBDA_KD": 0.5,  # distillation from the teacher's clean logits [O]
    "LAMBDA_NAT": 0.0,  # cross-entropy on clean images [O]
    "LAMBDA_IMG": 0.0,  # image features towards the teacher's [O]
    "LAMBDA_TXT": 0.0,  # text features towards the teacher's [O]
    "TAU": 1.0,  # temperature of the distillation [O]
    "BETA": 0.0,  # the student's feedback to an online teacher [O]
    "TEACHER": {
        "MODE": "online",  # online, offline, frozen or checkpoint
        "BACKBONE": "",  # another CLIP than the student's
        "ROBUST": "",  # a robust image encoder for it; "": not robust, whatever the student has
        "PATH": "",  # MODE checkpoint: the folder of an IVLP run
    },
}

_KEYS = {
    # file with an adversarially fine-tuned image encoder (TeCoA, FARE) for the backbone
    "MODEL": {"BACKBONE": {"ROBUST": ""}},
    "DATASET": {
        "SUBSAMPLE_CLASSES": "all",  # all, base or new
        # validation images a class; 0: all; -1: min(shots, 4), CoOp's rule
        "VAL_SHOTS": -1,
        # of the dataset Folder: below DATASET.ROOT; its name in results (default: DIR); its
        # hand-written prompt (default: a photo of a {}.)
        "FOLDER": {"DIR": "", "NAME": "", "TEMPLATE": ""},
    },
    # keep the images in memory once they are read: for few or small ones; those of training are
    # read again in each epoch if INPUT.TRANSFORMS changes them at random
    "DATALOADER": {"IN_MEMORY": False},
    "AT": {
        # AT_LOSS_TYPE: which images of a training batch are attacked: adv_full, adv_half, clean
        "TRAIN": {
            **_ATTACK,
            "STEPS": 2,
            "AT_LOSS_TYPE": "adv_full",
            "PREC": "fp32",  # of the attack, as TRAINER.*.PREC
            "PROMPT": "onfly",  # what APT attacks: onfly, constant or perturbed prompts
            "PALPHA": None,  # learning rate of APT's perturbed prompts
        },
        "TEST": {
            **_ATTACK,
            "ATTACKS": [],  # by name, docs/evaluation.md lists them; empty: pgd-STEPS
            "STEPS": 100,  # of pgd and cw where their names do not say
            "RESTARTS": 1,
            "LOSS": "ce",  # of pgd: ce, kl or margin
            "LAST_ITERATE": False,  # count PGD's last iterate, as the papers do, not the worst one
            "PREC": "fp32",  # of the attack, as TRAINER.*.PREC; verdicts are always in fp32
            "SUBSET": 0,  # of the test images, the same for all methods and seeds; 0: all
        },
    },
    "TRAINER": {
        "PROMPT": {
            # classes per text pass, recomputed in the backward pass; 0: all at once
            "TEXT_CHUNK": 0,
            # hand-written prompts of ZeroshotCLIP in place of the dataset's; several: an ensemble
            "TEMPLATES": [],
        },
        "COOP": _COOP,  # CoOp and APT
        "ADV": _ADVPT,  # AdvPT
        "VPT": _VPT,
        "IVLP": _IVLP,
        "MAPLE": _MAPLE,
        "AdvVPT": _VPT,
        "AdvIVLP": _IVLP,
        "AdvMaPLe": _MAPLE,
        "FAP": _FAP,
        "APD": _APD,
    },
}


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of these trainers to a Dassl config, in place; keys it has keep their values."""
    _add(cfg, _KEYS)


def default() -> CfgNode:
    """The toolbox's config with the keys of these trainers."""
    from apd.host import get_cfg_default  # PyTorch is slow to import

    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def _add(node: CfgNode, keys: dict) -> None:
    for key, value in keys.items():
        if isinstance(value, dict):
            _add(node.setdefault(key, CfgNode()), value)
        else:
            node.setdefault(key, value)


# keys that cannot change a result
HARMLESS = {
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "DATALOADER.IN_MEMORY",
}


def differences(config: dict, other: dict) -> list[str]:
    """What in ``other`` could give another result than ``config``, as "KEY: value, was other".

    A key of ours that ``other`` lacks, being of an earlier version, has its default there: the
    default of a new key changes nothing.
    """
    ours, theirs = dict(flat(config)), {**dict(flat(_KEYS)), **dict(flat(other))}
    return [
        f"{key}: {ours.get(key)!r}, was {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in HARMLESS and ours.get(key) != theirs.get(key)
    ]


def flat(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Key, with dots, and value of all that a config holds."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:  # YAML and JSON have no tuples
            yield prefix + key, list(value) if isinstance(value, tuple) else value
