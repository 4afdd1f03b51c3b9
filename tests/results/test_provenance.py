"""What prompts were trained on, of runs that say it and of older ones that do not."""

import json

import pytest
from sample_results import results

from apd.errors import UserError
from apd.results import read_results
from apd.results.provenance import of_checkpoint, trained_on, training

CONFIG = {
    "INPUT": {"SIZE": [32, 32], "INTERPOLATION": "bicubic", "TRANSFORMS": ["random_flip"]},
    "MODEL": {"BACKBONE": {"NAME": "mini", "ROBUST": "", "RESOLUTION": 0}},
    "DATASET": {"FOLDER": {"TEMPLATE": ""}},
    "TRAINER": {"COOP": {"CSC": True, "PREC": "fp32"}, "VPT": {"CTX_INIT": "a"}},
    "OPTIM": {"MAX_EPOCH": 5},
    "TEST": {"FINAL_MODEL": "best_val", "SPLIT": "test"},
    "AT": {"TEST": {"EPS": 1.0}},
}
KEYS = {
    "INPUT.SIZE": [32, 32],
    "INPUT.INTERPOLATION": "bicubic",
    "MODEL.BACKBONE.NAME": "mini",
    "MODEL.BACKBONE.ROBUST": "",
    "MODEL.BACKBONE.RESOLUTION": 0,
    "DATASET.FOLDER.TEMPLATE": "",
    "TRAINER.COOP.CSC": True,
}

SETTINGS = {  # what training read; not the sections of other methods
    "INPUT.SIZE": [32, 32],
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.TRANSFORMS": ["random_flip"],
    "TRAINER.COOP.CSC": True,
    "TRAINER.COOP.PREC": "fp32",
    "OPTIM.MAX_EPOCH": 5,
    "TEST.FINAL_MODEL": "best_val",
}


def record(**changes):
    found = {"method": "CoOp", "dataset": "Digits", "subsample": "base", "shots": 4, "seed": 2}
    found |= {"keys": KEYS, "settings": SETTINGS, "backbone_sha256": None}
    return {**found, **changes}


def old(save, folder="base", **fields):
    values = {"method": "CoOp", "subsample": "base", "shots": 4, "seed": 2, "config": CONFIG}
    return save(folder, **{**values, **fields})


def known(folder):
    return trained_on(folder, read_results(folder))


def test_the_keys_that_the_prompts_depend_on_are_recorded():
    made = results(method="CoOp", subsample="base", shots=4, seed=2)
    assert training(made, CONFIG, "5") == record(backbone_sha256="5")


def test_an_older_run_that_trained_is_derived_from_its_config(save):
    assert known(old(save)) == record()
    assert known(old(save, "zero", trainable_parameters=0)) is None


@pytest.mark.parametrize("place", ["", "prompt_learner"])
def test_an_older_evaluation_is_derived_from_the_run_that_it_names(save, place):
    source = {"model_dir": str(old(save) / place), "epoch": None}
    found = known(old(save, "new", subsample="new", shots=-1, seed=5, prompts_from=source))
    assert found == record()


def test_an_older_evaluation_that_was_moved_with_its_source_is_derived(save):
    old(save, "moved/train/CoOp/seed2")
    config = {**CONFIG, "OUTPUT_DIR": "output/test/CoOp/seed2"}
    source = {"model_dir": "output/train/CoOp/seed2", "epoch": None}
    found = known(old(save, "moved/test/CoOp/seed2", config=config, prompts_from=source))
    assert found == record()


def test_an_older_evaluation_of_a_run_that_is_gone_is_not_known(save):
    assert known(old(save, prompts_from={"model_dir": "gone", "epoch": None})) is None
    assert known(old(save, prompts_from={"model_dir": "", "epoch": None})) is None


def test_a_checkpoint_tells_or_else_the_results_of_its_run(save):
    folder = old(save) / "prompt_learner"
    folder.mkdir()
    assert of_checkpoint({"trained_on": record(seed=7)}, folder) == record(seed=7)
    assert of_checkpoint({"epoch": 2}, folder) == record()
    assert of_checkpoint({"trained_on": {"seed": 7}}, folder) == record()  # of another program
    assert of_checkpoint({"epoch": 2}, folder.parent.parent) is None


@pytest.mark.parametrize(
    "faulty",
    [
        {"method": "CoOp"},
        record(shots="four"),
        record(keys={"INPUT.SIZE": {"a": 1}}),
        record(settings=["OPTIM.LR"]),
        record(settings={"OPTIM.LR": {"a": 1}}),
    ],
)
def test_a_faulty_record_is_refused(save, faulty):
    path = old(save) / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained_on": faulty}))
    with pytest.raises(UserError, match="results.json (lacks|has) .*: delete it and run again"):
        read_results(path.parent)
