"""APD: Adversarial Prompt Distillation (Luo 2024, arXiv 2411.15244).

A student learns text and visual prompts on attacked images, and distils from a non-robust teacher
CLIP that gets the clean images only. An online teacher has text and visual prompts of its own,
which are trained in the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd import ranks
from apd.clip import PromptedCLIP, backbone_sha256
from apd.config import differences, plain
from apd.distill import feature_alignment, kl_distillation, mean_probability
from apd.errors import UserError
from apd.files import read_json, write_json
from apd.host import TRAINER_REGISTRY, register
from apd.interchange import prompts_folder
from apd.results import read_results
from apd.results.provenance import training
from apd.trainers.ivlp import IVLP
from apd.training.adversarial import AdversarialTraining

JUDGED = "judged.json"  # in the teacher's folder: what TEACHER.MODE auto chose, and why


@register(TRAINER_REGISTRY)
class APD(AdversarialTraining, IVLP):
    """Bimodal adversarial prompts, distilled from a clean teacher."""

    section = "APD"
    batches = ("adv_full",)  # LAMBDA_NAT and LAMBDA_KD_NAT add losses on clean images
    second: PromptedCLIP | None = None  # a teacher to average probabilities with (MODE auto)
    judged: dict | None = None  # the result of ``judge`` (MODE auto)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        o, student, teacher = self.options, self.model, self.teacher

        # the teacher, on clean images
        with torch.set_grad_enabled(o.TEACHER.MODE == "online"):
            teacher_text = teacher.text_features()
            teacher_image = teacher.image_features(self.for_teacher(images))
            teacher_logits = teacher.logits(teacher_image, teacher_text)
            if self.second:
                second = self.second(self.for_teacher(images))
                teacher_logits = mean_probability(teacher_logits, second)
        target = teacher_logits.detach() / o.TEACHER.TAU

        # 1. attack the student
        text = student.text_features()
        adversarial = self.attack(images, labels, text, reference=target)
        image = student.image_features(adversarial)
        logits = student.logits(image, text)

        # 2. the teacher's loss
        teacher_loss = teacher_logits.new_zeros(())
        if o.TEACHER.MODE == "online":
            teacher_loss = F.cross_entropy(teacher_logits, labels)
            if o.BETA:
                feedback = kl_distillation(teacher_logits, logits, o.TAU)
                teacher_loss = teacher_loss + o.BETA * feedback

        # 3. the student's loss; terms of weight 0 cost nothing
        loss = o.LAMBDA_CE * F.cross_entropy(logits, labels)
        loss = loss + o.LAMBDA_KD * kl_distillation(logits, target, o.TAU)
        if o.LAMBDA_NAT or o.LAMBDA_KD_NAT:
            clean = student.logits(student.image_features(images), text)
            loss = loss + o.LAMBDA_NAT * F.cross_entropy(clean, labels)
            loss = loss + o.LAMBDA_KD_NAT * kl_distillation(clean, target, o.TAU)
        if o.LAMBDA_IMG:
            loss = loss + o.LAMBDA_IMG * feature_alignment(image, teacher_image)
        if o.LAMBDA_TXT:
            loss = loss + o.LAMBDA_TXT * feature_alignment(text, teacher_text)

        # 4. each loss has gradients for its own prompts only: one backward pass for both optimisers
        return {"loss": loss + teacher_loss, "student": loss, "teacher": teacher_loss}

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.train_threat = replace(self.train_threat, loss=self.options.ATTACK_LOSS)

    def prompts(self) -> dict:
        prompts = super().prompts()
        if self.options.COUPLED:
            prompts = {k: v for k, v in prompts.items() if "visual" not in k}
            prompts["coupled"] = "text-to-visual"
        return prompts

    def build_model(self) -> None:
        super().build_model()
        options = self.options
        if options.TEACHER.MODE == "auto" and (options.LAMBDA_IMG or options.LAMBDA_TXT):
            raise UserError(
                "TRAINER.APD.TEACHER.MODE is auto, which may average two teachers, whose features "
                "are not one's: set LAMBDA_IMG and LAMBDA_TXT to 0"
            )
        self.teacher = self.build_teacher(options.TEACHER)
        width, teacher_width = (
            model.clip.text_projection.shape[1] for model in (self.model, self.teacher)
        )
        if (options.LAMBDA_IMG or options.LAMBDA_TXT) and width != teacher_width:
            raise UserError(
                f"TRAINER.APD.LAMBDA_IMG and LAMBDA_TXT compare features of equal width, student "
                f"has {width}, teacher {teacher_width}: set both to 0 or choose another teacher"
            )

    def build_teacher(self, options) -> PromptedCLIP:
        """The clean teacher that TEACHER.MODE describes.

        It has a CLIP of its own where TEACHER.BACKBONE or TEACHER.ROBUST names one, and where the
        student's image encoder is robust (the teacher's is robust only with TEACHER.ROBUST).
        """
        own = self.cfg.MODEL.BACKBONE
        name = options.BACKBONE or own.NAME
        same = (name, options.ROBUST) == (own.NAME, own.ROBUST)
        clip_model = self.clip_model if same else self.load_clip(name, options.ROBUST)
        if options.MODE == "frozen":
            return self.build_prompted_clip(clip_model)
        teacher = self.build_prompted_clip(clip_model, **super().prompts())
        if options.MODE == "online":
            self.add_model("teacher", teacher.prompt_learner, options.LR)
        else:
            teacher.requires_grad_(False)
        if options.MODE == "checkpoint":
            if not options.PATH or not prompts_folder(Path(options.PATH)).is_dir():
                raise UserError(
                    f"TRAINER.APD.TEACHER.PATH is '{options.PATH}': it must be the folder of an "
                    "IVLP run"
                )
            self.load_teacher(teacher, options.PATH)
        return teacher

    def load_teacher(self, teacher: PromptedCLIP, folder: str) -> None:
        cfg = self.teacher_cfg(teacher)
        identity = {**self.run_identity(cfg), "method": "IVLP"}
        record = training(identity, plain(cfg), backbone_sha256(teacher.clip))
        self.load_prompts(teacher, prompts_folder(Path(folder)), expected=record)

    def before_train(self) -> None:
        mode = self.options.TEACHER.MODE
        if mode == "auto" and not self.has_validation:
            raise UserError(
                "TRAINER.APD.TEACHER.MODE is auto, but there are no validation images (and test "
                "images must not choose the teacher): use online, offline or frozen"
            )
        if mode in ("offline", "auto"):
            self.load_teacher(self.teacher, self.tune_teacher())
        if mode == "auto":
            self.take(self.judge())
        super().before_train()

    def tune_teacher(self) -> str:
        """TEACHER.MODE offline and auto: tune the teacher's prompts on clean images, as IVLP does.

        This is a run of its own, with a random state of its own, that resumes like any other. So
        the student's draws are the same whether or not the teacher was tuned before.

        Returns:
            The folder of that run.
        """
        cfg = self.teacher_cfg(self.teacher)
        IVLP(cfg).train()
        return cfg.OUTPUT_DIR

    def teacher_cfg(self, teacher: PromptedCLIP):
        """The config of the IVLP run that trains the teacher's prompts, below this run's folder."""
        cfg = self.cfg.clone()
        cfg.defrost()
        for key in cfg.TRAINER.IVLP:
            cfg.TRAINER.IVLP[key] = self.options[key]
        cfg.MODEL.BACKBONE.NAME = self.options.TEACHER.BACKBONE or cfg.MODEL.BACKBONE.NAME
        cfg.MODEL.BACKBONE.ROBUST = self.options.TEACHER.ROBUST
        cfg.OPTIM.LR *= self.options.TEACHER.LR
        resolution = teacher.clip.visual.input_resolution
        cfg.INPUT.SIZE = (resolution,) * 2
        if cfg.MODEL.BACKBONE.RESOLUTION:
            cfg.MODEL.BACKBONE.RESOLUTION = resolution
        cfg.OUTPUT_DIR, cfg.RESUME = str(Path(cfg.OUTPUT_DIR) / "teacher"), ""
        cfg.TEST.NO_TEST = True
        cfg.freeze()
        return cfg

    def judge(self) -> dict:
        """TEACHER.MODE auto: choose the teacher that is right on most clean validation images [O].

        "frozen" is zero-shot CLIP, "tuned" the teacher of ``tune_teacher``, "mean" the mean of
        their probabilities. Of equally good ones the first of frozen, mean, tuned is chosen: it has
        learned less from the few images that the student learns from too. It is chosen once: a run
        that resumes reads the choice.

        Returns:
            "taken", the name; "right", the count of each; "images", how many there are.
        """
        path = Path(self.output_dir) / "teacher" / JUDGED
        if not ranks.rank() and not self.judged_before(path):
            right = self.count_right()
            chosen = max(right, key=lambda name: right[name])
            images = len(self.dm.dataset.val)
            decision = {"taken": chosen, "right": right, "images": images, "config": self.config}
            write_json(path, decision)
        ranks.barrier()
        return {k: v for k, v in read_json(path).items() if k != "config"}

    def judged_before(self, path: Path) -> bool:
        """Whether the file exists, and was written with the same configuration."""
        try:
            return not differences(self.config, read_json(path)["config"])
        except (KeyError, OSError, TypeError, ValueError):  # there is none, or a damaged one
            return False

    @torch.no_grad()
    def count_right(self) -> dict[str, int]:
        frozen, tuned = (m.eval().classifier() for m in (self.zero_shot(), self.teacher))
        right = dict.fromkeys(("frozen", "mean", "tuned"), 0)
        with torch.random.fork_rng(devices=[]):  # a loader draws a random number when it starts
            for batch in self.split_loader("val"):
                images, labels = self.parse_batch_test(batch)
                images = self.for_teacher(images)
                logits = {"frozen": frozen(images), "tuned": tuned(images)}
                logits["mean"] = mean_probability(*logits.values())
                for name, z in logits.items():
                    right[name] += int((z.argmax(dim=1) == labels).sum())
        print(f"Teachers, right on {len(self.dm.dataset.val):,} validation images: {right}")
        return right

    def zero_shot(self) -> PromptedCLIP:
        """CLIP with the hand-written template, on the teacher's backbone."""
        return self.build_prompted_clip(self.teacher.clip)

    @torch.no_grad()
    def take(self, judged: dict) -> None:
        """Use the teacher that ``judge`` chose; before, ``self.teacher`` is the tuned one."""
        self.judged = judged
        if judged["taken"] == "mean":
            self.second = self.zero_shot()
        elif judged["taken"] == "frozen":
            self.teacher = self.zero_shot()

    def method_results(self) -> dict:
        return {"teacher": self.judged} if self.judged else {}

    @torch.no_grad()
    def adaptive_model(self, folder: Path) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
        """The function and the modules of the teacher, or of the two that are averaged."""
        mode = self.options.TEACHER.MODE
        if mode in ("offline", "auto"):
            self.load_teacher(self.teacher, str(folder / "teacher"))
        if mode == "auto":
            self.take(read_results(folder)["teacher"])
        logits = self.teacher.eval().classifier()
        if not self.second:
            return lambda images: logits(self.for_teacher(images)), self.teacher
        second_logits = self.second.eval().classifier()

        def averaged(images: Tensor) -> Tensor:
            images = self.for_teacher(images)
            return mean_probability(logits(images), second_logits(images))

        return averaged, nn.ModuleList([self.teacher, self.second])

    def for_teacher(self, images: Tensor) -> Tensor:
        """The images at the teacher's resolution."""
        size = self.teacher.clip.visual.input_resolution
        if images.shape[-1] == size:
            return images
        resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        return resized.clamp(0, 1)
