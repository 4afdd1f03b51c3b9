"""Projected gradient descent (Madry 2018, arXiv 1706.06083), for training and for evaluation.

Start points and updates are those of torchattacks' PGD and PGDL2, except that the loss is summed
over the batch, so that an image's attack does not depend on its batch. The model is any callable;
it must be in evaluation mode, and normalise images itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from apd.attacks.defended import (
    attack_logits,
    check_gradient,
    is_randomised,
    predictions,
)
from apd.attacks.draws import Draws
from apd.attacks.gradient import NOT_FINITE, image_gradient
from apd.attacks.losses import loss_gradient
from apd.attacks.stream import LogitsFn, Rows, Supply, join, row_seed, select, to_device
from apd.attacks.threat import ThreatModel
from apd.errors import NonFiniteLoss, UserError

ONE_DRAW = Draws()
_TINY = 1e-10  # avoids a division by a norm of zero


@torch.enable_grad()
def pgd(
    logits_fn: LogitsFn,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    reference: Tensor | None = None,
    start: Tensor | None = None,
    generator: Generator | None = None,
    rows: tuple[int, slice] | None = None,
) -> Tensor:
    """Attack every image to the end and return the last iterate, (B, 3, H, W) in [0, 1].

    Gradients are taken for the images only: no parameter's ``.grad`` changes. Works under
    ``torch.no_grad()`` too, and in half precision under ``torch.autocast``. Where a gradient is
    not finite, the result is NaN, and so is the loss on it.

    Args:
        logits_fn: images (B, 3, H, W) to logits (B, C).
        images: (B, 3, H, W) in [0, 1].
        labels: (B,).
        reference: logits (B, C) that a "kl" attack moves away from:
            it maximises KL(softmax(reference) || softmax(logits)).
        start: start points in the ball and the box, used instead of random ones.
        generator: for the random start; may be on another device than the images.
        rows: (N, slice): these images are this slice of a batch of N images, and get the start
            points that they have in the whole batch.

    Raises:
        UserError: more than one restart, which only ``surviving`` has, without ``start``.
        ValueError: a "kl" attack without ``reference``.
    """
    if threat.loss == "kl" and reference is None:
        raise ValueError('an attack with loss "kl" needs reference logits')
    if threat.restarts > 1 and start is None:
        raise UserError(f"attack restarts is {threat.restarts}: training attacks once, use 1")
    images = images.detach()
    attacked = _start(images, threat, generator, rows) if start is None else start.detach().clone()
    for _ in range(threat.steps if len(images) else 0):
        logits = logits_fn(attacked.requires_grad_())
        gradient = _gradient(logits, attacked, labels, reference, threat.loss)
        attacked = _move(attacked, gradient, images, threat)
    return attacked


def surviving(
    logits_fn: LogitsFn,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    last_iterate: bool = False,
    clean_logits: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Which images the model still classifies correctly under attack, (B,) bool.

    An image is lost, and leaves the batch, as soon as the model errs on the clean image, on a
    start point or on any later iterate of any restart. This costs ``steps`` forward and backward
    passes and one forward pass a restart, at most; predictions come with the gradients' logits.

    Args:
        logits_fn, images, labels, generator: as for ``pgd``.
        last_iterate: attack all images to the end and look at the last iterate only, as most
            papers do. This is no worst case: an image that was wrong before may count as right.
        clean_logits: (B, C) logits of ``images``, if known; a "kl" attack moves away from them.

    Raises:
        NonFiniteLoss: a logit or gradient is NaN or infinite: that image is neither right nor
            wrong.
        UserError: a "kl" attack that starts at the image, where its gradient is zero.
    """
    images = images.detach()
    if clean_logits is None:
        with torch.no_grad():
            clean_logits = logits_fn(images)
    alive = correct(clean_logits, labels) | last_iterate
    # drawn for the whole batch, so that start points do not depend on which images have left it
    starts = [_start(images, threat, generator) for _ in range(threat.restarts)]
    index = torch.arange(len(images), device=images.device)
    rows = {"index": index, "image": images, "label": labels, "reference": clean_logits}
    attack = PGD(threat, last_iterate)
    for decided, _ in attack.run(
        Supply([select(rows, alive)]),
        logits_fn,
        batch_size=len(images),
        start=lambda image, index, restart: starts[restart][index],
    ):
        if decided["broken"].any():
            raise NonFiniteLoss("the model's input gradients are NaN or infinite")
        alive[decided["index"]] = decided["right"].to(alive.device)
    return alive


