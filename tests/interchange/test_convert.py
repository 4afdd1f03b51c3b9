"""``apd-convert``: ours to our peers' layout and back."""

import peers
import pytest
import torch

from apd.arguments.convert import main

NAMES = {  # the layout of each method, without what our peers recompute
    "CoOp": peers.coop,
    "APT": peers.coop,
    "AdvPT": peers.coop,
    "VPT": peers.vpt,
    "AdvVPT": peers.vpt,
    "IVLP": peers.ivlp,
    "AdvIVLP": peers.ivlp,
    "APD": peers.ivlp,
    "MaPLe": peers.maple,
    "AdvMaPLe": peers.maple,
    "FAP": peers.fap,
}


def convert(*args):
    return main([str(arg) for arg in args])


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def saved(build, tmp_path):
    """Function: the folder of a method's fresh prompts, as of epoch 3."""

    def saved(method, *options):
        trainer = build(method, None, *options)
        trainer.save_model(2, tmp_path / "ours")
        return tmp_path / "ours"

    return saved


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


@pytest.mark.parametrize("method", NAMES)
def test_ours_to_theirs_and_back(saved, weights, tmp_path, method):
    ours = saved(method)
    theirs, again = tmp_path / "theirs", tmp_path / "again"
    assert convert(ours, theirs, "--epoch", 3) == 0
    folder, layout = NAMES[method](weights)
    assert (theirs / folder / "checkpoint").read_text() == "model.pth.tar-3\n"
    written = read(theirs / folder / "model.pth.tar-3")
    recomputed = peers.frozen(weights).keys()
    assert {k: v.shape for k, v in written["state_dict"].items()} == {
        name: value.shape
        for name, value in layout.items()
        if name not in recomputed and "token" not in name
    }
    assert convert(theirs, again) == 0  # the last epoch
    back = read(again / "prompt_learner" / "model.pth.tar-3")
    first = read(ours / "prompt_learner" / "model.pth.tar-3")
    assert_same(back["state_dict"], first["state_dict"])
    for key in ("epoch", "method", "classnames", "trained_on"):
        assert back[key] == first[key]


def test_class_specific_prompts_there_and_back(saved, tmp_path):
    ours = saved("CoOp", "TRAINER.COOP.CSC", True)
    assert convert(ours, tmp_path / "theirs") == 0
    assert convert(tmp_path / "theirs", tmp_path / "again") == 0
    file = "prompt_learner/model.pth.tar-3"
    assert read(tmp_path / "theirs" / file)["state_dict"]["ctx"].shape == (4, 4, 64)
    assert_same(read(tmp_path / "again" / file)["state_dict"], read(ours / file)["state_dict"])


@pytest.mark.parametrize("layout", [peers.coop, peers.vpt, peers.ivlp, peers.maple, peers.fap])
def test_theirs_to_ours_and_back(weights, tmp_path, layout):
    folder, state = layout(weights)
    theirs = peers.save(tmp_path / "theirs", folder, state)
    assert convert(theirs, tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "again", "--epoch", 5) == 0
    back = read(tmp_path / "again" / folder / "model.pth.tar-5")["state_dict"]
    frozen = peers.frozen(weights)
    assert_same(back, {k: v.detach().half() for k, v in state.items() if k not in frozen})


def test_what_was_theirs_evaluates_alike_in_either_layout(evaluate, weights, tmp_path):
    folder, state = peers.maple(weights)
    theirs = peers.save(tmp_path / "theirs", folder, state)
    assert convert(theirs, tmp_path / "ours") == 0
    results = [evaluate("MaPLe", path) for path in (theirs, tmp_path / "ours")]
    logits = [result.trainer.model(torch.ones(2, 3, 32, 32) / 2) for result in results]
    assert torch.equal(*logits)


def test_converted_class_specific_prompts_keep_to_their_classes(evaluate, weights, tmp_path):
    folder, state = peers.coop(weights, names=("cat", "dog", "cow", "owl"), classes=(4,))
    assert convert(peers.save(tmp_path / "theirs", folder, state), tmp_path / "ours") == 0
    result = evaluate("CoOp", tmp_path / "ours", "TRAINER.COOP.CSC", True)
    assert result.code == 2 and "of another class list" in result.err


def test_prompts_are_written_without_the_tensor_they_were_cut_from(weights, tmp_path):
    state = {"ctx": torch.zeros(1000, 4, 64)[0]}
    peers.save(tmp_path / "theirs", "prompt_learner", state, half=False)
    assert convert(tmp_path / "theirs", tmp_path / "ours") == 0
    path = tmp_path / "ours" / "prompt_learner" / "model.pth.tar-5"
    assert path.stat().st_size < 10_000


# -- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refused(capsys, tmp_path):
    """Function: the one line that refuses to convert ``theirs``; nothing is written."""

    def refused(*args):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert convert(tmp_path / "theirs", tmp_path / "ours", *args) == 2
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return refused


@pytest.fixture
def theirs(weights, tmp_path):
    """Function: write the prompts of a peer."""

    def theirs(layout=peers.coop, **more):
        return peers.save(tmp_path / "theirs", *layout(weights), **more)

    return theirs


def test_never_overwrites(theirs, refused, tmp_path):
    theirs()
    (tmp_path / "ours" / "prompt_learner").mkdir(parents=True)
    assert refused() == f"{tmp_path / 'ours' / 'prompt_learner'} exists: choose another folder"


def test_no_such_folder(refused):
    assert refused().startswith("no checkpoint ")


def test_no_such_epoch(theirs, refused):
    theirs()
    assert "model.pth.tar-7: there are model.pth.tar-5" in refused("--epoch", 7)


def test_no_prompts(theirs, refused):
    theirs(lambda weights: ("prompt_learner", {"weight": torch.zeros(2)}))
    assert "holds weight: these are not prompts" in refused()


def test_no_epoch(theirs, refused, tmp_path):
    path = theirs() / "prompt_learner" / "model.pth.tar-5"
    torch.save({"state_dict": {"ctx": torch.zeros(4, 64)}}, path)
    assert refused() == f"{path} does not say its epoch"


def test_damaged(theirs, refused):
    path = theirs() / "prompt_learner" / "model.pth.tar-5"
    path.write_bytes(path.read_bytes()[:1000])
    assert f"cannot read checkpoint {path}" in refused()


def test_prompts_that_only_we_have(refused, tmp_path):
    state = {"text.0": torch.zeros(2, 64), "text.1": torch.zeros(2, 64)}
    peers.save(tmp_path / "theirs", "prompt_learner", state, half=False)
    assert "2 text vectors of width 64 in 2 layers: no other project has such" in refused()


def test_a_run_without_its_prompts_stays_unwritten(theirs, tmp_path, monkeypatch):
    """Atomic: a failure on the way leaves no checkpoint."""
    theirs()

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert not list((tmp_path / "ours").rglob("*model*"))
