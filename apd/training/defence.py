"""``TestTimeDefence``, the base class of defences that train nothing and act on each test image."""

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

_DECAY, _BETAS, _EPS = 0.01, (0.9, 0.999), 1e-8  # the defaults of PyTorch's AdamW


class TestTimeDefence(UntrainedTrainer):
    """A defence at test time; nothing is trained.

    With ``--model-dir`` it defends the model of that run, whatever method trained its prompts;
    without, CLIP with the prompts of ``own_prompts``. A subclass defines how logits are computed
    (``defended``), and how gradients go through that (``backward``).

    Attributes:
        randomised: whether logits are random.
        adapted: whether prompts are tuned to each image.
        tuned: which contexts are tuned to each image: "text", "visual".
        defended_prompts: arguments of ``build_prompted_clip`` for the prompts of the defended run;
            None: there is no such run.
    """

    randomised = True
    adapted = False
    tuned: Sequence[str] = ()
    defended_prompts: dict | None = None

    @property
    def views(self) -> int:
        """How many images the encoder is given for each test image."""
        return 1

    def defended(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Logits (B, C) under the defence.

        Args:
            images: (B, 3, R, R) in [0, 1].
            seeds: (B,); the random numbers for image i are those of seeds[i].
        """
        raise NotImplementedError

    def own_prompts(self) -> dict:
        """As ``prompts``, where no run is defended."""
        return super().prompts()

    def prompts(self) -> dict:
        return self.own_prompts() if self.defended_prompts is None else self.defended_prompts

    @property
    def backward(self) -> str:
        """How gradients go through the defence; see ``DefendedModel``."""
        return self.options.BACKWARD

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Defend the model of the finished run in ``directory``.

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
        self.defended_prompts = prompts = results["prompts"]
        self.class_specific = bool(prompts.get("class_specific"))
        self.model = self.build_prompted_clip(self.clip_model, **prompts)
        self._models["prompt_learner"] = self.model.prompt_learner
        if results["trained_on"]:
            folder = prompts_folder(Path(directory))
            expected = results["trained_on"]
            self.trained_on = self.load_prompts(self.model, folder, epoch, expected)

    def learned(self) -> list[torch.nn.Parameter]:
        return []

    # -- evaluation ----------------------------------------------------------------------------

    @torch.no_grad()
    def image_logits(self) -> DefendedModel:
        self.set_model_mode("eval")
        self.text = self.model.text_features()
        for modality in self.tuned:
            contexts = self.contexts(modality)
            if not contexts or any(callable(c) or c.dim() != 2 for c in contexts):
                raise UserError(
                    f"{type(self).__name__} tunes {modality} prompts that all classes and images "
                    "share: give --model-dir of a run that has them"
                )
        return DefendedModel(self.defended, **self.conditions, views=self.views)

    def undefended(self) -> tuple[Callable[[Tensor], Tensor], torch.nn.Module]:
        """The model without the defence, which ``static`` attacks are made on.

        Returns:
            A function from images to logits, and the module that it uses.
        """
        self.set_model_mode("eval")
        return self.model.classifier(), self.model

    @property
    def conditions(self) -> dict:
        """How records describe the defence; the names are arguments of ``DefendedModel``."""
        return {
            "randomised": self.randomised,
            "adapted": self.adapted,
            "backward": self.backward,
        }

    def final_request(self) -> EvaluationRequest:
        return replace(super().final_request(), defence=self.conditions)

    def model_fingerprint(self) -> str:
        options = [f"{key}={self.options[key]!r}" for key in sorted(self.options)]
        return fingerprint(self.model, [type(self).__name__, *options])

    # -- tuning --------------------------------------------------------------------------------

    def contexts(self, modality: str) -> list:
        """The model's context vectors of each layer; ``modality`` is "text" or "visual"."""
        learner = self.model.prompt_learner
        return learner.text_contexts() if modality == "text" else learner.visual_contexts()

    def contexts_per_image(self, modality: str, count: int) -> list[Tensor]:
        """A copy of each layer's contexts for each of ``count`` images: (count, M, D) per layer."""
        contexts = [c.detach().expand(count, *c.shape) for c in self.contexts(modality)]
        return [context.contiguous().requires_grad_() for context in contexts]

    def unrolled(self, images: Tensor) -> bool:
        """Whether a gradient is computed for ``images`` that goes through the steps of tuning."""
        return self.backward == "exact" and torch.is_grad_enabled() and images.requires_grad

    @torch.enable_grad()
    def tune(
        self, contexts: list[Tensor], loss: Callable[[list[Tensor]], Tensor], exact: bool
    ) -> list[Tensor]:
        """Tune the contexts of each image by STEPS steps of AdamW, as PyTorch computes them.

        Args:
            contexts: one tensor (B, M, D) for each layer.
            loss: from contexts to a loss that is summed over the images, so that each image's
                contexts depend on this image only.
            exact: whether autograd goes through the steps; False: the result is a constant.

        Returns:
            The tuned contexts.
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
                - lr * (m / (1 - _BETAS[0] ** step)) / (_sqrt(v / (1 - _BETAS[1] ** step)) + _EPS)
                for c, m, v in zip(contexts, first, second)
            ]
            if not exact:
                contexts = [context.detach().requires_grad_() for context in contexts]
        return contexts if exact else [context.detach() for context in contexts]


def _sqrt(x: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0 here."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def entropy(logits: Tensor) -> Tensor:
    """Entropy, in nats, of softmax(logits) over the last dimension."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def most_confident(logits: Tensor, fraction: float) -> Tensor:
    """The numbers (B, K) of each image's views whose predictions have the least entropy.

    Args:
        logits: (B, V, C), of V views per image.
        fraction: K / V, in [0, 1].
    """
    count = int(logits.shape[1] * fraction)
    return entropy(logits.detach()).argsort(dim=1)[:, :count]
