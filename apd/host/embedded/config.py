"""The config tree that Dassl-style code reads: same keys, same values."""

from __future__ import annotations

from yacs.config import CfgNode

_LOADER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}

_DEFAULTS = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",
    "RESUME": "",
    "SEED": -1,  # negative: not seeded
    "USE_CUDA": True,
    "VERBOSE": True,
    "INPUT": {
        "SIZE": (224, 224),
        "INTERPOLATION": "bilinear",
        "TRANSFORMS": (),
        "NO_TRANSFORM": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,
        "RRCROP_SCALE": (0.08, 1.0),
        "CUTOUT_N": 1,
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,
        "GB_P": 0.5,
        "GB_K": 21,
    },
    "DATASET": {
        "ROOT": "",
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,
        "NUM_SHOTS": -1,  # images per class; below 1: all
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "K_TRANSFORMS": 1,  # augmented copies of each training image
        "RETURN_IMG0": False,  # the image without augmentation, too
        "TRAIN_X": _LOADER,
        "TRAIN_U": {"SAME_AS_X": True, **_LOADER},
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {
            "NAME": "",
            "HIDDEN_LAYERS": (),
            "ACTIVATION": "relu",
            "BN": True,
            "DROPOUT": 0.0,
        },
    },
    "OPTIM": {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,  # layers that are not NEW_LAYERS get LR * BASE_LR_MULT
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (-1,),  # single_step: below 1 means MAX_EPOCH
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,
        "WARMUP_TYPE": "linear",
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,
        "WARMUP_RECOUNT": True,  # the schedule starts after warm-up
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,  # epochs; below 1: the last one only
        "PRINT_FREQ": 10,  # batches
        "COUNT_ITER": "train_x",
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,
        "NO_TEST": False,
        "SPLIT": "test",
        "FINAL_MODEL": "last_step",  # or best_val
    },
    "TRAINER": {"NAME": ""},
}


def get_cfg_default() -> CfgNode:
    """Return a fresh config with the default values."""
    return CfgNode(_DEFAULTS)


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the sections of ``cfg.TRAINER`` that are not ``trainer``'s, in place."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
