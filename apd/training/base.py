"""``PromptTrainer``, the base class of all methods: frozen CLIP, training step and evaluation."""

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

    A method is a subclass that states its prompts (``section``, ``prompts``) and its loss
    (``losses``).

    Attributes:
        section: the method's keys are in cfg.TRAINER[section].
        adversarial: whether training attacks images.
        normalizes: whether the model normalises images inside (read by ``apd.config``).
        batches: the values that AT.TRAIN.AT_LOSS_TYPE may have.
        keep_results: whether the final evaluation is stored; False: it is only printed.
        prompts_from: folder and epoch that the evaluated prompts were loaded from; None: this run
            has trained them.
        argv: the command line of train.py; None: another program runs this trainer.
        fingerprint: of the model, in the final evaluation.
        batch_slice: this rank's images of the batch; set inside a training step only.
    """

    section: str
    model: PromptedCLIP
    adversarial = False
    normalizes = True
    batches: tuple[str, ...] = ATTACKED
    keep_results = True
    prompts_from: dict | None = None
    argv: list[str] | None = None
    fingerprint = ""
    batch_slice: ranks.BatchSlice | None = None

    def prompts(self) -> dict:
        """This method's prompts, as arguments of ``build_prompted_clip``."""
        raise NotImplementedError

    @classmethod
    def prompts_of(cls, cfg) -> dict:
        """``prompts`` and the data set's template, from a config, without loading data or CLIP."""
        trainer = cls.__new__(cls)
        trainer.cfg, trainer.options = cfg, cfg.TRAINER[cls.section]
        return {"templates": [template(cfg.DATASET)], **trainer.prompts()}

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The scalar to minimise, as "loss", and further scalars to log.

        Args:
            images: (B, 3, R, R) in [0, 1].
            labels: (B,).
        """
        return {"loss": F.cross_entropy(self.model(images), labels)}

    # -- building ------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        """Raise UserError if the config cannot work; print warnings on its threat models."""
        super().check_cfg(cfg)
        check(cfg)
        self.options = cfg.TRAINER[self.section]
        self.class_specific = self.options.get("CSC", False)
        for use in ("TRAIN", "TEST") if self.adversarial else ("TEST",):
            if isinstance(cfg.AT[use].EPS, (int, float)):
                for _, text in threat_warnings(cfg.AT[use].EPS, cfg.AT[use].STEPS):
                    print(f"warning: AT.{use}: {text}")
        if cfg.AT.TEST.SHARDS > 1:
            check_system()
        EvaluationRequest.from_config(cfg)  # raises on unknown attacks before anything is built
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
        if not self.class_specific:  # class-specific contexts differ anyway
            warn_of_same_prompts(self.cfg.DATASET.NAME, self.dm.dataset.classnames)
        self.split_loader(self.cfg.TEST.SPLIT)
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.has_validation:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but there are no validation images (and test "
                "images must not choose the model): use last_step"
            )

    def check_data_keys(self) -> None:
        """Raise UserError if a DATASET key of ours is set, but the toolbox's own data set ignores
        it."""
        data, defaults = self.cfg.DATASET, KEYS["DATASET"]
        for key in FewShotDataset.reads:
            if data[key] != defaults[key] and key not in getattr(self.dm.dataset, "reads", ()):
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
        """As ``apd.clip.load_clip``, onto this trainer's device."""
        print(f"Loading CLIP (backbone: {name}, host: {HOST})")
        return load_clip(name, robust, resolution, self.device)

    def build_prompted_clip(self, clip_model: CLIP, **prompts) -> PromptedCLIP:
        """A model of this data set's classes; without ``prompts`` with its hand-written template.

        Args:
            prompts: as of ``apd.clip.build_prompted_clip``.
        """
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

        Args:
            name: of their folder of checkpoints.
            lr: their learning rate, as a multiple of OPTIM.LR.
        """
        options = self.cfg.OPTIM.clone()
        options.defrost()
        options.LR *= lr
        optim = build_optimizer(learner, options, self.parameter_groups(learner))
        self.register_model(name, learner, optim, build_lr_scheduler(optim, options))

    def parameter_groups(self, learner: nn.Module) -> list[dict] | None:
        """The optimiser's groups of parameters; None: it treats all of ``learner`` alike."""
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
        # at least two images, because adv_half attacks half of them
        self.batch_slice = own = ranks.batch_slice(len(labels), least=2)
        with ranks.step(), self.autocast(self.options.PREC):
            losses = self.losses(images[own.rows], labels[own.rows])
        self.batch_slice = None
        self.model_zero_grad()
        self.scaler.scale(own.weight * losses["loss"]).backward()
        ranks.total_gradients(self.learned())
        values = ranks.total(own.weight * torch.stack([x.detach() for x in losses.values()]))
        norm = self.gradient_norm().to(values)
        # the step's only transfer from the GPU, which makes this process wait for it
        *numbers, gradient_norm = torch.cat([values, norm[None]]).tolist()
        means = dict(zip(losses, numbers))
        self.detect_anomaly(means["loss"], "loss")
        if not self.scaler.is_enabled():
            self.detect_anomaly(gradient_norm, "gradient")
        for name, optim in self._optims.items():
            if limit := self.cfg.OPTIM.CLIP_NORM:
                self.scaler.unscale_(optim)
                nn.utils.clip_grad_norm_(self._models[name].parameters(), limit)
            self.scaler.step(optim)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            # each overflow skips a step and halves the scale, at first 65536: they do not end
            self.detect_anomaly(self.gradient_norm(), "gradient")
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.progress.set_postfix(epoch=self.epoch + 1, refresh=False)
        self.progress.update()
        self.logged.append(means)
        return self.logged[-1]

    def autocast(self, precision: str) -> torch.autocast:
        """A context for ``precision``: fp32, bf16, fp16 or amp; fp32 ends an outer autocast."""
        dtype = DTYPES[precision]
        # no cache: a weight that was cast for an attack has no gradient for training
        return torch.autocast(
            self.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False
        )

    def learned(self) -> list[nn.Parameter]:
        """All parameters that are trained."""
        return [p for model in self._models.values() for p in model.parameters()]

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient of all trained parameters together: a scalar."""
        norms = [p.grad.norm() for p in self.learned() if p.grad is not None]
        return torch.stack(norms).norm()

    def detect_anomaly(self, loss: float | Tensor, name: str = "loss") -> None:
        """Stop before a loss or gradient that is not finite changes the prompts.

        Args:
            loss: a loss, or the norm of a gradient.
            name: of it, for the message.

        Raises:
            NonFiniteLoss: it is NaN or infinite.
        """
        value = loss.item() if isinstance(loss, Tensor) else loss
        if not math.isfinite(value):
            precisions = {f"TRAINER.{self.section}.PREC": self.options.PREC}
            if self.adversarial:
                precisions["AT.TRAIN.PREC"] = self.cfg.AT.TRAIN.PREC
            half = [key for key, precision in precisions.items() if DTYPES[precision] is not None]
            cause = (
                f"half precision overflows ({' and '.join(half)}: use fp32)"
                if half
                else "the learning rate is too high (OPTIM.LR)"
            )
            checkpoint = ""
            if self.epoch:
                checkpoint = f". The checkpoint of epoch {self.epoch} is kept in {self.output_dir}"
            raise NonFiniteLoss(
                f"the {name} is {value} at epoch {self.epoch + 1}, batch "
                f"{self.batch_idx + 1} of {self.num_batches}, learning rate "
                f"{self.get_current_lr():.3g}; likely {cause}{checkpoint}"
            )

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        return self.parse_batch_test(batch)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; the copy does not block, as loaders pin their memory."""
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
        """A second model, such as a teacher, for adaptive attacks on the run in ``folder``.

        Returns:
            A function from images to logits, and the model that it uses; None: there is none.
        """
        return None

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images other than the test images (CoOp's ImageNet)."""
        dataset = self.dm.dataset
        return bool(dataset.val) and dataset.val is not dataset.test

    def unaugmented_training_images(self) -> DataLoader:
        """A loader of every training image once, in order, with the transforms of test images."""
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
        """The loader of the images of "val" or "test".

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
        """Evaluate the model on clean images and under white-box attacks, and print the accuracies.

        Args:
            split: None: the final evaluation, on the images of TEST.SPLIT under the attacks of
                AT.TEST, which ends with results.json, and goes on where it was if it was killed.
                "val": the evaluation by which TEST.FINAL_MODEL best_val chooses an epoch, under
                AT.TRAIN's cheaper attack if training is adversarial (our choice).

        Returns:
            In percent: the clean accuracy; on "val" the one that the epoch is chosen by.

        Raises:
            ImpossibleResult: the final robust accuracy is above the clean one.
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
        """A digest of all that the deployed model's logits depend on."""
        return fingerprint(self.model)

    def final_request(self) -> EvaluationRequest:
        """The evaluation that AT.TEST and TEST.SPLIT state."""
        store = Path(self.output_dir) / EVALUATIONS if self.keep_results else None
        return EvaluationRequest.from_config(self.cfg, store=store)

    def choosing_request(self, split: str) -> EvaluationRequest:
        """The evaluation by which TEST.FINAL_MODEL best_val chooses an epoch."""
        return EvaluationRequest.within(
            self.train_threat if self.adversarial else None,
            last_iterate=self.cfg.AT.TEST.LAST_ITERATE,
            split=split,
            seed=attack_seed(self.cfg),
            checks=False,
        )

    def evaluate(self, request: EvaluationRequest) -> list[dict]:
        """The request's records; on ranks other than 0 an empty list.

        A request with a store is divided over the ranks of torchrun, or over AT.TEST.SHARDS
        workers on this machine.
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
        """The request's records, evaluated in this process."""
        return evaluate(
            self.image_logits(),
            self.split_loader(request.split),
            request,
            parse_batch=self.parse_batch_test,
            fingerprint=self.fingerprint,
            desc=f"{type(self).__name__} on {request.split}",
            # the host's evaluator needs all images; of shards, the merger gives it predictions
            on_clean=None if request.shard else self.evaluator.process,
        )

    def evaluate_among_ranks(self, merger: Merger) -> None:
        """Evaluate this rank's shard, and wait for the other ranks."""
        request = merger.shard_request(Shard(ranks.rank() + 1, ranks.size()))
        if request:
            self.evaluate_here(request)
        ranks.barrier()

    def run_shards(self, merger: Merger) -> None:
        """Evaluate the shards in workers; each builds this trainer again, from its config."""
        results = {
            "config": self.config,
            "prompts_from": self.prompts_from,
            "method": type(self).__name__,
            "seed": self.cfg.SEED,
        }
        saved = SavedRun(Path(self.output_dir), results)
        run_shards([(saved, [merger])], len(merger.images.digests))

    def compare_with_zero_shot(self, records: list[dict]) -> None:
        """Flag clean accuracy below half of zero-shot CLIP's.

        Zero-shot CLIP is evaluated only if the accuracy is below 50 %, for otherwise it cannot be.
        """
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
                **self.run_identity(cfg),
                "modality": self.model.modality,
                "trainable_parameters": sum(p.numel() for p in self.learned()),
                "classes": self.num_classes,
                **self.deployment_fields(),
                "backbone": backbone_name(cfg.MODEL.BACKBONE),
                "host": f"{HOST} {HOST_VERSION}",
                "prompts_from": self.prompts_from,
                "trained_on": self.trained_on if self.prompts_from else self.provenance(),
                **self.method_results(),
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

    def run_identity(self, cfg) -> dict:
        """The fields of results.json that name the run of ``cfg``."""
        return {
            "method": type(self).__name__,
            "dataset": dataset_name(cfg.DATASET),
            "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
        }

    def method_results(self) -> dict:
        """Further fields of results.json, of a method that chooses something in training."""
        return {}

    def provenance(self) -> dict | None:
        """As of the base class; None: this run trains no prompts."""
        if not self.learns:
            return None
        return training(self.run_identity(self.cfg), self.config, backbone_sha256(self.clip_model))

    def deployment_fields(self) -> dict:
        """The fields of results.json by which ``apd.load`` needs no data set, only the prompts'
        vectors and CLIP."""
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
    """Print a record's flags, a line each."""
    for name, text in record["flags"].items():
        print(f"* flag {name}: {text}")


def backbone_name(backbone) -> str:
    """cfg.MODEL.BACKBONE as one text: CLIP's name, its resolution if that is set, and the file of a
    robust image encoder."""
    name = f"{backbone.NAME} at {backbone.RESOLUTION}" if backbone.RESOLUTION else backbone.NAME
    return f"{name} ({Path(backbone.ROBUST).name})" if backbone.ROBUST else name


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process had, in bytes.

    On a GPU what PyTorch allocated, else resident memory. None: the system does not state it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
