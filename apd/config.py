"""The configuration keys of these trainers, in addition to CoOp's and MaPLe's.

[P] marks a published setting, [O] our choice where no source that we can read fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path

from yacs.config import CfgNode

from apd import choices, classes
from apd.about import CONFIGS
from apd.commandline import Parser
from apd.errors import UserError, exit_codes, one_line, similar
from apd.files import read_text, read_yaml
from apd.methods import METHODS
from apd.ranges import (
    TEXT,
    Rule,
    number,
    one_of,
    optional,
    per_255,
    rule_like,
    several,
    whole,
)

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

_CBAFAPT = {
    **_MAPLE,  # "a photo of a" of its figure 2 [P]
    # its maps are gradients of the logit, as in its figure 2 [O], or of equation 1's cosine
    "SCORE": "logit",
    "LAMBDA_ADV": 5.0,  # cross-entropy on adversarial images, its alpha [P]
    "LAMBDA_VAA": 0.05,  # maps of the image, its beta [P]
    "LAMBDA_TAA": 0.03,  # maps of the text, its gamma [P]
}

_MMOP = {**_IVLP, "NUM_EXPERTS": 5}  # of each deeper layer's context [P]

# Test-time defences: numbers are those of their published code [P]. BACKWARD: how an attack goes
# through the tuning of prompts: exact, or surrogate (tuned prompts are constant)
_TTC = {
    "EPS": 4.0,  # radius of the counterattack, in 1/255
    "ALPHA": 1.0,  # its step size
    "STEPS": 2,
    "TAU": 0.2,  # an image whose embedding noise moves by more is not counterattacked
    "BETA": 2.0,  # weights of the counterattack's iterates: exp(BETA t)
    **_PREC,
}
_RTPT = {
    "N_CTX": 4,
    "CTX_INIT": "a photo of a",
    "VIEWS": 64,  # of an image, itself among them
    "AUGMIX": True,  # views are mixed with operations on them (as published, but for ImageNet's)
    "CONFIDENT": 0.1,  # share of the views that prompts are tuned to
    "STEPS": 1,
    "LR": 0.005,
    "NEIGHBOURS": 20,  # that a view's vote depends on
    "TEMPERATURE": 0.01,  # of the votes' weights
    "BACKWARD": "exact",
    **_PREC,
}
_TAPT = {
    "VIEWS": 64,
    "CONFIDENT": 0.1,
    "STEPS": 1,
    "LR": 0.0005,
    "DISTR_W": 100.0,  # weight of the distance to the training images' statistics
    "GAMMA": 0.5,  # part of it that is the distance to attacked images
    "LAYER_FROM": 0,
    "LAYER_TO": 9,  # the last layer compared is the one before the one before it, as published
    "BACKWARD": "exact",
    **_PREC,
}

_APD = {
    **_IVLP,  # prompts as MAPT's, the authors' later work [O]
    "COUPLED": False,  # True: MaPLe's text-to-vision projection [O: independent]
    "ATTACK_LOSS": "ce",  # or kl: move the student away from the teacher [O: ce]
    "LAMBDA_CE": 0.5,  # cross-entropy on adversarial images [O]
    "LAMBDA_KD": 0.5,  # distillation from the teacher's clean logits [O]
    "LAMBDA_KD_NAT": 0.0,  # the same distillation on clean images [O]
    "LAMBDA_NAT": 0.0,  # cross-entropy on clean images [O]
    "LAMBDA_IMG": 0.0,  # image features towards the teacher's [O]
    "LAMBDA_TXT": 0.0,  # text features towards the teacher's [O]
    "TAU": 1.0,  # temperature of the distillation [O]
    "BETA": 0.0,  # the student's feedback to an online teacher [O]
    "TEACHER": {
        "MODE": "online",  # online, offline, frozen, checkpoint or auto [O]
        "LR": 0.1,  # of its prompts, as a multiple of OPTIM.LR [O: docs/study/history.md]
        "TAU": 1.0,  # a temperature of its own; below 1 the student learns sharper targets [O]
        "BACKBONE": "",  # another CLIP than the student's
        "ROBUST": "",  # a robust image encoder for it; "": not robust, whatever the student has
        "PATH": "",  # MODE checkpoint: the folder of an IVLP run
    },
}

KEYS: dict[str, dict] = {
    "MODEL": {
        "BACKBONE": {
            "ROBUST": "",  # file with an adversarially fine-tuned image encoder (TeCoA, FARE)
            "RESOLUTION": 0,  # of the images, in pixels; 0: what a ViT was trained on
        }
    },
    "DATASET": {
        # the data set's classes that are used: names, FILE.txt with one a line (which is replaced
        # by its names when it is read), or PART/PARTS/SEED of a partition drawn by SEED; none: all
        "CLASSES": [],
        "SUBSAMPLE_CLASSES": "all",  # all, base or new: of those
        # validation images per class; 0: all; -1: min(shots, 4), CoOp's rule
        "VAL_SHOTS": -1,
        # this share of each class's validation images is moved to the test images, for all seeds
        # the same
        "VAL_TO_TEST": 0.0,
        # of the dataset Folder: its folder below DATASET.ROOT; its name in results (default: DIR);
        # its template (default: a photo of a {}.)
        "FOLDER": {"DIR": "", "NAME": "", "TEMPLATE": ""},
    },
    # keep images in memory once they are read, if they are few or small; training images are read
    # again in each epoch if INPUT.TRANSFORMS changes them at random
    "DATALOADER": {"IN_MEMORY": False},
    # a gradient (the student's, the teacher's) with a larger norm is scaled to this one; 0: never.
    # Without it, feature alignment, feedback to the teacher and few shots can move the prompts so
    # far in one step that CLIP no longer classifies (docs/methods.md)
    "OPTIM": {"CLIP_NORM": 0.0},
    "AT": {
        # AT_LOSS_TYPE: which images of a training batch are attacked: adv_full, adv_half, clean
        "TRAIN": {
            **_ATTACK,
            "STEPS": 2,
            # share of the epochs over which EPS and ALPHA grow from 0 to their values; 0: none [O]
            "EPS_WARMUP": 0.0,
            "AT_LOSS_TYPE": "adv_full",
            "PREC": "fp32",  # of the attack, as TRAINER.*.PREC
            "PROMPT": "onfly",  # what APT attacks: onfly, constant or perturbed prompts
            "PALPHA": None,  # learning rate of APT's perturbed prompts
        },
        "TEST": {
            **_ATTACK,
            "ATTACKS": [],  # by name, docs/evaluation.md lists them; empty: pgd-STEPS
            "STEPS": 100,  # of pgd and cw, unless their names say how many, as pgd-20
            "RESTARTS": 1,
            "LOSS": "ce",  # of pgd: docs/evaluation.md lists them
            "LAST_ITERATE": False,  # count PGD's last iterate, as the papers do, not the worst one
            "PREC": "fp32",  # of the attack, as TRAINER.*.PREC; verdicts are always in fp32
            # of models whose logits are random: draws that an attack's gradient is averaged over
            # (AutoAttack's number [P]), draws of a verdict [O] and its rule: majority, all or one
            "EOT": 20,
            "DRAWS": 3,
            "RULE": "majority",
            "SUBSET": 0,  # of the test images, the same for all methods and seeds; 0: all
            "SHARDS": 1,  # processes (on a machine with GPUs: one per GPU) that share the images
        },
    },
    "TRAINER": {
        "PROMPT": {
            # classes per text pass, recomputed in the backward pass; 0: all at once
            "TEXT_CHUNK": 0,
            "COMPILE": False,  # torch.compile the image encoder for training
            # templates of ZeroshotCLIP that replace the data set's; several: an ensemble
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
        "CBAFAPT": _CBAFAPT,
        "MMoP": _MMOP,
        "TTC": _TTC,
        "RTPT": _RTPT,
        "TAPT": _TAPT,
        "APD": _APD,
    },
}

_COUNT = whole(1)
_SHARE = number(0, 1)
_LEAST_0 = number(0)
_RADIUS = per_255(optional(_LEAST_0))
_PRECISION = one_of(*choices.PRECISIONS)

# What each key takes, of ours and of the toolbox. A key without a rule takes values of its
# default's type. Names of classes (trainers, data sets, samplers, ...) are checked where they are
# used.
_RULES: dict[str, Rule] = {
    "VERSION": whole(),
    "SEED": whole(-1, 2**32 - 1, note=" (-1: not seeded)"),
    "INPUT.SIZE": several(_COUNT, count=2),
    "INPUT.INTERPOLATION": one_of(*choices.INTERPOLATIONS),
    "INPUT.TRANSFORMS": several(TEXT, split=True),
    "INPUT.PIXEL_MEAN": several(number(), count=3),
    "INPUT.PIXEL_STD": several(number(above=0), count=3),
    "INPUT.CROP_PADDING": whole(0),
    "INPUT.RRCROP_SCALE": several(number(above=0, high=1), count=2),
    "INPUT.CUTOUT_N": whole(0),
    "INPUT.CUTOUT_LEN": _COUNT,
    "INPUT.GN_MEAN": number(),
    "INPUT.GN_STD": _LEAST_0,
    "INPUT.RANDAUGMENT_N": whole(0),
    "INPUT.RANDAUGMENT_M": whole(0),
    "INPUT.COLORJITTER_B": _LEAST_0,
    "INPUT.COLORJITTER_C": _LEAST_0,
    "INPUT.COLORJITTER_S": _LEAST_0,
    "INPUT.COLORJITTER_H": number(0, 0.5),
    "INPUT.RGS_P": _SHARE,
    "INPUT.GB_P": _SHARE,
    "INPUT.GB_K": _COUNT,
    "DATASET.NUM_LABELED": whole(-1),
    "DATASET.NUM_SHOTS": whole(1, also=-1, note=" (all images)"),
    "DATASET.CLASSES": classes.RULE,
    "DATASET.VAL_SHOTS": whole(-1),
    "DATASET.VAL_TO_TEST": _SHARE,
    "DATASET.VAL_PERCENT": _SHARE,
    "DATASET.STL10_FOLD": whole(-1),
    "DATASET.CIFAR_C_LEVEL": whole(1, 5),
    "DATASET.SUBSAMPLE_CLASSES": one_of("all", "base", "new"),
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.K_TRANSFORMS": _COUNT,
    **{
        f"DATALOADER.{loader}.{key}": rule
        for loader in ("TRAIN_X", "TRAIN_U", "TEST")
        for key, rule in (("BATCH_SIZE", _COUNT), ("N_DOMAIN", whole(0)), ("N_INS", _COUNT))
    },
    "MODEL.BACKBONE.RESOLUTION": whole(0, note=" (0: what the CLIP was trained on)"),
    "MODEL.HEAD.HIDDEN_LAYERS": several(_COUNT),
    "MODEL.HEAD.DROPOUT": _SHARE,
    "OPTIM.LR": number(above=0),
    "OPTIM.WEIGHT_DECAY": _LEAST_0,
    "OPTIM.CLIP_NORM": number(0, note=" (0: gradients are not clipped)"),
    "OPTIM.MOMENTUM": _SHARE,
    "OPTIM.SGD_DAMPNING": _SHARE,
    "OPTIM.RMSPROP_ALPHA": _SHARE,
    "OPTIM.ADAM_BETA1": _SHARE,
    "OPTIM.ADAM_BETA2": _SHARE,
    "OPTIM.BASE_LR_MULT": _LEAST_0,
    "OPTIM.LR_SCHEDULER": one_of("single_step", "multi_step", "cosine"),
    "OPTIM.STEPSIZE": several(whole(), split=True),
    "OPTIM.GAMMA": number(above=0),
    "OPTIM.MAX_EPOCH": _COUNT,
    "OPTIM.WARMUP_EPOCH": whole(-1),
    "OPTIM.WARMUP_TYPE": one_of("linear", "constant"),
    "OPTIM.WARMUP_CONS_LR": _LEAST_0,
    "OPTIM.WARMUP_MIN_LR": _LEAST_0,
    "TRAIN.CHECKPOINT_FREQ": whole(-1),
    "TRAIN.PRINT_FREQ": _COUNT,
    "TEST.SPLIT": one_of("test", "val"),
    "TEST.FINAL_MODEL": one_of("last_step", "best_val"),
    **{
        f"AT.{use}.{key}": rule
        for use in ("TRAIN", "TEST")
        for key, rule in (
            ("EPS", _RADIUS),
            ("ALPHA", _RADIUS),
            ("NORM", one_of(*choices.NORMS)),
            ("STEPS", whole(0)),
            ("PREC", _PRECISION),
        )
    },
    "AT.TRAIN.EPS_WARMUP": number(0, 1),
    "AT.TRAIN.AT_LOSS_TYPE": one_of(*choices.ATTACKED),
    "AT.TRAIN.PROMPT": one_of(*choices.ATTACKED_PROMPTS),
    "AT.TRAIN.PALPHA": optional(_LEAST_0),
    "AT.TEST.ATTACKS": several(TEXT, split=True),
    "AT.TEST.RESTARTS": _COUNT,
    "AT.TEST.LOSS": one_of(*choices.LOSSES),
    "AT.TEST.EOT": _COUNT,
    "AT.TEST.DRAWS": _COUNT,
    "AT.TEST.RULE": one_of(*choices.RULES),
    "AT.TEST.SUBSET": whole(0, note=" (0: all)"),
    "AT.TEST.SHARDS": _COUNT,
    "TRAINER.PROMPT.TEXT_CHUNK": whole(0),
    "TRAINER.PROMPT.TEMPLATES": several(TEXT),  # with commas in them
    "TRAINER.APD.TEACHER.LR": number(above=0),
    "TRAINER.APD.TEACHER.TAU": number(above=0),
    "TRAINER.APD.TEACHER.MODE": one_of(*choices.TEACHERS),
}
_RULES_OF_TRAINERS = {  # in every section of TRAINER
    **dict.fromkeys(("N_CTX", "N_CTX_TEXT", "N_CTX_VISION", "NUM_EXPERTS"), _COUNT),
    **dict.fromkeys(("PROMPT_DEPTH", "PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION"), _COUNT),
    "CLASS_TOKEN_POSITION": one_of(*choices.POSITIONS),
    "PREC": _PRECISION,
    "LAMBDA": _LEAST_0,  # and all LAMBDA_*
    "TAU": number(above=0),
    "BETA": _LEAST_0,
    "ATTACK_LOSS": one_of("ce", "kl"),
    "SCORE": one_of("logit", "cosine"),
    "EPS": _LEAST_0,
    "ALPHA": _LEAST_0,
    "STEPS": whole(0),
    "VIEWS": whole(2),
    "CONFIDENT": _SHARE,
    "LR": number(above=0),
    "NEIGHBOURS": _COUNT,
    "TEMPERATURE": number(above=0),
    "DISTR_W": _LEAST_0,
    "GAMMA": _SHARE,
    "LAYER_FROM": whole(0),
    "LAYER_TO": _COUNT,
    "BACKWARD": one_of(*choices.BACKWARDS[:2]),
}


def rule_of(key: str) -> Rule | None:
    """The rule of ``key``; None: it has none."""
    trainer, _, name = key.removeprefix("TRAINER.").partition(".")
    if key not in _RULES and trainer in KEYS["TRAINER"]:
        return _RULES_OF_TRAINERS.get("LAMBDA" if name.startswith("LAMBDA_") else name)
    return _RULES.get(key)


def flag_type(key: str) -> Rule:
    """The rule of ``key``, which has one, as the type of a command's flag."""
    rule = rule_of(key)
    assert rule is not None, key
    return rule


