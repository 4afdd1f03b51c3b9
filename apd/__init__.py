"""Adversarially robust prompt learning of CLIP, as a plugin for the Dassl / CoOp toolbox."""

from pathlib import Path

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent
if not (_HERE / "trainers").exists():
    # Run from a clone: trainers/, datasets/ and configs/ lie beside this folder, as in CoOp.
    # An installation has them inside it (setup.py, package_dir).
    __path__.append(str(_HERE.parent))

from apd.config import extend_cfg  # noqa: E402
from apd.errors import tell_uncaught  # noqa: E402


def register(mend_host: bool = False) -> None:
    """Register these trainers and datasets with the toolbox (Dassl, or the embedded host).

    A name that the toolbox has already stays the toolbox's: in a CoOp checkout, call this after
    its own imports, and ``--trainer CoOp`` is its CoOp. From then on, errors that are the user's to
    mend end the program with one line and exit code 2, as in ``train.py`` here.

    Args:
        mend_host: also make the toolbox's own trainers train and resume on current PyTorch, where
            it is upstream Dassl (see ``apd.host.mend``). Only in this process: no file changes.
    """
    import apd.datasets  # noqa: F401  registers on import
    import apd.host
    import apd.trainers  # noqa: F401

    tell_uncaught()
    if mend_host:
        apd.host.mend()


__all__ = ["__version__", "extend_cfg", "register"]
