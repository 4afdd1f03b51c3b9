"""The training loop: order of hooks, log lines, checkpoints, resuming."""

import math
import re
from pathlib import Path

import pytest
import torch

from apd.host import HOST, TRAINER_REGISTRY, SimpleTrainer, TrainerBase, build_trainer

ToyTrainer = TRAINER_REGISTRY.get("ToyTrainer")

HOOKS = """
    check_cfg build_data_loader build_model register_model train before_train
    resume_model_if_exist init_writer before_epoch run_epoch set_model_mode forward_backward
    parse_batch_train model_backward_and_update model_zero_grad model_backward
    detect_anomaly model_update update_lr after_epoch save_model load_model after_train test
    parse_batch_test model_inference close_writer
""".split()


def recording(hooks=HOOKS):
    """A ToyTrainer class that notes the calls of its hooks in ``calls``."""

    def note(name):
        def hook(self, *args, **kwargs):
            self.calls.append(name)
            return getattr(ToyTrainer, name)(self, *args, **kwargs)

        return hook

    return type("Recording", (ToyTrainer,), {"calls": [], **{name: note(name) for name in hooks}})


BATCH = [
    "forward_backward",
    "parse_batch_train",
    "model_backward_and_update",
    "model_zero_grad",
    "model_backward",
    "detect_anomaly",
    "model_update",
]
EPOCH = ["before_epoch", "run_epoch", "set_model_mode", *BATCH, *BATCH, "update_lr", "after_epoch"]
TEST_ON_TWO_BATCHES = ["test", "set_model_mode", *["parse_batch_test", "model_inference"] * 2]
VALIDATE = ["test", "set_model_mode", "parse_batch_test", "model_inference"]
BUILD = ["check_cfg", "build_data_loader", "build_model", "register_model"]
BEGIN = ["train", "before_train", "resume_model_if_exist", "init_writer"]


def test_order_of_hooks(make_cfg):
    trainer = recording()(make_cfg())
    assert trainer.calls == BUILD
    trainer.calls.clear()
    trainer.train()
    end = ["after_train", *TEST_ON_TWO_BATCHES, "close_writer"]
    assert trainer.calls == [*BEGIN, *EPOCH, *EPOCH, "save_model", *end]


def test_order_of_hooks_with_the_best_validated_model(make_cfg):
    Recording = recording()
    Recording.parse_batch_test = lambda self, batch: (
        Recording.calls.append("parse_batch_test") or ToyTrainer.parse_batch_test(self, batch)
    )
    trainer = Recording(make_cfg("TEST.FINAL_MODEL", "best_val"))
    trainer.calls.clear()
    trainer.evaluator.evaluate = lambda: {"accuracy": 10.0 * (5 - trainer.epoch)}  # falls
    trainer.train()
    end = ["after_train", "load_model", *TEST_ON_TWO_BATCHES, "close_writer"]
    assert trainer.calls == [
        *BEGIN,
        *EPOCH,
        *VALIDATE,
        "save_model",
        *EPOCH,
        *VALIDATE,
        "save_model",
        *end,
    ]
    assert trainer.best_result == 50
    folder = Path(trainer.output_dir) / "linear"
    best = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (1, 50)


def test_no_test_means_none(make_cfg):
    trainer = recording()(make_cfg("TEST.NO_TEST", True, "TEST.FINAL_MODEL", "best_val"))
    trainer.train()
    assert "test" not in trainer.calls and "load_model" not in trainer.calls


def test_attributes(make_cfg):
    trainer = build_trainer(make_cfg())
    assert isinstance(trainer, ToyTrainer) and trainer.device == torch.device("cpu")
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 0, 2)
    assert trainer.output_dir == trainer.cfg.OUTPUT_DIR and trainer.best_result == -math.inf
    assert trainer.num_classes == 3 and trainer.lab2cname[2] == "cat"
    assert len(trainer.train_loader_x) == 2 and trainer.dm.train_loader_x is trainer.train_loader_x
    assert len(trainer.test_loader) == 2 and len(trainer.val_loader) == 1
    assert trainer.get_model_names() == ["linear"] and trainer.get_model_names("linear") == [
        "linear"
    ]
    assert trainer.get_current_lr() == 1e-5  # warm-up
    trainer.train()
    assert (trainer.epoch, trainer.batch_idx, trainer.num_batches) == (1, 1, 2)


def test_batches_go_to_the_model_as_documented(make_cfg):
    trainer = build_trainer(make_cfg())
    images, labels, domains = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    assert images.shape == (4, 3, 8, 8) and labels.shape == domains.shape == (4,)
    images, labels = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    assert trainer.model_inference(images).shape == (4, 3) and labels.tolist() == [0, 0, 1, 1]


