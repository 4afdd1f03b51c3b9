"""Loads a classifier from a run, a saved folder, a checkpoint of another project or plain CLIP."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from yacs.config import CfgNode

from apd.catalog import DEFAULT
from apd.checkpoint import load_checkpoint
from apd.clip import PromptedCLIP, backbone_sha256, load_clip, weights_sha256
from apd.config import default, merge, of_run
from apd.errors import UserError, listed, one_line, similar
from apd.evaluate.request import threat_model
from apd.evaluate.state import fingerprint
from apd.interchange import (
    SavedPrompts,
    check_fit,
    checkpoint_path,
    fitting_options,
    prompts_folder,
    read_prompts,
)
from apd.methods import METHODS
from apd.models.classifier import PromptedClassifier, check_class_names, prompted
from apd.models.description import CONFIG, HUB, Backbone, Description
from apd.models.hub import download
from apd.models.saved import PROMPTS, is_saved, read_folder
from apd.results import RESULTS_NAME
from apd.results.runs import load_run

if TYPE_CHECKING:
    from apd.training.base import PromptTrainer

Device = torch.device | str | None


def load(
    source: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    device: Device = None,
    epoch: int | None = None,
    trainer: str = "",
    backbone: str = "",
    robust: str = "",
    options: Mapping[str, object] | None = None,
    revision: str | None = None,
) -> PromptedClassifier:
    """Load the classifier that a run has trained. No data set is needed.

    Args:
        source: the folder of a finished run; a folder that ``save`` wrote; ``hf:USER/NAME`` on the
            Hugging Face hub; or a checkpoint of CoOp, MaPLe (with its VPT and IVLP), APT, FAP,
            AdvPT or MAPT: its file, or the folder that it was saved to.
        classes: class names to use in place of those of training; a checkpoint of another project
            has none, so they must be those of its training.
        device: where the module and its text features are; default: the CPU.
        epoch: whose prompts to load from a run or checkpoint; default: those that the run was
            evaluated with.
        trainer: for a checkpoint: the name of the trainer here that has such prompts, as "MaPLe".
        backbone: for a checkpoint: its CLIP, as MODEL.BACKBONE.NAME. For other sources: the file
            of their CLIP, if it has another place on this machine.
        robust: the file of the adversarially fine-tuned image encoder, as ``backbone``.
        options: for a checkpoint: config keys of its training that it does not state, as
            ``{"TRAINER.COOP.CLASS_TOKEN_POSITION": "middle"}``.
        revision: on the hub: a branch, tag or commit.

    Raises:
        UserError: something is missing, damaged or does not fit; one line says how to mend it.
    """
    arguments = _Arguments(
        classes, device, epoch, trainer, backbone, robust, options or {}, revision
    )
    hub = str(source).startswith(HUB)
    folder = download(str(source).removeprefix(HUB), revision) if hub else Path(source)
    load_from: Callable[[Path, _Arguments], PromptedClassifier]
    not_taken: tuple[str, ...]
    if is_saved(folder):
        kind, load_from, not_taken = "was written by save", _from_saved, _NOT_OF_SAVED
    elif hub:
        raise UserError(f"{source} has no prompts of ours (a CLIP is a backbone, not a source)")
    elif (folder / RESULTS_NAME).is_file():
        kind, load_from, not_taken = "is a run", _from_run, _NOT_OF_RUNS
    else:
        kind, load_from, not_taken = "is a checkpoint", _from_checkpoint, ("revision",)
    for name in not_taken:
        if getattr(arguments, name) not in (None, "", {}) and not (hub and name == "revision"):
            raise UserError(f"{source} {kind}: it takes no {name}=")
    with _caller_untouched():
        return load_from(folder, arguments)


@dataclass(frozen=True)
class _Arguments:
    """The arguments of ``load`` without the source."""

    classes: Sequence[str] | None
    device: Device
    epoch: int | None
    trainer: str
    backbone: str
    robust: str
    options: Mapping[str, object]
    revision: str | None

    def with_files(self, clip: Backbone) -> Backbone:
        """``clip`` with the names or files that the arguments state for it."""
        return replace(clip, name=self.backbone or clip.name, robust=self.robust or clip.robust)


# arguments that sources of a kind do not take
_NOT_OF_RUNS = ("trainer", "options", "revision")
_NOT_OF_SAVED = ("epoch", *_NOT_OF_RUNS)


def zero_shot(
    backbone: str,
    classes: Sequence[str],
    templates: Sequence[str] | str | None = None,
    *,
    robust: str = "",
    resolution: int = 0,
    device: Device = None,
) -> PromptedClassifier:
    """CLIP with hand-written prompts (Radford 2021): the baseline of every comparison.

    Args:
        backbone: as MODEL.BACKBONE.NAME: ``mini``, ``mini-photo``, an OpenAI name such as
            ``ViT-B/32`` (downloaded), a file, ``hf:OWNER/NAME`` or ``openclip:MODEL/TAG``.
        classes: names, underscores read as spaces.
        templates: with {} for the class name; several are an ensemble, whose features are
            averaged. Default: "a photo of a {}.".
        robust: a file with an adversarially fine-tuned image encoder (TeCoA, FARE).
        resolution: of the images, in pixels; 0: what the CLIP was trained on.
        device: where the module is; default: the CPU.

    Raises:
        UserError: a CLIP that is not found or cannot be read, or a template without {}.
    """
    sentences = [templates] if isinstance(templates, str) else list(templates or [DEFAULT])
    description = Description(
        "ZeroshotCLIP",
        check_class_names(classes),
        {"templates": sentences},
        Backbone(backbone, robust, resolution),
    )
    with _caller_untouched():
        return PromptedClassifier(*build(description, device))


@contextmanager
def _caller_untouched() -> Iterator[None]:
    """Leave the caller's random state as it is, though weights are drawn before they are loaded.

    Under inference_mode of the caller, tensors made here can still be used for gradients.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield


