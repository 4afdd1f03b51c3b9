"""Where a classifier comes from: a run, a checkpoint of another project, or plain CLIP."""

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
    """The classifier that a run has trained. No data set is needed.

    Args:
        source: the folder of a finished run; one that ``save`` wrote; ``hf:USER/NAME`` on the
            Hugging Face hub; or a checkpoint of CoOp, MaPLe (with its VPT and IVLP), APT, FAP,
            AdvPT or MAPT: its file, or the folder that it was saved to.
        classes: other class names than those of training, or, for a checkpoint, those of it.
        device: where the module and its text features are; default: the CPU.
        epoch: of a run or checkpoint, whose prompts; default: those that the run was evaluated
            with.
        trainer: for a checkpoint, the trainer here that has such prompts, such as MaPLe.
        backbone: the CLIP, as MODEL.BACKBONE.NAME; needed for a checkpoint. Else where the same
            CLIP lies on this machine.
        robust: the file of its adversarially fine-tuned image encoder, likewise.
        options: for a checkpoint, further config keys that it was trained with and does not say:
            ``{"TRAINER.COOP.CLASS_TOKEN_POSITION": "middle"}``.
        revision: on the hub: a branch, tag or commit.

    Raises:
        UserError: in one line, what is missing, damaged or does not fit, and how to mend it.
    """
    given = _Given(classes, device, epoch, trainer, backbone, robust, options or {}, revision)
    hub = str(source).startswith(HUB)
    folder = download(str(source).removeprefix(HUB), revision) if hub else Path(source)
    build_it: Callable[[Path, _Given], PromptedClassifier]
    refused: tuple[str, ...]
    if is_saved(folder):
        kind, build_it, refused = "was written by save", _from_saved, _NOT_SAVED
    elif hub:
        raise UserError(f"{source} has no prompts of ours (a CLIP is a backbone, not a source)")
    elif (folder / RESULTS_NAME).is_file():
        kind, build_it, refused = "is a run", _from_run, _NOT_OF_RUNS
    else:
        kind, build_it, refused = "is a checkpoint", _from_checkpoint, ("revision",)
    for name in refused:
        if getattr(given, name) not in (None, "", {}) and not (hub and name == "revision"):
            raise UserError(f"{source} {kind}: it takes no {name}=")
    with _undisturbed():
        return build_it(folder, given)


@dataclass(frozen=True)
class _Given:
    """What ``load`` was given beside the source."""

    classes: Sequence[str] | None
    device: Device
    epoch: int | None
    trainer: str
    backbone: str
    robust: str
    options: Mapping[str, object]
    revision: str | None

    def clip(self, known: Backbone) -> Backbone:
        """The CLIP that is ``known``, where it lies on this machine."""
        return replace(known, name=self.backbone or known.name, robust=self.robust or known.robust)


_NOT_OF_RUNS = ("trainer", "options", "revision")
_NOT_SAVED = ("epoch", *_NOT_OF_RUNS)


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
    forms = [templates] if isinstance(templates, str) else list(templates or [DEFAULT])
    names = check_class_names(classes)
    clip = Backbone(backbone, robust, resolution)
    with _undisturbed():
        model, about = build(Description("ZeroshotCLIP", names, {"templates": forms}, clip), device)
        return PromptedClassifier(model, about)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Make a module that is of use for gradients, and draw nothing from the caller's random state.

    Weights are drawn before those in files take their place.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield


def build(about: Description, device: Device) -> tuple[PromptedCLIP, Description]:
    """The model with fresh prompts, and the description with the hash of its CLIP.

    Raises:
        UserError: the CLIP of that name is another one than described.
    """
    clip, notes = about.backbone, io.StringIO()
    with redirect_stdout(notes):  # how the file is read: a hash that agrees settles it
        clip_model = load_clip(clip.name, clip.robust, clip.resolution, _usable(device))
    if not clip.sha256:
        print(notes.getvalue(), end="", file=sys.stderr)
    sha256 = backbone_sha256(clip_model)
    if clip.sha256 not in ("", sha256):
        raise UserError(
            f"{clip.name} is another CLIP than the one with these prompts (SHA-256 "
            f"{sha256[:12]}..., not {clip.sha256[:12]}...): give that one as backbone=..."
        )
    model = prompted(clip_model, about.class_names, about.prompts)
    return model, replace(about, backbone=replace(clip, sha256=sha256))


