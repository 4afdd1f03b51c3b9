"""Adversarially robust prompt learning of CLIP, as a plugin for the Dassl / CoOp toolbox."""

from pathlib import Path

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent
if not (_HERE / "trainers").exists():
    # Run from a clone: trainers/, datasets/ and configs/ lie beside this folder, as in CoOp.
    # An installation has them inside it (setup.py, package_dir).
    __path__.append(str(_HERE.parent))

from apd.config import extend_cfg  # noqa: E402


def register() -> None:
    """Register these trainers and datasets with the toolbox (Dassl, or the embedded host).

    A name that the toolbox has already stays the toolbox's: in a CoOp checkout, call this after
    its own imports, and ``--trainer CoOp`` is its CoOp.
    """
    import apd.datasets  # noqa: F401  registers on import
    import apd.trainers  # noqa: F401


__all__ = ["__version__", "extend_cfg", "register"]