def build(description: Description, device: Device) -> tuple[PromptedCLIP, Description]:
    """The model with prompts that are not trained, and the description with its CLIP's hash.

    Raises:
        UserError: the CLIP of that name is not the one that the description has the hash of.
    """
    clip, notes = description.backbone, io.StringIO()
    with redirect_stdout(notes):
        clip_model = load_clip(clip.name, clip.robust, clip.resolution, _usable(device))
    if not clip.sha256:  # where it is known, the hash shows that the file was read rightly
        print(notes.getvalue(), end="", file=sys.stderr)
    sha256 = backbone_sha256(clip_model)
    if clip.sha256 not in ("", sha256):
        raise UserError(
            f"{clip.name} is another CLIP than the one with these prompts (SHA-256 "
            f"{sha256[:12]}..., not {clip.sha256[:12]}...): give that one as backbone=..."
        )
    model = prompted(clip_model, description.class_names, description.prompts)
    return model, replace(description, backbone=replace(clip, sha256=sha256))


def _usable(device: Device) -> torch.device:
    """``device``, by default the CPU; UserError if this machine does not have it."""
    try:
        return torch.empty(0, device=device or "cpu").device
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"device {device} cannot be used ({one_line(error, 100)})") from error


# -- folders that save wrote ---------------------------------------------------------------------


def _from_saved(folder: Path, arguments: _Arguments) -> PromptedClassifier:
    """The classifier in a folder that ``save`` wrote."""
    description, tensors, sha256 = read_folder(folder)
    description = replace(description, backbone=arguments.with_files(description.backbone))
    names = check_class_names(
        description.class_names if arguments.classes is None else arguments.classes
    )
    if names != description.class_names:
        description.check_renamed()
        description = replace(description, class_names=names, results={})
    model, description = build(description, arguments.device)
    try:
        model.prompt_learner.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{folder / PROMPTS} does not fit {CONFIG} beside it ({one_line(error)}): fetch or "
            "save both again"
        ) from error
    if weights_sha256(model.prompt_learner) != sha256:
        raise UserError(f"{folder / PROMPTS} is not what {CONFIG} beside it says: fetch it again")
    return PromptedClassifier(model, description)