def merge(cfg: CfgNode, values: Iterable[tuple[str, object]], where: str) -> None:
    """Set keys of ``cfg``, in place, each read by its rule.

    Args:
        cfg: not frozen.
        values: keys with dots, and their values, also as texts of a command line.
        where: what to call their source in an error.

    Raises:
        UserError: an unknown key, or a value that it does not take.
    """
    for key, value in values:
        node, name = _holder(cfg, key, where)
        default = node[name]
        if isinstance(default, dict):
            if value is None:  # a section of YAML with nothing in it
                continue
            raise UserError(f"{where}: {key} is a section: set one of its keys, {key}.KEY")
        rule = rule_of(key) or rule_like(default)
        try:
            parsed = rule.read(value)
        except ValueError as error:
            raise UserError(f"{where}: {key} is {one_line(value)}: use {rule}") from error
        if isinstance(default, float) and isinstance(parsed, int):
            parsed = float(parsed)
        elif isinstance(default, (list, tuple)):
            parsed = type(default)(parsed)
        if rule is _RADIUS and isinstance(value, str) and "/" in value:
            _note_once(f"{key} {value} is read as {parsed}: its unit is 1/255")
        node[name] = parsed


def _holder(cfg: CfgNode, key: str, where: str) -> tuple[CfgNode, str]:
    """The section with ``key``, and the key's name in it; UserError if ``cfg`` has no such key."""
    *sections, name = key.split(".")
    node = cfg
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if not isinstance(node, dict) or name not in node:
        near = similar(key, (name for name, _ in flat(cfg)))
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"{where}: there is no key {one_line(key)}{hint}")
    return node, name


