"""``--eval-only --model-dir`` reads what our peers' projects wrote."""

import os

import peers
import pytest
import torch

from apd.errors import UserError
from apd.host import load_checkpoint


def put(learner, contexts):
    """Set parameters of a learner by hand: {parameter: values}."""
    with torch.no_grad():
        for parameter, values in contexts:
            assert parameter.shape == values.shape
            parameter.copy_(values.half().float())
    assert len(contexts) == len(list(learner.parameters()))


def text_only(own, state):
    return [(own.text[0], state["ctx"])]


def coupled(own, state):
    learner = {k.removeprefix("prompt_learner."): v for k, v in state.items()}
    deep = "compound_prompt_projections.0"
    contexts = [
        (own.text[0], learner["ctx"]),
        (own.projections[0].weight, learner["proj.weight"]),
        (own.projections[0].bias, learner["proj.bias"]),
        (own.projections[1].weight, learner[f"{deep}.weight"]),
        (own.projections[1].bias, learner[f"{deep}.bias"]),
    ]
    if "compound_prompts_text.0" in learner:
        return [*contexts, (own.text[1], learner["compound_prompts_text.0"])]
    return [*contexts, (own.visual[0], learner["compound_prompts_image.0"])]


def visual_only(own, state):
    return [
        (own.visual[0], state["image_encoder.VPT"]),
        (own.visual[1], state["image_encoder.transformer.resblocks.1.VPT_shallow"]),
    ]


def bimodal(own, state):
    return [
        (own.text[0], state["prompt_learner.ctx"]),
        (own.text[1], state["text_encoder.transformer.resblocks.1.VPT_shallow"]),
        *visual_only(own, state),
    ]


def mixed(own, state):
    theirs = {"base": "base_prompt", "experts": "expert_prompts"}
    contexts = [
        (own.text.get_parameter("0"), state["prompt_learner.ctx"]),
        (own.visual.get_parameter("0"), state["image_encoder.VPT"]),
    ]
    for layers, encoder in ((own.text, "text_encoder"), (own.visual, "image_encoder")):
        for name, parameter in layers.get_submodule("1").named_parameters():
            name = f"{encoder}.transformer.resblocks.1.{theirs.get(name, name)}"
            contexts.append((parameter, state[name]))
    return contexts


POSITION = "TRAINER.COOP.CLASS_TOKEN_POSITION"
CASES = {
    "CoOp": ("CoOp", peers.coop, text_only),
    "CoOp, middle": ("CoOp", peers.coop, text_only, POSITION, "middle"),
    "CoOp, front": ("CoOp", peers.coop, text_only, POSITION, "front"),
    "CoOp, CSC": (
        "CoOp",
        lambda w: peers.coop(w, classes=(4,)),
        text_only,
        "TRAINER.COOP.CSC",
        True,
    ),
    "AdvCoOp": (
        "CoOp",
        lambda w: peers.coop(w, "a photo of a"),
        text_only,
        "TRAINER.COOP.CTX_INIT",
        "a photo of a",
    ),
    "APT": ("APT", peers.coop, text_only),
    "AdvPT": ("AdvPT", peers.coop, text_only),
    "VPT": ("VPT", peers.vpt, visual_only),
    "AdvVPT": ("AdvVPT", peers.vpt, visual_only),
    "IVLP": ("IVLP", peers.ivlp, bimodal),
    "AdvIVLP": ("AdvIVLP", peers.ivlp, bimodal),
    "AdvIVLP, as APD's": ("APD", peers.ivlp, bimodal, "TRAINER.APD.TEACHER.MODE", "frozen"),
    "MaPLe": ("MaPLe", peers.maple, coupled),
    "AdvMaPLe": ("AdvMaPLe", peers.maple, coupled),
    "AdvMaPLe, as APD's": (
        "APD",
        peers.maple,
        coupled,
        "TRAINER.APD.TEACHER.MODE",
        "frozen",
        "TRAINER.APD.COUPLED",
        True,
    ),
    "FAP": ("FAP", peers.fap, coupled),
    "MMoP": ("MMoP", peers.mmop, mixed),
}


@pytest.mark.parametrize("case", CASES)
def test_prompts_of_peers_give_the_logits_of_the_same_prompts_put_in_by_hand(
    evaluate, build, weights, tmp_path, case
):
    method, layout, by_hand, *options = CASES[case]
    torch.manual_seed(7)
    folder, state = layout(weights)
    peers.save(tmp_path, folder, state)
    result = evaluate(method, tmp_path, *options, flags=("--load-epoch", "5"))
    assert (result.code, result.err) == (0, "")
    assert f"Loaded {tmp_path / folder / 'model.pth.tar-5'} (epoch 5)\n" in result.out

    own = build(method, None, *options).model
    put(own.prompt_learner, by_hand(own.prompt_learner, state))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(result.trainer.model(images), own(images))


