"""Half precision must not fake robustness, nor the batch size change an attack."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_pgd import CLASSES, Net, batch, linf, own_labels

from apd import choices
from apd.attacks import PGD, pgd, seeded_start
from apd.attacks.gradient import ImageGradient, image_gradient
from apd.attacks.losses import LOSSES, loss_gradient
from apd.attacks.stream import Supply


def confident(margin):
    """A model whose logit of the predicted class has an added margin."""
    model = Net()

    def logits(images):
        z = model(images)
        return z + margin * F.one_hot(z.argmax(1), CLASSES)

    return logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("margin", [5, 15, 40])
def test_gradients_do_not_underflow_in_half_precision(dtype, margin):
    """The mean loss of a batch of 512 underflows; the weights of ``image_gradient`` do not."""
    images, _ = batch(32)
    logits_fn = confident(margin)
    labels = logits_fn(images).argmax(1)

    def gradients(loss_of):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            z = logits_fn(x)
        return loss_of(z, x)

    def mean_of_512(z, x):
        loss = F.cross_entropy(z.float(), labels, reduction="sum") / 512
        return torch.autograd.grad(loss, x)[0]

    def ours(z, x):
        with torch.enable_grad():
            leaf = z.detach().float().requires_grad_()
            loss = F.cross_entropy(leaf, labels, reduction="sum")
        return image_gradient(z, x, torch.autograd.grad(loss, leaf)[0])

    share = (gradients(ours).flatten(1) == 0).all(dim=1).float().mean()
    assert share == 0
    if dtype == torch.float16 and margin == 15:
        assert (gradients(mean_of_512).flatten(1) == 0).all(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_loss_for_logits_is_autograds_to_the_bit(loss, dtype):
    for classes, scale in product((2, 10, 100), (1, 10, 100)):
        logits = scale * torch.randn(8, classes, dtype=dtype)
        labels, reference = torch.randint(classes, (8,)), torch.randn(8, classes, dtype=dtype)
        leaf = logits.clone().requires_grad_()
        value = LOSSES[loss](leaf, labels, reference)
        (expected,) = torch.autograd.grad(value, leaf)
        assert loss_gradient(logits, labels, reference, loss).equal(expected)


def test_losses_have_the_names_that_settings_take_and_stand_in_the_documentation():
    assert tuple(LOSSES) == choices.LOSSES
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| `pgd-<k>`")]
    named = row.partition("`LOSS`")[2].partition("|")[0]
    assert set(LOSSES) <= set(re.findall(r"\w+", named))


def test_in_float32_the_scale_changes_no_bit():
    model, (images, labels) = Net(), batch()
    x = images.clone().requires_grad_()
    z = model(x)
    weights = z.detach().softmax(1) - F.one_hot(labels, CLASSES)
    (expected,) = torch.autograd.grad(z, x, weights, retain_graph=True)
    for factor in (2.0**-60, 1.0, 2.0**60):
        got = image_gradient(model(x), x, factor * weights)
        assert torch.equal(got, factor * expected)
    assert torch.equal(image_gradient(model(x), x, 0 * weights), 0 * expected)


def test_as_a_backward_pass_it_leaves_parameters_alone():
    model, (images, labels) = Net(), batch()
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    F.cross_entropy(ImageGradient.apply(x, model), labels).backward()
    F.cross_entropy(model(y), labels).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=0)
    model = Net()
    F.cross_entropy(ImageGradient.apply(x, model), labels).backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_1_and_batch_512_give_the_same_adversarial_image(norm, loss):
    """float32; the model's own sums run over one image at a time, so that they round alike."""

    def model(images):
        return torch.cat([net(image) for image in images.split(1)])

    net = Net()
    images, labels = batch(512, size=3)
    eps = 4.0 if norm == "linf" else 20.0
    stage = PGD(linf(eps, eps / 4, 3, loss=loss))
    stage = PGD(type(stage.threat)(norm, eps, eps / 4, 3, loss=loss), last_iterate=True)
    found = {}
    for size, count in ((512, 512), (1, 20)):
        rows = {"index": torch.arange(count), "image": images[:count], "label": labels[:count]}
        attacked = torch.empty_like(images[:count])
        start = seeded_start(stage.threat, 0)
        for done, _ in stage.run(Supply([rows]), model, batch_size=size, start=start):
            attacked[done["index"]] = done["attacked"]
        found[size] = attacked
    assert torch.equal(found[512][:20], found[1])
    assert (found[1] - images[:20]).abs().amax() > 0.005


def test_margin_climbs_the_best_wrong_logit():
    model, (images, labels) = Net().double(), batch()
    images = images.double()
    threat = linf(steps=1, random_start=False, loss="margin")
    attacked = pgd(model, images, labels, threat)
    x = images.clone().requires_grad_()
    z = model(x)
    rows = torch.arange(len(z))
    others = z.clone()
    others[rows, labels] = -1e9
    (gradient,) = torch.autograd.grad((others.max(1)[0] - z[rows, labels]).sum(), x)
    expected = (images + threat.alpha / 255 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_verdicts_of_an_attack_in_half_precision_are_in_float32(dtype):
    model = Net()
    images, _ = batch(40)
    labels = own_labels(model, images)
    keep = model(images).argmax(1) == labels
    rows = {"index": torch.arange(int(keep.sum())), "image": images[keep], "label": labels[keep]}
    stage = PGD(linf(3, 0.75, 6))
    lost = 0
    for done, _ in stage.run(
        Supply([rows]), model, batch_size=64, start=seeded_start(stage.threat, 0), precision=dtype
    ):
        right = model(done["attacked"]).argmax(1) == done["label"]
        assert torch.equal(right, done["right"])
        lost += int((~right).sum())
    assert 0 < lost < len(rows["index"])


@pytest.mark.parametrize("half_errs", [True, False])
def test_a_model_that_half_precision_changes_is_judged_as_it_is(half_errs):
    """Under autocast it errs always, or never; in float32 it is right on dark images only."""

    def model(images):
        dark = (images.mean(dim=(1, 2, 3)) < 0.5).float()
        if torch.is_autocast_enabled("cpu"):
            dark = dark * 0 + (not half_errs)
        return torch.stack([dark, 1 - dark], dim=1) + 1e-3 * images.mean()

    images = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    rows = {"index": torch.arange(2), "image": images, "label": torch.zeros(2).long()}
    stage, right = PGD(linf(1, 0.5, 3)), torch.zeros(2, dtype=torch.bool)
    for done, _ in stage.run(
        Supply([rows]),
        model,
        batch_size=2,
        start=seeded_start(stage.threat, 0),
        precision=torch.bfloat16,
    ):
        right[done["index"]] = done["right"]
    assert right.tolist() == [True, False]
