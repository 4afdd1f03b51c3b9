"""torchattacks' attacks as stages of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace

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
from apd.attacks.losses import cross_entropy
from apd.attacks.pgd import ONE_DRAW, LogitsFn, project
from apd.attacks.stream import Rows, Supply, join
from apd.errors import UserError

Attacker = Callable[[Tensor, Tensor], Tensor]  # images and labels to attacked images

_TARGETS = 9  # classes that targeted attacks try (AutoAttack; Croce and Hein 2020, section 4)


@dataclass(frozen=True)
class TorchAttack:
    """An attack of torchattacks, in the ball of ``radius`` around each image.

    The radius is in pixel values, which lie in [0, 1].

    Its results are projected into the ball and the box, and the verdict on them is in float32. An
    image's result depends on the seed, not on the other images of its batch: all images get the
    same random numbers (``_Model.sharing_noise``). torchattacks seeds torch's global generator and
    draws from it; the generator's state is restored.
    """

    name: str
    norm: str
    radius: float
    build: Callable[[nn.Module, dict], Attacker]
    black_box: bool = False
    one_by_one: bool = False  # for attacks that stop by the sum of the loss over their batch

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

        A randomised model has a new draw at each call of the attack, the same for all images. The
        verdict on the attacked image has draws of its own.

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
        while groups := list(supply.take(batch_size)):
            rows = join(groups)
            images, labels = rows["image"], rows["label"]
            # a wrong prediction decides only if it is the target's own, in float32, without draws
            drops = source is target and precision is None and not is_randomised(target)
            model = _Model(source, images, precision, drops, seed)
            zero = broken = torch.zeros_like(labels, dtype=torch.bool)
            if not self.black_box:
                zero, broken = _clean_gradient(model, images, labels)
            attacked = self.perturb(model, images, labels, seed, eot)
            places = rows["index"]
            right = predictions(target, attacked, labels, places, seed, draws) == labels
            columns = {"attacked": attacked, "right": right, "zero": zero, "broken": broken}
            yield {**rows, **columns}, None

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
            row_slices = [slice(i, i + 1) for i in range(len(images))] if self.one_by_one else [...]
            attacked = torch.cat(
                [attack(images[rows], labels[rows]) for rows in row_slices]
            ).detach()
        # where the attack gives NaN or infinite pixels, the image is left as it was
        attacked = torch.where(attacked.isfinite(), attacked, images)
        return project(images, attacked - images, self.norm, self.radius)


class _Model(nn.Module):
    """A model as torchattacks needs it: a module, with at least 4 classes and image gradients only.

    The targeted DLR loss divides by the distance between the best and the third and fourth best
    logit. With fewer than 4 classes, further logits are added, one less than the smallest [O]
    (Croce and Hein leave the attack out). They are never a target and never the largest.

    Args:
        drops: whether APGD leaves out images once they fool the model (``mended.Dropping``).
        seed: of a randomised model's draws.
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
                values = call_logits(logits_fn, x, seed, next(calls))
            else:
                values = logits_fn(x)
            return values.float() if precision else values

        self.logits_fn = logits  # a function, because self.eval() changes submodules' modes
        self.precision, self.drops = precision, drops
        # while the model runs, its own random numbers are not shared; an object of its own, because
        # a module's attributes take long to set, and these change at every call
        self.call = SimpleNamespace(running=False)
        # torchattacks reads the device from a parameter
        self.device_of = nn.Parameter(torch.zeros((), device=images.device), requires_grad=False)
        self.eval()

    def logits(self, images: Tensor) -> Tensor:
        enabled = self.precision is not None
        self.call.running = True
        try:
            with torch.autocast(images.device.type, dtype=self.precision, enabled=enabled):
                if images.requires_grad and torch.is_grad_enabled():
                    return ImageGradient.apply(images, self.logits_fn)
                return self.logits_fn(images)
        finally:
            self.call.running = False

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        lacking = 4 - logits.shape[1]
        if lacking > 0:
            least = logits.detach().amin(dim=1, keepdim=True) - 1
            logits = torch.cat([logits, least.expand(-1, lacking)], dim=1)
        return logits.clone()  # Square changes the logits in place

    @contextmanager
    def sharing_noise(self) -> Iterator[None]:
        """A context in which random numbers for a batch of images are those of one image, repeated.

        An image then gets the same noise in any batch. torchattacks draws other shapes (a position,
        a colour, a size) once for the whole batch. It calls torch.rand and torch.randn inside its
        functions, so these two are replaced. A TorchFunctionMode could replace them too, but would
        slow down every operation, together by a tenth of a small model's passes.
        """
        own = torch.rand, torch.randn

        def shared(draw):
            def drawn(*size, **options):
                if size and isinstance(size[0], (list, torch.Size)) and not self.call.running:
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
    """For each image: whether its gradient of cross-entropy is zero, and whether not finite."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        loss = cross_entropy(model.logits(images), labels, None)
        (gradient,) = torch.autograd.grad(loss, images)
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1), ~flat.isfinite().all(dim=1)