def test_whatever_the_folder_is_called(evaluate, weights, tmp_path):
    _, state = peers.maple(weights)
    peers.save(tmp_path, "nested/of/runs/SomeLearner", state)
    for folder in ("nested/of/runs", "nested/of/runs/SomeLearner"):
        result = evaluate("MaPLe", tmp_path / folder)  # the last epoch
        assert (result.code, result.err) == (0, "")
        assert "SomeLearner/model.pth.tar-5 (epoch 5)" in result.out


def test_names_of_data_parallel(evaluate, weights, tmp_path):
    folder, state = peers.ivlp(weights)
    parallel = {f"module.{name}": value for name, value in state.items()}
    parallel = {k.replace("text_encoder.", "text_encoder.module."): v for k, v in parallel.items()}
    peers.save(tmp_path, folder, parallel)
    result = evaluate("IVLP", tmp_path)
    assert (result.code, result.err) == (0, "")
    (context, _) = result.trainer.model.prompt_learner.text_contexts()
    assert torch.equal(context, state["prompt_learner.ctx"].half().float())


def test_class_names_are_embedded_anew(evaluate, build, weights, tmp_path):
    """Base to new: the class vectors in the file are those of base classes."""
    folder, state = peers.maple(weights, names=("circle", "square"))
    peers.save(tmp_path, folder, state)
    new = ("DATASET.SUBSAMPLE_CLASSES", "new")
    result = evaluate("MaPLe", tmp_path, *new)
    assert "trained on other classes or words (TRAINER.MAPLE.CTX_INIT)" in result.out
    own = build("MaPLe", None, *new).model
    put(own.prompt_learner, coupled(own.prompt_learner, state))
    with torch.no_grad():
        assert torch.equal(result.trainer.model.text_features(), own.text_features())


def test_other_fixed_words_are_told(evaluate, weights, tmp_path):
    folder, state = peers.maple(weights, words="an image of the")
    peers.save(tmp_path, folder, state)
    assert "trained on other classes or words" in evaluate("MaPLe", tmp_path).out


def test_teacher_of_a_peer(build, weights, tmp_path):
    folder, state = peers.ivlp(weights)
    peers.save(tmp_path, folder, state)
    teacher = build(
        "APD", None, "TRAINER.APD.TEACHER.MODE", "checkpoint", "TRAINER.APD.TEACHER.PATH", tmp_path
    ).teacher
    for parameter, values in bimodal(teacher.prompt_learner, state):
        assert torch.equal(parameter, values.half().float())


# -- what does not load --------------------------------------------------------------------------


@pytest.fixture
def refused(evaluate, weights, tmp_path):
    """Function: the one line that refuses prompts of a layout, changed by ``change(state)``."""

    def refused(method, layout, *options, change=lambda state: state, flags=(), **more):
        folder, state = layout(weights)
        peers.save(tmp_path / "run", folder, change(state), **more)
        result = evaluate(method, tmp_path / "run", *options, flags=flags)
        assert result.code == 2
        (line,) = result.err.splitlines()
        return line.removeprefix(f"error: {tmp_path / 'run' / folder / 'model.pth.tar-5'} ")

    return refused