def pairs(options: Sequence) -> list[tuple]:
    """KEY VALUE KEY VALUE ... of a command line as pairs; UserError if their number is odd."""
    if len(options) % 2:
        raise UserError(
            f"command line: {one_line(options[-1])} stands alone: flags come first, then pairs "
            "of KEY and VALUE"
        )
    return list(zip(options[::2], options[1::2]))


@cache
def _note_once(note: str) -> None:
    """Print a note, once."""
    print(f"note: {note}")


def check(cfg: CfgNode) -> None:
    """Raise UserError if a key has a value that it does not take."""
    for key, value in flat(cfg):
        if rule := rule_of(key):
            try:
                good = isinstance(rule.read(value), str) or not isinstance(value, str)
            except ValueError:
                good = False
            if not good:
                raise UserError(f"{key} is {one_line(value)}: use {rule}")


def extend_cfg(cfg: CfgNode) -> None:
    """Prepare a Dassl config for these trainers, in place.

    Their keys are added; keys that it has keep their values. Its ``merge_from_file`` also finds the
    files that come with this package, as ``find_config`` does. Its errors become UserErrors, and
    ``freeze`` checks and completes it (see ``_Config``).
    """
    _add(cfg, KEYS)
    if type(cfg) is CfgNode:
        object.__setattr__(cfg, "__class__", _Config)  # yacs's __setattr__ would make it a key


