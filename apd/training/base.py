"""What all prompt-learning methods share: a frozen CLIP, one training step, one evaluation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from apd import ranks
from apd.attacks import threat_warnings
from apd.catalog import dataset_name, template
from apd.choices import ATTACKED
from apd.clip import (
    PromptedCLIP,
    backbone_sha256,
    build_prompted_clip,
    load_clip,
    weights_sha256,
)
from apd.clip.text import warn_of_same_prompts
from apd.config import KEYS, check, plain
from apd.datasets.fewshot import FewShotDataset
from apd.errors import ImpossibleResult, NonFiniteLoss, UserError
from apd.evaluate import EvaluationRequest, Shard, evaluate, fingerprint
from apd.evaluate.flags import ERROR, FALLEN, add_flags
from apd.evaluate.request import attack_seed, threat_model
from apd.evaluate.run import SavedRun
from apd.evaluate.shards import Images, Merger
from apd.evaluate.workers import run_shards
from apd.host import (
    HOST,
    HOST_VERSION,
    DatasetWrapper,
    build_data_loader,
    build_lr_scheduler,
    build_optimizer,
    build_transform,
)
from apd.host.in_memory import DETERMINISTIC_TRANSFORMS, cached_loader
from apd.jobs.lock import check_system
from apd.precision import DTYPES
from apd.results import EVALUATIONS, write_results
from apd.results.provenance import training
from apd.results.words import described
from apd.training.resumable import ResumableTrainer

if TYPE_CHECKING:
    from clip.model import CLIP

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class PromptTrainer(ResumableTrainer):
    """Learns prompts for a frozen CLIP by cross-entropy on clean images.

    A method says which prompts it has (``section``, ``prompts``) and what it minimises
    (``losses``); everything else is here.
    """

    section: str  # of cfg.TRAINER
    model: PromptedCLIP
    adversarial = False  # whether training attacks images
    normalizes = True  # images, inside the model (apd.config._Config)
    batches: tuple[str, ...] = ATTACKED  # what AT.TRAIN.AT_LOSS_TYPE may be
    keep_results = True  # False: only print the evaluation
    prompts_from: dict | None = None  # where evaluated prompts were loaded from
    argv: list[str] | None = None  # the command line, where it is train.py's
    fingerprint = ""  # of the model, in the final evaluation
    batch_slice: ranks.BatchSlice | None = None  # this rank's images of the batch, inside a step

    def prompts(self) -> dict:
        """This method's prompts, as arguments of ``build_prompted_clip``."""
        raise NotImplementedError

    @classmethod
    def prompts_of(cls, cfg) -> dict:
        """``prompts``, and the data set's template, of a config alone: without data set or CLIP."""
        trainer = cls.__new__(cls)
        trainer.cfg, trainer.options = cfg, cfg.TRAINER[cls.section]
        return {"templates": [template(cfg.DATASET)], **trainer.prompts()}

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What to minimise, as "loss", and what else to log; images (B, 3, R, R) in [0, 1]."""
        return {"loss": F.cross_entropy(self.model(images), labels)}

    # -- building ------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        check(cfg)
        self.options = cfg.TRAINER[self.section]
        self.class_specific = self.options.get("CSC", False)
        for part in ("TRAIN", "TEST") if self.adversarial else ("TEST",):
            if isinstance(cfg.AT[part].EPS, (int, float)):
                for _, text in threat_warnings(cfg.AT[part].EPS, cfg.AT[part].STEPS):
                    print(f"warning: AT.{part}: {text}")
        if cfg.AT.TEST.SHARDS > 1:
            check_system()
        EvaluationRequest.from_config(cfg)  # unknown attacks are told before anything is built
        if self.adversarial:
            self.train_threat = threat_model(cfg, "TRAIN")
            if cfg.AT.TRAIN.AT_LOSS_TYPE not in self.batches:
                raise UserError(
                    f"AT.TRAIN.AT_LOSS_TYPE is {cfg.AT.TRAIN.AT_LOSS_TYPE}: "
                    f"{type(self).__name__} has {', '.join(self.batches)}"
                )
            identity = not any(cfg.INPUT.PIXEL_MEAN) and {*cfg.INPUT.PIXEL_STD} == {1.0}
            if "normalize" in cfg.INPUT.TRANSFORMS and not identity:
                raise UserError(
                    "INPUT.TRANSFORMS has normalize, but attacks need images in [0, 1], and the "
                    "model normalises: take it out"
                )

    def build_data_loader(self) -> None:
        if "normalize" in self.cfg.INPUT.TRANSFORMS:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.INPUT.TRANSFORMS = [t for t in cfg.INPUT.TRANSFORMS if t != "normalize"]
            cfg.freeze()
            self.cfg = cfg
            print("normalize is taken out of INPUT.TRANSFORMS: the model normalises")
        super().build_data_loader()
        if self.cfg.DATALOADER.IN_MEMORY:
            self.test_loader = cached_loader(self.test_loader)
            self.val_loader = cached_loader(self.val_loader)
            if DETERMINISTIC_TRANSFORMS.issuperset(self.cfg.INPUT.TRANSFORMS):
                self.train_loader_x = cached_loader(self.train_loader_x)
        self.check_data_keys()
        if not self.class_specific:  # else their contexts differ
            warn_of_same_prompts(self.cfg.DATASET.NAME, self.dm.dataset.classnames)
        self.split_loader(self.cfg.TEST.SPLIT)
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.has_validation:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but there are no validation images (and test "
                "images must not choose the model): use last_step"
            )

    def check_data_keys(self) -> None:
        """Refuse keys of ours that a data set of the toolbox's own would not read."""
        data, usual = self.cfg.DATASET, KEYS["DATASET"]
        for key in FewShotDataset.reads:
            if data[key] != usual[key] and key not in getattr(self.dm.dataset, "reads", ()):
                raise UserError(
                    f"DATASET.{key} is {data[key]}, which the toolbox's own {data.NAME} does not "
                    "read: leave it out"
                )

    def build_model(self) -> None:
        backbone = self.cfg.MODEL.BACKBONE
        self.clip_model = self.load_clip(backbone.NAME, backbone.ROBUST, backbone.RESOLUTION)
        size = (self.clip_model.visual.input_resolution,) * 2
        if tuple(self.cfg.INPUT.SIZE) != size:
            raise UserError(
                f"INPUT.SIZE is {tuple(self.cfg.INPUT.SIZE)}, but the backbone "
                f"{backbone.NAME} reads {size}: set INPUT.SIZE to that, or "
                "MODEL.BACKBONE.RESOLUTION to yours"
            )
        self.model = self.build_prompted_clip(self.clip_model, **self.prompts())
        self.add_model("prompt_learner", self.model.prompt_learner)
        fp16 = DTYPES[self.options.PREC] is torch.float16  # bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)

    def load_clip(self, name: str, robust: str, resolution: int = 0) -> CLIP:
        print(f"Loading CLIP (backbone: {name}, host: {HOST})")
        return load_clip(name, robust, resolution, self.device)

    def build_prompted_clip(self, clip_model: CLIP, **prompts) -> PromptedCLIP:
        model = build_prompted_clip(
            clip_model,
            self.dm.dataset.classnames,
            text_chunk=self.cfg.TRAINER.PROMPT.TEXT_CHUNK,
            **{"templates": [template(self.cfg.DATASET)], **prompts},
        )
        if self.cfg.TRAINER.PROMPT.COMPILE:
            model.compile_training()
        return model

    def add_model(self, name: str, learner: nn.Module, lr: float = 1.0) -> None:
        """Register prompts to be trained, with an optimiser and a schedule of their own.

        ``lr``: their learning rate, as a multiple of OPTIM.LR.
        """
        options = self.cfg.OPTIM.clone()
        options.defrost()
        options.LR *= lr
        optim = build_optimizer(learner, options, self.parameter_groups(learner))
        self.register_model(name, learner, optim, build_lr_scheduler(optim, options))

    def parameter_groups(self, learner: nn.Module) -> list[dict] | None:
        """The optimiser's, where it does not treat all of ``learner`` alike."""
        return None

    # -- training ------------------------------------------------------------------------------

    def before_train(self) -> None:
        super().before_train()
        batches = len(self.train_loader_x)
        self.progress = tqdm(
            desc=f"{type(self).__name__} training",
            total=self.max_epoch * batches,
            initial=self.start_epoch * batches,
            unit="batch",
            disable=ranks.progress_disabled(),
        )

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images, labels = self.parse_batch_train(batch)
        # two images at least: adv_half attacks half of them
        self.batch_slice = own = ranks.batch_slice(len(labels), least=2)
        with ranks.step(), self.autocast(self.options.PREC):
            losses = self.losses(images[own.rows], labels[own.rows])
        self.batch_slice = None
        self.model_zero_grad()
        self.scaler.scale(own.weight * losses["loss"]).backward()
        ranks.total_gradients(self.learned())
        values = ranks.total(own.weight * torch.stack([x.detach() for x in losses.values()]))
        norm = self.gradient_norm().to(values)
        # the step's one look at numbers, which a GPU makes wait for
        *numbers, length = torch.cat([values, norm[None]]).tolist()
        means = dict(zip(losses, numbers))
        self.detect_anomaly(means["loss"], "loss")
        if not self.scaler.is_enabled():
            self.detect_anomaly(length, "gradient")
        for name, optim in self._optims.items():
            if limit := self.cfg.OPTIM.CLIP_NORM:
                self.scaler.unscale_(optim)
                nn.utils.clip_grad_norm_(self._models[name].parameters(), limit)
            self.scaler.step(optim)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            # overflow skips a step and halves the scale, from 65536: it has long been no accident
            self.detect_anomaly(self.gradient_norm(), "gradient")
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.progress.set_postfix(epoch=self.epoch + 1, refresh=False)
        self.progress.update()
        self.logged.append(means)
        return self.logged[-1]

    def autocast(self, precision: str) -> torch.autocast:
        """fp32 turns an autocast around it off."""
        dtype = DTYPES[precision]
        # no cache: a weight that was cast for an attack has no gradient for training
        return torch.autocast(
            self.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False
        )

    def learned(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for model in self._models.values() for p in model.parameters()]

    def gradient_norm(self) -> Tensor:
        """Of all prompts together."""
        norms = [p.grad.norm() for p in self.learned() if p.grad is not None]
        return torch.stack(norms).norm()

    def detect_anomaly(self, loss: float | Tensor, what: str = "loss") -> None:
        """Stop before a loss or gradient that is not finite reaches the prompts."""
        value = loss.item() if isinstance(loss, Tensor) else loss
        if not math.isfinite(value):
            used = {f"TRAINER.{self.section}.PREC": self.options.PREC}
            if self.adversarial:
                used["AT.TRAIN.PREC"] = self.cfg.AT.TRAIN.PREC
            keys = [key for key, precision in used.items() if DTYPES[precision] is not None]
            likely = (
                f"half precision overflows ({' and '.join(keys)}: use fp32)"
                if keys
                else "the learning rate is too high (OPTIM.LR)"
            )
            kept = ""
            if self.epoch:
                kept = f". The checkpoint of epoch {self.epoch} is kept in {self.output_dir}"
            raise NonFiniteLoss(
                f"the {what} is {value} at epoch {self.epoch + 1}, batch "
                f"{self.batch_idx + 1} of {self.num_batches}, learning rate "
                f"{self.get_current_lr():.3g}; likely {likely}{kept}"
            )

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        return self.parse_batch_test(batch)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; loaders pin their memory, so nothing waits for it."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return images, labels

    def init_writer(self, log_dir) -> None:
        if not ranks.rank():
            super().init_writer(log_dir)

    def after_train(self) -> None:
        self.progress.close()
        super().after_train()

    # -- evaluation ----------------------------------------------------------------------------

    def model_inference(self, images: Tensor) -> Tensor:
        return self.model(images)

    @torch.no_grad()
    def image_logits(self) -> Callable[[Tensor], Tensor]:
        """The deployed model with its text features computed once: images to logits."""
        self.set_model_mode("eval")
        return self.model.classifier()

    def adaptive_model(self, folder: Path) -> tuple[Callable[[Tensor], Tensor], nn.Module] | None:
        """A second model for adaptive attacks on the finished run in ``folder``, such as a teacher.

        Returns:
            A function from images to logits, and the model that it uses; None: there is none.
        """
        return None

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images that are not the test's, as CoOp's ImageNet has."""
        dataset = self.dm.dataset
        return bool(dataset.val) and dataset.val is not dataset.test

    def unaugmented_training_images(self) -> DataLoader:
        """Every training image once, in order, transformed as test images are."""
        return build_data_loader(
            self.cfg,
            sampler_type="SequentialSampler",
            data_source=self.dm.dataset.train_x,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(self.cfg, is_train=False),
            is_train=False,
            dataset_wrapper=DatasetWrapper,
        )

    def split_loader(self, split: str) -> DataLoader:
        """The images of "val" or "test".

        Raises:
            UserError: there are no validation images.
        """
        if split == "val" and not self.has_validation:
            raise UserError(
                f"{self.cfg.DATASET.NAME} has no validation images of its own: use test"
            )
        loader = self.val_loader if split == "val" else self.test_loader
        assert loader is not None  # ``has_validation``
        return loader

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Clean accuracy, and accuracy under the white-box attacks of AT.TEST.

        The final evaluation (no ``split``), of TEST.SPLIT, ends with results.json; killed and
        started again, it goes on where it was. TEST.FINAL_MODEL best_val chooses on split "val"
        under AT.TRAIN's cheaper attack where training is adversarial (our choice).

        Returns:
            Clean accuracy in percent; on "val" what the model is chosen by.
        """
        final = split is None
        request = self.final_request() if split is None else self.choosing_request(split)
        self.fingerprint = self.model_fingerprint() if final else ""
        print(f"Evaluate on the *{request.split}* set")
        self.evaluator.reset()
        records = self.evaluate(request)
        if not records:
            return math.nan
        if final:
            self.compare_with_zero_shot(records)
        self.report(records)
        if final:
            self.finish(records)
            for record in records:
                if text := record["flags"].get(ERROR):
                    raise ImpossibleResult(f"{record['attack']} is {ERROR}: {text}")
        return records[0 if final else -1]["accuracy"]

    def model_fingerprint(self) -> str:
        """Of all that the deployed model's logits depend on."""
        return fingerprint(self.model)

    def final_request(self) -> EvaluationRequest:
        store = Path(self.output_dir) / EVALUATIONS if self.keep_results else None
        return EvaluationRequest.from_config(self.cfg, store=store)

    def choosing_request(self, split: str) -> EvaluationRequest:
        """What TEST.FINAL_MODEL best_val chooses an epoch by."""
        return EvaluationRequest.within(
            self.train_threat if self.adversarial else None,
            last_iterate=self.cfg.AT.TEST.LAST_ITERATE,
            split=split,
            seed=attack_seed(self.cfg),
            checks=False,
        )

    def evaluate(self, request: EvaluationRequest) -> list[dict]:
        """The request's records; empty on ranks beside the first, which has them.

        What is stored may be evaluated by several processes: the ranks of torchrun, or
        AT.TEST.SHARDS workers on this machine.
        """
        shards = self.cfg.AT.TEST.SHARDS if request.attacks else 1
        if ranks.size() > 1:
            shards = ranks.size()
        if not request.store or shards == 1:
            return self.evaluate_here(request)
        loader = self.split_loader(request.split)
        images = Images(loader, request.subset, shards, self.parse_batch_test)
        merger = Merger(request, images, self.fingerprint)
        if merger.finished:
            return [] if ranks.rank() else self.evaluate_here(request)
        if ranks.size() > 1:
            self.evaluate_among_ranks(merger)
        else:
            self.run_shards(merger)
        return [] if ranks.rank() else merger.records(self.evaluator.process)

    def evaluate_here(self, request: EvaluationRequest) -> list[dict]:
        """In this process."""
        return evaluate(
            self.image_logits(),
            self.split_loader(request.split),
            request,
            parse_batch=self.parse_batch_test,
            fingerprint=self.fingerprint,
            desc=f"{type(self).__name__} on {request.split}",
            # the host's evaluator has to see all images, or the predictions of all shards
            on_clean=None if request.shard else self.evaluator.process,
        )

    def evaluate_among_ranks(self, merger: Merger) -> None:
        """Each rank does its part."""
        request = merger.shard_request(Shard(ranks.rank() + 1, ranks.size()))
        if request:
            self.evaluate_here(request)
        ranks.barrier()

    def run_shards(self, merger: Merger) -> None:
        """By workers, each of which builds this trainer from the results that it will have."""
        results = {
            "config": self.config,
            "prompts_from": self.prompts_from,
            "method": type(self).__name__,
            "seed": self.cfg.SEED,
        }
        saved = SavedRun(Path(self.output_dir), results)
        run_shards([(saved, [merger])], len(merger.images.digests))

    def compare_with_zero_shot(self, records: list[dict]) -> None:
        """Flag accuracy below half of zero-shot CLIP's, which is evaluated where that can be."""
        if self.learns and records[0]["accuracy"] < 100 * FALLEN:
            split = records[0]["split"]
            records[0]["checks"]["zero_shot"] = self.zero_shot_accuracy(split)
            add_flags(records)

    def zero_shot_accuracy(self, split: str) -> float:
        """Clean accuracy, in percent, of CLIP with the data set's hand-written prompt."""
        (record,) = evaluate(
            self.build_prompted_clip(self.clip_model).eval().classifier(),
            self.split_loader(split),
            EvaluationRequest(split=split, subset=self.cfg.AT.TEST.SUBSET),
            parse_batch=self.parse_batch_test,
            desc=f"zero-shot CLIP on {split}",
        )
        return record["accuracy"]

    def report(self, records: list[dict]) -> None:
        """Print the accuracies and their flags, and write them for TensorBoard."""
        split = records[0]["split"]
        results = self.evaluator.evaluate()  # prints the clean ones
        print_flags(records[0])
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        for record in records[1:]:
            self.write_scalar(f"{split}/{record['attack']}", record["accuracy"], self.epoch)
            print(
                f"=> {described(record)}\n"
                f"* robust correct: {record['correct']:,}\n"
                f"* robust accuracy: {record['accuracy']:.1f}%"
            )
            print_flags(record)

    def finish(self, evaluations: list[dict]) -> None:
        """Write results.json, the sign that this run is complete."""
        if not self.keep_results:
            return
        cfg = self.cfg
        seconds = sum(record["seconds"] for record in evaluations)
        write_results(
            self.output_dir,
            {
                **self.made_on(cfg),
                "modality": self.model.modality,
                "trainable_parameters": sum(p.numel() for p in self.learned()),
                "classes": self.num_classes,
                **self.ingredients(),
                "backbone": backbone_name(cfg.MODEL.BACKBONE),
                "host": f"{HOST} {HOST_VERSION}",
                "prompts_from": self.prompts_from,
                "trained_on": self.trained_on if self.prompts_from else self.provenance(),
                **self.findings(),
                "fingerprint": self.fingerprint,
                "evaluations": evaluations,
                "epochs": len(self.history),
                "train_seconds": self.train_seconds,
                "seconds": self.train_seconds + seconds,
                "peak_memory": peak_memory(self.device),
                "argv": self.argv,
                "config": self.config,
            },
        )

    def made_on(self, cfg) -> dict:
        """What the run of this config is called by."""
        return {
            "method": type(self).__name__,
            "dataset": dataset_name(cfg.DATASET),
            "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
        }

    def findings(self) -> dict:
        """Further fields of results.json, of a method that decides something by itself."""
        return {}

    def provenance(self) -> dict | None:
        """Of the prompts that this run trains; None: it has none to train."""
        if not self.learns:
            return None
        return training(self.made_on(self.cfg), self.config, backbone_sha256(self.clip_model))

    def ingredients(self) -> dict:
        """What the prompts need, beside their vectors, to classify images without the data set."""
        learner, images = self.model.prompt_learner, self.cfg.INPUT
        return {
            "class_names": list(self.dm.dataset.classnames),
            "prompts": plain(self.prompts_of(self.cfg)),
            "input": {
                "size": list(images.SIZE),
                "interpolation": images.INTERPOLATION,
                "mean": list(self.clip_model.mean),
                "std": list(self.clip_model.std),
            },
            "backbone_sha256": backbone_sha256(self.clip_model),
            "prompts_sha256": weights_sha256(learner) if self.learns else None,
        }


def print_flags(record: dict) -> None:
    for name, text in record["flags"].items():
        print(f"* flag {name}: {text}")


def backbone_name(part) -> str:
    """cfg.MODEL.BACKBONE in a word: the CLIP, a resolution that is not its own, and the file of
    its robust image encoder."""
    name = f"{part.NAME} at {part.RESOLUTION}" if part.RESOLUTION else part.NAME
    return f"{name} ({Path(part.ROBUST).name})" if part.ROBUST else name


def peak_memory(device: torch.device) -> int | None:
    """In bytes, of this process: what PyTorch allocated on a GPU, or else what was resident.

    None: the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
