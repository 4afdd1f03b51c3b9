"""Where gradients mislead, each part of AutoAttack breaks images that those before it leave."""

import sys
from pathlib import Path

import pytest
import torch

from apd.attacks import ThreatModel, find_attack
from apd.attacks.stream import Supply

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from masked import KINDS, mark, masked  # noqa: E402

EPS, STEPS = 5.0, 20  # a fifth of the standard's budget
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@pytest.fixture(scope="module")
def case():
    """Images, whose logits are linear below the masks; kinds; which of them nothing can break.

    The distance to the nearest class is known then. It is either 0.35 to 0.55 of the radius, or
    more than 1.1 of it.
    """
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randn(5, 3, 4, 4, generator=draw)
    weight = blocks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).flatten(1)
    images, kinds = mark(0.1 + 0.8 * torch.rand(400, 3, 8, 8, generator=draw))

    def plain(x):
        return (x - 0.5).flatten(1) @ weight.t()

    z = plain(images)
    labels = z.argmax(dim=1)
    gaps = z.gather(1, labels[:, None]) - z
    slopes = (weight[labels][:, None] - weight).abs().sum(dim=2)
    distance = (gaps / slopes).nan_to_num(torch.inf).amin(dim=1) * 255 / EPS
    kept = (((distance > 0.35) & (distance < 0.55)) | (distance > 1.1)).nonzero()[:32, 0]
    return masked(plain), images[kept], labels[kept], kinds[kept], distance[kept] > 1


def ours(logits, images, labels):
    """Which images stand, (B,), and what each of the others fell to."""
    stands, fell_to = torch.ones_like(labels, dtype=torch.bool), [""] * len(labels)
    for stage in find_attack(f"autoattack-{STEPS}", ThreatModel("linf", EPS, 1, 1)).stages:
        index = stands.nonzero()[:, 0]
        rows = {"index": index, "image": images[index], "label": labels[index]}
        for done, _ in stage.run(Supply([rows]), logits, batch_size=64):
            stands[done["index"]] = done["right"]
            for i in done["index"][~done["right"]].tolist():
                fell_to[i] = stage.name
    return stands, fell_to


def test_survivors_are_those_that_nothing_can_break_and_each_part_breaks_its_kind(case):
    logits, images, labels, kinds, sure = case
    assert 5 < sure.sum() < 27
    stands, fell_to = ours(logits, images, labels)
    assert torch.equal(stands, sure)
    for part, kind in zip(PARTS, range(len(KINDS)), strict=True):
        fell = {fell_to[i] for i in (~sure & (kinds == kind)).nonzero()[:, 0].tolist()}
        assert part in fell, KINDS[kind]


def test_survivors_are_those_of_the_authors_package(case):
    autoattack = pytest.importorskip("autoattack", reason="AutoAttack's package is not installed")
    logits, images, labels, _, _ = case
    theirs = autoattack.AutoAttack(logits, eps=EPS / 255, seed=0, verbose=False, device="cpu")
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 4
    for part in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
        part.n_iter = STEPS
    theirs.square.n_queries = 50 * STEPS
    attacked = theirs.run_standard_evaluation(images, labels, bs=64)
    assert torch.equal(logits(attacked).argmax(dim=1) == labels, ours(logits, images, labels)[0])


@pytest.mark.parametrize("attack", ["apgd-ce-10", "apgd-t-10"])
def test_apgd_spends_no_pass_on_an_image_that_it_has_fooled(case, attack):
    """But the one of its verdict, after the attack. Images are known by their first pixel."""
    _, images, _, _, _ = case
    images = 0.05 + 0.9 * images
    places = torch.arange(len(images))
    images[:, 0, 0, 0] = places / len(images)
    weight = torch.randn(5, 191, generator=torch.Generator().manual_seed(1))
    passes, fooled = torch.zeros_like(places), torch.full_like(places, -1)

    def logits(x):
        z = (x.flatten(1)[:, 1:] - 0.5) @ weight.t()
        if labels is not None:
            here = (x[:, 0, 0, 0] * len(images)).round().long()
            passes[here] += 1
            wrong = here[z.argmax(dim=1) != labels[here]]
            new = wrong[fooled[wrong] < 0]
            fooled[new] = passes[new]
        return z

    labels = None
    labels = logits(images).argmax(dim=1)
    (stage,) = find_attack(attack, ThreatModel("linf", 3, 1, 1)).stages
    rows = {"index": places, "image": images, "label": labels}
    for done, _ in stage.run(Supply([rows]), logits, batch_size=64):
        fell = done["index"][~done["right"]]
    assert 3 < len(fell) < len(images)
    assert torch.equal((fooled > 0).nonzero()[:, 0], fell.sort()[0])
    assert torch.equal(passes[fell], fooled[fell] + 1)
    assert passes[fell].float().mean() < passes[fooled < 0].float().mean() / 2
