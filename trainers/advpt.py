"""AdvPT: Adversarial Prompt Tuning on stored embeddings (Zhang, ECCV 2024, arXiv 2311.11261)."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from apd import ranks
from apd.attacks import pgd
from apd.errors import UserError
from apd.evaluate.request import attack_seed
from apd.host import (
    TRAINER_REGISTRY,
    register,
)
from apd.trainers.coop import CoOp


@register(TRAINER_REGISTRY)
class AdvPT(CoOp):
    """CoOp's prompts, trained by cross-entropy on the embeddings of attacked images.

    The images are attacked once, before training, on CLIP's image encoder alone: PGD of AT.TRAIN
    on KL(softmax(f(x)) || softmax(f(x'))) with f the embedding before its normalisation, as in the
    published code. Training then never runs the image encoder.
    """

    section = "ADV"
    adversarial = True
    batches = ("adv_full",)

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        if cfg.AT.TRAIN.EPS_WARMUP:
            raise UserError(
                "AT.TRAIN.EPS_WARMUP must be 0: AdvPT attacks the images once, before its epochs"
            )

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``embeddings`` (B, embed_dim) take the place of the images."""
        logits = self.model.logits(F.normalize(embeddings, dim=-1), self.model.text_features())
        return {"loss": F.cross_entropy(logits, labels)}

    def before_train(self) -> None:
        began = time.time()
        self.train_loader_x: DataLoader = DataLoader(
            self.adversarial_embeddings(),  # type: ignore[arg-type]  # a list is a data set
            batch_size=self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
            shuffle=True,
        )
        seconds = time.time() - began
        super().before_train()
        self.train_seconds += seconds

    def adversarial_embeddings(self) -> list[dict]:
        """Embedding and label of each attacked training image, without augmentation.

        The attack has a random generator of its own, so that a resumed run makes the same ones.
        """
        cfg, embed = self.cfg, self.model.image_embeddings
        threat = replace(self.train_threat, loss="kl")
        generator = torch.Generator().manual_seed(attack_seed(cfg))
        loader = self.unaugmented_training_images()
        stored = []
        hidden = ranks.progress_disabled()
        for batch in tqdm(loader, desc="AdvPT embeddings", unit="batch", disable=hidden):
            images, labels = self.parse_batch_train(batch)
            own = ranks.batch_slice(len(labels))
            clean = images[own.rows]
            with torch.no_grad(), self.autocast(cfg.AT.TRAIN.PREC):
                attacked = pgd(
                    embed,
                    clean,
                    labels[own.rows],
                    threat,
                    reference=embed(clean),
                    generator=generator,
                    rows=(own.count, own.rows),
                )
            with torch.no_grad():
                embeddings = ranks.gather_batch(embed(attacked), own).cpu()
                stored += [
                    {"img": embedding, "label": label}
                    for embedding, label in zip(embeddings, labels.cpu())
                ]
        return stored