# -- runs ---------------------------------------------------------------------------------------


def _from_run(folder: Path, arguments: _Arguments) -> PromptedClassifier:
    """The classifier of a finished run."""
    results = load_run(folder)
    cfg = of_run(results, folder)
    description = _describe(results["method"], cfg, results.get("prompts"))
    backbone = replace(
        arguments.with_files(description.backbone), sha256=results.get("backbone_sha256", "")
    )
    checkpoint, path = {}, folder
    if description.learned:
        path = _checkpoint_of_run(folder, results, arguments.epoch)
        checkpoint = load_checkpoint(path, inert=True)
    # results.json of earlier versions has no class names, but the run's own checkpoint has
    own = results.get("class_names") or (
        None if results.get("prompts_from") else checkpoint.get("classnames")
    )
    class_names = own if arguments.classes is None else arguments.classes
    if class_names is None:
        raise UserError(
            f"{folder} is of an older version, and does not say its class names: "
            "give them as classes=[...]"
        )
    names = check_class_names(class_names)
    # whether this is the classifier that results.json has evaluations of
    evaluated = arguments.epoch is None and own is not None and names == tuple(own)
    model, description = build(
        replace(
            description,
            backbone=backbone,
            class_names=names,
            results=results if evaluated else {},
        ),
        arguments.device,
    )
    if checkpoint:
        _load_prompts(read_prompts(checkpoint, path), checkpoint, model, description, cfg, path)
    if evaluated and results.get("prompts_sha256") not in (
        None,
        weights_sha256(model.prompt_learner),
    ):
        raise UserError(
            f"the prompts in {path} are not those that results.json is about: evaluate the run "
            "again, or load them as epoch=N, without results"
        )
    if evaluated and results.get("fingerprint", fingerprint(model)) != fingerprint(model):
        warnings.warn(
            f"{folder}: this is not the model that results.json is about: its prompts, the CLIP "
            f"{description.backbone.name} or the reading of class names have changed since",
            stacklevel=4,
        )
    return PromptedClassifier(model, description)


def _checkpoint_of_run(folder: Path, results: dict, epoch: int | None) -> Path:
    """The checkpoint that the run was evaluated with, or that of another epoch."""
    origin = results.get("prompts_from") or {"model_dir": str(folder), "epoch": None}
    epoch = origin["epoch"] if epoch is None else epoch
    return checkpoint_path(prompts_folder(Path(origin["model_dir"])), epoch)


# -- checkpoints --------------------------------------------------------------------------------


def _from_checkpoint(source: Path, arguments: _Arguments) -> PromptedClassifier:
    """The classifier of a checkpoint, ours or another project's."""
    if not source.exists():
        raise UserError(f"there is no {source}: give the folder of a run, or a checkpoint")
    path = source if source.is_file() else checkpoint_path(prompts_folder(source), arguments.epoch)
    checkpoint = load_checkpoint(path, inert=True)
    saved = read_prompts(checkpoint, path)
    # checkpoints of ours state config keys and class names, those of other projects do not
    keys = (checkpoint.get("trained_on") or {}).get("keys", {})
    trainer = arguments.trainer or checkpoint.get("method", "")
    classes = checkpoint.get("classnames", ()) if arguments.classes is None else arguments.classes
    backbone = arguments.backbone or keys.get("MODEL.BACKBONE.NAME", "")
    alike = [name for name, method in METHODS.items() if method.prompts == saved.kind]
    for value, label, example in (
        (trainer, "trainer", f'trainer="{alike[0] if alike else "CoOp"}"'),
        (backbone, "CLIP", 'backbone="ViT-B/16"'),
        (classes or arguments.classes is not None, "class names", 'classes=["cat", "dog"]'),
    ):
        if not value:
            raise UserError(f"{path} does not say its {label}: give it, as in {example}")
    cfg = default()
    cfg.INPUT.INTERPOLATION = "bicubic"  # as in CLIP's own preprocessing and in CoOp's configs
    section = _trainer(trainer).section
    sizes = {f"TRAINER.{section}.{key}": size for key, size in fitting_options(saved).items()}
    sizes = {key: size for key, size in sizes.items() if key.split(".")[2] in cfg.TRAINER[section]}
    merge(cfg, {**sizes, **keys, "MODEL.BACKBONE.NAME": backbone}.items(), str(path))
    merge(cfg, arguments.options.items(), "options")
    description = _describe(trainer, cfg)
    model, description = build(
        replace(
            description,
            class_names=check_class_names(classes),
            backbone=arguments.with_files(description.backbone),
        ),
        arguments.device,
    )
    _load_prompts(saved, checkpoint, model, description, cfg, path)
    return PromptedClassifier(model, description)


