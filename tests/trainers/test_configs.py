"""The shipped configs: as scripts/make_configs.py makes them, with the published settings."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

import apd
from apd.config import default
from apd.host import TRAINER_REGISTRY
from apd.methods import METHODS
from apd.train.command import parse_args, setup_cfg

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
MADE = runpy.run_path(str(ROOT / "scripts" / "make_configs.py"))
FILES = sorted(MADE["FOLDER"].glob("*/*.yaml"))
# fit a ResNet too
TEXT_ONLY = {name for name, method in MADE["METHODS"].items() if not method.visual}

MAPT = {
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.0035,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "OPTIM.MAX_EPOCH": 100,
    "AT.TRAIN.EPS": 1,
    "AT.TRAIN.ALPHA": 1,
    "AT.TRAIN.STEPS": 2,
    "AT.TEST.EPS": 1,
    "AT.TEST.ALPHA": 1,
    "AT.TEST.STEPS": 100,
}
COOP = {
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.002,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "TRAINER.COOP.N_CTX": 16,
    "OPTIM.MAX_EPOCH": 200,
}
PUBLISHED = {  # METHOD.md, "Published settings"
    "CoOp": COOP,
    "APT": COOP | {
        "AT.TRAIN.EPS": 1, "AT.TRAIN.ALPHA": 0.667, "AT.TRAIN.STEPS": 3, "AT.TEST.STEPS": 100,
    },
    "AdvPT": {
        "OPTIM.LR": 0.002, "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "OPTIM.MAX_EPOCH": 100,
        "TRAINER.ADV.N_CTX": 32, "AT.TRAIN.EPS": 8, "AT.TRAIN.ALPHA": 1, "AT.TRAIN.STEPS": 10,
    },
    "FAP": {
        "OPTIM.LR": 0.0035, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 10,
        "TRAINER.FAP.N_CTX": 2, "TRAINER.FAP.PROMPT_DEPTH": 9, "TRAINER.FAP.LAMBDA": 1.5,
        "AT.TRAIN.EPS": 1, "AT.TRAIN.ALPHA": 1, "AT.TRAIN.STEPS": 2, "INPUT.TRANSFORMS": (),
    },
    "CBAFAPT": {
        "OPTIM.LR": 0.0035, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 10,
        "TRAINER.CBAFAPT.N_CTX": 2, "TRAINER.CBAFAPT.PROMPT_DEPTH": 9,
        "TRAINER.CBAFAPT.LAMBDA_ADV": 5.0, "TRAINER.CBAFAPT.LAMBDA_VAA": 0.05,
        "TRAINER.CBAFAPT.LAMBDA_TAA": 0.03,
        "AT.TRAIN.EPS": 1, "AT.TRAIN.ALPHA": 1, "AT.TRAIN.STEPS": 2, "INPUT.TRANSFORMS": (),
    },
    "VPT": {
        "OPTIM.LR": 0.0025, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 5,
        "TRAINER.VPT.N_CTX_VISION": 8, "TRAINER.VPT.PROMPT_DEPTH_VISION": 12,
    },
    "IVLP": {
        "OPTIM.LR": 0.0035, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 5,
        "TRAINER.IVLP.N_CTX_VISION": 2, "TRAINER.IVLP.PROMPT_DEPTH_VISION": 12,
        "TRAINER.IVLP.N_CTX_TEXT": 2, "TRAINER.IVLP.PROMPT_DEPTH_TEXT": 12,
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
    "MMoP": {key: value for key, value in MAPT.items() if "WARMUP_EPOCH" not in key} | {
        "TRAINER.MMoP.N_CTX_VISION": 2, "TRAINER.MMoP.N_CTX_TEXT": 2,
        "TRAINER.MMoP.NUM_EXPERTS": 5, "AT.TRAIN.AT_LOSS_TYPE": "adv_half",
    },
    "TTC": {
        "TRAINER.TTC.EPS": 4, "TRAINER.TTC.ALPHA": 1, "TRAINER.TTC.STEPS": 2,
        "TRAINER.TTC.TAU": 0.2, "TRAINER.TTC.BETA": 2,
    },
    "RTPT": {
        "TRAINER.RTPT.VIEWS": 64, "TRAINER.RTPT.CONFIDENT": 0.1, "TRAINER.RTPT.STEPS": 1,
        "TRAINER.RTPT.LR": 0.005, "TRAINER.RTPT.NEIGHBOURS": 20,
        "TRAINER.RTPT.TEMPERATURE": 0.01, "TRAINER.RTPT.N_CTX": 4, "TRAINER.RTPT.AUGMIX": True,
    },
    "TAPT": {
        "TRAINER.TAPT.VIEWS": 64, "TRAINER.TAPT.CONFIDENT": 0.1, "TRAINER.TAPT.STEPS": 1,
        "TRAINER.TAPT.LR": 0.0005, "TRAINER.TAPT.DISTR_W": 100, "TRAINER.TAPT.GAMMA": 0.5,
        "TRAINER.TAPT.LAYER_FROM": 0, "TRAINER.TAPT.LAYER_TO": 9,
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
ORIGINAL = {  # what has a published file; all else is carried over from one of these
    *(("CoOp", file) for file in ("vit_b32", "vit_b16", "rn50", "rn101")),
    *((method, "vit_b16") for method in ("VPT", "IVLP", "MaPLe")),
    *((method, f) for method in ("AdvVPT", "AdvIVLP", "AdvMaPLe") for f in ("vit_b32", "vit_b16")),
    ("APT", "vit_b32"),
    ("APT", "rn50"),
    ("FAP", "vit_b32"),
    ("CBAFAPT", "vit_b32"),
    ("TTC", "vit_b32"),
    ("RTPT", "rn50"),
    *(("TAPT", file) for file in ("vit_b32", "vit_b16")),
    *(("MMoP", file) for file in ("vit_b32", "vit_b16", "vit_l14")),
    *(("AdvPT", file) for file in ("vit_b16", "vit_l14", "rn50")),
}
VITS = ("vit_b32", "vit_b16", "vit_l14")
RESNETS = ("rn50", "rn101")


def load(path, *options, dataset="digits"):
    apd.register()
    args = ["--root", "data", "--trainer", path.parent.name, "--config-file", str(path)]
    args += ["--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml"), *options]
    return setup_cfg(parse_args(args))


def test_the_files_are_as_the_script_makes_them():
    made = dict(MADE["files"]())
    assert {f"{path.parent.name}/{path.name}" for path in FILES} == set(made)
    for name, text in made.items():
        assert (MADE["FOLDER"] / name).read_text(encoding="utf-8") == text, name


def test_methods_without_visual_prompts_fit_a_resnet():
    assert {"ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "APT", "AdvPT", "TTC", "RTPT"} <= TEXT_ONLY
    assert not any("visual" in METHODS[name].prompts for name in TEXT_ONLY)


def test_every_method_has_its_configs():
    assert {path.parent.name for path in FILES} == set(METHODS)
    for method in METHODS:
        found = {path.stem for path in FILES if path.parent.name == method}
        assert found >= {"mini", *VITS, *(RESNETS if method in TEXT_ONLY else ())}
        assert method in TEXT_ONLY or found.isdisjoint(RESNETS)


@pytest.mark.parametrize("method", METHODS)
def test_configs_merge_and_fit_their_trainer(method):
    for path in FILES:
        if path.parent.name == method:
            cfg = load(path, dataset="folder" if path.stem == "mini" else "digits")
            check(cfg, path, MADE["CLIPS"][path.stem])


def check(cfg, path, clip):
    method, small = path.parent.name, isinstance(clip, MADE["Mini"])
    assert cfg.TRAINER.NAME == method and method in TRAINER_REGISTRY.registered_names()
    assert cfg.MODEL.BACKBONE.NAME == clip.name
    assert tuple(cfg.INPUT.SIZE) == (clip.size, clip.size)
    assert cfg.INPUT.INTERPOLATION == "bicubic"  # as CLIP was trained
    assert "normalize" not in cfg.INPUT.TRANSFORMS
    # zero-shot CLIP has no keys of its own
    section = None if method.startswith("Zeroshot") else METHODS[method].section
    text = path.read_text(encoding="utf-8")
    assert set(yaml.safe_load(text).get("TRAINER", {})) == ({section} if section else set())
    train, test = cfg.AT.TRAIN, cfg.AT.TEST
    assert (None not in (train.EPS, train.ALPHA)) == METHODS[method].adversarial
    if not small:  # all methods are tested alike
        assert (test.EPS, test.ALPHA) == (1, 1)
    assert (test.STEPS, test.NORM) == (100, "linf")
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "[O]" in head  # of every file something is our choice
    if not small and "Zeroshot" not in method:
        assert re.search(r"published (few-shot )?setting|^Our choice \[O\]", head)
    if not small and method in dict(ORIGINAL):
        assert ("carried over [O]" in head) == ((method, path.stem) not in ORIGINAL)


def test_minis_are_tested_alike():
    tested = {}
    for path in FILES:
        if isinstance(MADE["CLIPS"][path.stem], MADE["Mini"]):
            attack = yaml.safe_load(path.read_text(encoding="utf-8"))["AT"]["TEST"]
            assert tested.setdefault(path.stem, attack) == attack
    assert tested["mini"] == {"EPS": 4.0, "ALPHA": 1.0, "STEPS": 100}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_settings(method):
    for file in VITS:
        cfg = load(CONFIGS / "trainers" / method / f"{file}.yaml")
        for key, value in PUBLISHED[method].items():
            assert of(cfg, key) == value, (file, key)


def of(node, key):
    for part in key.split("."):
        node = node[part]
    return node


@pytest.mark.parametrize(
    "file, lr, epochs, batch", [("rn50", 0.01, 10, 512), ("rn101", 0.002, 100, 32)]
)
def test_advpts_resnets(file, lr, epochs, batch):
    cfg = load(CONFIGS / f"trainers/AdvPT/{file}.yaml")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (lr, epochs)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == batch


@pytest.mark.parametrize(
    "file, warmup, visual, text",
    [("vit_b32", 5, 9, 9), ("vit_b16", 1, 9, 9), ("vit_l14", 10, 18, 12)],
)
def test_mmops_warm_up_and_depth_differ_by_clip(file, warmup, visual, text):
    cfg = load(CONFIGS / f"trainers/MMoP/{file}.yaml")
    options = cfg.TRAINER.MMoP
    assert cfg.OPTIM.WARMUP_EPOCH == warmup
    assert (options.PROMPT_DEPTH_VISION, options.PROMPT_DEPTH_TEXT) == (visual, text)


def test_mapts_batches_are_half_attacked():
    for method in ("AdvVPT", "AdvIVLP", "AdvMaPLe"):
        cfg = load(CONFIGS / "trainers" / method / "vit_b32.yaml")
        assert cfg.AT.TRAIN.AT_LOSS_TYPE == "adv_half"


@pytest.mark.parametrize("key", ["AT.TRAIN.EPS", "AT.TRAIN.ALPHA", "AT.TEST.EPS", "AT.TEST.ALPHA"])
@pytest.mark.parametrize("value", ["4", "2.667"])
def test_the_command_line_may_change_a_radius_whatever_the_file_has(key, value):
    for file in ("mini", "vit_b32"):  # whole numbers in one, a fraction in the other
        cfg = load(CONFIGS / "trainers" / "APD" / f"{file}.yaml", key, value)
        _, part, name = key.split(".")
        assert cfg.AT[part][name] == float(value)


def documented():
    """Key and default of every row of the key tables in docs/methods.md and docs/methods."""
    docs, prefix = CONFIGS.parent / "docs", None
    pages = [docs / "methods.md", *sorted((docs / "methods").glob("*.md"))]
    for line in "\n".join(page.read_text() for page in pages).splitlines():
        if line.startswith("| key"):
            prefix = re.search(r"`(.*)`", line)[1] if "`" in line else ""
        elif prefix is not None and line.startswith("| `"):
            keys, defaults = (cell.replace("`", "") for cell in line.split("|")[1:3])
            defaults = re.sub(r"\[[APO]\]", "", defaults).replace("none", "null")
            pairs = zip(keys.split(","), defaults.split(","), strict=True)
            yield from ((prefix + key.strip(), yaml.safe_load(value)) for key, value in pairs)
        elif not line.startswith("|"):
            prefix = None


def test_docs_name_every_default():
    cfg = default()
    rows = list(documented())
    assert len(rows) > 60
    for key, value in rows:
        assert of(cfg, key) == value, key


# sections whose keys and defaults the documentation says to be those of another
SAME_KEYS = {"AdvVPT": "VPT", "AdvIVLP": "IVLP", "AdvMaPLe": "MAPLE"}


@pytest.mark.parametrize("section", sorted({method.section for method in METHODS.values()}))
def test_docs_name_every_key(section):
    node = default().TRAINER[section]
    section = SAME_KEYS.get(section, section)
    assert node == default().TRAINER[section]
    keys = {key for key in node if key != "TEACHER"}
    keys |= {f"TEACHER.{key}" for key in node.get("TEACHER", {})}
    assert keys == {
        key.removeprefix(f"TRAINER.{section}.")
        for key, _ in documented()
        if key.startswith(f"TRAINER.{section}.")
    }
