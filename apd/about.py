"""This package: its version, and the folders of the files that come with it."""

from pathlib import Path

VERSION = "0.1.0"
_HERE = Path(__file__).resolve().parent
CLONE = None if (_HERE / "trainers").exists() else _HERE.parent  # None: an installation
ASSETS = _HERE / "assets"
CONFIGS = (CLONE or _HERE) / "configs"
