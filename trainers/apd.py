"""APD: Adversarial Prompt Distillation (Luo 2024, arXiv 2411.15244).

A student learns text and visual prompts on attacked images, and distils from a clean, non-robust
teacher CLIP that sees the clean images only. Online, the teacher carries bimodal prompts of its
own, trained in the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.clip import PromptedCLIP, backbone_sha256
from apd.config import plain
from apd.distill import feature_alignment, kl_distillation
from apd.errors import UserError
from apd.host import TRAINER_REGISTRY, register
from apd.interchange import prompts_folder
from apd.results.provenance import training
from apd.trainers.adversarial import AdversarialTraining
from apd.trainers.ivlp import IVLP


@register(TRAINER_REGISTRY)
class APD(AdversarialTraining, IVLP):
    """Bimodal adversarial prompts, distilled from a clean teacher."""

    section = "APD"
    batches = ("adv_full",)  # clean images weigh in by LAMBDA_NAT and LAMBDA_KD_NAT

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        o, student, teacher = self.options, self.model, self.teacher

        # the teacher, on clean images
        with torch.set_grad_enabled(o.TEACHER.MODE == "online"):
            teacher_text = teacher.text_features()
            teacher_image = teacher.image_features(self.for_teacher(images))
            teacher_logits = teacher.logits(teacher_image, teacher_text)
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

        # 4. each loss reaches its own prompts only, so one backward pass serves both optimisers
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
        """The clean teacher, of TEACHER.MODE.

        It has a CLIP of its own where TEACHER.BACKBONE or TEACHER.ROBUST say so, and where the
        student's image encoder is robust (TEACHER.ROBUST makes the teacher robust too).
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
        made_on = {**self.made_on(cfg), "method": "IVLP"}
        asked = training(made_on, plain(cfg), backbone_sha256(teacher.clip))
        self.load_prompts(teacher, prompts_folder(Path(folder)), asked=asked)

    def before_train(self) -> None:
        if self.options.TEACHER.MODE == "offline":
            self.load_teacher(self.teacher, self.tune_teacher())
        super().before_train()

    def tune_teacher(self) -> str:
        """TEACHER.MODE offline: tune the teacher's prompts on clean images first, as IVLP does.

        Returns the folder with them. It is a run of its own, and resumes as one, random state
        included, so that the student draws the same whether its teacher was ready or not.
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

    @torch.no_grad()
    def beside(self, folder: Path) -> tuple[Callable[[Tensor], Tensor], PromptedCLIP]:
        """The teacher."""
        if self.options.TEACHER.MODE == "offline":
            self.load_teacher(self.teacher, str(folder / "teacher"))
        logits = self.teacher.eval().classifier()
        return lambda images: logits(self.for_teacher(images)), self.teacher

    def for_teacher(self, images: Tensor) -> Tensor:
        """The images at the teacher's resolution."""
        size = self.teacher.clip.visual.input_resolution
        if images.shape[-1] == size:
            return images
        resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        return resized.clamp(0, 1)