def default() -> CfgNode:
    """The toolbox's config with the keys of these trainers."""
    from apd.host import get_cfg_default  # PyTorch is slow to import

    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def of_files(paths: Iterable[str]) -> CfgNode:
    """The default config with the keys of files, not frozen; later files override earlier ones.

    Raises:
        UserError: no such file, unknown key or a value that it does not take.
    """
    files = []
    for path in paths:
        file = find_config(path)
        if not file.endswith((".yaml", ".yml")):
            raise UserError(f"{path}: a config is a .yaml file")
        files.append((path, file, read_text(file)))
    return _copy(_of_files(tuple(files)))


@lru_cache(maxsize=128)  # a sweep has thousands of runs and a few files
def _of_files(files: tuple[tuple[str, str, str], ...]) -> CfgNode:
    cfg = default()
    for path, file, _ in files:  # the text is there so that a changed file is read again
        merge(cfg, flat(read_yaml(file)), path)
    return cfg


def _copy(node: CfgNode) -> CfgNode:
    """``node.clone()``, but many times as fast: of the values, only lists are copied."""
    twin = dict.__new__(type(node))
    vars(twin).update(vars(node))
    for key, value in node.items():
        copy = _copy if isinstance(value, CfgNode) else deepcopy
        twin[key] = copy(value) if isinstance(value, (CfgNode, list)) else value
    return twin


