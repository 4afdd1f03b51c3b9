"""Each method's logits, loss and gradients are those of the plain computation, to 1e-8."""

import copy
import shlex
from functools import partial
from types import SimpleNamespace

import plain_methods as plain
import pytest
import torch
from PIL import Image
from plain_clip import assert_same
from torchvision.transforms.functional import to_tensor

THREAT = {"eps": 8, "alpha": 3, "steps": 3}  # reaches the borders of the ball and of [0, 1]
ATTACK = [x for key, value in THREAT.items() for x in (f"AT.TRAIN.{key.upper()}", value)]
PALPHA = 0.5  # turns many signs
DEPTHS = {"one": (1, 1), "middle": (2, 2), "full": (4, 3)}  # of 4 text and 3 visual layers

# the text: templates, or what stands before the class name
PHOTO = ["a photo of a {}."]
OTHERS = ["{} texture.", "a {}"]
ENSEMBLE = [  # CoOp's
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    *PHOTO,
]
WORDS = {"n_ctx": 2, "words": "a photo of a"}  # "of a" is not learned
TEMPLATE = {"n_ctx": 2, "words": "a photo of a {}."}  # FAP's published code leaves the "{}" in

adversarial = partial(plain.adversarial, **THREAT)
BATCHES = {
    "adv_full": adversarial,
    "adv_half": partial(adversarial, first=2),  # of 5 images
    "clean": plain.clean,
}
STRATEGIES = {
    "onfly": plain.up_ce,
    "constant": plain.up_ce_of_constant,
    "perturbed": partial(plain.up_ce_with_prompts, rate=PALPHA),
}
TERMS = {"CE": 0.3, "KD": 0.7, "NAT": 0.2, "KD_NAT": 0.5, "IMG": 0.4, "TXT": 0.6}
MAPS = {"ADV": 0.4, "VAA": 1.0, "TAA": 10.0}  # all of a size
MAPS_KEYS = " ".join(f"TRAINER.CBAFAPT.LAMBDA_{term} {weight}" for term, weight in MAPS.items())
EVERY = {"weights": TERMS, "tau": 2.0, "beta": 0.5}


def case(name, method, options, text, shapes, loss, coupling="", teacher=None):
    """``shapes``: (M,) or (C, M) of each text layer's context, of each visual layer's.
    ``teacher``: APD's, its text and backbone."""
    return pytest.param(SimpleNamespace(**locals()), id=f"{method}-{name}")


def text_cases():
    yield case("photo", "ZeroshotCLIP", "", PHOTO, ([], []), plain.clean)
    own = f'TRAINER.PROMPT.TEMPLATES "{OTHERS}"'
    yield case("own", "ZeroshotCLIP", own, OTHERS, ([], []), plain.clean)
    yield case("ensemble", "ZeroshotCLIP2", "", ENSEMBLE, ([], []), plain.clean)

    words = {"n_ctx": 3, "words": "this is my"}
    options = "TRAINER.COOP.CTX_INIT this_is_my"
    yield case("words", "CoOp", options, words, ([(3,)], []), plain.clean)
    for position in ("end", "middle", "front"):
        for csc in (False, True):
            name, text = f"{position}{'-csc' * csc}", {"n_ctx": 5, "position": position}
            shapes = ([(4, 5) if csc else (5,)], [])
            options = (
                f"TRAINER.COOP.CLASS_TOKEN_POSITION {position} TRAINER.COOP.CSC {csc} "
                "TRAINER.COOP.N_CTX 5"
            )
            yield case(name, "CoOp", options, text, shapes, plain.clean)
            yield case(name, "APT", options, text, shapes, adversarial)
    for strategy, up in STRATEGIES.items():
        for batch, loss in BATCHES.items():
            shapes = ([(4,)], [])
            options = (
                "TRAINER.COOP.N_CTX 4 "
                f"AT.TRAIN.PROMPT {strategy} AT.TRAIN.PALPHA {PALPHA} "
                f"AT.TRAIN.AT_LOSS_TYPE {batch}"
            )
            loss = loss if batch == "clean" else partial(loss, up=up)
            yield case(f"{strategy}-{batch}", "APT", options, {"n_ctx": 4}, shapes, loss)


