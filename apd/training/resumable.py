"""A Dassl trainer whose runs can be killed at any moment and continue to the same bits."""

from __future__ import annotations

import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from apd import ranks
from apd.checkpoint import BEST
from apd.clip import PromptedCLIP
from apd.config import differences, plain
from apd.errors import UserError, listed, one_line
from apd.files import write_csv, write_tensors
from apd.host import TrainerX, load_checkpoint, save_checkpoint
from apd.interchange import check_fit, checkpoint_path, prompts_folder, read_prompts
from apd.results import HISTORY_NAME
from apd.results.provenance import check_meaning, of_checkpoint
from apd.results.schema import kind_faults

RESUME_NAME = "resume.pth.tar"
_NUMBERS = {"epoch": (int,), **dict.fromkeys(("best_result", "train_seconds"), (int, float))}


class ResumableTrainer(TrainerX):
    """``TrainerX`` with runs that continue to the same bits, on either host.

    history.csv has a row per epoch: learning rate, seconds, and means of all that is logged. There
    are two kinds of checkpoints. Those in Dassl's layout (``<name>/model.pth.tar-N``, every
    TRAIN.CHECKPOINT_FREQ epochs) are for evaluation. ``resume.pth.tar``, replaced atomically after
    every epoch, is for resuming, and has all that the next epoch depends on: prompts, optimisers,
    schedulers, random states. Dassl's own resume forgets the random states, and freezes the
    learning rate after warm-up.

    Attributes:
        class_specific: whether the prompts belong to the classes that they were trained on.
        train_seconds: spent on training, over all processes that continued the run.
        trained_on: record of what loaded prompts were trained on (``apd.results.provenance``).
    """

    # ``apd.training.base.PromptTrainer`` sets these
    model: PromptedCLIP
    section: str
    options: Any
    scaler: torch.amp.GradScaler
    class_specific = False
    train_seconds = 0.0
    trained_on: dict | None = None

    def check_cfg(self, cfg) -> None:
        self.history: list[dict[str, float]] = []  # a row per epoch
        self.logged: list[dict[str, float]] = []  # losses of each step of this epoch
        self.config = plain(cfg)  # as the user gave it

    # -- Dassl's layout ------------------------------------------------------------------------

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        if ranks.rank():  # only rank 0 writes
            return
        for name in self.get_model_names():
            save_checkpoint(
                {
                    "state_dict": self._models[name].state_dict(),
                    "epoch": epoch + 1,
                    "optimizer": _state_dict(self._optims[name]),
                    "scheduler": _state_dict(self._scheds[name]),
                    "val_result": val_result,
                    "trained_on": self.provenance(),
                    **self.identity(),
                },
                Path(directory) / name,
                is_best=is_best,
                model_name=model_name,
            )

    def identity(self) -> dict:
        """The fields of a checkpoint that tell whose it is, so that another's is refused."""
        return {"method": type(self).__name__, "classnames": list(self.dm.dataset.classnames)}

    def provenance(self) -> dict | None:
        """The record of what this run's prompts are trained on (``apd.results.provenance``)."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(optim is not None for optim in self._optims.values())

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the prompts of a run.

        Checkpoints of CoOp, MaPLe, APT, FAP, AdvPT and MAPT load too (``apd.interchange``).
        Prompts with one context for all classes may be used with other class names than in
        training (base-to-new, cross-dataset); class-specific prompts may not.

        Args:
            directory: the run's folder.
            epoch: default: that of the best validation accuracy if it was stored, else the last.

        Raises:
            UserError: no such checkpoint, a damaged one, or one of another method, prompt length,
                CLIP (if the checkpoint states it) or, for class-specific prompts, class list.
        """
        if not directory:
            print("load_model() is skipped: no folder to load from is given")
            return
        for name in self.get_model_names():
            if self._optims[name] is not None:
                main = name == "prompt_learner"
                folder = prompts_folder(Path(directory)) if main else Path(directory) / name
                record = self.load_prompts(
                    self.model if main else getattr(self, name), folder, epoch
                )
                if main:
                    self.trained_on = record

    def load_prompts(
        self,
        model: PromptedCLIP,
        folder: Path,
        epoch: int | None = None,
        expected: dict | None = None,
    ) -> dict | None:
        """Load the prompts in ``folder`` into ``model``; class names are embedded anew.

        Checkpoints of CoOp, MaPLe, APT, FAP, AdvPT and MAPT do not state their method; of them
        only the kind of the prompts is checked.

        Args:
            epoch: as of ``load_model``.
            expected: record of a run (``apd.results.provenance``) that would train such prompts,
                except for its data, shots and seed; default: of this run.

        Returns:
            The record of what they were trained on; None: it is not known.

        Raises:
            UserError: as of ``load_model``.
        """
        expected = expected or self.provenance()
        assert expected is not None  # a method that trains nothing loads nothing
        path = checkpoint_path(folder, epoch)
        checkpoint = load_checkpoint(path, inert=True)
        saved = read_prompts(checkpoint, path)
        method = checkpoint.get("method", expected["method"])
        if method != expected["method"]:
            raise UserError(f"{path} holds prompts of {method}, not of {expected['method']}")
        classnames = self.identity()["classnames"]
        other_classes = checkpoint.get("classnames", classnames) != classnames
        if other_classes and self.class_specific:
            raise UserError(f"{path} holds class-specific prompts of another class list")
        other_tokens = check_fit(saved, model, self.section, self.options, path)
        if record := of_checkpoint(checkpoint, folder):
            check_meaning(record, expected, path)
        else:
            print(
                f"note: nothing says under which settings {path} was trained (class token's "
                "position, templates, interpolation): they are taken to be these"
            )
        model.prompt_learner.load_state_dict(saved.prompts)
        note = ", trained on other classes" if other_classes else ""
        if other_tokens and not other_classes:
            note = f", trained on other classes or words (TRAINER.{self.section}.CTX_INIT)"
        print(f"Loaded {path} (epoch {checkpoint.get('epoch')}{note})")
        return record

    # -- resuming ------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        super().before_epoch()
        self.epoch_start, self.epoch_lr = time.time(), self.get_current_lr()
        self.logged = []

    def after_epoch(self) -> None:
        super().after_epoch()
        seconds = time.time() - self.epoch_start
        self.train_seconds += seconds
        means = {name: mean(step[name] for step in self.logged) for name in self.logged[0]}
        row = {"epoch": self.epoch + 1, "lr": self.epoch_lr, "seconds": seconds, **means}
        self.history.append(row)
        if not ranks.rank():
            self.save_state()
        ranks.barrier()  # no rank goes on before the files are written

    def save_state(self) -> None:
        """Write history.csv and the state that the next epoch depends on."""
        write_csv(Path(self.output_dir) / HISTORY_NAME, self.history)
        names = self.get_model_names()
        state = {
            "epoch": self.epoch + 1,
            "models": {name: self._models[name].state_dict() for name in names},
            "optimizers": {name: _state_dict(self._optims[name]) for name in names},
            "schedulers": {name: _state_dict(self._scheds[name]) for name in names},
            "scaler": self.scaler.state_dict(),
            "best_result": float(self.best_result),
            "train_seconds": self.train_seconds,
            "history": self.history,
            "random": _random_state(),
            "config": self.config,
            **self.identity(),
        }
        write_tensors(Path(self.output_dir) / RESUME_NAME, state)

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue a killed run, if ``directory`` has one.

        Returns:
            How many epochs are trained.

        Raises:
            UserError: the folder has a run of another configuration, or the state is damaged.
        """
        path = Path(directory) / RESUME_NAME
        if not path.exists():
            if self.cfg.RESUME:
                raise UserError(f"--resume {self.cfg.RESUME}: there is no {path}")
            print("No checkpoint found, train from scratch")
            if not ranks.rank():
                for name in self.get_model_names():  # an earlier run's must not be loaded
                    (Path(self.output_dir) / name / BEST).unlink(missing_ok=True)
            return 0
        state = load_checkpoint(path)
        if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
            raise UserError(f"{path} is not a file to resume from: move it away")
        try:
            self._resume(state, path)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({one_line(error)}): move it away, and the run begins anew"
            ) from error
        print(f"Resuming {path} after epoch {state['epoch']}")
        return state["epoch"]

    def _resume(self, state: dict, path: Path) -> None:
        """Take over ``state``, read from ``path``; a damaged one may raise any kind of error."""
        changed = differences(self.config, state["config"])
        changed += [key for key, value in self.identity().items() if state[key] != value]
        if changed:
            raise UserError(
                f"{path} is a run of another configuration ({'; '.join(changed)}): "
                "choose another --output-dir"
            )
        faults = kind_faults(state, _NUMBERS, {"history": (list,)})
        if not faults and state["epoch"] < 1:
            faults = [f"has epoch {state['epoch']}"]
        if not all(isinstance(epoch, dict) for epoch in state.get("history", ())):
            faults.append("has a history of no epochs")
        if faults:
            raise ValueError(f"it {listed(faults, 4)}")
        for name in self.get_model_names():
            self._models[name].load_state_dict(state["models"][name])
            if self._optims[name] is not None:
                self._optims[name].load_state_dict(state["optimizers"][name])
                self._scheds[name].load_state_dict(state["schedulers"][name])
        self.scaler.load_state_dict(state["scaler"])
        self.best_result = state["best_result"]
        self.train_seconds = state["train_seconds"]
        self.history = state.get("history", [])  # states of earlier versions have none
        _set_random_state(state["random"])


def _state_dict(optimizer_or_scheduler) -> dict | None:
    """Its state; None: there is none, because its model is not trained."""
    return None if optimizer_or_scheduler is None else optimizer_or_scheduler.state_dict()


def _random_state() -> dict:
    """The state of every generator that training draws from, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        if ranks.size() > 1:  # all ranks draw the same numbers: those of rank 0, on the first GPU
            torch.cuda.set_rng_state(state["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(state["cuda"])
