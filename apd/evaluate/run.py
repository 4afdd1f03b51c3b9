"""``Run``: a finished run, loaded to be evaluated again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from apd.attacks import DefendedModel
from apd.clip import weights_sha256
from apd.config import of_run
from apd.errors import UserError, one_line
from apd.evaluate.evaluated import Evaluated
from apd.evaluate.request import WHITE_BOX, EvaluationRequest, LogitsFn, Source, attack_seed
from apd.evaluate.state import fingerprint
from apd.host import build_trainer, set_random_seed
from apd.results.runs import load_runs


class SavedRun(NamedTuple):
    """What a process needs to load a run.

    Attributes:
        folder: of the run.
        results: the contents of its results.json, at least config, prompts_from, method and seed.
        root: folder that holds the data sets; "": that of the run's config.
        compiled: whether to compile the model (torch.compile).
    """

    folder: Path
    results: dict
    root: str = ""
    compiled: bool = False

    def load(self) -> Run:
        return Run(self)


class Run(Evaluated):
    """A finished run: its trainer with the prompts that results.json describes.

    Raises:
        UserError: config, data, backbone or prompts are missing or do not fit.
    """

    def __init__(self, saved: SavedRun) -> None:
        self.saved = saved
        self.folder, self.results = folder, results = saved.folder, saved.results
        cfg = of_run(results, folder)
        cfg.OUTPUT_DIR, cfg.RESUME, cfg.VERBOSE = str(folder), "", False
        cfg.DATASET.ROOT = saved.root or cfg.DATASET.ROOT
        cfg.freeze()
        with contextlib.redirect_stdout(io.StringIO()):
            set_random_seed(attack_seed(cfg))
            self.trainer = trainer = build_trainer(cfg)
            if trainer.learns or results["prompts_from"]:
                loaded = results["prompts_from"] or {"model_dir": str(folder), "epoch": None}
                trainer.load_model(loaded["model_dir"], epoch=loaded["epoch"])
                self._check_prompts(loaded["model_dir"])
        self.cfg, self.logits = cfg, trainer.image_logits()
        if saved.compiled:
            self.logits = self.compiled(self.logits)
        self.fingerprint = trainer.model_fingerprint()
        self._source_name, self._source = WHITE_BOX.name, WHITE_BOX
        self.classnames = list(trainer.dm.dataset.classnames)

    def _check_prompts(self, prompts_folder: str) -> None:
        """Raise UserError if the loaded prompts are not those that results.json describes."""
        stated = self.results.get("prompts_sha256")  # earlier versions do not state it
        if stated and stated != weights_sha256(self.trainer.model.prompt_learner):
            raise UserError(
                f"the prompts in {prompts_folder} are not those that {self.folder}/results.json is "
                "about: evaluate them in a folder of their own (apd-train --eval-only --model-dir)"
            )

    def loader(self, split: str) -> Iterable:
        return self.trainer.split_loader(split)

    def parse_batch(self, batch: dict) -> tuple[Tensor, Tensor]:
        return self.trainer.parse_batch_test(batch)

    @torch.no_grad()
    def compiled(self, logits: LogitsFn) -> LogitsFn:
        """``logits``, compiled once for batches of every size.

        Raises:
            UserError: it cannot be compiled.
        """
        compiled = torch.compile(logits, dynamic=True)
        try:
            compiled(torch.rand(2, 3, *self.cfg.INPUT.SIZE, device=self.trainer.device))
        except RuntimeError as error:
            raise UserError(f"--compile: {one_line(error)}") from error
        return compiled

    def resolved(self, request: EvaluationRequest) -> EvaluationRequest:
        """The request with the models of its source loaded; those of the last source are cached."""
        if request.source.logits_fns:
            return request
        name = request.source.name
        if self._source_name != name:
            self._source_name, self._source = name, self.source(name)
        return replace(request, source=self._source)

    @torch.no_grad()
    def source(self, name: str) -> Source:
        """Load the models of a source: white-box, transfer:zeroshot, transfer:RUN, adaptive or
        static.

        Raises:
            UserError: no such source, or one that does not fit this run.
        """
        trainer = self.trainer
        if name == WHITE_BOX.name:
            return WHITE_BOX
        defended = isinstance(self.logits, DefendedModel)
        if name == "static":
            if not defended:
                raise UserError(f"{self.folder} has no test-time defence: use white-box")
            logits, model = trainer.undefended()
            return Source(name, (logits,), fingerprint(model))
        if name == "adaptive" and defended:
            return WHITE_BOX  # attacks on the defended model go through the defence
        if name == "adaptive":
            if (teacher := trainer.adaptive_model(self.folder)) is None:
                raise UserError(f"{self.folder} has no teacher that adaptive attacks go through")
            logits, model = teacher
            return Source(name, (self.logits, logits), fingerprint(model))
        kind, _, folder = name.partition(":")
        if kind != "transfer" or not folder:
            raise UserError(
                f'unknown source "{name}": use white-box, transfer:zeroshot, transfer:RUN, '
                "adaptive, static"
            )
        if folder == "zeroshot":
            model = trainer.build_prompted_clip(trainer.clip_model).eval()
            return Source(name, (model.classifier(),), fingerprint(model))
        runs = load_runs([folder])
        if len(runs) > 1:
            raise UserError(f"{name}: one run, please; there are {', '.join(map(str, runs))}")
        other = SavedRun(*next(iter(runs.items())), self.cfg.DATASET.ROOT).load()
        for label, ours, theirs in (
            ("classes", self.classnames, other.classnames),
            ("INPUT.SIZE", list(self.cfg.INPUT.SIZE), list(other.cfg.INPUT.SIZE)),
        ):
            if ours != theirs:
                raise UserError(f"{name}: it has other {label} than {self.folder}")
        return Source(name, (other.logits,), other.fingerprint)