def _usable(device: Device) -> torch.device:
    """The device, which is there; the CPU, if none is given."""
    try:
        return torch.empty(0, device=device or "cpu").device
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"device {device} cannot be used ({one_line(error, 100)})") from error


# -- folders that save wrote ---------------------------------------------------------------------


def _from_saved(folder: Path, given: _Given) -> PromptedClassifier:
    about, tensors, sha256 = read_folder(folder)
    about = replace(about, backbone=given.clip(about.backbone))
    names = check_class_names(about.class_names if given.classes is None else given.classes)
    if names != about.class_names:
        about.check_renamed()
        about = replace(about, class_names=names, results={})
    model, about = build(about, given.device)
    try:
        model.prompt_learner.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{folder / PROMPTS} does not fit {CONFIG} beside it ({one_line(error)}): fetch or "
            "save both again"
        ) from error
    if weights_sha256(model.prompt_learner) != sha256:
        raise UserError(f"{folder / PROMPTS} is not what {CONFIG} beside it says: fetch it again")
    return PromptedClassifier(model, about)


# -- runs ---------------------------------------------------------------------------------------


def _from_run(folder: Path, given: _Given) -> PromptedClassifier:
    results = load_run(folder)
    cfg = of_run(results, folder)
    about = _describe(results["method"], cfg, results.get("prompts"))
    sha256 = results.get("backbone_sha256", "")
    about = replace(about, backbone=replace(given.clip(about.backbone), sha256=sha256))
    checkpoint, path = {}, folder
    if about.learned:
        path = _prompts_of(folder, results, given.epoch)
        checkpoint = load_checkpoint(path, inert=True)
    # older results do not say them, but the run's own checkpoint does
    own = results.get("class_names") or (
        None if results.get("prompts_from") else checkpoint.get("classnames")
    )
    class_names = own if given.classes is None else given.classes
    if class_names is None:
        raise UserError(
            f"{folder} is of an older version, and does not say its class names: "
            "give them as classes=[...]"
        )
    names = check_class_names(class_names)
    measured = given.epoch is None and own is not None and names == tuple(own)
    about = replace(about, class_names=names, results=results if measured else {})
    model, about = build(about, given.device)
    if checkpoint:
        _load_prompts(read_prompts(checkpoint, path), checkpoint, model, about, cfg, path)
    if measured and results.get("prompts_sha256") not in (
        None,
        weights_sha256(model.prompt_learner),
    ):
        raise UserError(
            f"the prompts in {path} are not those that results.json is about: evaluate the run "
            "again, or load them as epoch=N, without results"
        )
    if measured and results.get("fingerprint", fingerprint(model)) != fingerprint(model):
        warnings.warn(
            f"{folder}: this is not the model that results.json is about: its prompts, the CLIP "
            f"{about.backbone.name} or the reading of class names have changed since",
            stacklevel=4,
        )
    return PromptedClassifier(model, about)


def _prompts_of(folder: Path, results: dict, epoch: int | None) -> Path:
    """The checkpoint that the run was evaluated with, or that of another epoch."""
    origin = results.get("prompts_from") or {"model_dir": str(folder), "epoch": None}
    epoch = origin["epoch"] if epoch is None else epoch
    return checkpoint_path(prompts_folder(Path(origin["model_dir"])), epoch)


# -- checkpoints --------------------------------------------------------------------------------


