"""The short text pass equals the full 77 positions, in features and in every gradient."""

import clip
import plain_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_clip import assert_same, layout

import apd.clip.text
from apd.clip import ClassPrompts, encode_text
from apd.clip.text import read_alike
from apd.errors import UserError

NAMES = ["cat", "golden retriever", "st. bernard", "yellow_lady's_slipper", "707-320", "ox"]
LONG = "a very long winded name of some forgotten species of small brown desert beetle"
# of three lengths
MANY = [f"{size}{kind}" for size in ("", "big ", "very big ") for kind in range(100, 117)][::-1]


def random_contexts(model, n_ctx, depth, classes=0, seed=0):
    """Context of the embedding's size; the first layer's is class-specific with ``classes``."""
    generator = torch.Generator().manual_seed(seed)
    like = model.token_embedding.weight
    shapes = [(n_ctx, like.shape[1])] * depth
    if classes:
        shapes[0] = (classes, *shapes[0])
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).mul(0.3).to(like.dtype)
        for shape in shapes
    ]


def features_and_gradients(encode, contexts):
    """``encode(contexts)`` and the gradients of its weighted sum w.r.t. each context."""
    contexts = [context.clone().requires_grad_() for context in contexts]
    features = encode(contexts)
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((features * weights.to(features)).sum(), contexts)
    return [features.detach(), *gradients]


def check(
    model,
    names,
    contexts,
    *,
    words=None,
    position="end",
    chunks=(0,),
    reference=None,
    tolerance=1e-10,
):
    """``encode_text`` on ``model`` against all 77 positions on ``reference``, in float64."""
    n_ctx = contexts[0].shape[-2]
    words = words or " ".join(["X"] * n_ctx)
    layouts = [layout(name, n_ctx, words, position=position) for name in names]
    want = features_and_gradients(
        lambda contexts: plain_clip.text_features(reference or model, layouts, contexts),
        [context.double() for context in contexts],
    )
    prompts = ClassPrompts(
        model,
        names,
        n_ctx=n_ctx,
        words=words,
        position=position,
        class_specific=contexts[0].dim() == 3,
    )
    for chunk in chunks:
        got = features_and_gradients(
            lambda contexts, chunk=chunk: encode_text(model, prompts, contexts, chunk=chunk),
            contexts,
        )
        for a, b in zip(got, want, strict=True):
            assert_same(a, b, tolerance)
    return prompts


def test_the_reference_is_clips_own_text_encoder(vit, vit64):
    layouts = [layout(name, 0, ending=" on a table.") for name in NAMES]
    tokens = clip.tokenize([f"{name.replace('_', ' ')} on a table." for name in NAMES])
    assert [ids[: len(s)].tolist() for ids, s in zip(tokens, layouts)] == layouts
    want = vit.encode_text(tokens)
    assert_same(plain_clip.text_features(vit64, layouts, []).float(), want, 1e-5)


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "class-specific"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_ctx", [1, 2, 4, 5])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_equals_all_77_positions(vit64, position, n_ctx, depth, class_specific):
    contexts = random_contexts(vit64, n_ctx, depth, len(NAMES) if class_specific else 0)
    check(vit64, NAMES, contexts, position=position, chunks=(0, 4))


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "class-specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_equals_all_77_positions_in_float32(vit, vit64, position, class_specific):
    contexts = random_contexts(vit, 4, 2, len(NAMES) if class_specific else 0)
    check(vit, NAMES, contexts, position=position, chunks=(0, 4), reference=vit64, tolerance=1e-5)


@pytest.mark.parametrize("n_ctx", [1, 2, 4])
def test_words_beyond_the_learned_ones_stay_fixed(vit64, n_ctx):
    contexts = random_contexts(vit64, n_ctx, 3)
    prompts = check(vit64, NAMES, contexts, words="a photo of a", chunks=(0, 4))
    assert prompts.prefix == 5  # the fixed words are shared too


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "class-specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(
    "names",
    [
        ["cat"],
        ["cat", "dog", "ox"],
        ["cat", "cat"],
        ["cat", LONG, "dog", f"{LONG} and its {LONG}"],
        ["x", "x x", "x x x"],  # the placeholder itself
        ["big cat", "big dog", "big cat house"],  # a common front
        ["cat. dog", "cat"],  # one prompt begins like the other
        ["St. Bernard No.", "cat (!)", "dog (.."],  # punctuation that joins the full stop
    ],
    ids=["one", "same-length", "equal", "long", "placeholder", "front", "inside", "punctuation"],
)
def test_any_class_names(vit64, names, position, class_specific):
    contexts = random_contexts(vit64, 3, 2, len(names) if class_specific else 0)
    check(vit64, names, contexts, position=position, chunks=(0, 1))


