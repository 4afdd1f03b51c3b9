"""How context vectors start, and what couples them."""

import clip
import pytest
import torch

from apd.clip import CoupledPrompts, build_prompted_clip
from apd.clip.contexts import Mixture, words_of
from apd.errors import UserError

NAMES = ["cat", "golden retriever", "ox"]


def word_embeddings(clip_model, *words):
    ids = clip.tokenize(list(words))[:, 1]
    return clip_model.token_embedding.weight[ids]


@pytest.mark.parametrize("words", ["a photo of a", "a_photo_of_a"])
def test_initial_words_give_their_embeddings(vit, words):
    model = build_prompted_clip(vit, NAMES, n_ctx_text=4, depth_text=2, ctx_init=words)
    first, second = model.prompt_learner.text_contexts()
    want = word_embeddings(vit, "a", "photo", "of", "a")
    assert torch.equal(first, want)
    assert second.std() < 0.03  # the deeper layers start at random


def test_initial_words_give_the_first_embeddings_when_fewer_are_learned(vit):
    model = build_prompted_clip(vit, NAMES, n_ctx_text=2, ctx_init="a photo of a")
    (context,) = model.prompt_learner.text_contexts()
    assert torch.equal(context, word_embeddings(vit, "a", "photo"))


def test_initial_words_start_every_class_when_class_specific(vit):
    model = build_prompted_clip(vit, NAMES, n_ctx_text=2, ctx_init="a photo", class_specific=True)
    (context,) = model.prompt_learner.text_contexts()
    assert torch.equal(context, word_embeddings(vit, "a", "photo").expand(3, -1, -1))


def test_initial_words_make_the_prompt_of_the_words_themselves(vit):
    prompted = build_prompted_clip(vit, NAMES, n_ctx_text=4, ctx_init="a photo of a")
    written = build_prompted_clip(vit, NAMES, templates=["a photo of a {}."])
    difference = prompted.text_features() - written.text_features()
    assert difference.abs().max() < 1e-6


def test_too_few_initial_words_are_not_used(vit):
    assert words_of(5, "a photo of a") == "X X X X X"
    model = build_prompted_clip(vit, NAMES, n_ctx_text=5, ctx_init="a photo of a")
    (context,) = model.prompt_learner.text_contexts()
    assert context.shape == (5, 64)
    assert context.std() < 0.03


def test_learning_the_context_leaves_the_word_embeddings_alone(vit):
    before = vit.token_embedding.weight.clone()
    model = build_prompted_clip(vit, NAMES, n_ctx_text=2, ctx_init="a photo")
    with torch.no_grad():
        for weight in model.prompt_learner.parameters():
            weight.fill_(9)
    assert torch.equal(vit.token_embedding.weight, before)


def test_random_context_has_standard_deviation_0_02(vit):
    torch.manual_seed(0)
    model = build_prompted_clip(
        vit,
        NAMES,
        n_ctx_text=16,
        depth_text=3,
        n_ctx_visual=16,
        depth_visual=3,
        class_specific=True,
    )
    shapes = [tuple(weight.shape) for weight in model.prompt_learner.parameters()]
    assert shapes == [(3, 16, 64), (16, 64), (16, 64)] + [(16, 128)] * 3
    for weight in model.prompt_learner.parameters():
        assert weight.std().item() == pytest.approx(0.02, rel=0.08)
        assert abs(weight.mean().item()) < 0.002


@pytest.mark.parametrize("coupled", ["", "text-to-visual", "visual-to-text"])
def test_the_same_seed_gives_the_same_prompts(vit, coupled):
    def prompts(seed):
        torch.manual_seed(seed)
        model = build_prompted_clip(
            vit, NAMES, n_ctx_text=2, depth_text=2, n_ctx_visual=2, depth_visual=2, coupled=coupled
        )
        return torch.cat([weight.flatten() for weight in model.prompt_learner.parameters()])

    assert torch.equal(prompts(1), prompts(1))
    assert not torch.equal(prompts(1), prompts(2))


@pytest.fixture
def coupled():
    torch.manual_seed(0)
    return CoupledPrompts([torch.randn(2, 8) for _ in range(3)], vision_width=6)


def test_coupled_visual_context_is_the_projected_text_context_of_its_layer(coupled):
    weights = coupled.state_dict()
    with torch.no_grad():
        for weight in coupled.projections.parameters():
            weight.normal_()  # no two layers alike
    visual = coupled.visual_contexts()
    assert len(visual) == 3
    for i, context in enumerate(visual):
        weight, bias = weights[f"projections.{i}.weight"], weights[f"projections.{i}.bias"]
        want = weights[f"text.{i}"] @ weight.t() + bias
        assert torch.allclose(context, want, atol=1e-6)


def test_coupled_deeper_projections_start_equal_and_are_learned_apart(coupled):
    first, second, third = coupled.projections
    assert torch.equal(second.weight, third.weight)
    assert torch.equal(second.bias, third.bias)
    assert not torch.equal(first.weight, second.weight)
    assert second.weight is not third.weight


def test_coupled_visual_context_trains_text_and_projection(coupled):
    sum(context.square().sum() for context in coupled.visual_contexts()).backward()
    gradients = {name: weight.grad for name, weight in coupled.named_parameters()}
    assert len(gradients) == 3 * 3
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize("modality", ["text", "visual"])
def test_a_depth_that_does_not_fit_the_encoder_is_refused(vit, modality, depth):
    options = {f"n_ctx_{modality}": 2, f"depth_{modality}": depth}
    with pytest.raises(UserError, match=f"{modality} prompt depth {depth} .*3 layers.* 1 to 3"):
        build_prompted_clip(vit, NAMES, **options)


@pytest.mark.parametrize(
    "options", [{"n_ctx_visual": 2}, {"n_ctx_text": 2, "coupled": True}], ids=["visual", "coupled"]
)
def test_visual_prompts_on_a_resnet_are_refused(resnet, options):
    with pytest.raises(UserError, match="need a ViT backbone, this one is a ResNet"):
        build_prompted_clip(resnet, NAMES, **options)


def test_a_mixture_starts_from_its_experts_and_keeps_its_scales_in_bounds():
    experts = torch.randn(3, 2, 8)
    mixture, tokens = Mixture(experts), torch.randn(4, 5, 8)
    assert torch.allclose(mixture.base, experts.mean(0))
    weights = mixture.gate(tokens.mean(1)).softmax(1)  # tau and alpha are 1
    mixed = (weights[:, :, None, None] * experts).sum(1)
    torch.testing.assert_close(mixture(tokens), mixed)
    with torch.no_grad():
        mixture.tau.fill_(-9)  # softplus 0.0001, below the least, 0.7
        mixture.alpha.fill_(9)  # above the most, 2
    weights = (mixture.gate(tokens.mean(1)) / 0.7).softmax(1)
    mixed = (weights[:, :, None, None] * experts).sum(1)
    torch.testing.assert_close(mixture(tokens), mixture.base + 2 * (mixed - mixture.base))
