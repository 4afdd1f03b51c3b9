"""A run that is interrupted and started again ends with the same bits."""

import pytest
import torch

from apd.results import read_results
from apd.results.history import read_history
from apd.training.base import PromptTrainer

# one of each way to train: the others differ from these in their prompts or attack alone
METHODS = ("CoOp", "AdvPT", "FAP", "CBAFAPT", "MMoP")  # and APD, below


@pytest.fixture
def interrupted(run):
    """Function: a run, interrupted before its n-th step (in this process) for each n of ``at``,
    then finished."""

    def interrupted(at, *args, **more):
        for n in at:
            step, left = PromptTrainer.forward_backward, n

            def stop(self, batch):
                nonlocal left
                left -= 1
                if not left:
                    raise KeyboardInterrupt
                return step(self, batch)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(PromptTrainer, "forward_backward", stop)
                assert run(*args, **more).code == 130
        result = run(*args, **more)
        assert (result.code, result.err) == (0, "")
        return result

    return interrupted


def outcome(folder):
    """All prompts and evaluation counts of a run, teacher's included."""
    weights = {}
    for path in sorted(folder.rglob("model*.pth.tar*")):
        state = torch.load(path, weights_only=True)["state_dict"]
        weights |= {(path.relative_to(folder), name): value for name, value in state.items()}
    return weights, [e["correct"] for e in read_results(folder)["evaluations"]]


def assert_same(folder, other):
    (weights, counts), (other_weights, other_counts) = outcome(folder), outcome(other)
    assert weights.keys() == other_weights.keys() and weights
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []
    assert counts == other_counts
    assert history(folder) == history(other)


def history(folder):
    """history.csv without what depends on the machine."""
    columns = read_history(folder)
    assert columns
    return {name: column for name, column in columns.items() if name != "seconds"}


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_in_its_second_epoch(run, interrupted, tmp_path, method):
    assert run(method, tmp_path / "whole").code == 0
    result = interrupted([4], method, tmp_path / "parts")
    assert "Resuming" in result.out and "after epoch 1" in result.out
    assert "epoch [1/2]" not in result.out
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("mode", ["online", "offline", "frozen"])
def test_interrupted_apd_with_every_teacher(run, interrupted, tmp_path, mode):
    options = ("TRAINER.APD.TEACHER.MODE", mode, "TRAINER.APD.BETA", 0.5)
    assert run("APD", tmp_path / "whole", *options).code == 0
    # offline: in the teacher's two epochs, at the student's first step, in its second epoch
    at = [2, 4, 3, 4] if mode == "offline" else [2, 4]
    interrupted(at, "APD", tmp_path / "parts", *options)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_interrupted_with_model_selection(run, interrupted, tmp_path):
    options = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 4)
    assert run("AdvIVLP", tmp_path / "whole", *options).code == 0
    interrupted([2, 4, 4], "AdvIVLP", tmp_path / "parts", *options)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_the_best_epoch_before_the_interruption_stays_the_best(
    run, interrupted, tmp_path, monkeypatch
):
    figures = {0: 3.0, 1: 1.0, 2: 2.0}
    test = PromptTrainer.test
    monkeypatch.setattr(
        PromptTrainer,
        "test",
        lambda self, split=None: figures[self.epoch] if split == "val" else test(self, split),
    )
    options = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    interrupted([4], "IVLP", tmp_path, *options)
    best, first = (
        torch.load(tmp_path / "prompt_learner" / name, weights_only=True)
        for name in ("model-best.pth.tar", "model.pth.tar-1")
    )
    assert best["val_result"] == 3.0
    assert all(torch.equal(best["state_dict"][k], v) for k, v in first["state_dict"].items())


def test_a_run_that_begins_anew_leaves_no_best_epoch_of_the_one_before(run, tmp_path):
    assert run("APD", tmp_path, "TEST.FINAL_MODEL", "best_val").code == 0
    for name in ("results.json", "resume.pth.tar"):
        (tmp_path / name).unlink()
    assert len(list(tmp_path.rglob("model-best.pth.tar"))) == 2
    assert run("APD", tmp_path, "OPTIM.LR", 0.01).code == 0
    assert not list(tmp_path.rglob("model-best.pth.tar"))


@pytest.mark.parametrize("schedule", ["cosine", "multi_step"])
def test_the_learning_rate_goes_on_where_it_was(interrupted, run, tmp_path, schedule):
    """Upstream Dassl freezes it when a run with warm-up is resumed."""
    options = (
        "OPTIM.MAX_EPOCH",
        5,
        "OPTIM.LR_SCHEDULER",
        schedule,
        "OPTIM.STEPSIZE",
        "(2, 3)",
        "TEST.NO_TEST",
        True,
    )
    rates, step = [], PromptTrainer.forward_backward

    def recorded(self, batch):
        rates.append(self.get_current_lr())
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptTrainer, "forward_backward", recorded)
        run("CoOp", tmp_path / "whole", *options)
        whole, rates[:] = list(rates), []
        interrupted([5, 3], "CoOp", tmp_path / "parts", *options)
    assert len(whole) == 10 and len(set(whole)) >= 4
    assert rates == whole


def test_train_seconds_add_up(interrupted, tmp_path):
    result = interrupted([4], "CoOp", tmp_path)
    state = torch.load(tmp_path / "resume.pth.tar", weights_only=True)
    seconds = read_results(tmp_path)["train_seconds"]
    assert seconds == state["train_seconds"] == result.trainer.train_seconds > 0


def test_resume_flag_continues_a_run_in_another_folder(run, interrupted, tmp_path):
    assert run("CoOp", tmp_path / "whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        calls, step = [], PromptTrainer.forward_backward

        def stop(self, batch):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(self, batch)

        patch.setattr(PromptTrainer, "forward_backward", stop)
        assert run("CoOp", tmp_path / "first").code == 130
    result = run("CoOp", tmp_path / "second", flags=("--resume", str(tmp_path / "first")))
    assert (result.code, result.err) == (0, "")
    assert_same(tmp_path / "whole", tmp_path / "second")


def test_resume_flag_leaves_the_offline_teacher_its_own_folder(run, tmp_path):
    options = ("TRAINER.APD.TEACHER.MODE", "offline")
    assert run("APD", tmp_path / "first", *options).code == 0
    result = run("APD", tmp_path / "second", *options, flags=("--resume", str(tmp_path / "first")))
    assert (result.code, result.err) == (0, "")
