"""PromptedCLIP: CLIP where nothing is prompted, and training that touches prompts only."""

import copy

import clip
import plain_clip
import pytest
import torch
import torch.nn.functional as F
from plain_clip import assert_same, layout

from apd.clip import build_prompted_clip

NAMES = ["cat", "golden_retriever", "yellow_lady's_slipper", "ox"]
METHODS = {
    "text": dict(n_ctx_text=2, depth_text=3),
    "text-chunked": dict(n_ctx_text=2, depth_text=3, text_chunk=2),
    "class-specific": dict(n_ctx_text=2, class_specific=True, position="middle"),
    "visual": dict(n_ctx_visual=2, depth_visual=3),
    "both": dict(n_ctx_text=2, depth_text=3, n_ctx_visual=3, depth_visual=2),
    "coupled": dict(n_ctx_text=2, depth_text=3, coupled="text-to-visual"),
}
every_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


@pytest.fixture(params=["vit", "resnet"])
def backbone(request):
    return request.getfixturevalue(request.param)


def random_images(clip_model, batch=4):
    size = clip_model.visual.input_resolution
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalise(images):
    """As OpenAI's own preprocessing."""
    return clip.clip._transform(images.shape[-1]).transforms[-1](images)


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# -- no prompts: CLIP itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["a photo of a {}.", "{} texture.", "a photo of a {}, a type of pet.", "{}", "a {}"]
)
def test_hand_written_prompts_give_clips_own_text_features(backbone, template):
    model = build_prompted_clip(backbone, NAMES, templates=[template])
    sentences = [template.format(name.replace("_", " ")) for name in NAMES]
    want = F.normalize(backbone.encode_text(clip.tokenize(sentences)), dim=-1)
    assert (model.text_features() - want).abs().max() < 1e-6


def test_without_prompts_images_give_clips_own_features(backbone):
    model = build_prompted_clip(backbone, NAMES)
    images = random_images(backbone)
    want = F.normalize(backbone.encode_image(normalise(images)), dim=-1)
    assert (model.image_features(images) - want).abs().max() < 1e-6


def test_without_prompts_logits_are_clips_own(backbone):
    model = build_prompted_clip(backbone, NAMES, templates=["{}"])
    images = random_images(backbone)
    want, _ = backbone(normalise(images), clip.tokenize([n.replace("_", " ") for n in NAMES]))
    assert (model(images) - want).abs().max() < 1e-6 * backbone.logit_scale.exp()


def test_forward_is_logits_of_features(vit):
    model = build_prompted_clip(vit, NAMES, **METHODS["both"])
    images = random_images(vit)
    image, text = model.image_features(images), model.text_features()
    assert torch.equal(model(images), model.logits(image, text))
    assert torch.allclose(image.norm(dim=-1), torch.ones(4))
    assert torch.allclose(text.norm(dim=-1), torch.ones(4))
    assert_same(model(images), vit.logit_scale.exp() * (image @ text.t()), 1e-6)


# -- prompts reach both encoders --------------------------------------------------------------


@every_method
def test_logits_are_those_of_the_plain_encoders_with_these_prompts(vit64, options):
    torch.manual_seed(0)
    model = build_prompted_clip(vit64, NAMES, **options)
    for weight in model.prompt_learner.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    images = random_images(vit64).double()
    n_ctx, position = options.get("n_ctx_text", 0), options.get("position", "end")
    words = "" if n_ctx else "a photo of a"
    layouts = [layout(name, n_ctx, words, position=position) for name in NAMES]
    learner = model.prompt_learner
    text = plain_clip.text_features(vit64, layouts, learner.text_contexts())
    image = plain_clip.image_features(
        vit64.visual, (images - model.mean) / model.std, learner.visual_contexts()
    )
    cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
    assert_same(model(images), vit64.logit_scale.exp() * cosine, 1e-10)


def test_modality_names_what_is_prompted(vit):
    modality = {
        name: build_prompted_clip(vit, NAMES, **options).modality
        for name, options in {**METHODS, "none": {}}.items()
    }
    assert modality == {
        "text": "text",
        "text-chunked": "text",
        "class-specific": "text",
        "visual": "visual",
        "both": "text + visual",
        "coupled": "text + visual",
        "none": "none",
    }


# -- only prompts are trained -----------------------------------------------------------------


@every_method
def test_gradients_flow_to_prompts_only(vit, options):
    thawed = copy.deepcopy(vit).requires_grad_(True)  # as clip.load gives it
    model = build_prompted_clip(thawed, NAMES, **options).train()
    F.cross_entropy(model(random_images(vit)), torch.arange(4)).backward()
    prompts = dict(model.prompt_learner.named_parameters())
    frozen = list(model.clip.parameters()) + list(model.class_prompts.parameters())
    assert len(frozen) == len(list(vit.parameters()))
    assert sum(weight.grad is not None for weight in frozen) == 0
    assert not any(weight.requires_grad for weight in frozen)
    assert len(prompts) > 0
    assert [name for name, weight in prompts.items() if not weight.grad.abs().max() > 0] == []
    assert len(list(model.parameters())) == len(frozen) + len(prompts)