def deep_cases():
    for name, (text, visual) in DEPTHS.items():
        only_visual, both = ([], visual * [(3,)]), (text * [(2,)], visual * [(3,)])
        coupled = (visual * [(2,)], visual * [(2,)])

        def vpt(section):
            section = f"TRAINER.{section}"
            return f"{section}.PROMPT_DEPTH_VISION {visual} {section}.N_CTX_VISION 3 "

        def ivlp(section):
            return vpt(section) + f"TRAINER.{section}.PROMPT_DEPTH_TEXT {text} "

        def maple(section):
            return f"TRAINER.{section}.PROMPT_DEPTH {visual} "

        yield case(name, "VPT", vpt("VPT"), PHOTO, only_visual, plain.clean)
        yield case(name, "IVLP", ivlp("IVLP"), WORDS, both, plain.clean)
        yield case(name, "MaPLe", maple("MAPLE"), WORDS, coupled, plain.clean, "maple")
        for batch, loss in BATCHES.items():
            key, at = f"{name}-{batch}", f"AT.TRAIN.AT_LOSS_TYPE {batch}"
            yield case(key, "AdvVPT", vpt("AdvVPT") + at, PHOTO, only_visual, loss)
            yield case(key, "AdvIVLP", ivlp("AdvIVLP") + at, WORDS, both, loss)
            yield case(key, "AdvMaPLe", maple("AdvMaPLe") + at, WORDS, coupled, loss, "maple")
            mixed = ivlp("MMoP") + "TRAINER.MMoP.NUM_EXPERTS 3 " + at
            yield case(key, "MMoP", mixed, WORDS, both, loss, "mixtures")
        chunked = ivlp("AdvIVLP") + "TRAINER.PROMPT.TEXT_CHUNK 2"
        yield case(f"{name}-chunked", "AdvIVLP", chunked, WORDS, both, adversarial)
        chunked = ivlp("MMoP") + "TRAINER.PROMPT.TEXT_CHUNK 2"
        yield case(f"{name}-chunked", "MMoP", chunked, WORDS, both, adversarial, "mixtures")
        fap = partial(plain.fap, weight=1.5, **THREAT)
        yield case(name, "FAP", maple("FAP"), TEMPLATE, coupled, fap, "fap")
        cba = partial(plain.cbafapt, weights=MAPS, **THREAT)
        yield case(name, "CBAFAPT", maple("CBAFAPT") + MAPS_KEYS, WORDS, coupled, cba, "fap")
    fap = partial(plain.fap, weight=0.3, **THREAT)
    options = maple("FAP") + "TRAINER.FAP.LAMBDA 0.3"
    yield case("lambda", "FAP", options, TEMPLATE, coupled, fap, "fap")
    cba = partial(plain.cbafapt, weights={"ADV": 5, "VAA": 0.05, "TAA": 0.03}, **THREAT)
    yield case("defaults", "CBAFAPT", maple("CBAFAPT"), WORDS, coupled, cba, "fap")
    cba = partial(plain.cbafapt, weights=MAPS, logit=False, **THREAT)
    options = maple("CBAFAPT") + MAPS_KEYS + " TRAINER.CBAFAPT.SCORE cosine"
    yield case("cosine", "CBAFAPT", options, WORDS, coupled, cba, "fap")


def apd_cases():
    def apd(name, options="", *, depth=(2, 2), coupling="", mode="online", teacher=None, **loss):
        weights = dict.fromkeys(TERMS, 0) | loss["weights"]
        values = {f"LAMBDA_{term}": weight for term, weight in weights.items()}
        values |= {"TAU": loss.get("tau", 1), "BETA": loss.get("beta", 0)}
        values |= {"PROMPT_DEPTH_TEXT": depth[0], "PROMPT_DEPTH_VISION": depth[1]}
        values |= {"ATTACK_LOSS": loss.get("attack", "ce"), "TEACHER.MODE": mode}
        options += " ".join(f" TRAINER.APD.{key} {value}" for key, value in values.items())
        loss = partial(plain.apd, online=mode == "online", **THREAT, **loss)
        teacher = teacher or {"text": WORDS, "backbone": "own"}
        shapes = tuple(layers * [(2,)] for layers in depth)
        return case(name, "APD", options, WORDS, shapes, loss, coupling, teacher)

    for name, depth in DEPTHS.items():
        for attack in ("ce", "kl"):
            yield apd(f"{name}-{attack}", depth=depth, attack=attack, **EVERY)
    for mode in ("offline", "checkpoint"):
        yield apd(mode, mode=mode, attack="kl", **EVERY)
    yield apd("frozen", mode="frozen", teacher={"text": PHOTO, "backbone": "own"}, **EVERY)
    for term in TERMS:
        yield apd(term, weights={"CE": 0.5, term: 1.5})
    yield apd("defaults", weights={"CE": 0.5, "KD": 0.5})
    yield apd("coupled", "TRAINER.APD.COUPLED True", coupling="maple", **EVERY)
    other = {"text": WORDS, "backbone": "other"}
    yield apd("other", "TRAINER.APD.TEACHER.BACKBONE other", teacher=other, weights={"KD": 1})


def prompts_of(model):
    return dict(model.prompt_learner.named_parameters())