# -- runs and checkpoints -----------------------------------------------------------------------


def _trainer(name: str) -> type[PromptTrainer]:
    """The trainer of that name: ours, or a user's that has been imported.

    Raises:
        UserError: there is none, or it defends at test time, which a ``PromptedClassifier`` cannot.
    """
    import apd.trainers  # noqa: F401  makes them subclasses of PromptTrainer that are looked up here
    from apd.training.base import PromptTrainer

    classes: list[type[PromptTrainer]] = [PromptTrainer]
    for cls in classes:
        classes += cls.__subclasses__()
    trainers = {cls.__name__: cls for cls in classes[1:]}
    if name not in trainers:
        names = similar(name, trainers, 0.5) or list(METHODS)
        raise UserError(
            f"there is no trainer {name} (there are {listed(names, 20)}): if it is your own, "
            "import its module first"
        )
    if trainers[name].image_logits is not PromptTrainer.image_logits:
        raise UserError(f"{name} changes the model when it classifies: apd-eval evaluates it")
    return trainers[name]


def _describe(method: str, cfg: CfgNode, prompts: dict | None = None) -> Description:
    """The description of a config's classifier, still without class names and results.

    Args:
        prompts: as results.json states them; None: it is of an earlier version, which did not.

    Raises:
        UserError: the trainer or its images cannot be a ``PromptedClassifier``'s.
    """
    if "instance_norm" in cfg.INPUT.TRANSFORMS:
        raise UserError("INPUT.TRANSFORMS has instance_norm: its images are not in [0, 1]")
    trainer, backbone = _trainer(method), cfg.MODEL.BACKBONE
    chunk = {"text_chunk": cfg.TRAINER.PROMPT.TEXT_CHUNK}
    return Description(
        method=method,
        class_names=(),
        prompts={**(prompts or trainer.prompts_of(cfg)), **chunk},
        backbone=Backbone(backbone.NAME, backbone.ROBUST, backbone.RESOLUTION),
        interpolation=cfg.INPUT.INTERPOLATION,
        threat_model={
            "train": _threat(cfg, "TRAIN") if trainer.adversarial else None,
            "test": _threat(cfg, "TEST"),
        },
    )


def _threat(cfg: CfgNode, use: str) -> dict | None:
    """The threat model of "TRAIN" or "TEST" as in results.json; None: no radius is set."""
    if cfg.AT[use].EPS is None:
        return None
    return {**threat_model(cfg, use).asdict(), "units": "1/255"}


def _load_prompts(
    saved: SavedPrompts,
    checkpoint: dict,
    model: PromptedCLIP,
    description: Description,
    cfg: CfgNode,
    path: Path,
) -> None:
    """Load the prompts into ``model``.

    Raises:
        UserError: they are of another method, kind, size or CLIP, or cannot be used with its
            class names.
    """
    section = _trainer(description.method).section
    method = checkpoint.get("method", description.method)
    if method != description.method:
        raise UserError(f"{path} holds prompts of {method}, not of {description.method}")
    trained_names = tuple(checkpoint.get("classnames", description.class_names))
    if trained_names != description.class_names:
        replace(description, class_names=trained_names).check_renamed()
    check_fit(saved, model, section, cfg.TRAINER[section], path)
    model.prompt_learner.load_state_dict(saved.prompts)