@pytest.mark.parametrize(
    ("position", "class_specific"), [("end", False), ("middle", False), ("front", True)]
)
def test_many_classes_in_groups_of_similar_length(vit64, position, class_specific, monkeypatch):
    monkeypatch.setattr(apd.clip.text, "_MIN_GROUP", 16)
    contexts = random_contexts(vit64, 2, 2, len(MANY) if class_specific else 0)
    prompts = check(vit64, MANY, contexts, position=position, chunks=(0, 12))
    groups = prompts.groups()
    assert len(groups) > 2
    assert sorted(torch.cat([group for group, _ in groups]).tolist()) == list(range(len(MANY)))
    assert len({end for _, end in groups}) == len(groups)
    assert max(len(group) for group, _ in prompts.groups(12)) == 12


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_prompt_equals_all_77_positions(vit64, data):
    word = st.sampled_from(["cat", "x", "big", "retriever", "747", "ox_tail", "lady's", "(grey)"])
    name = st.lists(word, min_size=1, max_size=5).map(" ".join)
    names = data.draw(st.lists(name, min_size=1, max_size=6), label="names")
    n_ctx = data.draw(st.integers(1, 6), label="n_ctx")
    position = data.draw(st.sampled_from(["end", "middle", "front"]), label="position")
    depth = data.draw(st.integers(1, 3), label="depth")
    classes = data.draw(st.sampled_from([0, len(names)]), label="classes")
    chunk = data.draw(st.integers(0, 4), label="chunk")
    contexts = random_contexts(vit64, n_ctx, depth, classes, seed=n_ctx)
    check(vit64, names, contexts, position=position, chunks=(chunk,))


@pytest.fixture
def runs(monkeypatch):
    """What ``encode_text`` runs: (classes, positions before, positions) of each block's call."""
    seen = []
    attend = apd.clip.text.attend

    def spy(module, x, *, past=None, **options):
        seen.append((len(x), past[0].shape[2] if past else 0, x.shape[1]))
        return attend(module, x, past=past, **options)

    for module in (apd.clip.blocks, apd.clip.text):  # of all blocks but the last, of the last
        monkeypatch.setattr(module, "attend", spy)
    return seen


def test_a_unified_context_is_run_once_for_all_classes(vit, runs):
    prompts = ClassPrompts(vit, ["cat", "golden retriever"], n_ctx=4, words="X X X X")
    encode_text(vit, prompts, random_contexts(vit, 4, 3))
    # 1 start + 4 context tokens; then the longest rest: golden, retriever, full stop, end
    assert runs == [(1, 0, 5)] * 3 + [(2, 5, 4)] * 3


def test_a_class_specific_context_shares_the_start_token_only(vit, runs):
    names = ["cat", "golden retriever"]
    prompts = ClassPrompts(vit, names, n_ctx=4, words="X X X X", class_specific=True)
    encode_text(vit, prompts, random_contexts(vit, 4, 3, classes=2))
    assert runs == [(1, 0, 1)] * 3 + [(2, 1, 8)] * 3


def test_short_names_do_not_pay_for_a_long_one(vit, runs):
    prompts = ClassPrompts(vit, ["cat"] * 40 + ["dog"] * 40 + [LONG], n_ctx=2, words="X X")
    encode_text(vit, prompts, random_contexts(vit, 2, 1))
    rest = len(plain_clip.tokens(LONG)) + 2  # and full stop and end
    assert runs == [(1, 0, 3)] * 3 + [(80, 3, 3)] * 3 + [(1, 3, rest)] * 3


def test_chunks_bound_the_classes_run_together(vit, runs):
    prompts = ClassPrompts(vit, MANY, n_ctx=2, words="X X")
    encode_text(vit, prompts, random_contexts(vit, 2, 1), chunk=16)
    assert max(classes for classes, _, _ in runs) == 16


def test_chunks_are_recomputed_in_the_backward_pass(vit, runs):
    prompts = ClassPrompts(vit, NAMES, n_ctx=2, words="X X")

    def backward(chunk):
        runs.clear()
        contexts = [c.requires_grad_() for c in random_contexts(vit, 2, 1)]
        features = encode_text(vit, prompts, contexts, chunk=chunk)
        forward = len(runs)
        features.sum().backward()
        return forward, len(runs) - forward

    assert backward(chunk=0) == (3 + 3, 0)
    assert backward(chunk=3) == (3 + 2 * 3, 2 * 3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_prompt_over_77_tokens_names_the_class(vit, position):
    fits = " ".join(["cat"] * 70)
    words = "X X X X"
    ClassPrompts(vit, ["dog", fits], n_ctx=4, words=words, position=position)  # 77 exactly
    with pytest.raises(UserError, match='class "cat cat.* 78 tokens.* 77'):
        ClassPrompts(vit, ["dog", f"{fits}_cat"], n_ctx=4, words=words, position=position)


@pytest.mark.parametrize(
    "one, other",
    [
        *(("cat", "cat "), ("hot dog", "hot  dog"), ("hot_dog", "Hot dog"), ("a_b", "a__b")),
        *(("salt & pepper", "salt &amp; pepper"), ("chef's hat", "chef\u2019s hat")),
    ],
)
def test_class_names_that_make_one_prompt_are_found(one, other):
    assert read_alike(["dog", one, "horse", other]) == [[one, other]]


@given(st.lists(st.text("aA_ \t'&;.-\u2019amp", max_size=6), min_size=2, max_size=4))
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_class_names_are_alike_where_the_clip_packages_tokens_are(names):
    rows = clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names]).tolist()
    groups = [[name for name, row in zip(names, rows) if row == first] for first in rows]
    expected = [
        group for i, group in enumerate(groups) if len(group) > 1 and group not in groups[:i]
    ]
    assert read_alike(names) == expected