@pytest.mark.parametrize("case", [*text_cases(), *deep_cases(), *apd_cases()])
def test_logits_loss_and_gradients(trainer64, backbones, names, batch, case):
    trainer = trainer64(case.method, *ATTACK, *shlex.split(case.options))
    images, labels = batch
    student = plain.Plain(
        backbones["own"].clip, names, case.text, prompts_of(trainer.model), case.coupling
    )
    shapes = ([tuple(c.shape[:-1]) for c in contexts] for contexts in student.contexts())
    assert tuple(shapes) == case.shapes
    assert_same(trainer.model(images), student.logits(images), 1e-8)
    models, prompts = [student], {"prompt_learner": student.prompts}
    if case.teacher:
        teacher = plain.Plain(
            backbones[case.teacher["backbone"]].clip,
            names,
            case.teacher["text"],
            prompts_of(trainer.teacher),
        )
        models.append(teacher)
        prompts["teacher"] = teacher.prompts

    torch.manual_seed(3)  # of the attack's start
    loss = trainer.losses(images, labels)["loss"]
    torch.manual_seed(3)
    wanted = case.loss(*models, images, labels)
    assert_same(loss, sum(wanted.values()), 1e-8)
    trained = {name for name, model in trainer._models.items() if trainer._optims[name]}
    assert trained == {name for name in wanted if prompts[name]}
    for model in trained:
        for prompt in prompts[model].values():
            (got,) = torch.autograd.grad(loss, prompt, retain_graph=True)
            (want,) = torch.autograd.grad(wanted[model], prompt, retain_graph=True)
            assert_same(got, want, 1e-8)


@pytest.mark.parametrize("attack", ["ce", "kl"])
def test_apd_of_two_teachers_learns_from_the_mean_of_their_probabilities(
    trainer64, backbones, names, batch, attack
):
    weights = {"CE": 0.3, "KD": 0.7, "KD_NAT": 0.5, "IMG": 0, "TXT": 0, "NAT": 0}
    options = [f"TRAINER.APD.LAMBDA_{k} {w}" for k, w in weights.items()]
    options += [f"TRAINER.APD.ATTACK_LOSS {attack} TRAINER.APD.TEACHER.MODE auto"]
    trainer = trainer64("APD", *ATTACK, *shlex.split(" ".join(options)))
    trainer.take({"taken": "mean"})
    clip = backbones["own"].clip
    student = plain.Plain(clip, names, WORDS, prompts_of(trainer.model))
    tuned = plain.Plain(clip, names, WORDS, prompts_of(trainer.teacher))
    frozen = plain.Plain(clip, names, PHOTO, {})
    teacher = copy.copy(tuned)
    both = tuned, frozen
    teacher.logits = lambda x: (sum(one.logits(x).softmax(1) for one in both) / 2).log()
    torch.manual_seed(3)
    loss = trainer.losses(*batch)["loss"]
    torch.manual_seed(3)
    wanted = plain.apd(student, teacher, *batch, weights, False, attack=attack, **THREAT)
    (want,) = wanted.values()
    assert_same(loss, want, 1e-8)
    for prompt in student.prompts.values():
        got, other = (torch.autograd.grad(x, prompt, retain_graph=True)[0] for x in (loss, want))
        assert_same(got, other, 1e-8)


def test_advpt_embeds_attacked_images_and_minimises_ce_on_them(trainer64, backbones, names, root):
    trainer = trainer64("AdvPT", *ATTACK, "TRAINER.ADV.N_CTX", 4)
    parse, batches = trainer.parse_batch_train, []

    def parse64(batch):
        images, labels = parse(batch)
        batches.append((images.double(), labels))
        return batches[-1]

    trainer.parse_batch_train = parse64
    stored = trainer.adversarial_embeddings()
    embeddings = torch.stack([item["img"] for item in stored])
    labels = torch.stack([item["label"] for item in stored])
    ((images, _),) = batches
    files = [root / "things" / "train" / name / "0.png" for name in names]
    assert labels.tolist() == [0, 1, 2, 3]
    assert_same(images, torch.stack([to_tensor(Image.open(file)).double() for file in files]), 0)

    student = plain.Plain(backbones["own"].clip, names, {"n_ctx": 4}, prompts_of(trainer.model))
    generator = torch.Generator().manual_seed(trainer.cfg.SEED)
    wanted = plain.advpt_embeddings(student, images, generator, **THREAT)
    assert_same(embeddings, wanted, 1e-8)
    loss = trainer.losses(embeddings, labels)["loss"]
    want = plain.ce(student.logits_of(wanted), labels)
    assert_same(loss, want, 1e-8)
    (prompt,) = student.prompts.values()
    (got,), (want,) = (torch.autograd.grad(value, prompt) for value in (loss, want))
    assert_same(got, want, 1e-8)
