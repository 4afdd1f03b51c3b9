"""One run of a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apd.errors import UserError
from apd.jobs.job import Job, State, tail

_PROGRESS = re.compile(
    r"(?P<epoch>epoch \[\d+/\d+\]).*? (?P<eta>eta [\d:]+)"
    r"|(?P<evaluating>Evaluate on the \S+ set)|\* (?P<accuracy>(robust )?accuracy: [\d.]+%)"
)


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """A run of ``train.py``, in the run's folder: what a cell of a sweep's grid stands for.

    Args:
        argv: arguments of ``train.py``.
        similarity_key: by which runs take about as long, the coarsest first: whether an evaluation
            only, data set, trainer, name of the config, shots.
    """

    argv: tuple[str, ...]
    similarity_key: tuple = ()

    @property
    def command(self) -> Sequence[str]:
        return self.argv

    def setup(self) -> tuple[Any, dict | None]:
        """Its config, and the prompts that it only evaluates (None: it trains its own).

        Raises:
            UserError: the configuration is wrong.
        """
        from apd.train.command import evaluated_prompts, parse_args, setup_cfg

        args = parse_args(list(self.argv))
        return setup_cfg(args), evaluated_prompts(args)

    def done(self) -> State | None:
        from apd.train.command import finished

        cfg, prompts_from = self.setup()
        try:
            return State("done") if finished(cfg, prompts_from) else None
        except UserError as error:
            return State("blocked", str(error))

    def run(self) -> int:
        from apd.train.command import train

        return train(list(self.argv))

    def progress(self) -> str:
        """Epoch, remaining time of training, and last accuracy, as far as the log tells."""
        doing = accuracy = ""
        for match in _PROGRESS.finditer("".join(tail(path) for path in self.logs()[:1])):
            if match["epoch"]:
                doing = f"{match['epoch']}, {match['eta']}"
            elif match["evaluating"]:
                doing = "evaluating"
            else:
                accuracy = match["accuracy"]
        return ", ".join(filter(None, (doing, accuracy)))

    def logs(self) -> list[Path]:
        # Dassl gives the log of a run that goes on the date as a suffix
        paths = Path(self.folder).glob("log.txt*")
        return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
