import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apd.attacks import PGD, ThreatModel, pgd, seeded_start, surviving
from apd.attacks.pgd import _gradient, _move
from apd.attacks.stream import Supply, join
from apd.errors import NonFiniteLoss, UserError

CLASSES = 5


class Net(nn.Module):
    """Small, curved and easily fooled: its verdicts change during an attack."""

    def __init__(self, seed: int = 0, scale: float = 6.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.head = nn.Linear(6, CLASSES)
        self.scale = scale
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        x = F.gelu(4 * self.conv(images - 0.5)).mean(dim=(2, 3))
        return self.scale * self.head(F.layer_norm(x, x.shape[1:]))


def batch(n=12, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, size, size, generator=generator)
    images[0], images[1] = 0.0, 1.0  # on the walls of the box
    return images, torch.randint(CLASSES, (n,), generator=generator)


def own_labels(model, images):
    """Labels that the model gets right, but for every fourth."""
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % CLASSES
    return labels


def linf(eps=8, alpha=2, steps=10, **more):
    return ThreatModel("linf", eps, alpha, steps, **more)


def l2(eps=64, alpha=16, steps=10, **more):
    return ThreatModel("l2", eps, alpha, steps, **more)


def torchattack(threat, model):
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[threat.norm]
    return kind(
        model.eval(),
        eps=threat.eps / 255,
        alpha=threat.alpha / 255,
        steps=threat.steps,
        random_start=threat.random_start,
    )


both_norms = pytest.mark.parametrize("kind", [linf, l2])


# -- pgd ----------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("random_start", [False, True])
def test_equals_torchattacks(kind, random_start):
    model, (images, labels) = Net(), batch()
    threat = kind(random_start=random_start)
    torch.manual_seed(3)  # both draw the same start from the global generator
    theirs = torchattack(threat, model)(images, labels)
    torch.manual_seed(3)
    ours = pgd(model, images, labels, threat)
    assert (theirs - images).flatten(1).norm(dim=1).min() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@both_norms
def test_an_explicit_start_replaces_the_random_one(kind):
    model, (images, labels) = Net(), batch()
    start = (images + 0.01).clamp(max=1)
    attacked = pgd(model, images, labels, kind(steps=1, restarts=2), start=start)
    x = start.clone().requires_grad_()
    loss = F.cross_entropy(model(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    expected = _step_by_hand(start, images, gradient, kind())
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-6)


def _step_by_hand(start, images, gradient, threat):
    """In float64, an image at a time."""
    rows = []
    for x, image, g in zip(start.double(), images.double(), gradient.double()):
        g = g.sign() if threat.norm == "linf" else g / g.norm()
        delta = x + threat.alpha / 255 * g - image
        eps = threat.eps / 255
        if threat.norm == "linf":
            delta = delta.clamp(-eps, eps)
        elif delta.norm() > eps:
            delta = delta * eps / delta.norm()
        rows.append((image + delta).clamp(0, 1))
    return torch.stack(rows).float()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 300),
    alpha=st.floats(0, 600),
    steps=st.integers(0, 4),
    random_start=st.booleans(),
    n=st.integers(0, 5),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 1000),
)
def test_ball_and_box_hold(norm, eps, alpha, steps, random_start, n, size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, *size, generator=generator)
    images = images.where(images > 0.2, 0).where(images < 0.8, 1)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    threat = ThreatModel(norm, eps, alpha, steps, random_start=random_start)
    attacked = pgd(Net(seed), images, labels, threat, generator=generator)
    assert attacked.shape == images.shape
    if n:
        assert attacked.min() >= 0 and attacked.max() <= 1
        order = float("inf") if norm == "linf" else 2
        distance = (attacked - images).flatten(1).norm(p=order, dim=1).max()
        # one rounding of a value near 1, in all pixels at worst
        slack = 6e-8 if norm == "linf" else 6e-8 * images[0].numel() ** 0.5 + 1e-6 * eps / 255
        assert distance <= eps / 255 + slack


@both_norms
@pytest.mark.parametrize("random_start", [False, True])
def test_zero_eps_leaves_the_images(kind, random_start):
    model, (images, labels) = Net(), batch()
    attacked = pgd(model, images, labels, kind(eps=0, random_start=random_start))
    torch.testing.assert_close(attacked, images, rtol=0, atol=1e-7)