@every_method
def test_image_gradients_leave_no_gradient_on_prompts(vit, options):
    model = build_prompted_clip(vit, NAMES, **options)
    images = random_images(vit).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).logsumexp(-1).sum(), images)
    assert gradient.flatten(1).abs().amax(1).min() > 0
    assert all(weight.grad is None for weight in model.parameters())


def test_train_mode_leaves_clip_in_eval_mode(resnet):
    thawed = copy.deepcopy(resnet).train()
    model = build_prompted_clip(thawed, NAMES, n_ctx_text=2)
    want = build_prompted_clip(resnet, NAMES, n_ctx_text=2)
    want.prompt_learner.load_state_dict(model.prompt_learner.state_dict())
    images = random_images(resnet)
    for mode in (None, True, False):  # None: as built
        if mode is not None:
            model.train(mode)
            assert model.training is model.prompt_learner.training is mode
        assert not any(module.training for module in model.clip.modules())
        assert torch.equal(model(images), want(images))
    for name, value in resnet.state_dict().items():  # batch norm's statistics too
        assert torch.equal(model.clip.state_dict()[name], value), name


# -- checkpoints --------------------------------------------------------------------------------


def test_state_dict_holds_prompts_only(vit):
    keys = {
        name: set(build_prompted_clip(vit, NAMES, **options).prompt_learner.state_dict())
        for name, options in METHODS.items()
    }
    text = {"text.0", "text.1", "text.2"}
    assert keys == {
        "text": text,
        "text-chunked": text,
        "class-specific": {"text.0"},
        "visual": {"visual.0", "visual.1", "visual.2"},
        "both": text | {"visual.0", "visual.1"},
        "coupled": text | {f"projections.{i}.{w}" for i in range(3) for w in ("weight", "bias")},
    }


def test_class_names_are_in_no_checkpoint(vit):
    model = build_prompted_clip(vit, NAMES, **METHODS["both"])
    assert not model.class_prompts.state_dict()
    assert all(key.startswith(("clip.", "prompt_learner.")) for key in model.state_dict())


@pytest.mark.parametrize("name", ["text", "both", "coupled"])
def test_prompts_load_into_a_model_of_other_classes(vit64, name):
    others = ["a rather long name of a class", "dog"]
    torch.manual_seed(0)
    trained = build_prompted_clip(vit64, NAMES, **METHODS[name]).prompt_learner
    model = build_prompted_clip(vit64, others, **METHODS[name])
    before = model.text_features()
    model.prompt_learner.load_state_dict(trained.state_dict())
    layouts = [layout(name, 2) for name in others]
    want = plain_clip.text_features(vit64, layouts, trained.text_contexts())
    assert_same(model.text_features(), F.normalize(want, dim=-1), 1e-10)
    assert (before - model.text_features()).abs().max() > 1e-4


# -- the fixed text ---------------------------------------------------------------------------


def test_fixed_text_is_encoded_once(vit):
    vit = copy.deepcopy(vit)
    calls = count_calls(vit.transformer.resblocks[0].attn.out_proj)
    model = build_prompted_clip(vit, NAMES, **METHODS["visual"]).train()
    model(random_images(vit)).sum().backward()
    once = len(calls)
    assert once > 0
    model(random_images(vit))
    model.text_features()
    assert len(calls) == once


def test_learned_text_is_encoded_at_each_call(vit):
    model = build_prompted_clip(vit, NAMES, **METHODS["text"])
    before = model.text_features().detach()
    with torch.no_grad():
        for weight in model.prompt_learner.parameters():
            weight.normal_()
    assert (model.text_features() - before).abs().max() > 1e-4


def test_text_chunk_bounds_the_classes_encoded_together(vit):
    vit, batches = copy.deepcopy(vit), []
    vit.transformer.resblocks[1].mlp.register_forward_hook(lambda _, x, y: batches.append(len(y)))
    model = build_prompted_clip(vit, NAMES, n_ctx_text=2, text_chunk=3)
    model.text_features()
    assert batches == [1, 3, 1]  # what they share, then 3 + 1 classes


def test_fixed_text_first_needed_in_half_precision_is_full_precision_later(vit):
    model = build_prompted_clip(vit, NAMES)
    with torch.autocast("cpu", torch.bfloat16):
        model(random_images(vit))
    assert torch.equal(model.text_features(), build_prompted_clip(vit, NAMES).text_features())


@every_method
def test_text_first_needed_in_inference_mode_can_be_trained_with_later(vit, options):
    model = build_prompted_clip(vit, NAMES, **options)
    with torch.inference_mode():
        model(random_images(vit))
    model(random_images(vit)).sum().backward()


@every_method
def test_autocast_gives_nearly_the_same_logits_and_trains(vit, options):
    model = build_prompted_clip(vit, NAMES, **options)
    images = random_images(vit)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    logits.sum().backward()
    assert_same(logits.float(), model(images), 0.05)
    assert all(weight.grad.isfinite().all() for weight in model.prompt_learner.parameters())
