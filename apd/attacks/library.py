"""torchattacks' attacks as stages of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from apd.attacks.defended import (
    DefendedModel,
    call_logits,
    check_gradient,
    is_randomised,
    predictions,
)
from apd.attacks.draws import Draws
from apd.attacks.gradient import ImageGradient
from apd.attacks.pgd import ONE_DRAW, LogitsFn, attack_loss, project
from apd.attacks.stream import Rows, Supply, join
from apd.errors import UserError

Build = Callable[[nn.Module, dict], Callable[[Tensor, Tensor], Tensor]]

_TARGETS = 9  # of the targeted attacks: the standard's number (Croce and Hein 2020, section 4)


@dataclass(frozen=True)
class TorchAttack:
    """An attack of torchattacks, in the ball of ``radius`` around each image.

    The radius is in pixel values, which lie in [0, 1].

    What it returns is projected into the ball and the box, and then judged in float32. An image's
    result depends on the seed only, not on the images beside it: all images are given the same
    random numbers (``_Model.sharing_noise``). torchattacks seeds and draws from torch's global
    generator; that is restored.
    """

    name: str
    norm: str
    radius: float
    build: Build
    black_box: bool = False
    one_by_one: bool = False  # it decides when to stop by the sum over its batch

    def run(
        self,
        supply: Supply,
        target: LogitsFn,
        *,
        batch_size: int,
        sources: Sequence[LogitsFn] = (),
        seed: int = 0,
        precision: torch.dtype | None = None,
        draws: Draws = ONE_DRAW,
    ) -> Iterator[tuple[Rows, None]]:
        """As ``PGD.run``, batch by batch; no row stays under attack between two batches.

        A randomised model draws anew at each of the attack's calls, the same for all images. The
        attacked image that comes of it is judged by the verdict's own draws.

        Raises:
            UserError: several sources: torchattacks knows of one model; a model without gradient.
        """
        if len(sources) > 1:
            raise UserError(
                f"{self.name} attacks one model at a time: use pgd, fgsm or cw for adaptive attacks"
            )
        source = sources[0] if sources else target
        if not self.black_box:
            check_gradient(source, self.name)
        eot = draws.eot if is_randomised(source) else 1
        while parts := list(supply.take(batch_size)):
            rows = join(parts)
            images, labels = rows["image"], rows["label"]
            # elsewhere, and in half precision, a wrong prediction does not decide
            drops = source is target and precision is None and not is_randomised(target)
            model = _Model(source, images, precision, drops, seed)
            zero = broken = torch.zeros_like(labels, dtype=torch.bool)
            if not self.black_box:
                zero, broken = _clean_gradient(model, images, labels)
            attacked = self.perturb(model, images, labels, seed, eot)
            places = rows["index"]
            right = predictions(target, attacked, labels, places, seed, draws) == labels
            found = {"attacked": attacked, "right": right, "zero": zero, "broken": broken}
            yield {**rows, **found}, None

    def perturb(
        self, model: _Model, images: Tensor, labels: Tensor, seed: int = 0, eot: int = 1
    ) -> Tensor:
        """The attacked images (B, 3, H, W); ``eot``: draws for each gradient."""
        with torch.no_grad():
            classes = model.logits(images[:1]).shape[1]
        if classes < 2:
            raise UserError(f"{self.name} needs 2 classes or more, there is {classes}")
        settings = {
            "norm": {"linf": "Linf", "l2": "L2"}[self.norm],
            "eps": self.radius,
            "seed": seed,
            "n_classes": min(classes, _TARGETS + 1),
            "eot_iter": eot,
        }
        attack = self.build(model, settings)
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad(), model.sharing_noise():
            torch.manual_seed(seed)
            parts = [slice(i, i + 1) for i in range(len(images))] if self.one_by_one else [...]
            attacked = torch.cat([attack(images[part], labels[part]) for part in parts]).detach()
        # where an attack breaks down it has found nothing
        attacked = torch.where(attacked.isfinite(), attacked, images)
        return project(images, attacked - images, self.norm, self.radius)


class _Model(nn.Module):
    """Logits as torchattacks wants them: a module, at least 4 classes, gradients for images only.

    The targeted DLR loss divides by the distance between the best and the third and fourth best
    logit. Where there are fewer classes, logits one below the least stand in for them (our
    choice; Croce and Hein leave the attack out). They are nobody's target and never win.

    ``drops``: APGD may leave out the images that it has fooled it with (see ``mended.Dropping``).
    ``seed``: of a randomised model's draws.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        images: Tensor,
        precision: torch.dtype | None,
        drops: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        calls = count()

        def logits(x: Tensor) -> Tensor:
            if isinstance(logits_fn, DefendedModel):
                found = call_logits(logits_fn, x, seed, next(calls))
            else:
                found = logits_fn(x)
            return found.float() if precision else found

        self.logits_fn = logits  # in a function: a module of ours would follow this one's mode
        self.precision, self.drops = precision, drops
        self.running = False  # whether random numbers are the model's own
        # how torchattacks finds the device
        self.device_of = nn.Parameter(torch.zeros((), device=images.device), requires_grad=False)
        self.eval()

    def logits(self, images: Tensor) -> Tensor:
        enabled = self.precision is not None
        self.running = True
        try:
            with torch.autocast(images.device.type, dtype=self.precision, enabled=enabled):
                if images.requires_grad and torch.is_grad_enabled():
                    return ImageGradient.apply(images, self.logits_fn)
                return self.logits_fn(images)
        finally:
            self.running = False

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        missing = 4 - logits.shape[1]
        if missing > 0:
            least = logits.detach().amin(dim=1, keepdim=True) - 1
            logits = torch.cat([logits, least.expand(-1, missing)], dim=1)
        return logits.clone()  # Square writes into it

    @contextmanager
    def sharing_noise(self) -> Iterator[None]:
        """In it, batches of random numbers become one image's, repeated.

        So an image meets the same noise in any batch. torchattacks draws other shapes (a position,
        a colour, a size) once for the batch anyway. Its draws are torch.rand and torch.randn in
        the midst of functions; a TorchFunctionMode would reach them too, but cost every operation
        of the attack, in all as much as a tenth of a small model's passes.
        """
        own = torch.rand, torch.randn

        def shared(draw):
            def drawn(*size, **options):
                if size and isinstance(size[0], (list, torch.Size)) and not self.running:
                    count, *shape = size[0]
                    if len(shape) == 3:
                        return draw([1, *shape], **options).repeat(count, 1, 1, 1)
                return draw(*size, **options)

            return drawn

        torch.rand, torch.randn = map(shared, own)
        try:
            yield
        finally:
            torch.rand, torch.randn = own


def _clean_gradient(model: _Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which images' cross-entropy has a gradient of zeros, or one that is not finite."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        loss = attack_loss(model.logits(images), labels, None, "ce")
        (gradient,) = torch.autograd.grad(loss, images)
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1), ~flat.isfinite().all(dim=1)
