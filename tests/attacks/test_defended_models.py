"""Attacks on models with a test-time defence whose truth is known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from apd.attacks import PGD, DefendedModel, Draws, ThreatModel, find_attack
from apd.attacks.defended import predictions
from apd.attacks.pgd import ONE_DRAW
from apd.attacks.stream import Supply
from apd.errors import UserError

SIZE = 12
EPS = 8
GREY = 0.5
THREAT = ThreatModel("linf", eps=EPS, alpha=4, steps=4, random_start=False)


def images(count=6):
    return torch.full((count, 3, SIZE, SIZE), GREY)


def stands(model, threat=THREAT, draws=ONE_DRAW, batch_size=6, count=6, sources=(), stage=None):
    """Which images, all of class 0, stand; and the columns of decided rows, in their order."""
    rows = {
        "index": torch.arange(count),
        "image": images(count),
        "label": torch.zeros(count, dtype=torch.long),
    }
    found = {}
    stage = stage or PGD(threat)
    for done, _ in stage.run(
        Supply([rows]), model, batch_size=batch_size, seed=3, draws=draws, sources=sources
    ):
        for i, place in enumerate(done["index"].tolist()):
            found[place] = {name: column[i] for name, column in done.items()}
    return torch.tensor([bool(found[i]["right"]) for i in range(count)]), found


def margins(images, weights, bias):
    """Logits of two classes whose difference is <weights, x> + bias."""
    margin = (images * weights).flatten(1).sum(1) + bias
    return torch.stack([margin / 2, -margin / 2], dim=1)


# -- rounding: no gradient of its own -------------------------------------------------------------


def level(strength):
    """Weights, and the bias with which all images have the margin that an attack of EPS can take
    ``strength`` times."""
    weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    reach = EPS / 255 * weights.abs().sum()
    return weights, float(reach / strength)


def rounded(images, way_back):
    """To 5 bits; on the way back the identity, or nothing."""
    steps = (images * 31).round() / 31
    return images + (steps - images).detach() if way_back else steps


def rounding(backward, strength=3):
    weights, bias = level(strength)

    def logits(x, seeds):
        return margins(rounded(x, backward == "surrogate") - GREY, weights, bias)

    return DefendedModel(logits, randomised=False, backward=backward)


def test_a_rounding_defence_stands_plain_pgd_and_falls_to_bpda():
    standing, found = stands(rounding("exact"))
    assert standing.all()  # and its gradients say why
    assert all(row["zero"] for row in found.values())
    standing, found = stands(rounding("surrogate"))
    assert not standing.any()
    assert not any(row["zero"] for row in found.values())


def test_a_model_without_gradients_is_refused_by_attacks_that_need_them():
    model = rounding("none")
    with pytest.raises(UserError, match="pgd needs gradients, and the model has none"):
        stands(model)
    with pytest.raises(UserError, match="apgd-ce needs gradients"):
        stands(model, stage=find_attack("apgd-ce-3", THREAT).stages[0])
    weak = rounding("none", strength=10)
    assert not stands(weak, stage=find_attack("square-300", THREAT).stages[0])[0].all()


# -- a random resize and place: gradients of one draw mislead -------------------------------------


def resized(images, seeds):
    """Each image at a random size and place on a grey ground (Xie 2018, arXiv 1711.01991)."""
    out = []
    for image, seed in zip(images, seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        size = int(torch.randint(5, SIZE + 1, (), generator=generator))
        top, left = torch.randint(0, SIZE - size + 1, (2,), generator=generator).tolist()
        small = F.interpolate(image[None], size=(size, size), mode="bilinear")
        sides = (left, SIZE - size - left, top, SIZE - size - top)
        out.append(F.pad(small, sides, value=GREY))
    return torch.cat(out)


def test_a_random_resize_falls_to_the_mean_of_many_draws_and_not_to_one_draw():
    weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    draws, grey = torch.arange(1000), torch.full((1000, 3, SIZE, SIZE), GREY)

    def logits(x, seeds, bias=0.0):
        return margins(resized(x, seeds) - GREY, weights, bias)

    def mean_margin(x):
        return float(logits(x.expand(1000, -1, -1, -1), draws).diff(dim=1).neg().mean())

    x = grey.clone().requires_grad_()  # linear: the mean of its gradients is that of its mean
    (gradients,) = torch.autograd.grad(logits(x, draws)[:, 0].sum() * 2, x)
    reach = float(EPS / 255 * gradients.mean(0).abs().sum())  # what an attack can lower it by
    model = DefendedModel(lambda x, seeds: logits(x, seeds, 0.15 * reach), randomised=True)
    one_step = replace(THREAT, alpha=EPS, steps=1)
    lowered, standing = {}, {}
    for eot in (1, 100):
        asked = Draws(eot=eot, verdict=301, rule="majority")
        right, found = stands(model, one_step, asked)
        standing[eot] = int(right.sum())
        margins_of = [mean_margin(row["attacked"]) for row in found.values()]
        lowered[eot] = -sum(margins_of) / len(margins_of) / reach
    assert lowered[1] < 0.5 < 0.9 < lowered[100]
    assert standing[1] >= 4 and standing[100] == 0  # of 6


def noisy(randomised=True):
    """Rough noise beside a linear model; what it draws depends on the seed alone."""
    weights, bias = level(strength=1.5)

    def logits(x, seeds):
        noise = torch.stack(
            [torch.randn((), generator=torch.Generator().manual_seed(s)) for s in seeds.tolist()]
        )
        return margins(x - GREY, weights, bias) + noise[:, None] * torch.tensor([0.3, -0.3])

    return DefendedModel(logits, randomised=randomised)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_verdicts_do_not_depend_on_the_batch(batch_size):
    draws = Draws(eot=3, verdict=5, rule="all")
    _, wanted = stands(noisy(), draws=draws)
    _, found = stands(noisy(), draws=draws, batch_size=batch_size)
    for place, row in wanted.items():
        assert row["right"] == found[place]["right"]
        assert torch.equal(row["attacked"], found[place]["attacked"])


@pytest.mark.parametrize("name", ["square-20", "apgd-ce-3", "autoattack-rand-3"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_verdicts_of_libraries_attacks_do_not_either(name, batch_size):
    draws = Draws(eot=3, verdict=5, rule="all")
    for stage in find_attack(name, replace(THREAT, eps=3)).stages:
        _, wanted = stands(noisy(), draws=draws, stage=stage)
        _, found = stands(noisy(), draws=draws, batch_size=batch_size, stage=stage)
        for place, row in wanted.items():
            assert row["right"] == found[place]["right"]
            assert torch.equal(row["attacked"], found[place]["attacked"])


def test_autoattack_rand_is_apgd_with_ce_and_dlr_and_draws_for_each_gradient():
    attack = find_attack("autoattack-rand-2", THREAT)
    assert [stage.name for stage in attack.stages] == ["apgd-ce", "apgd-dlr"]
    assert attack.conditions["steps"] == 2
    calls = []
    inner = noisy()

    def logits(x, seeds):
        calls.append((x.requires_grad, seeds.unique().tolist()))
        return inner.logits(x, seeds)

    model = DefendedModel(logits, randomised=True)
    for stage in attack.stages:
        calls.clear()
        stands(model, draws=Draws(eot=7, verdict=2), stage=stage)
        drawn = [seeds for wants_gradient, seeds in calls if wants_gradient]
        # of the clean image's check 1; 7 at the start and at each of 2 steps
        assert len(drawn) == 1 + 7 * 3
        assert len({seed for (seed,) in drawn}) == len(drawn)


# -- the rule of verdicts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule, right", [("all", [1, 0, 0, 0]), ("majority", [1, 1, 0, 0]), ("one", [1, 1, 1, 0])]
)
def test_the_rule_of_a_verdict(rule, right):
    # which draw errs, of 3 on each of 4 images: none, the last, all but the first, all
    errs = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
    draw = 0

    def logits(x, seeds):
        nonlocal draw
        wrong = errs[:, draw]
        draw += 1
        return F.one_hot(2 * wrong, 3).float()

    model = DefendedModel(logits, randomised=True)
    labels = torch.zeros(4, dtype=torch.long)
    predicted = predictions(model, images(4), labels, torch.arange(4), 0, Draws(1, 3, rule))
    assert (predicted == labels).int().tolist() == right
    assert set(predicted.tolist()) <= {0, 2}
    assert draw == (1 if rule == "one" else 3)


def test_a_verdicts_draws_are_not_those_that_the_attack_has_seen():
    seen = []

    def logits(x, seeds):
        seen.append((torch.is_grad_enabled(), seeds.tolist()))
        return margins(x, torch.ones(3, SIZE, SIZE), 100)

    stands(DefendedModel(logits, randomised=True), draws=Draws(4, 3))
    attack = {seed for grad, seeds in seen for seed in seeds if grad}
    verdict = {seed for grad, seeds in seen for seed in seeds if not grad}
    assert len(attack) == 6 * 4 * THREAT.steps and len(verdict) == 6 * 3
    assert attack.isdisjoint(verdict)


# -- a model adapted by one gradient step ---------------------------------------------------------


def adapted(a, b, c, rate):
    """Margin c . v^2 + b . x, v = w - rate dL/dw at w = 1, L = sum_i (w_i^3 u_i^2 / 3 - w_i u_i),
    u = A x: v_i = 1 - rate (u_i^2 - u_i)."""

    def logits(x, seeds):
        u = x.flatten(1) @ a.T
        w = torch.ones_like(u).requires_grad_()
        with torch.enable_grad():
            loss = (w**3 * u**2 / 3 - w * u).sum()
            (gradient,) = torch.autograd.grad(loss, w, create_graph=x.requires_grad)
        margin = (w - rate * gradient).square() @ c + x.flatten(1) @ b
        return torch.stack([margin / 2, -margin / 2], dim=1)

    return DefendedModel(logits, randomised=False, adapted=True, backward="exact")


def test_the_attack_takes_the_exact_gradient_through_a_step_of_adaptation():
    generator = torch.Generator().manual_seed(4)
    features = 3 * SIZE * SIZE
    a, b, c = (torch.randn(*shape, generator=generator).double() for shape in SHAPES)
    a, b, rate = a / features**0.5, b / 30, 0.3
    x = torch.rand(6, 3, SIZE, SIZE, generator=generator).double() * 0.4 + 0.3
    u = x.flatten(1) @ a.T
    v = 1 - rate * (u**2 - u)
    # by hand: d margin / dx = b + A^T [2 c v (-rate) (2 u - 1)]
    exact = b + (2 * c * v * -rate * (2 * u - 1)) @ a
    model = adapted(a, b, c, rate)

    start = x.clone().requires_grad_()
    logits = model(start)
    torch.testing.assert_close(logits[:, 0].detach() * 2, v**2 @ c + x.flatten(1) @ b)
    (found,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), start)
    torch.testing.assert_close(found.flatten(1), exact, rtol=1e-12, atol=1e-12)

    # and PGD steps against its sign: the label is the class of the margin's sign
    labels = (logits[:, 1] > logits[:, 0]).long()
    rows = {"index": torch.arange(6), "image": x, "label": labels}
    one_step = replace(THREAT, eps=1, alpha=1, steps=1)
    sign = torch.where(labels == 0, -1, 1)[:, None]
    for done, _ in PGD(one_step, last_iterate=True).run(Supply([rows]), model, batch_size=6):
        for place, attacked in zip(done["index"].tolist(), done["attacked"]):
            step = 255 * (attacked - x[place]).flatten()
            torch.testing.assert_close(step, (sign * exact.sign())[place], rtol=0, atol=1e-9)
    # the step of adaptation matters: without it, other signs
    still = b + (2 * c * (1 - rate * (u**2 - u)) * 0) @ a
    assert (still.sign() != exact.sign()).double().mean() > 0.1


SHAPES = ((5, 3 * SIZE * SIZE), (3 * SIZE * SIZE,), (5,))
