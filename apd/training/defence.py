"""What test-time defences share: a model that stays as it is, and something done to each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apd.attacks import DefendedModel
from apd.clip import backbone_sha256
from apd.errors import UserError
from apd.evaluate import EvaluationRequest, fingerprint
from apd.interchange import prompts_folder
from apd.results import read_results
from apd.training.untrained import UntrainedTrainer

_DECAY, _BETAS, _EPS = 0.01, (0.9, 0.999), 1e-8  # AdamW's, as PyTorch has them


class TestTimeDefence(UntrainedTrainer):
    """A defence of a model whose prompts stay as they are: nothing is trained.

    Without ``--model-dir`` the model is CLIP with the defence's own prompts (``prompts``); with it,
    it has the prompts of that run, whatever method trained them. A defence says how it computes
    logits (``defended``) and how it is differentiated (``backward``).
    """

    randomised = True
    adapted = False
    tuned: Sequence[str] = ()  # what it tunes for each image: "text", "visual"
    below: dict | None = None  # arguments of ``build_prompted_clip`` of the run that it defends

    @property
    def views(self) -> int:
        """Images that the encoder is given for one."""
        return 1

    def defended(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, R, R) in [0, 1]; row i has the draws of ``seeds[i]``."""
        raise NotImplementedError

    def own_prompts(self) -> dict:
        """As ``prompts``, without a run below."""
        return super().prompts()

    def prompts(self) -> dict:
        return self.own_prompts() if self.below is None else self.below

    @property
    def backward(self) -> str:
        """See ``DefendedModel``."""
        return self.options.BACKWARD

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Put the prompts of the finished run in ``directory`` under the defence.

        Raises:
            UserError: no such run, prompts that cannot be defended, or another CLIP.
        """
        if not directory:
            print("no folder to load from is given: the defence has its own prompts")
            return
        results = read_results(directory)
        if "prompts" not in results:
            raise UserError(f"{directory} does not say what its prompts are: run it again")
        if results["backbone_sha256"] != backbone_sha256(self.clip_model):
            raise UserError(
                f"{directory} has another CLIP ({results['backbone']}): set MODEL.BACKBONE.NAME "
                "and MODEL.BACKBONE.ROBUST to its own"
            )
        self.below = results["prompts"]
        self.class_specific = bool(self.below.get("class_specific"))
        self.model = self.build_prompted_clip(self.clip_model, **self.below)
        self._models["prompt_learner"] = self.model.prompt_learner
        if results["trained_on"]:
            folder = prompts_folder(Path(directory))
            asked = results["trained_on"]
            self.trained_on = self.load_prompts(self.model, folder, epoch, asked)

    def learned(self) -> list[torch.nn.Parameter]:
        return []

    # -- evaluation ----------------------------------------------------------------------------

    @torch.no_grad()
    def image_logits(self) -> DefendedModel:
        self.set_model_mode("eval")
        self.text = self.model.text_features()
        for part in self.tuned:
            contexts = self.contexts(part)
            if not contexts or any(callable(c) or c.dim() != 2 for c in contexts):
                raise UserError(
                    f"{type(self).__name__} tunes {part} prompts that all classes and images "
                    "share: give --model-dir of a run that has them"
                )
        return DefendedModel(self.defended, **self.facts, views=self.views)

    def undefended(self) -> tuple[Callable[[Tensor], Tensor], torch.nn.Module]:
        """The model without the defence, which ``static`` attacks are made on."""
        self.set_model_mode("eval")
        return self.model.classifier(), self.model

    @property
    def facts(self) -> dict:
        """What records state of the defence."""
        return {
            "randomised": self.randomised,
            "adapted": self.adapted,
            "backward": self.backward,
        }

    def final_request(self) -> EvaluationRequest:
        return replace(super().final_request(), defence=self.facts)

    def model_fingerprint(self) -> str:
        options = [f"{key}={self.options[key]!r}" for key in sorted(self.options)]
        return fingerprint(self.model, [type(self).__name__, *options])

    # -- tuning --------------------------------------------------------------------------------

    def contexts(self, part: str) -> list:
        """The model's context vectors of "text" or "visual"."""
        learner = self.model.prompt_learner
        return learner.text_contexts() if part == "text" else learner.visual_contexts()

    def each(self, part: str, count: int) -> list[Tensor]:
        """The context vectors (count, M, D) of so many images, alike."""
        contexts = [c.detach().expand(count, *c.shape) for c in self.contexts(part)]
        return [context.contiguous().requires_grad_() for context in contexts]

    def unrolled(self, images: Tensor) -> bool:
        """Whether a gradient for ``images`` is wanted that goes through the steps of tuning."""
        return self.backward == "exact" and torch.is_grad_enabled() and images.requires_grad

    @torch.enable_grad()
    def tune(
        self, contexts: list[Tensor], loss: Callable[[list[Tensor]], Tensor], exact: bool
    ) -> list[Tensor]:
        """``contexts`` after STEPS steps of PyTorch's AdamW down ``loss``, of each image alone.

        ``loss`` is summed over the images. ``exact``: autograd goes through the steps; else what
        is tuned is constant for it.
        """
        steps, lr = self.options.STEPS, self.options.LR
        first = [torch.zeros_like(c) for c in contexts]
        second = [torch.zeros_like(c) for c in contexts]
        for step in range(1, steps + 1):
            # fused attention has no second derivative
            with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
                value = loss(contexts)
            gradients = torch.autograd.grad(value, contexts, create_graph=exact)
            first = [_BETAS[0] * m + (1 - _BETAS[0]) * g for m, g in zip(first, gradients)]
            second = [_BETAS[1] * v + (1 - _BETAS[1]) * g**2 for v, g in zip(second, gradients)]
            contexts = [
                (1 - lr * _DECAY) * c
                - lr * (m / (1 - _BETAS[0] ** step)) / (_root(v / (1 - _BETAS[1] ** step)) + _EPS)
                for c, m, v in zip(contexts, first, second)
            ]
            if not exact:
                contexts = [context.detach().requires_grad_() for context in contexts]
        return contexts if exact else [context.detach() for context in contexts]


def _root(x: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), over the last dimension."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def confident(logits: Tensor, share: float) -> Tensor:
    """(B, K): of the views (B, V, C) of each image, the share of least entropy."""
    count = int(logits.shape[1] * share)
    return entropy(logits.detach()).argsort(dim=1)[:, :count]