@pytest.mark.parametrize(
    "method, layout, options, told",
    [
        (
            "AdvIVLP",
            peers.ivlp,
            ("TRAINER.AdvIVLP.N_CTX_TEXT", 4),
            "it has 2 text vectors of width 64 in 2 layers, 2 visual vectors of width 128 in 2 "
            "layers; the configuration has 4 text vectors of width 64 in 2 layers, 2 visual "
            "vectors of width 128 in 2 layers: set TRAINER.AdvIVLP.N_CTX_TEXT 2",
        ),
        (
            "AdvIVLP",
            peers.ivlp,
            ("TRAINER.AdvIVLP.PROMPT_DEPTH_TEXT", 1, "TRAINER.AdvIVLP.N_CTX_VISION", 3),
            ": set TRAINER.AdvIVLP.PROMPT_DEPTH_TEXT 2 TRAINER.AdvIVLP.N_CTX_VISION 2",
        ),
        (
            "VPT",
            peers.vpt,
            ("TRAINER.VPT.PROMPT_DEPTH_VISION", 1),
            ": set TRAINER.VPT.PROMPT_DEPTH_VISION 2",
        ),
        (
            "MaPLe",
            peers.maple,
            ("TRAINER.MAPLE.PROMPT_DEPTH", 1),
            "it has 2 text vectors of width 64 in 2 layers, projected to visual ones of width 128; "
            "the configuration has 2 text vectors of width 64 in 1 layer, projected to visual ones "
            "of width 128: set TRAINER.MAPLE.PROMPT_DEPTH 2",
        ),
        (
            "FAP",
            peers.fap,
            ("TRAINER.FAP.PROMPT_DEPTH", 1),
            "it has 2 visual vectors of width 128 in 2 layers, projected to text; the "
            "configuration has 2 text vectors of width 64 in 1 layer, projected to visual ones of "
            "width 128: set TRAINER.FAP.PROMPT_DEPTH 2",
        ),
        ("APT", peers.coop, ("TRAINER.COOP.N_CTX", 16), ": set TRAINER.COOP.N_CTX 4"),
        (
            "CoOp",
            peers.coop,
            ("TRAINER.COOP.CTX_INIT", "a photo"),
            ": set TRAINER.COOP.CTX_INIT to the words it was trained with",
        ),
        ("CoOp", peers.coop, ("TRAINER.COOP.CSC", True), ": set TRAINER.COOP.CSC False"),
        (
            "CoOp",
            lambda w: peers.coop(w, classes=(4,)),
            (),
            "it has 4 text vectors of width 64 for each of 4 classes in 1 layer; the configuration "
            "has 4 text vectors of width 64 in 1 layer: set TRAINER.COOP.CSC True",
        ),
        (
            "CoOp",
            lambda w: peers.coop(w, classes=(3,)),
            ("TRAINER.COOP.CSC", True),
            ": class-specific prompts need the classes they were trained on",
        ),
        ("IVLP", peers.maple, (), ": use --trainer MaPLe, AdvMaPLe or APD with "),
        ("MaPLe", peers.fap, (), ": use --trainer FAP"),
        ("FAP", peers.maple, (), ": use --trainer MaPLe, "),
        ("CoOp", peers.ivlp, (), ": use --trainer IVLP, AdvIVLP or APD"),
        ("AdvIVLP", peers.coop, (), ": use --trainer CoOp, APT or AdvPT"),
        ("AdvIVLP", peers.vpt, (), ": use --trainer VPT or AdvVPT"),
    ],
)
def test_other_shapes_and_kinds(refused, method, layout, options, told):
    line = refused(method, layout, *options)
    assert line.startswith("does not fit this configuration's prompts: it has ")
    assert told in line


@pytest.mark.parametrize(
    "method, layout, wider",
    [
        ("CoOp", peers.coop, {"ctx": (4, 512)}),
        ("VPT", peers.vpt, {"image_encoder.VPT": (2, 768)}),
        ("MaPLe", peers.maple, {"prompt_learner.proj.bias": (768,)}),
    ],
)
def test_prompts_of_a_wider_clip(refused, method, layout, wider):
    def changed(state):
        state = {k: v for k, v in state.items() if not k.startswith("token_")}
        return {**state, **{name: torch.zeros(shape) for name, shape in wider.items()}}

    line = refused(method, layout, change=changed)
    assert line.endswith(": set MODEL.BACKBONE.NAME to the CLIP it was trained on")


def test_text_prompts_in_several_layers_without_visual_ones(refused):
    line = refused(
        "IVLP",
        peers.ivlp,
        change=lambda state: {k: v for k, v in state.items() if "VPT" not in k or "text" in k},
    )
    assert line.endswith("no trainer here has such prompts")


OTHER_CLIP = ": set MODEL.BACKBONE.NAME and MODEL.BACKBONE.ROBUST to the one it was trained on"


@pytest.mark.parametrize(
    "name", ["image_encoder.conv1.weight", "text_encoder.transformer.resblocks.0.ln_1.weight"]
)
def test_prompts_of_another_clip(refused, name):
    def changed(state):
        return {**state, name: state[name] * 1.01}

    line = refused("MaPLe", peers.maple, change=changed)
    ours = name.replace("image_encoder", "visual").replace("text_encoder.", "")
    assert line == f"was trained on another CLIP ({ours} differs){OTHER_CLIP}"


def test_prompts_of_another_clip_seen_by_the_start_token(refused):
    def changed(state):
        return {**state, "token_prefix": state["token_prefix"] * 1.01}

    line = refused("CoOp", peers.coop, change=changed)
    assert line == f"was trained on another CLIP (the start token's vector differs){OTHER_CLIP}"


def test_a_clip_of_another_architecture(refused, tiny):
    flags = ("--backbone", tiny.wide)
    line = refused("MaPLe", peers.maple, "INPUT.SIZE", "(64, 64)", flags=flags)
    assert line.startswith("was trained on another CLIP (") and line.endswith(OTHER_CLIP)