def _from_checkpoint(source: Path, given: _Given) -> PromptedClassifier:
    if not source.exists():
        raise UserError(f"there is no {source}: give the folder of a run, or a checkpoint")
    path = source if source.is_file() else checkpoint_path(prompts_folder(source), given.epoch)
    checkpoint = load_checkpoint(path, inert=True)
    saved = read_prompts(checkpoint, path)
    # ours say what they were trained with; others' projects save neither that nor class names
    keys = (checkpoint.get("trained_on") or {}).get("keys", {})
    trainer = given.trainer or checkpoint.get("method", "")
    classes = checkpoint.get("classnames", ()) if given.classes is None else given.classes
    backbone = given.backbone or keys.get("MODEL.BACKBONE.NAME", "")
    alike = [name for name, method in METHODS.items() if method.prompts == saved.kind]
    for value, what, example in (
        (trainer, "trainer", f'trainer="{alike[0] if alike else "CoOp"}"'),
        (backbone, "CLIP", 'backbone="ViT-B/16"'),
        (classes or given.classes is not None, "class names", 'classes=["cat", "dog"]'),
    ):
        if not value:
            raise UserError(f"{path} does not say its {what}: give it, as in {example}")
    cfg = default()
    cfg.INPUT.INTERPOLATION = "bicubic"  # as in CLIP's own preprocessing and in CoOp's configs
    section = _trainer(trainer).section
    sizes = {f"TRAINER.{section}.{key}": size for key, size in fitting_options(saved).items()}
    known = {key: size for key, size in sizes.items() if key.split(".")[2] in cfg.TRAINER[section]}
    merge(cfg, {**known, **keys, "MODEL.BACKBONE.NAME": backbone}.items(), str(path))
    merge(cfg, given.options.items(), "options")
    about = replace(_describe(trainer, cfg), class_names=check_class_names(classes))
    about = replace(about, backbone=given.clip(about.backbone))
    model, about = build(about, given.device)
    _load_prompts(saved, checkpoint, model, about, cfg, path)
    return PromptedClassifier(model, about)


# -- what both have -----------------------------------------------------------------------------


def _trainer(name: str) -> type[PromptTrainer]:
    """The trainer of that name, ours or a user's that has been imported.

    Raises:
        UserError: there is none, or it classifies in a way of its own.
    """
    import apd.trainers  # noqa: F401  PromptTrainer's subclasses are known when they are imported
    from apd.training.base import PromptTrainer

    classes: list[type[PromptTrainer]] = [PromptTrainer]
    for cls in classes:
        classes += cls.__subclasses__()
    found = {cls.__name__: cls for cls in classes[1:]}
    if name not in found:
        near = similar(name, found, 0.5) or list(METHODS)
        raise UserError(
            f"there is no trainer {name} (there are {listed(near, 20)}): if it is your own, import "
            "its module first"
        )
    if found[name].image_logits is not PromptTrainer.image_logits:
        raise UserError(f"{name} changes the model when it classifies: apd-eval evaluates it")
    return found[name]


def _describe(method: str, cfg: CfgNode, prompts: dict | None = None) -> Description:
    """What a config says of a classifier: all but class names and results.

    ``prompts``: what results.json says of them, which earlier versions do not.
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
    if cfg.AT[use].EPS is None:
        return None
    return {**threat_model(cfg, use).asdict(), "units": "1/255"}


def _load_prompts(
    saved: SavedPrompts,
    checkpoint: dict,
    model: PromptedCLIP,
    about: Description,
    cfg: CfgNode,
    path: Path,
) -> None:
    """Load the prompts into ``model``, if they are of its kind, size, CLIP and classes."""
    section = _trainer(about.method).section
    trained_by = checkpoint.get("method", about.method)
    if trained_by != about.method:
        raise UserError(f"{path} holds prompts of {trained_by}, not of {about.method}")
    trained_on = tuple(checkpoint.get("classnames", about.class_names))
    if trained_on != about.class_names:
        replace(about, class_names=trained_on).check_renamed()
    check_fit(saved, model, section, cfg.TRAINER[section], path)
    model.prompt_learner.load_state_dict(saved.prompts)
