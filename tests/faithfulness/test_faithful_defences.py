"""Test-time defences give the logits and gradients of the plain computation, to 1e-8."""

import plain_defences as plain
import plain_methods
import pytest
import torch
from PIL import Image
from plain_clip import assert_same
from torchvision.transforms.functional import to_tensor

PHOTO = ["a photo of a {}."]
WORDS = {"n_ctx": 2, "words": "a photo of a"}
BIMODAL = {
    "n_ctx_text": 2,
    "depth_text": 2,
    "ctx_init": "a photo of a",
    "n_ctx_visual": 3,
    "depth_visual": 2,
}
SEEDS = torch.tensor([5, 1, 4, 1, 3])


@pytest.fixture
def over(trainer64):
    """Function: a defence's trainer, with independent bimodal prompts under it."""

    def over(method, *options):
        trainer = trainer64(method, *options)
        trainer.defended_prompts = BIMODAL
        trainer.model = trainer.build_prompted_clip(trainer.clip_model, **BIMODAL)
        generator = torch.Generator().manual_seed(4)
        for weight in trainer.model.prompt_learner.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
        trainer._models["prompt_learner"] = trainer.model.prompt_learner
        return trainer

    return over


def plain_model(backbones, names, trainer, text):
    prompts = dict(trainer.model.prompt_learner.named_parameters())
    return plain_methods.Plain(backbones["own"].clip, names, text, prompts)


