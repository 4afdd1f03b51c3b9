"""The job that makes one run of a sweep."""

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
    """One run of ``train.py``; its folder is the run's.

    Args:
        argv: arguments of ``train.py``.
        similarity_key: whether it only evaluates, data set, trainer, name of the config, shots.
            The more of these two jobs share, from the first one on, the more alike are their times.
    """

    argv: tuple[str, ...]
    similarity_key: tuple = ()

    @property
    def command(self) -> Sequence[str]:
        return self.argv

    def setup(self) -> tuple[Any, dict | None]:
        """Its config, and which prompts it evaluates (None: it trains its own).

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
        """Epoch, remaining time of training, and last accuracy, where the log has them."""
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
        # a run that is continued has another log, to whose name Dassl adds the date
        paths = Path(self.folder).glob("log.txt*")
        return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