LINE = (
    r"epoch \[(\d+)/2\] batch \[(\d+)/(\d+)\] time \d+\.\d{3} \(\d+\.\d{3}\) "
    r"data \d+\.\d{3} \(\d+\.\d{3}\) loss \d+\.\d{4} \(\d+\.\d{4}\) lr (\S+) eta \d+:\d\d:\d\d"
)


def logged_batches(trainer, capsys):
    capsys.readouterr()
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [")]
    return [re.fullmatch(LINE, line).groups() for line in lines]


def test_log_line_at_every_batch_of_a_short_epoch(make_cfg, capsys):
    lines = logged_batches(build_trainer(make_cfg()), capsys)
    assert lines == [
        ("1", "1", "2", "1.0000e-05"),
        ("1", "2", "2", "1.0000e-02"),  # the rate has moved on with the last batch
        ("2", "1", "2", "1.0000e-02"),
        ("2", "2", "2", "5.0000e-03"),
    ]


def test_log_line_at_every_nth_batch_of_a_long_epoch(make_cfg, capsys):
    cfg = make_cfg("TRAIN.PRINT_FREQ", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 1)
    lines = logged_batches(build_trainer(cfg), capsys)
    assert [line[:2] for line in lines] == [(e, b) for e in "12" for b in "369"]


def test_log_has_what_coops_parser_looks_for(make_cfg, capsys):
    build_trainer(make_cfg()).train()
    lines = capsys.readouterr().out.splitlines()
    assert "* total: 5" in lines[lines.index("Finish training") :]


def test_test_reads_the_split_it_is_asked_for(make_cfg, capsys):
    trainer = build_trainer(make_cfg())
    for split, total in (("val", 3), ("test", 5), (None, 5)):
        accuracy = trainer.test(split=split)
        out = capsys.readouterr().out
        assert f"* total: {total}\n" in out and f"* accuracy: {accuracy:.1f}%" in out
    assert not trainer.model.training
    trainer.val_loader = None
    trainer.test(split="val")
    assert "* total: 5\n" in capsys.readouterr().out


def test_checkpoints(make_cfg):
    trainer = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 5, "TRAIN.CHECKPOINT_FREQ", 2))
    trainer.train()
    folder = Path(trainer.output_dir) / "linear"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["checkpoint", *(f"model.pth.tar-{epoch}" for epoch in (2, 4, 5))]
    checkpoint = torch.load(folder / "model.pth.tar-5", weights_only=True)
    assert set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert checkpoint["epoch"] == 5 and checkpoint["val_result"] is None
    assert torch.equal(checkpoint["state_dict"]["1.weight"], trainer.model[1].weight)


def test_only_the_last_checkpoint_by_default(make_cfg):
    trainer = build_trainer(make_cfg())
    trainer.train()
    folder = Path(trainer.output_dir) / "linear"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "model.pth.tar-2"]


def run(cfg, stop_after=None):
    """Train; ``stop_after`` that many epochs, as if killed. Returns the trainer and its rates."""

    class Killed(Exception):
        pass

    class Run(ToyTrainer):
        rates = []

        def before_epoch(self):
            if self.epoch == stop_after:
                raise Killed
            self.rates.append((self.epoch, self.get_current_lr()))

    trainer = Run(cfg)
    trainer.rates = []
    try:
        trainer.train()
    except Killed:
        trainer.close_writer()
    return trainer


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(make_cfg, tmp_path, stop_after):
    options = [
        "OPTIM.MAX_EPOCH",
        4,
        "TRAIN.CHECKPOINT_FREQ",
        1,
        "DATALOADER.TRAIN_X.SAMPLER",
        "SequentialSampler",
    ]
    whole = run(make_cfg(*options, "OUTPUT_DIR", str(tmp_path / "whole")))
    first = run(make_cfg(*options), stop_after)
    second = run(make_cfg(*options, "SEED", 2))
    assert second.start_epoch == stop_after
    assert first.rates + second.rates == whole.rates and len(whole.rates) == 4
    assert whole.rates[0][1] < whole.rates[2][1] < whole.rates[1][1]
    assert torch.equal(second.model[1].weight, whole.model[1].weight)
    assert second.get_current_lr() == whole.get_current_lr()


def test_resume_folder_of_the_config_comes_first(make_cfg, tmp_path):
    run(make_cfg("OUTPUT_DIR", str(tmp_path / "first")))
    cfg = make_cfg("RESUME", str(tmp_path / "first"), "OPTIM.MAX_EPOCH", 3)
    assert run(cfg).start_epoch == 2