def slopes(logits, wanted, *inputs):
    """Gradients of a sum of logits with random weights, of both."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)).double()
    return zip(
        *(torch.autograd.grad((z * weights).sum(), inputs) for z in (logits, wanted)), strict=True
    )


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("tau", [1e-9, 0.3, 9.0])  # none, some and all are counterattacked
def test_ttc(trainer64, over, backbones, names, batch, tau, prompted):
    o = {"eps": 9, "alpha": 4, "steps": 3, "tau": tau, "beta": 0.7}
    options = [x for key, value in o.items() for x in (f"TRAINER.TTC.{key.upper()}", value)]
    trainer = (over if prompted else trainer64)("TTC", *options)
    model = plain_model(backbones, names, trainer, WORDS if prompted else PHOTO)
    clip = plain_methods.Plain(backbones["own"].clip, names, PHOTO, {})
    images = batch[0].clone().requires_grad_()
    defended = trainer.image_logits()
    noise = [
        torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(s), dtype=images.dtype)
        for s in SEEDS.tolist()
    ]
    noise = o["eps"] / 255 * (2 * torch.stack(noise) - 1)
    logits, wanted = defended.logits(images, SEEDS), plain.ttc(model, images, noise, **o, clip=clip)
    assert_same(logits, wanted, 1e-8)
    ((got, want),) = slopes(logits, wanted, images)  # that of CLIP at the counterattacked image
    assert_same(got, want, 1e-8)
    assert not torch.allclose(logits, model.logits(images), rtol=1e-3)


@pytest.fixture
def views(batch):
    """(5, 6, 3, 32, 32): random images, of which the first is the image itself."""
    generator = torch.Generator().manual_seed(8)
    others = torch.rand(5, 5, 3, 32, 32, generator=generator, dtype=torch.float64)
    views = torch.cat([batch[0][:, None], 0.5 * batch[0][:, None] + 0.5 * others], dim=1)
    return views.requires_grad_()


@pytest.mark.parametrize("prompted, steps", [(False, 1), (False, 3), (True, 2)])
def test_rtpt(trainer64, over, backbones, names, batch, views, monkeypatch, prompted, steps):
    o = {"STEPS": steps, "LR": 0.05, "CONFIDENT": 0.5, "NEIGHBOURS": 2, "TEMPERATURE": 0.1}
    options = [x for key, value in o.items() for x in (f"TRAINER.RTPT.{key}", value)]
    trainer = (over if prompted else trainer64)("RTPT", *options)
    text = WORDS if prompted else {"n_ctx": 4, "words": "a photo of a"}
    model = plain_model(backbones, names, trainer, text)
    texts = {n: p for n, p in model.prompts.items() if n.startswith("text")}
    fixed = {n: p for n, p in model.prompts.items() if not n.startswith("text")}
    monkeypatch.setattr("apd.trainers.rtpt.random_views", lambda *_: views)
    logits = trainer.image_logits().logits(batch[0].clone().requires_grad_(), SEEDS)
    tuned = TextOnly(model, texts, fixed)
    wanted = plain.rtpt(tuned, views, steps, 0.05, 0.5, 2, 0.1)
    assert_same(logits, wanted, 1e-8)
    ((got, want),) = slopes(logits, wanted, views)  # through the steps of tuning
    assert_same(got, want, 1e-8)

    monkeypatch.setattr(type(trainer), "backward", "surrogate")
    again = trainer.image_logits().logits(batch[0].clone().requires_grad_(), SEEDS)
    assert_same(again, wanted, 1e-8)
    ((other, want),) = slopes(again, plain.rtpt(tuned, views, steps, 0.05, 0.5, 2, 0.1), views)
    assert (other - want).abs().max() > 1e-4 * want.abs().max()  # tuned prompts are constant there


class TextOnly:
    """A plain model of whose prompts only those of the text are tuned."""

    def __init__(self, model, texts, fixed):
        self.model, self.prompts, self.fixed = model, texts, fixed

    def with_prompts(self, texts):
        return self.model.with_prompts({**texts, **self.fixed})

    def logits(self, images):
        return self.model.logits(images)

    def image(self, images):
        return self.model.image(images)


@pytest.mark.parametrize("steps, layers", [(1, (0, 3)), (2, (1, 4))])
def test_tapt(over, backbones, names, batch, views, root, monkeypatch, steps, layers):
    first, last = layers
    o = {"STEPS": steps, "LR": 0.02, "CONFIDENT": 0.5, "DISTR_W": 5.0, "GAMMA": 0.3}
    o |= {"LAYER_FROM": first, "LAYER_TO": last}
    options = [x for key, value in o.items() for x in (f"TRAINER.TAPT.{key}", value)]
    threat = {"eps": 8, "alpha": 3, "steps": 2}
    options += [x for key, value in threat.items() for x in (f"AT.TRAIN.{key.upper()}", value)]
    trainer = over("TAPT", *options)
    parse = trainer.parse_batch_test
    trainer.parse_batch_test = lambda b: (parse(b)[0].double(), parse(b)[1])
    model = plain_model(backbones, names, trainer, WORDS)
    monkeypatch.setattr("apd.trainers.tapt.random_views", lambda *_: views)

    defended = trainer.image_logits()
    files = [root / "things" / "train" / name / "0.png" for name in names]
    clean = torch.stack([to_tensor(Image.open(file)).double() for file in files])
    labels = torch.arange(4)
    generator = torch.Generator().manual_seed(trainer.cfg.SEED)
    attacked = plain_methods.pgd(
        clean, plain_methods.up_ce(model, labels), generator=generator, **threat
    )
    statistics = []
    for images in (attacked, clean):
        tokens = plain.tokens_of(model, images).detach()
        statistics.append(plain.moments(model, tokens, correction=1))
    for (_, found), (means, variances) in zip(trainer.statistics, statistics, strict=True):
        for layer, (mean, variance) in enumerate(found):
            assert_same(mean, means[layer], 1e-8)
            assert_same(variance, variances[layer], 1e-8)

    images = batch[0].clone().requires_grad_()
    logits = defended.logits(images, SEEDS)
    wanted = plain.tapt(model, images, views, statistics, steps, 0.02, 0.5, 5.0, 0.3, first, last)
    assert_same(logits, wanted, 1e-8)
    for got, want in slopes(logits, wanted, images, views):  # through the steps of tuning
        assert_same(got, want, 1e-8)
    untuned = model.logits(batch[0])
    assert (wanted - untuned).abs().max() > 1e-2 * untuned.abs().max()
