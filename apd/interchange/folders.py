"""Where a run keeps its prompts: Dassl's ``<run>/<model name>/model.pth.tar-<epoch>``."""

from __future__ import annotations

from pathlib import Path

from apd.checkpoint import BEST
from apd.errors import UserError, one_line
from apd.files import read_text

OURS = "prompt_learner"
TEACHER = "teacher"  # beside it, what APD distils from: no prompts of the run itself


def prompts_folder(directory: Path) -> Path:
    """The folder with the checkpoints of a run's prompts; ``directory`` is the run's, or this one.

    Ours is called ``prompt_learner``; the peers' have other names, and are recognised by their
    files.

    Raises:
        UserError: several folders that it could be.
    """
    files = "model*.pth.tar*"
    if (directory / OURS).is_dir():
        return directory / OURS
    if any(directory.glob(files)):
        return directory
    folders = sorted({path.parent for path in directory.glob(f"*/{files}")})
    folders = [folder for folder in folders if folder.name != TEACHER]
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"{directory} has prompts in several folders ({names}): name one of them")
    return folders[0] if folders else directory / OURS


def checkpoint_path(folder: Path, epoch: int | None = None) -> Path:
    """The checkpoint of ``epoch`` in Dassl's layout; None: the best one, or the last.

    Raises:
        UserError: there is none.
    """
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    last = folder / "checkpoint"
    if epoch is None and not path.exists() and last.exists():
        path = folder / Path(one_line(read_text(last))).name
    if not path.exists():
        names = sorted(p.name for p in folder.glob("model*")) if folder.exists() else []
        hint = f"there are {', '.join(names)}" if names else "the folder has no checkpoints"
        raise UserError(f"no checkpoint {path}: {hint}; check the folder and the epoch")
    return path
