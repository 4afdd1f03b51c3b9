"""Losses of Adversarial Prompt Distillation (Luo 2024, arXiv 2411.15244), on plain tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_distillation(logits: Tensor, target_logits: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 KL(softmax(target / tau) || softmax(logits / tau)), mean over the batch.

    The target is a constant: no gradient reaches it. tau^2 keeps the gradient's size when the
    temperature changes (Hinton 2015, section 2). The student learns from the teacher with the
    teacher's logits as target; the teacher's feedback is the same with the roles exchanged.

    Args:
        logits, target_logits: (B, C).
        tau: temperature, > 0.
    """
    log_p = F.log_softmax(logits / tau, dim=-1)
    log_target = F.log_softmax(target_logits.detach() / tau, dim=-1)
    return tau**2 * F.kl_div(log_p, log_target, reduction="batchmean", log_target=True)


def feature_alignment(features: Tensor, target_features: Tensor) -> Tensor:
    """1 - cosine similarity, mean over rows; the target is a constant.

    For image features (B, d) or text features (C, d), of equal width on both sides.
    """
    return 1 - F.cosine_similarity(features, target_features.detach(), dim=-1).mean()


def mean_probability(*logits: Tensor) -> Tensor:
    """Logits (B, C) whose softmax is the mean of the softmax of each of ``logits``, all (B, C)."""
    logs = torch.stack([F.log_softmax(z, dim=-1) for z in logits])
    return logs.logsumexp(dim=0) - math.log(len(logits))