@both_norms
@pytest.mark.parametrize("training", [False, True])
def test_everything_comes_back_as_it_was(kind, training):
    model, (images, labels) = Net().train(training), batch()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, labels_before = images.clone(), labels.clone()
    start = images.clone()
    for threat in (kind(), kind(steps=0), kind(random_start=False)):
        attacked = pgd(model, images, labels, threat, start=None if threat.steps else start)
        assert not attacked.requires_grad
        attacked.zero_()  # it is nobody's memory
        surviving(model, images, labels, threat)
    assert model.training is training
    assert torch.equal(images, before) and torch.equal(labels, labels_before)
    assert torch.equal(start, before)
    assert not images.requires_grad and images.grad is None
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.conv.weight.grad is None
    assert all(p.requires_grad for p in model.parameters())


def test_images_that_carry_a_graph_are_constants_to_the_attack():
    model, (images, labels) = Net(), batch()
    images = (images * torch.ones(1, requires_grad=True)).clamp(0, 1)
    for random_start in (False, True):
        assert not pgd(model, images, labels, linf(random_start=random_start)).requires_grad


@both_norms
def test_works_without_grad_mode_and_leaves_it_off(kind):
    model, (images, labels) = Net(), batch()
    threat = kind(random_start=False)
    expected = pgd(model, images, labels, threat), surviving(model, images, labels, threat)
    with torch.no_grad():
        got = pgd(model, images, labels, threat), surviving(model, images, labels, threat)
        assert not torch.is_grad_enabled()
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@both_norms
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_an_images_attack_does_not_depend_on_its_batch(kind, loss):
    model, (images, labels) = Net().double(), batch(size=6)
    images = images.double()
    reference = torch.randn(len(images), CLASSES, generator=torch.Generator().manual_seed(1))
    reference = reference.double()
    threat = kind(random_start=False, loss=loss)
    together = pgd(model, images, labels, threat, reference=reference)
    alone = [
        pgd(model, x[None], y[None], threat, reference=r[None])
        for x, y, r in zip(images, labels, reference)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@both_norms
def test_a_generator_fixes_the_attack(kind):
    model, (images, labels) = Net(), batch()

    def attack(seed):
        generator = torch.Generator().manual_seed(seed)
        return pgd(model, images, labels, kind(), generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))
    assert torch.equal(torch.get_rng_state(), state)


@both_norms
def test_kl_climbs_the_divergence_from_the_reference(kind):
    model, (images, labels) = Net().double(), batch()
    images = images.double()
    reference = torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(1)).double()
    threat = kind(steps=1, random_start=False, loss="kl")
    attacked = pgd(model, images, labels, threat, reference=reference.requires_grad_())

    x = images.clone().requires_grad_()
    p, q = reference.detach().softmax(1), model(x).softmax(1)
    (gradient,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), x)
    expected = _step_by_hand(images, images, gradient, threat).double()
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-6)
    assert reference.grad is None


def test_kl_needs_a_reference():
    with pytest.raises(ValueError, match="reference"):
        pgd(Net(), *batch(), linf(loss="kl"))


def test_training_has_no_restarts():
    with pytest.raises(UserError, match="restarts is 3"):
        pgd(Net(), *batch(), linf(restarts=3))


def test_training_attack_costs_one_forward_a_step():
    model = Net()
    pgd(model, *batch(), linf(steps=7))
    assert model.sizes == [12] * 7


def test_nan_logits_reach_the_training_loss():
    images, labels = batch()
    for kind in (linf, l2):
        attacked = pgd(lambda x: Net()(x) * float("nan"), images, labels, kind())
        assert attacked.isnan().all()


@both_norms
def test_a_broken_gradient_is_an_error_not_robust(kind):
    images, labels = batch()

    def logits(x):  # finite, but the square root's slope at 0 is not
        return F.one_hot(labels, CLASSES) + (x * 0).sum(dim=(1, 2, 3)).sqrt()[:, None]

    assert pgd(logits, images, labels, kind()).isnan().all()
    with pytest.raises(NonFiniteLoss):
        surviving(logits, images, labels, kind(steps=1))


# -- surviving ----------------------------------------------------------------------------------


def plain_verdicts(model, images, labels, threat, generator, reference):
    """Every iterate of every image, nobody leaves."""
    alive = model(images).argmax(1) == labels
    for _ in range(threat.restarts):
        # steps=0 gives the start point
        start = pgd(
            model,
            images,
            labels,
            ThreatModel(threat.norm, threat.eps, threat.alpha, 0, 1, threat.random_start),
            generator=generator,
        )
        x = start
        for step in range(threat.steps + 1):
            x.requires_grad_()
            logits = model(x)
            alive = alive & (logits.argmax(1) == labels)
            if step < threat.steps:
                gradient = _gradient(logits, x, labels, reference, threat.loss)
                x = _move(x, gradient, images, threat)
    return alive