def of_run(results: dict, folder: Path) -> CfgNode:
    """The config of a run in ``folder``, from what its results.json says; not frozen.

    A run on Dassl also has the sections of Dassl's trainers: sections that this host lacks are left
    out.

    Raises:
        UserError: a key that this version does not know, or a value that it does not take; there
            is no config, for the results are those of a model that was given to apd.robustness.
    """
    if not results["config"]:
        raise UserError(
            f"{folder} has results of a model that is no run: only tables and reports read them"
        )
    cfg = default()
    known_values = (
        (key, value)
        for key, value in flat(results["config"])
        if not key.startswith("TRAINER.") or key.split(".")[1] in cfg.TRAINER
    )
    merge(cfg, known_values, f"the config in {folder}")
    return cfg


def _add(node: CfgNode, keys: dict) -> None:
    for key, value in keys.items():
        if isinstance(value, dict):
            _add(node.setdefault(key, CfgNode()), value)
        else:
            node.setdefault(key, value)


class _Config(CfgNode):
    """A config that also reads this package's files; its sections are plain ``CfgNode``.

    ``freeze`` raises a UserError unless the trainer and the data set exist. This package's method
    files are for trainers that normalise images themselves, which have the attribute ``normalizes =
    True``. With a trainer that does not, such as CoOp's and MaPLe's own, ``freeze`` adds
    ``normalize`` to INPUT.TRANSFORMS, with CLIP's mean and standard deviation.
    """

    def merge_from_file(self, cfg_filename: str) -> None:
        path = find_config(cfg_filename)
        try:
            super().merge_from_file(path)
        except Exception as error:  # yaml and yacs raise errors of many kinds
            raise UserError(f"{cfg_filename}: {one_line(error)}") from error
        if CONFIGS.resolve() / "trainers" in Path(path).resolve().parents:
            self.__dict__["our_file"] = cfg_filename  # yacs would make an attribute a key

    def merge_from_list(self, cfg_list: list) -> None:
        for key, value in pairs(cfg_list):
            try:
                super().merge_from_list([key, value])
            except Exception as error:
                node, name = _holder(self, key, "command line")
                rule = rule_of(key) or rule_like(node[name])
                raise UserError(f"command line: {key} is {one_line(value)}: use {rule}") from error

    def freeze(self) -> None:
        from apd.host import DATASET_REGISTRY, TRAINER_REGISTRY  # PyTorch is slow to import

        for kind, name, where, registry in (
            ("trainer", self.TRAINER.NAME, "--trainer", TRAINER_REGISTRY),
            ("dataset", self.DATASET.NAME, "DATASET.NAME", DATASET_REGISTRY),
        ):
            check_name(kind, name, where, registry.registered_names())
        trainer = TRAINER_REGISTRY.get(self.TRAINER.NAME)
        if "our_file" in self.__dict__ and not getattr(trainer, "normalizes", False):
            self._normalize()
        super().freeze()

    def _normalize(self) -> None:
        from apd.clip.foreign import MEAN, STD

        section = self.INPUT
        if "normalize" not in section.TRANSFORMS:
            section.TRANSFORMS = type(section.TRANSFORMS)([*section.TRANSFORMS, "normalize"])
            section.PIXEL_MEAN, section.PIXEL_STD = list(MEAN), list(STD)
            print(
                f"note: {self.__dict__['our_file']} is a config for trainers that normalise images "
                f"themselves, and {self.TRAINER.NAME} here does not say that it does: normalize is "
                "added to INPUT.TRANSFORMS, with CLIP's mean and standard deviation"
            )

    _decode_cfg_value = CfgNode._decode_cfg_value  # yacs merges sections of the same type only


