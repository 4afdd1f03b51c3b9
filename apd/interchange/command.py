"""What ``apd-convert`` does: prompts from one project's layout to another's, or for apd.load."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from apd.checkpoint import load_checkpoint, save_checkpoint
from apd.errors import UserError
from apd.interchange.folders import OURS, checkpoint_path, prompts_folder
from apd.interchange.layouts import PEERS, peers_state_dict, read_prompts
from apd.models.arguments import classifier
from apd.models.hub import push
from apd.results.provenance import of_checkpoint

_COPIED = ("val_result", "method", "classnames")  # fields of a checkpoint in either layout


def convert(source: Path, target: Path, epoch: int | None = None) -> Path:
    """Write the prompts of the run in ``source`` below ``target``; return their folder.

    Raises:
        UserError: no checkpoint of prompts in ``source``, or the folder in ``target`` exists.
    """
    path = checkpoint_path(prompts_folder(source), epoch)
    checkpoint = load_checkpoint(path, inert=True)
    saved = read_prompts(checkpoint, path)
    if not isinstance(checkpoint.get("epoch"), int):
        raise UserError(f"{path} does not say its epoch")
    written = {key: checkpoint[key] for key in _COPIED if _plain(checkpoint.get(key))}
    if record := of_checkpoint(checkpoint, path.parent):
        written["trained_on"] = record
    if not saved.ours:
        folder, state = target / OURS, saved.prompts
        if saved.tokens is not None:  # the only record of the classes it was trained on
            written["token_vectors"] = saved.tokens
    elif saved.kind in PEERS and saved.prompts.keys() <= PEERS[saved.kind][1].keys():
        folder, state = target / PEERS[saved.kind][0], peers_state_dict(saved)
    else:
        raise UserError(f"{path} has {saved}: no other project has such prompts")
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder")
    # copies, because torch.save writes the whole tensor that a view is a part of
    written["state_dict"] = {name: value.clone() for name, value in state.items()}
    try:
        save_checkpoint({**written, "epoch": checkpoint["epoch"]}, folder)
    except OSError:  # the next call would refuse a folder that is there
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _plain(value) -> bool:
    """Whether it is plain data, not a placeholder that ``load_checkpoint`` has for an object."""
    if isinstance(value, list):
        return all(map(_plain, value))
    return isinstance(value, (str, int, float))


def run(args: argparse.Namespace) -> int:
    """Do what the flags of ``apd-convert`` say; its exit code."""
    if args.format == "peers":
        convert(Path(args.source), args.target, args.epoch)
        return 0
    folder = classifier(args.source, args).save(args.target)
    print(f"{folder} is for apd.load")
    if args.push:
        print(push(folder, args.push))
    return 0