@dataclass(frozen=True)
class PGD:
    """PGD as a stage of an evaluation: images that fall leave the batch, others take their place.

    An image falls as soon as the model errs on a start point or a later iterate of any restart.
    With ``last_iterate``, or where the attack is made on another model, only the last iterate of
    each restart is looked at.
    """

    threat: ThreatModel
    last_iterate: bool = False
    name = "pgd"

    def __post_init__(self) -> None:
        if self.threat.loss == "kl" and not self.threat.random_start:
            raise UserError('attack loss "kl" is flat at the clean image: use a random start')

    def run(
        self,
        supply: Supply,
        target: LogitsFn,
        *,
        batch_size: int,
        sources: Sequence[LogitsFn] = (),
        start: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        precision: torch.dtype | None = None,
        seed: int = 0,
        draws: Draws = ONE_DRAW,
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yield decided rows and the rows still under attack, each time that some are decided.

        Args:
            supply: rows with "index", "image", "label". Rows that were under attack when a run was
                killed have all columns that this function yielded; "reference" logits are used if
                rows have them.
            target: the model that the verdicts are about, in float32.
            batch_size: rows in a pass. Twice as many are under attack, and those with the fewest
                steps go first, so that passes are full until the last rows are almost done.
            sources: models over which the loss is summed; default: the target.
            start: function of images, their indices and the number of the restart, which returns
                start points; default: drawn from ``seed`` (see ``seeded_start``).
            precision: of the attack's passes, if not float32. Verdicts are in float32.
            draws: of randomised models. The gradient is that of the mean loss over ``draws.eot``
                draws. Where one of these is wrong, the verdict's own draws decide.

        Decided rows have "right" (still classified correctly), "attacked" (the iterate that
        decided), "zero" (some gradient was all zeros) and "broken" (some gradient was not finite,
        and its step was skipped).

        Raises:
            NonFiniteLoss: logits that are NaN or infinite.
            UserError: a model that has no gradient.
        """
        start = start or seeded_start(self.threat, seed)
        attack = _Attack(self, target, list(sources) or [target], start, precision, seed, draws)
        for source in attack.sources:
            check_gradient(source, self.name)
        under_way: list[Rows] = []
        while True:
            room = 2 * batch_size - sum(len(rows["index"]) for rows in under_way)
            under_way += [attack.begin(rows) for rows in supply.take(room)]
            if not under_way:
                return
            pool, *waiting = attack.turn(join(under_way), batch_size)
            # the masks below are on the CPU, so that this process waits for the GPU once per step
            x, last = pool["attacked"].detach(), pool["step"] == self.threat.steps
            gradient, right = attack.look(pool, x, last)
            fallen = ~right & last if attack.last_only else ~right
            at_end = last & ~fallen  # of a restart
            restarting = at_end & (pool["restart"] + 1 < self.threat.restarts)
            leaving = fallen | (at_end & ~restarting)

            decided = None
            if leaving.any():  # selected with the iterate that decided, before the next step
                decided = select({**pool, "attacked": x.detach(), "right": right}, leaving)
            attack.step(pool, x, gradient, ~(last | leaving))
            attack.restart(pool, restarting)
            if decided:
                pool = select(pool, ~leaving)
            under_way = [rows for rows in (pool, *waiting) if len(rows["index"])]
            if decided:
                yield decided, join(under_way or [pool])


@dataclass(frozen=True)
class _Attack:
    """The operations of ``PGD.run`` on given models."""

    pgd: PGD
    target: LogitsFn
    sources: list[LogitsFn]
    start: Callable[[Tensor, Tensor, int], Tensor]
    precision: torch.dtype | None
    seed: int
    draws: Draws

    @property
    def white_box(self) -> bool:
        """Whether the verdict comes with the gradient's logits."""
        return self.sources[0] is self.target

    @property
    def last_only(self) -> bool:
        """Whether only the last iterate of a restart is looked at."""
        return self.pgd.last_iterate or not self.white_box

    def begin(self, rows: Rows) -> Rows:
        """Rows at the start point of their first restart; those of a killed run as they are."""
        if "attacked" in rows:
            return rows
        device, count = rows["image"].device, len(rows["index"])
        if self.pgd.threat.loss == "kl" and "reference" not in rows:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                rows["reference"] = self.target(rows["image"])
        rows["index"] = rows["index"].cpu()
        state = {k: torch.zeros(count, dtype=torch.long) for k in ("step", "restart")}
        for name in ("zero", "broken"):
            state[name] = torch.zeros(count, dtype=torch.bool, device=device)
        return {**rows, **state, "attacked": self.start(rows["image"], rows["index"], 0)}

    def moment(self, rows: Rows) -> Tensor:
        """The rows' steps, counted over restarts, (B,) on the CPU."""
        return rows["restart"] * (self.pgd.threat.steps + 1) + rows["step"]

    def turn(self, rows: Rows, count: int) -> list[Rows]:
        """The ``count`` rows that are furthest behind, and the others, if there are any."""
        if len(rows["index"]) <= count:
            return [rows]
        progress = self.moment(rows)
        behind = torch.zeros(len(progress), dtype=torch.bool)
        behind[progress.argsort(stable=True)[:count]] = True
        return [select(rows, behind), select(rows, ~behind)]

    def look(self, pool: Rows, x: Tensor, last: Tensor) -> tuple[Tensor | None, Tensor]:
        """The gradient at the iterates ``x`` of ``pool``, and which iterates are right.

        ``last`` (B,), on the CPU, says which iterates are at their last step.

        Returns:
            The gradient of the sum of the models' losses (of a randomised model the mean over its
            draws), or None if all iterates are at their last step; and (B,) bool on the CPU.
            Where only the last step is looked at, all other iterates count as right.
        """
        precision, labels, places = self.precision, pool["label"], pool["index"]
        right, gradient = torch.ones_like(last), None
        needs_gradient = not last.all()
        if needs_gradient or (self.white_box and not is_randomised(self.target)):
            with (
                torch.set_grad_enabled(needs_gradient),
                torch.autocast(x.device.type, dtype=precision, enabled=precision is not None),
            ):
                gradient, right = self.drawn(pool, x.requires_grad_(needs_gradient), right)
        unsure = last if not self.white_box else ~right | last
        if self.white_box and precision is None and not is_randomised(self.target):
            return gradient, right
        if unsure.any():
            rows = select({"image": x.detach(), "label": labels, "index": places}, unsure)
            right[unsure] = self.judged(rows["image"], rows["label"], rows["index"])
        return gradient, right

    def drawn(self, pool: Rows, x: Tensor, right: Tensor) -> tuple[Tensor | None, Tensor]:
        """As ``look``, where "right" means in all draws; one graph is in memory at a time."""
        labels, reference = pool["label"], pool.get("reference")
        gradient: Tensor | None = None
        for model in self.sources if x.requires_grad else self.sources[:1]:
            count = self.draws.eot if is_randomised(model) else 1
            for k in range(count):
                logits = attack_logits(model, x, pool["index"], self.seed, self.moment(pool), k)
                if model is self.target:
                    right = right & _correct_on_cpu(logits, labels)
                if x.requires_grad:
                    term = _gradient(logits, x, labels, reference, self.pgd.threat.loss)
                    term = term if count == 1 else term / count
                    gradient = term if gradient is None else gradient + term
        return gradient, right

    def judged(self, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        """Which images are right, (B,) bool on the CPU, by the verdict's own draws."""
        predicted = predictions(self.target, images, labels, places, self.seed, self.draws)
        return (predicted == labels).cpu()

    def step(self, pool: Rows, x: Tensor, gradient: Tensor | None, mask: Tensor) -> None:
        """Move rows of ``pool`` on from their iterates ``x``, in place.

        Args:
            gradient: at ``x``; None if no row is to move.
            mask: (B,) bool, on the CPU: the rows to move.
        """
        if not mask.any():
            return
        assert gradient is not None  # ``look`` computes it if a row is to move
        threat = self.pgd.threat
        largest = gradient.abs().flatten(1).amax(dim=1)  # NaN where any entry is
        moving = to_device(mask, x.device)
        finite = largest.isfinite()
        pool["broken"] |= ~finite & moving
        pool["zero"] |= (largest == 0) & moving
        moved = _move(x, gradient, pool["image"], threat)
        pool["attacked"] = torch.where((finite & moving).view(-1, 1, 1, 1), moved, x.detach())
        pool["step"] = pool["step"] + mask

    def restart(self, pool: Rows, mask: Tensor) -> None:
        """Put the rows of ``pool`` where ``mask`` (B,) is true at their next start points, in
        place."""
        for i in mask.nonzero()[:, 0]:
            row, restart = slice(i, i + 1), pool["restart"][i] + 1
            image, index = pool["image"][row], pool["index"][row]
            pool["attacked"][row] = self.start(image, index, int(restart))
            pool["restart"][i], pool["step"][i] = restart, 0


def seeded_start(threat: ThreatModel, seed: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Start points for ``PGD.run`` that depend on the seed, the image's index and the restart."""

    def start(images: Tensor, index: Tensor, restart: int) -> Tensor:
        return torch.cat(
            [
                _start(image[None], threat, Generator().manual_seed(row_seed(seed, i, restart)))
                for image, i in zip(images, index.tolist())
            ]
        )

    return start


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right, (B,) bool; NonFiniteLoss if a logit (B, C) is not finite."""
    return _correct_on_cpu(logits, labels).to(logits.device)


def _correct_on_cpu(logits: Tensor, labels: Tensor) -> Tensor:
    """As ``correct``, but on the CPU; the GPU is waited for once."""
    # 0 times NaN or infinity is NaN; isfinite() of all logits costs ten times as much
    right, sound = logits.argmax(dim=1) == labels, (0 * logits).sum().isfinite()
    flags = torch.cat([right, sound[None]]).cpu()
    if not flags[-1]:
        raise NonFiniteLoss(NOT_FINITE)
    return flags[:-1]


def _start(
    images: Tensor,
    threat: ThreatModel,
    generator: Generator | None,
    rows: tuple[int, slice] | None = None,
) -> Tensor:
    if not threat.random_start:
        return images.clone()
    eps = threat.radius
    device = generator.device if generator else images.device
    count, own = rows or (len(images), slice(None))
    noise = torch.empty((count, *images.shape[1:]), dtype=images.dtype, device=device)
    if threat.norm == "linf":
        noise.uniform_(-eps, eps, generator=generator)
    else:
        noise.normal_(generator=generator)
        radius = noise.new_empty(len(noise), 1, 1, 1).uniform_(0, eps, generator=generator)
        noise *= radius / _norm(noise)
    return (images + noise[own].to(images.device)).clamp(0, 1)


def _gradient(
    logits: Tensor, attacked: Tensor, labels: Tensor, reference: Tensor | None, loss: str
) -> Tensor:
    """The gradient of the loss of ``logits`` = f(attacked) with respect to ``attacked``."""
    z = logits.detach().float() if logits.dtype.itemsize < 4 else logits.detach()
    with torch.autocast(logits.device.type, enabled=False):
        weights = loss_gradient(z, labels, reference, loss)
    return image_gradient(logits, attacked, weights)


def _move(attacked: Tensor, gradient: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """One step up the gradient, then back into the ball and the box."""
    eps, alpha = threat.radius, threat.step_size
    if threat.norm == "linf":
        # torch's sign(NaN) is 0: 0 * gradient is added so that NaN stays NaN
        sign = gradient.sign().add_(gradient, alpha=0)
        delta = sign.mul_(alpha).add_(attacked.detach()).sub_(images)  # in place: half the time
    else:
        delta = attacked.detach() + alpha * gradient / (_norm(gradient) + _TINY) - images
    return project(images, delta, threat.norm, eps)


def project(images: Tensor, delta: Tensor, norm: str, eps: float) -> Tensor:
    """``images + delta`` in the ball of radius ``eps`` (in units of pixel values) and the box."""
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / _norm(delta).clamp_min(_TINY)).clamp_max(1)
    return delta.add_(images).clamp_(0, 1)


def _norm(images: Tensor) -> Tensor:
    """Euclidean norm of each image, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