@both_norms
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("steps", [0, 1, 12])
def test_verdicts_are_those_of_a_loop_over_every_iterate(kind, restarts, loss, steps):
    model, (images, _) = Net().double(), batch(40)
    images = images.double()
    labels = own_labels(model, images)
    eps = {linf: 3, l2: 20}[kind] * {0: 25, 1: 2, 12: 1}[steps]
    threat = kind(eps=eps, alpha=eps / 4, steps=steps, restarts=restarts, loss=loss)
    reference = model(images).detach()
    expected = plain_verdicts(
        model, images, labels, threat, torch.Generator().manual_seed(5), reference
    )
    got = surviving(model, images, labels, threat, generator=torch.Generator().manual_seed(5))
    assert got.dtype == torch.bool
    assert torch.equal(got, expected)
    assert 0 < expected.sum() < 30  # some are lost to the attack, some stand


def test_an_image_that_only_an_early_iterate_fools_is_lost():
    # one pixel value x: wrong only between 0.52 and 0.54, where the way up from 0.5 leads through
    def logits(images):
        x = images.mean(dim=(1, 2, 3))
        wrong = ((x > 0.52) & (x < 0.54)).float() * 2 + 0.1 * x
        return torch.stack([torch.zeros_like(x) + 1, wrong], dim=1)

    images, labels = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    threat = ThreatModel("linf", eps=20, alpha=255 * 0.03, steps=2, random_start=False)
    assert surviving(logits, images, labels, threat, last_iterate=True).all()
    assert not surviving(logits, images, labels, threat).any()


def test_clean_image_start_point_and_final_iterate_are_checked():
    images, labels = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)

    def wrong_when(condition):
        def logits(x):
            fooled = condition(x.mean(dim=(1, 2, 3))).float()
            drift = x.mean(dim=(1, 2, 3)) * 1e-3  # some gradient: upwards
            return torch.stack([1 - 2 * fooled - drift, fooled], dim=1)

        return logits

    def alive(condition, **more):
        threat = ThreatModel("linf", eps=2, alpha=1, steps=2, **more)
        generator = torch.Generator().manual_seed(0)
        logits = wrong_when(condition)
        return surviving(logits, images, labels, threat, generator=generator).item()

    noise = pgd(None, images, labels, linf(2, 1, 0), generator=torch.Generator().manual_seed(0))
    start = noise.mean()
    assert alive(lambda x: x > 1)
    assert not alive(lambda x: x == 0.5)
    assert not alive(lambda x: (x - start).abs() < 1e-7)
    assert not alive(lambda x: x > 0.5 + 1.9 / 255, random_start=False)
    assert alive(lambda x: x > 0.5 + 2.1 / 255, random_start=False)


@both_norms
def test_last_iterate_counts_what_torchattacks_would(kind):
    model, (images, _) = Net(), batch(40)
    labels = own_labels(model, images)
    eps = {linf: 3, l2: 20}[kind]
    threat = kind(eps=eps, alpha=eps / 4)
    torch.manual_seed(3)
    expected = model(torchattack(threat, model)(images, labels)).argmax(1) == labels
    torch.manual_seed(3)
    got = surviving(model, images, labels, threat, last_iterate=True)
    assert torch.equal(got, expected)
    assert 0 < expected.sum() < 30


def test_restarts_only_lose_images_and_go_to_survivors():
    model, (images, _) = Net(), batch(40)
    labels = own_labels(model, images)
    for last_iterate in (False, True):
        verdicts = []
        for restarts in (1, 2, 4):
            generator = torch.Generator().manual_seed(0)
            threat = linf(2.5, 1, 3, restarts=restarts)
            verdicts.append(
                surviving(
                    model, images, labels, threat, last_iterate=last_iterate, generator=generator
                )
            )
        assert (verdicts[1] <= verdicts[0]).all() and (verdicts[2] <= verdicts[1]).all()


