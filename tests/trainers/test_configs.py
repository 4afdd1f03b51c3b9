"""The shipped configs: they merge, fit their trainer, and hold the published settings."""

from pathlib import Path

import pytest
import yaml

import apd
from apd.host import TRAINER_REGISTRY
from apd.train import parse_args, setup_cfg

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted((CONFIGS / "trainers").glob("*/*.yaml"))
TEXT_ONLY = ("ZeroshotCLIP", "CoOp", "APT")  # fit a ResNet too
OURS = (*TEXT_ONLY, "VPT", "IVLP", "MaPLe", "AdvVPT", "AdvIVLP", "AdvMaPLe", "APD")
SECTIONS = {"ZeroshotCLIP": None, "CoOp": "COOP", "APT": "COOP", "MaPLe": "MAPLE"}

MAPT = {
    "OPTIM.NAME": "sgd", "OPTIM.LR": 0.0035, "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1, "OPTIM.WARMUP_TYPE": "constant", "OPTIM.WARMUP_CONS_LR": 1e-5,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "OPTIM.MAX_EPOCH": 100,
    "AT.TRAIN.EPS": 1, "AT.TRAIN.ALPHA": 1, "AT.TRAIN.STEPS": 2,
    "AT.TEST.EPS": 1, "AT.TEST.ALPHA": 1, "AT.TEST.STEPS": 100,
}  # fmt: skip
COOP = {
    "OPTIM.NAME": "sgd", "OPTIM.LR": 0.002, "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "TRAINER.COOP.N_CTX": 16, "OPTIM.MAX_EPOCH": 200,
}  # fmt: skip
PUBLISHED = {  # METHOD.md, "Published settings"
    "CoOp": COOP,
    "APT": COOP | {
        "AT.TRAIN.EPS": 1, "AT.TRAIN.ALPHA": 0.667, "AT.TRAIN.STEPS": 3, "AT.TEST.STEPS": 100,
    },
    "MaPLe": {
        "OPTIM.LR": 0.0035, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 5,
        "TRAINER.MAPLE.N_CTX": 2, "TRAINER.MAPLE.PROMPT_DEPTH": 9,
    },
    "AdvVPT": MAPT | {
        "TRAINER.AdvVPT.N_CTX_VISION": 2, "TRAINER.AdvVPT.PROMPT_DEPTH_VISION": 9,
    },
    "AdvIVLP": MAPT | {
        "TRAINER.AdvIVLP.N_CTX_VISION": 2, "TRAINER.AdvIVLP.PROMPT_DEPTH_VISION": 9,
        "TRAINER.AdvIVLP.N_CTX_TEXT": 2, "TRAINER.AdvIVLP.PROMPT_DEPTH_TEXT": 9,
    },
    "AdvMaPLe": MAPT | {
        "TRAINER.AdvMaPLe.N_CTX": 2, "TRAINER.AdvMaPLe.PROMPT_DEPTH": 9,
    },
    "APD": MAPT | {
        "OPTIM.MAX_EPOCH": 50, "AT.TRAIN.AT_LOSS_TYPE": "adv_full",
        "TRAINER.APD.N_CTX_VISION": 2, "TRAINER.APD.PROMPT_DEPTH_VISION": 9,
        "TRAINER.APD.N_CTX_TEXT": 2, "TRAINER.APD.PROMPT_DEPTH_TEXT": 9,
        "TRAINER.APD.LAMBDA_CE": 0.5, "TRAINER.APD.LAMBDA_KD": 0.5, "TRAINER.APD.TAU": 1.0,
        "TRAINER.APD.LAMBDA_NAT": 0.0, "TRAINER.APD.LAMBDA_IMG": 0.0,
        "TRAINER.APD.LAMBDA_TXT": 0.0, "TRAINER.APD.BETA": 0.0,
        "TRAINER.APD.ATTACK_LOSS": "ce", "TRAINER.APD.TEACHER.MODE": "online",
    },
}  # fmt: skip
BACKBONES = {"mini": "mini", "vit_b32": "ViT-B/32", "vit_b16": "ViT-B/16", "rn50": "RN50"}


def load(path, *options, dataset="digits"):
    apd.register()
    return setup_cfg(parse_args([
        "--root", "data", "--trainer", path.parent.name, "--config-file", str(path),
        "--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml"), *options,
    ]))  # fmt: skip


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def test_every_method_has_its_configs():
    found = {name_of(path) for path in FILES}
    wanted = {f"{method}/{name}" for method in OURS for name in ("mini", "vit_b32", "vit_b16")}
    assert found == wanted | {f"{method}/rn50" for method in TEXT_ONLY}


@pytest.mark.parametrize("path", FILES, ids=name_of)
@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_config_merges_with_a_data_sets(path, dataset):
    cfg = load(path, dataset=dataset)
    assert cfg.TRAINER.NAME in TRAINER_REGISTRY.registered_names()
    assert cfg.DATASET.NAME.lower() == dataset
    assert cfg.MODEL.BACKBONE.NAME == BACKBONES[path.stem]
    assert tuple(cfg.INPUT.SIZE) == ((32, 32) if path.stem == "mini" else (224, 224))
    assert cfg.INPUT.INTERPOLATION == "bicubic"  # as CLIP was trained
    assert "normalize" not in cfg.INPUT.TRANSFORMS
    assert None not in (cfg.AT.TEST.EPS, cfg.AT.TEST.ALPHA) and cfg.AT.TEST.STEPS == 100


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_config_sets_the_section_that_its_trainer_reads(path):
    method = path.parent.name
    section = SECTIONS.get(method, method)
    given = yaml.safe_load(path.read_text()).get("TRAINER", {})
    assert set(given) == ({section} if section else set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_config_of_an_adversarial_method_has_a_training_attack(path):
    at = load(path).AT.TRAIN
    adversarial = path.parent.name in ("APT", "AdvVPT", "AdvIVLP", "AdvMaPLe", "APD")
    assert (None not in (at.EPS, at.ALPHA)) == adversarial


@pytest.mark.parametrize("file", ["vit_b32", "vit_b16"])
@pytest.mark.parametrize("method", PUBLISHED)
def test_published_settings(method, file):
    cfg = load(CONFIGS / "trainers" / method / f"{file}.yaml")
    for key, value in PUBLISHED[method].items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key


@pytest.mark.parametrize("method", ["AdvVPT", "AdvIVLP", "AdvMaPLe"])
def test_mapts_batches_are_half_attacked(method):
    assert load(CONFIGS / "trainers" / method / "vit_b32.yaml").AT.TRAIN.AT_LOSS_TYPE == "adv_half"


@pytest.mark.parametrize("key", ["AT.TRAIN.EPS", "AT.TRAIN.ALPHA", "AT.TEST.EPS", "AT.TEST.ALPHA"])
@pytest.mark.parametrize("value", ["4", "2.667"])
def test_the_command_line_may_change_a_radius_whatever_the_file_has(key, value):
    for file in ("mini", "vit_b32"):  # whole numbers in one, a fraction in the other
        cfg = load(CONFIGS / "trainers" / "APD" / f"{file}.yaml", key, value)
        _, part, name = key.split(".")
        assert cfg.AT[part][name] == float(value)