def test_class_specific_prompts_of_as_many_other_classes(refused):
    def layout(weights):
        return peers.coop(weights, names=("cat", "dog", "cow", "owl"), classes=(4,))

    line = refused("CoOp", layout, "TRAINER.COOP.CSC", True)
    assert line.startswith("holds class-specific prompts of another class list")


@pytest.mark.parametrize(
    "layout, name",
    [
        (peers.coop, "meta_net.linear1.weight"),  # CoCoOp
        (peers.vpt, "image_encoder.transformer.resblocks.1.expert_prompts"),  # MAPT's MoEAdvVPT
        (peers.ivlp, "text_encoder.transformer.resblocks.1.gate.weight"),
    ],
)
def test_prompts_of_a_project_that_is_not_known(refused, layout, name):
    line = refused("CoOp", layout, change=lambda state: {**state, name: torch.zeros(2, 2)})
    assert line.startswith(f"holds {name}: these are not prompts of CoOp, ")


def test_a_clip_without_prompts(refused):
    line = refused("VPT", lambda weights: ("prompt_learner", peers.frozen(weights)))
    assert line.startswith("holds no prompts")


@pytest.mark.parametrize(
    "layout, name, lacks",
    [
        (peers.ivlp, "prompt_learner.ctx", "text.0"),
        (peers.vpt, "image_encoder.VPT", "visual.0"),
        (peers.mmop, "image_encoder.transformer.resblocks.1.tau", "visual.1.tau"),
        (peers.maple, "prompt_learner.compound_prompts_text.0", "text.1"),
        (peers.maple, "prompt_learner.proj.bias", "projections.0.bias"),
        (peers.fap, "prompt_learner.ctx", "text.0"),
    ],
)
def test_layers_that_are_missing(refused, layout, name, lacks):
    line = refused(
        "CoOp", layout, change=lambda state: {k: v for k, v in state.items() if k != name}
    )
    assert line == f"is not complete: it lacks {lacks}"


@pytest.mark.parametrize(
    "change",
    [
        {"ctx": torch.zeros(4)},
        {"token_suffix": torch.zeros(3, 72, peers.TEXT)},
        {"token_prefix": torch.zeros(4)},
    ],
    ids=["context", "suffix", "prefix"],
)
def test_shapes_that_mean_nothing(refused, change):
    line = refused("CoOp", peers.coop, change=lambda state: {**state, **change})
    assert line in ("holds text.0 of no sensible shape", "holds class names of no sensible shape")


def test_weights_that_are_no_tensors(refused):
    line = refused("CoOp", peers.coop, change=lambda state: {"ctx": [1.0]}, half=False)
    assert line == "is not a checkpoint of prompts"


def test_prompts_in_several_folders(evaluate, weights, tmp_path):
    for folder in ("one", "two"):
        peers.save(tmp_path, folder, peers.coop(weights)[1])
    result = evaluate("CoOp", tmp_path)
    assert result.code == 2
    assert "has prompts in several folders (one, two): name one of them" in result.err


# -- nothing in a file runs ----------------------------------------------------------------------


class Calls:
    """An object that has a function called when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def wicked(evaluate, weights, tmp_path, monkeypatch):
    """Function: what becomes of a checkpoint with an object in it. Nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def wicked(where, *call):
        folder, state = peers.coop(weights)
        state = {name: value.detach() for name, value in state.items()}
        if where == "ctx":
            peers.save(tmp_path / "run", folder, {**state, "ctx": Calls(*call)}, half=False)
        else:
            peers.save(tmp_path / "run", folder, state, **{where: Calls(*call)})
        return evaluate("CoOp", tmp_path / "run")

    yield wicked
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_call_of_the_system_is_refused_by_name(wicked):
    result = wicked("val_result", os.system, "touch pwned")
    assert result.code == 2
    assert f"{os.system.__module__}.system" in result.err and "cannot read" in result.err


@pytest.mark.parametrize("function", [eval, exec])
def test_other_calls_are_not_made(wicked, function):
    result = wicked("val_result", function, "open('pwned', 'w')")
    assert (result.code, result.err) == (0, "")


def test_a_call_in_place_of_the_prompts(wicked):
    result = wicked("ctx", eval, "open('pwned', 'w')")
    assert result.code == 2 and "is not a checkpoint of prompts" in result.err


def test_objects_are_not_accepted_unasked(weights, tmp_path):
    folder, state = peers.coop(weights)
    path = peers.save(tmp_path, folder, state) / folder / "model.pth.tar-5"
    accepted = set(torch.serialization.get_safe_globals())
    with pytest.raises(UserError, match="more than tensors and plain data"):
        load_checkpoint(path)
    assert load_checkpoint(path, inert=True)["epoch"] == 5
    assert set(torch.serialization.get_safe_globals()) == accepted