@settings(max_examples=20, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    loss=st.sampled_from(["ce", "kl", "margin"]),
    steps=st.lists(st.integers(0, 8), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_more_steps_lose_more_images_only(norm, loss, steps, seed):
    """Every iterate counts, and the first ones are the same."""
    model, (images, _) = Net(seed), batch(20, seed=seed)
    labels = own_labels(model, images)
    eps = {"linf": 3, "l2": 30}[norm]
    verdicts = [
        surviving(
            model,
            images,
            labels,
            ThreatModel(norm, eps, eps / 3, k, loss=loss),
            generator=torch.Generator().manual_seed(seed),
        )
        for k in sorted(steps)
    ]
    assert all((more <= fewer).all() for fewer, more in zip(verdicts, verdicts[1:]))


@pytest.mark.parametrize("last_iterate", [False, True])
def test_passes_are_those_needed_and_one_more_backward_an_image(last_iterate):
    """An image that falls at iterate k needs k + 1 forward and k backward passes."""
    model, (images, _) = Net(), batch(40)
    labels = own_labels(model, images)
    keep = model(images).argmax(1) == labels
    passes = {"forward": 0, "backward": 0}

    def counted(x):
        passes["forward"] += len(x)
        if x.requires_grad:
            x.register_hook(lambda g: passes.update(backward=passes["backward"] + len(g)))
        return model(x)

    threat = linf(3, 0.75, 12)
    rows = {"index": torch.arange(int(keep.sum())), "image": images[keep], "label": labels[keep]}
    last = []
    for done, _ in PGD(threat, last_iterate).run(
        Supply([rows]), counted, batch_size=7, start=seeded_start(threat, 0)
    ):
        last += done["step"].tolist()
    assert len(last) == len(rows["index"]) and (last_iterate or 0 < sum(k < 12 for k in last))
    assert passes["forward"] == sum(last) + len(last)
    assert sum(last) <= passes["backward"] <= sum(last) + len(last)


def test_passes_are_full_until_the_last_rows_are_almost_done():
    """Nine images that stand, six in a pass: not twelve steps of six, and then of three."""
    images, sizes = torch.rand(9, 3, 4, 4), []

    def stands(x):
        sizes.append(len(x))
        return torch.stack([1 + x.mean(dim=(1, 2, 3)), x.sum(dim=(1, 2, 3)) * 0], dim=1)

    labels, index = torch.zeros(9, dtype=torch.long), torch.arange(9)
    supply = Supply([{"index": index, "image": images, "label": labels}])
    found = [done for done, _ in PGD(linf(3, 0.75, 12)).run(supply, stands, batch_size=6)]
    assert sorted(join(found)["index"].tolist()) == index.tolist()
    assert sum(sizes) == 9 * 13 and sizes[:-1] == [6] * 19


def test_the_noise_does_not_depend_on_who_has_left():
    """Each batch leaves the generator where it would be had all images been wrong or all right."""
    images, labels = batch()
    states = []
    for label in (labels, labels * 0 + 9):  # 9: no such prediction, all leave at once
        generator = torch.Generator().manual_seed(0)
        logits = F.one_hot(labels, 10).float()
        surviving(
            lambda x: logits[: len(x)] + x.mean() * 0,
            images,
            label,
            linf(restarts=3),
            clean_logits=logits,
            generator=generator,
        )
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_robust_is_at_most_clean():
    for seed in range(5):
        model, (images, _) = Net(seed), batch(30, seed=seed)
        labels = own_labels(model, images)
        clean = model(images).argmax(1) == labels
        assert (surviving(model, images, labels, linf(1, 0.5, 3)) <= clean).all()


def test_cost_is_steps_passes_and_one_forward_on_shrinking_batches():
    model, (images, _) = Net(), batch(40)
    labels = own_labels(model, images)
    clean_logits = model(images).detach()
    model.sizes.clear()
    alive = surviving(model, images, labels, linf(3, 0.75, 12), clean_logits=clean_logits)
    assert len(model.sizes) == 12 + 1
    assert model.sizes[0] == 30  # the wrong ones never enter
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert alive.sum() <= model.sizes[-1] < 30

    model.sizes.clear()
    wrong = (clean_logits.argmax(1) + 1) % CLASSES
    assert not surviving(model, images, wrong, linf(), clean_logits=clean_logits).any()
    assert model.sizes == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("last_iterate", [False, True])
@pytest.mark.parametrize("forward", [0, 1, 3])
def test_non_finite_logits_are_an_error_not_robust(bad, last_iterate, forward):
    model, (images, _) = Net(), batch()
    labels = own_labels(model, images)

    def logits(x):
        out = model(x)
        return out * bad if len(model.sizes) > 1 + forward else out

    with pytest.raises(NonFiniteLoss, match="NaN or infinite"):
        surviving(logits, images, labels, linf(0.01, 0.01, 2), last_iterate=last_iterate)


def test_kl_from_the_clean_image_is_refused():
    model, (images, labels) = Net(), batch()
    with pytest.raises(UserError, match="random start"):
        surviving(model, images, labels, linf(loss="kl", random_start=False))


def test_empty_batch():
    model, (images, labels) = Net(), batch()
    assert pgd(model, images[:0], labels[:0], linf()).shape == images[:0].shape
    assert surviving(model, images[:0], labels[:0], linf()).shape == (0,)