def check_name(kind: str, name: str, where: str, names: list[str]) -> None:
    """Raise UserError unless ``name`` is one of ``names``; ``where`` is what sets it."""
    if name not in names:
        near = similar(name, names, 0.4)
        raise UserError(
            f'unknown {kind} "{name}" ({where}); '
            f"{'did you mean' if near else 'there are'} {', '.join(near or sorted(names))}?"
        )


def find_config(path: str) -> str:
    """``path``, or the file that comes with this package under that name (``configs/...``).

    Raises:
        UserError: there is neither.
    """
    shipped = CONFIGS.parent / path
    if Path(path).is_file():
        return path
    if shipped.is_file() and CONFIGS in shipped.resolve().parents:
        return str(shipped)
    raise UserError(f"no config file {path}")


@exit_codes
def print_folder(argv: list[str] | None = None) -> int:
    """The command ``apd-configs``: print where the configs of this package lie."""
    Parser(
        prog="apd-configs", description="Print where the configs of this package lie."
    ).parse_args(argv)
    print(CONFIGS)
    return 0


# keys that cannot change a result
HARMLESS = {
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "DATALOADER.IN_MEMORY",
    "AT.TEST.SHARDS",
}


def differences(config: dict, other: dict) -> list[str]:
    """The keys by which two configs can give different results, as "KEY: value, was other".

    ``other`` may be of an earlier version, and lack keys of ours. It is compared as if these had
    their defaults, which change nothing.
    """
    values, before = dict(flat(config)), {**dict(flat(KEYS)), **dict(flat(other))}
    skipped = unread(str(values.get("TRAINER.NAME")))
    return [
        f"{key}: {values.get(key)!r}, was {before.get(key)!r}"
        for key in sorted(values.keys() | before.keys())
        if key not in HARMLESS
        and not key.startswith(skipped)
        and values.get(key) != before.get(key)
    ]


def unread(method: str) -> tuple[str, ...]:
    """Prefixes of the keys that a method does not read: the sections of our other methods."""
    if method not in METHODS:
        return ()
    sections = KEYS["TRAINER"].keys() - {"PROMPT", METHODS[method].section}
    return tuple(f"TRAINER.{name}." for name in sorted(sections))


def plain(config):
    """A config as plain data for YAML and JSON: dicts with sorted keys, lists for tuples."""
    if isinstance(config, dict):
        return {key: plain(config[key]) for key in sorted(config)}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config


def flat(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All keys of a config, with dots, and their values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:  # YAML and JSON have no tuples
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
