"""A run whose training fell apart says so, in its log and in results.json."""

import pytest

from apd.results import read_results
from apd.training.base import PromptTrainer


def clean_of(folder):
    return read_results(folder)["evaluations"][0]


def test_zero_shot_accuracy_is_that_of_zero_shot_clip(run, build, tmp_path):
    run("ZeroshotCLIP", tmp_path / "zero")
    trainer = build("IVLP", tmp_path / "out")
    assert trainer.zero_shot_accuracy("test") == clean_of(tmp_path / "zero")["accuracy"]


@pytest.mark.parametrize("accuracy, zero_shot, flagged", [(20, 45.0, True), (20, 35.0, False)])
def test_less_than_half_of_zero_shot_is_flagged(
    run, tmp_path, monkeypatch, accuracy, zero_shot, flagged
):
    from apd.training import base

    def evaluate(*args, **more):
        (record, *others) = evaluated(*args, **more)
        return [{**record, "accuracy": float(accuracy)}, *others]

    evaluated = base.evaluate
    monkeypatch.setattr(base, "evaluate", evaluate)
    monkeypatch.setattr(PromptTrainer, "zero_shot_accuracy", lambda *_: zero_shot)
    result = run("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1)
    told = "* flag below-zero-shot: less than half of zero-shot CLIP's accuracy, 45.0 %"
    assert (told in result.out) == flagged
    assert ("below-zero-shot" in clean_of(tmp_path / "out")["flags"]) == flagged


@pytest.mark.parametrize("method, wanted", [("ZeroshotCLIP", 0), ("CoOp", 1)])
def test_zero_shot_is_evaluated_only_where_it_can_matter(
    run, tmp_path, monkeypatch, method, wanted
):
    asked = []
    monkeypatch.setattr(PromptTrainer, "zero_shot_accuracy", lambda *_: asked.append(1) or 0.0)
    run(method, tmp_path / "out", "OPTIM.MAX_EPOCH", 1)
    low = clean_of(tmp_path / "out")["accuracy"] < 50
    assert len(asked) == wanted * low