def test_nothing_to_resume_is_epoch_0(make_cfg, tmp_path):
    assert build_trainer(make_cfg()).resume_model_if_exist(str(tmp_path / "nothing")) == 0


@pytest.mark.skipif(HOST == "dassl", reason="upstream opens the file that is not there yet")
def test_a_run_killed_before_its_first_checkpoint_starts_again(make_cfg, tmp_path):
    (tmp_path / "linear").mkdir()
    assert build_trainer(make_cfg()).resume_model_if_exist(str(tmp_path)) == 0


@pytest.mark.skipif(HOST == "dassl", reason="upstream forgets the best result when it resumes")
def test_a_resumed_run_remembers_its_best_result(make_cfg):
    options = ["TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1]
    first = run(make_cfg(*options), stop_after=1)
    assert first.best_result >= 0
    second = build_trainer(make_cfg(*options))
    second.resume_model_if_exist(second.output_dir)
    assert second.best_result == first.best_result


@pytest.mark.skipif(HOST == "dassl", reason="upstream does not look")
def test_models_that_stand_at_different_epochs_are_not_mixed(make_cfg):
    trainer = build_trainer(make_cfg())
    trainer.register_model("other", torch.nn.Linear(1, 1))
    trainer.save_model(0, trainer.output_dir)
    assert trainer.resume_model_if_exist(trainer.output_dir) == 1
    trainer._models.pop("other")
    trainer.save_model(1, trainer.output_dir)
    trainer._models["other"] = torch.nn.Linear(1, 1)
    with pytest.raises(Exception, match="different epochs"):
        trainer.resume_model_if_exist(trainer.output_dir)


def test_load_model_takes_the_best_or_an_epoch(make_cfg):
    trainer = build_trainer(make_cfg())
    weight = trainer.model[1].weight
    directory = trainer.output_dir
    with torch.no_grad():
        weight.fill_(1)
        trainer.save_model(6, directory, is_best=True, val_result=70.0)
        weight.fill_(2)
        trainer.save_model(7, directory, val_result=60.0)
        trainer.load_model(directory)
        assert weight.unique().item() == 1
        trainer.load_model(directory, epoch=8)
        assert weight.unique().item() == 2
    trainer.load_model("")  # is skipped
    with pytest.raises(Exception, match="model.pth.tar-9"):
        trainer.load_model(directory, epoch=9)


@pytest.mark.skipif(HOST == "dassl", reason="upstream cannot print a val_result of None")
def test_load_model_of_a_run_without_validation(make_cfg):
    trainer = build_trainer(make_cfg())
    trainer.train()
    trainer.load_model(trainer.output_dir, epoch=2)


def test_models_have_names_modes_and_optimizers():
    trainer = TrainerBase()
    first, second = torch.nn.Dropout(), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(second.parameters(), lr=1.0)
    trainer.register_model("first", first)
    trainer.register_model("second", second, optimizer)
    with pytest.raises(AssertionError):
        trainer.register_model("first", first)
    assert trainer.get_model_names() == ["first", "second"]
    with pytest.raises(AssertionError):
        trainer.get_model_names("third")
    trainer.set_model_mode("eval", "first")
    assert not first.training and second.training
    with pytest.raises(KeyError):
        trainer.set_model_mode("sleep")
    before = second.weight.detach().clone()
    trainer.model_backward_and_update(second(torch.ones(1, 2)).sum())
    assert torch.equal(second.weight, before - 1)
    trainer.model_zero_grad()
    assert second.weight.grad is None or not second.weight.grad.any()
    trainer.update_lr()  # no scheduler: nothing
    trainer.write_scalar("tag", 1.0)  # no writer: nothing


def test_register_model_before_init_is_an_attribute_error():
    class Hasty(TrainerBase):
        def __init__(self):
            self.register_model("model", torch.nn.Linear(1, 1))

    with pytest.raises(AttributeError):
        Hasty()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops(value):
    with pytest.raises(FloatingPointError):
        TrainerBase().detect_anomaly(torch.tensor(value))


@pytest.mark.parametrize(
    "hook", ["run_epoch", "test", "parse_batch_train", "parse_batch_test", "forward_backward"]
)
def test_hooks_without_a_default(hook):
    args = () if hook in ("run_epoch", "test") else (None,)
    with pytest.raises(NotImplementedError):
        getattr(TrainerBase(), hook)(*args)


@pytest.mark.skipif(HOST == "dassl", reason="upstream has a model zoo")
def test_the_embedded_host_has_no_models_of_its_own(make_cfg):
    with pytest.raises(NotImplementedError, match="build_model"):
        SimpleTrainer(make_cfg())
