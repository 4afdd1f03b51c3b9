"""Prompts trained by CoOp, MaPLe, APT, FAP, AdvPT and MAPT, read and written."""

from apd.interchange.folders import checkpoint_path, prompts_folder
from apd.interchange.layouts import SavedPrompts, read_prompts
from apd.interchange.match import check_fit, fitting_options

__all__ = [
    "SavedPrompts",
    "check_fit",
    "checkpoint_path",
    "fitting_options",
    "prompts_folder",
    "read_prompts",
]
