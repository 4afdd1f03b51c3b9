"""The training loop and its hooks."""

from __future__ import annotations

import datetime
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from apd.checkpoint import BEST, load_checkpoint, resume_from_checkpoint, save_checkpoint
from apd.errors import UserError
from apd.host.embedded.evaluation import build_evaluator
from apd.host.embedded.loader import DataManager
from apd.host.embedded.registry import Registry, check_availability
from apd.host.embedded.utils import AverageMeter, MetricMeter, tolist_if_not

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg) -> Any:  # a TrainerBase, and what its class adds
    """Build the trainer that ``cfg.TRAINER.NAME`` names."""
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)


class TrainerBase:
    """Registered models with their optimisers and schedulers, and an empty training loop.

    ``names`` arguments are one model name, a list of them, or None for all.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None  # a SummaryWriter

    # -- models --------------------------------------------------------------------------------

    def register_model(self, name="model", model=None, optim=None, sched=None) -> None:
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        assert name not in self._models, f"there is a model {name} already"
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None) -> list[str]:
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        assert all(name in self._models for name in names), f"unknown model in {names}"
        return names

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Write ``directory/<name>/model.pth.tar-<epoch + 1>``, or ``model_name``, for each."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            save_checkpoint(
                {
                    "state_dict": self._models[name].state_dict(),
                    "epoch": epoch + 1,
                    "optimizer": optim and optim.state_dict(),
                    "scheduler": sched and sched.state_dict(),
                    "val_result": None if val_result is None else float(val_result),
                },
                Path(directory) / name,
                is_best=is_best,
                model_name=model_name,
            )

    def resume_model_if_exist(self, directory) -> int:
        """Load the last checkpoint of every model. Returns the epochs behind it, 0 without one.

        Raises:
            UserError: the models' checkpoints are of different epochs.
        """
        names = self.get_model_names()
        if not all((Path(directory) / name / "checkpoint").is_file() for name in names):
            print("No checkpoint found, train from scratch")
            return 0
        epochs = {
            name: resume_from_checkpoint(
                Path(directory) / name, self._models[name], self._optims[name], self._scheds[name]
            )
            for name in names
        }
        if len({*epochs.values()}) > 1:
            raise UserError(f"{directory}: checkpoints of different epochs ({epochs})")
        return max(epochs.values(), default=0)

    def load_model(self, directory, epoch=None) -> None:
        """Load every model from ``directory``: the best one, or that of ``epoch``.

        Raises:
            UserError: no such checkpoint, or one that cannot be read.
        """
        if not directory:
            print("load_model() is skipped: no folder to load from is given")
            return
        for name in self.get_model_names():
            path = Path(directory) / name / (BEST if epoch is None else f"model.pth.tar-{epoch}")
            checkpoint = load_checkpoint(path)
            self._models[name].load_state_dict(checkpoint["state_dict"])
            print(f"Loaded {path} (epoch {checkpoint['epoch']}, val {checkpoint['val_result']})")

    def set_model_mode(self, mode="train", names=None) -> None:
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # -- one step ------------------------------------------------------------------------------

    def update_lr(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"the loss is {loss.detach()}")

    def model_zero_grad(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # -- tensorboard, where it is installed ----------------------------------------------------

    def init_writer(self, log_dir) -> None:
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(log_dir=str(log_dir))

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag, scalar_value, global_step=None) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # -- the loop ------------------------------------------------------------------------------

    def train(self, start_epoch, max_epoch) -> None:
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self):
        raise NotImplementedError

    def test(self):
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError


class SimpleTrainer(TrainerBase):
    """Data, model and evaluator of a config; checkpoints and tests at their times."""

    model: Any  # of ``build_model``

    def __init__(self, cfg) -> None:
        super().__init__()
        self.check_cfg(cfg)
        cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -math.inf

    def check_cfg(self, cfg) -> None:
        """Raise here for a config that the trainer cannot run."""

    def build_data_loader(self) -> None:
        self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Build the model and register it with its optimiser and scheduler."""
        raise NotImplementedError(
            f"{type(self).__name__} must define build_model(): the embedded host has no models"
        )

    def resume_model_if_exist(self, directory) -> int:
        start_epoch = super().resume_model_if_exist(directory)
        if start_epoch:
            best = Path(directory) / self.get_model_names()[0] / BEST
            if best.is_file():  # the one to beat
                self.best_result = load_checkpoint(best)["val_result"]
        return start_epoch

    def train(self) -> None:  # type: ignore[override]  # as Dassl's
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        self.init_writer(Path(self.output_dir) / "tensorboard")
        self.time_start = time.time()

    def after_train(self) -> None:
        print("Finish training")  # from here on, CoOp's parse_test_res.py reads the results
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                self.load_model(self.output_dir)
            self.test()
        print(f"Elapsed: {_clock(time.time() - self.time_start)}")
        self.close_writer()

    def after_epoch(self) -> None:
        trained, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if trained == self.max_epoch or (freq > 0 and trained % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split=None) -> float:
        """Evaluate on ``split`` (default: cfg.TEST.SPLIT). Returns the evaluator's first figure.

        Without a validation set, "val" is the test set.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split != "val" or self.val_loader is None:
            split = "test"
        print(f"Evaluate on the {split} set")
        for batch in tqdm(self.val_loader if split == "val" else self.test_loader, disable=None):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names=None) -> float:
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]


class TrainerX(SimpleTrainer):
    """Trains on labelled images: ``forward_backward(batch)`` returns a dict of losses."""

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        freq = self.cfg.TRAIN.PRINT_FREQ
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            data_time.update(time.time() - end)
            losses.update(self.forward_backward(batch))
            batch_time.update(time.time() - end)
            batch_number = self.batch_idx + 1
            if batch_number % freq == 0 or self.num_batches < freq:
                remaining = (self.max_epoch - self.epoch) * self.num_batches - batch_number
                print(
                    f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                    f"batch [{batch_number}/{self.num_batches}] "
                    f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                    f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                    f"{losses} lr {self.get_current_lr():.4e} "
                    f"eta {_clock(batch_time.avg * remaining)}"
                )
            step = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", self.get_current_lr(), step)
            end = time.time()

    def parse_batch_train(self, batch):
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
