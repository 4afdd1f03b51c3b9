"""Beside another toolbox's keys, ours give way; for its trainers, see test_checkout.py."""

import pytest
from yacs.config import CfgNode

import apd.training.adversarial
from apd.host import TRAINER_REGISTRY, get_cfg_default
from apd.methods import METHODS


def test_every_method_is_registered_and_reads_its_section():
    apd.register()
    assert set(METHODS) <= set(TRAINER_REGISTRY.registered_names())
    for name, method in METHODS.items():
        trainer = TRAINER_REGISTRY.get(name)
        if trainer.__module__.startswith("apd."):  # or else upstream's, where it has one
            assert trainer.section == method.section


def test_keys_that_are_there_keep_their_values():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 4, "PREC": "fp16", "ITS_OWN": 7})
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    cfg.AT = CfgNode({"TRAIN": {"EPS": 4, "AT_LOSS_TYPE": "adv_half"}})  # as MAPT's train.py
    apd.extend_cfg(cfg)
    coop = cfg.TRAINER.COOP
    assert (coop.N_CTX, coop.PREC, coop.ITS_OWN, coop.CSC) == (4, "fp16", 7, False)
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"
    assert (cfg.AT.TRAIN.EPS, cfg.AT.TRAIN.AT_LOSS_TYPE) == (4, "adv_half")
    assert cfg.AT.TRAIN.STEPS == 2 and cfg.AT.TRAIN.ALPHA is None
    assert cfg.TRAINER.APD.TEACHER.MODE == "online"


def test_extending_twice_changes_nothing():
    cfg = get_cfg_default()
    apd.extend_cfg(cfg)
    before = cfg.clone()
    apd.extend_cfg(cfg)
    assert cfg == before


def test_configs_are_independent():
    first, second = get_cfg_default(), get_cfg_default()
    for cfg in (first, second):
        apd.extend_cfg(cfg)
    first.TRAINER.APD.TEACHER.MODE = "frozen"
    first.TRAINER.VPT.PROMPT_DEPTH_VISION = 1
    assert second.TRAINER.APD.TEACHER.MODE == "online"
    assert second.TRAINER.AdvVPT.PROMPT_DEPTH_VISION == 9


@pytest.mark.parametrize("section", ["APD", "AdvIVLP", "IVLP"])
def test_mapts_keys_are_known(section):
    cfg = get_cfg_default()
    apd.extend_cfg(cfg)
    assert {
        "N_CTX_VISION",
        "N_CTX_TEXT",
        "CTX_INIT",
        "PREC",
        "PROMPT_DEPTH_VISION",
        "PROMPT_DEPTH_TEXT",
    } <= set(cfg.TRAINER[section])


def test_other_projects_methods_import_the_base_classes_from_where_they_were():
    from apd.trainers.adversarial import AdversarialTraining
    from apd.trainers.base import PromptTrainer

    assert AdversarialTraining is apd.training.adversarial.AdversarialTraining
    assert PromptTrainer is apd.training.base.PromptTrainer
