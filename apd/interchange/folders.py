"""Where a run keeps its prompts: Dassl's ``<run>/<model name>/model.pth.tar-<epoch>``."""

from __future__ import annotations

from pathlib import Path

from apd.checkpoint import BEST
from apd.errors import UserError, one_line
from apd.files import read_text

OURS = "prompt_learner"


def prompts_folder(directory: Path) -> Path:
    """The folder with the checkpoints of a run's prompts; ``directory`` may be it already.

    Whatever it is called: ours is ``prompt_learner``, peers have other names too.

    Raises:
        UserError: several folders that it could be.
    """
    files = "model*.pth.tar*"
    if (directory / OURS).is_dir():
        return directory / OURS
    if any(directory.glob(files)):
        return directory
    found = sorted({path.parent for path in directory.glob(f"*/{files}")})
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise UserError(f"{directory} has prompts in several folders ({names}): name one of them")
    return found[0] if found else directory / OURS


def checkpoint_path(folder: Path, epoch: int | None = None) -> Path:
    """The checkpoint of ``epoch`` in Dassl's layout; without it the best one, or else the last.

    Raises:
        UserError: there is none.
    """
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    last = folder / "checkpoint"
    if epoch is None and not path.exists() and last.exists():
        path = folder / Path(one_line(read_text(last))).name
    if not path.exists():
        found = sorted(p.name for p in folder.glob("model*")) if folder.exists() else []
        there = f"there are {', '.join(found)}" if found else "the folder has no checkpoints"
        raise UserError(f"no checkpoint {path}: {there}; check the folder and the epoch")
    return path
