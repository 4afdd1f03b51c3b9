"""Test-time defences: evaluated without training, on top of any method's prompts."""

import pytest
import torch

from apd.arguments.evaluate import main
from apd.attacks import DefendedModel
from apd.results import read_results
from apd.results.runs import load_runs

FEW = ("AT.TEST.EOT", 2, "AT.TEST.DRAWS", 3, "AT.TEST.STEPS", 2, "AT.TEST.SUBSET", 8)


@pytest.fixture(scope="module")
def below(run, tmp_path_factory):
    """Function: the folder of a finished run of a method, made once."""
    folders = {}

    def below(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            short = ("OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1, "AT.TEST.SUBSET", 4)
            result = run(method, folders[method], *short)
            assert (result.code, result.err) == (0, "")
        return folders[method]

    return below


def over(folder):
    return ("--eval-only", "--model-dir", str(folder))


@pytest.mark.parametrize("method, trained", [("TTC", None), ("RTPT", None), ("TAPT", "AdvIVLP")])
def test_a_defence_is_attacked_through_itself_and_the_record_says_so(
    run, below, tmp_path, method, trained
):
    result = run(method, tmp_path, *FEW, flags=over(below(trained)) if trained else ())
    assert (result.code, result.err) == (0, "")
    results = read_results(tmp_path)
    clean, record = results["evaluations"]
    threat = record["threat_model"]
    assert threat["source"] == "adaptive"
    assert threat["randomised"] is True
    assert threat["adapted"] is (method != "TTC")
    assert threat["backward"] == ("surrogate" if method == "TTC" else "exact")
    assert (threat["eot"], threat["draws"], threat["rule"]) == (2, 3, "majority")
    assert results["trainable_parameters"] == 0
    assert clean["total"] == record["total"] == 8
    if trained:
        assert results["prompts_from"]["model_dir"] == str(below(trained))
        assert results["trained_on"]["method"] == trained


@pytest.mark.parametrize("trained", ["CoOp", "AdvVPT", "MaPLe", "MMoP", "APD"])
def test_any_runs_prompts_go_under_ttc(build, below, tmp_path, trained):
    trainer = build("TTC", tmp_path)
    trainer.load_model(str(below(trained)))
    other = build(trained, tmp_path / "other")
    other.load_model(str(below(trained)))
    images = torch.rand(3, 3, 32, 32)
    trainer.image_logits()
    undefended, model = trainer.undefended()
    with torch.no_grad():
        assert torch.equal(undefended(images), other.image_logits()(images))
    assert model is trainer.model


def test_what_cannot_be_defended_is_refused(refused, below, tmp_path, tiny):
    line = refused("TAPT", tmp_path, *FEW)
    assert "TAPT tunes text prompts that all classes and images share: give --model-dir" in line
    line = refused("RTPT", tmp_path, *FEW, flags=over(below("AdvVPT")))
    assert "RTPT tunes text prompts" in line
    line = refused("TAPT", tmp_path, *FEW, flags=over(below("MMoP")))
    assert "TAPT tunes text prompts" in line
    other = ("MODEL.BACKBONE.NAME", tiny.wide, "INPUT.SIZE", "(64, 64)")
    line = refused("TTC", tmp_path, *FEW, *other, flags=over(below("CoOp")))
    assert "has another CLIP" in line and "MODEL.BACKBONE.NAME" in line


@pytest.fixture
def refused(run):
    def refused(*args, **more):
        result = run(*args, **more)
        assert result.code == 2 and result.err.count("\n") == 1
        return result.err

    return refused


@pytest.fixture(scope="module")
def defended(run, below, tmp_path_factory):
    """A finished run of TTC on AdvIVLP's prompts."""
    folder = tmp_path_factory.mktemp("TTC")
    result = run("TTC", folder, *FEW, flags=over(below("AdvIVLP")))
    assert (result.code, result.err) == (0, "")
    return folder


def evaluated(folder):
    (results,) = load_runs([folder]).values()
    return {
        (e["attack"], e["threat_model"]["source"]): e
        for e in results["evaluations"]
        if e["threat_model"]
    }


def test_apd_eval_attacks_it_adaptively_and_statically(defended, capsys):
    args = [str(defended), "--attack", "pgd-2,square-5", "--source", "adaptive,static"]
    assert main(args) == 0
    found = evaluated(defended)
    # what the run itself was evaluated by is found again: white-box is adaptive there
    assert set(found) == {
        *((attack, source) for attack in ("pgd-2", "square-5") for source in ("adaptive", "static"))
    }
    assert found["pgd-2", "static"]["threat_model"]["eot"] is None
    assert len(list((defended / "evaluations").glob("*.json"))) == 4
    assert "static" in capsys.readouterr().out


def test_shards_of_a_defence_have_its_verdicts(defended, inline, capsys):
    from apd.results.verdicts import read_verdicts

    options = ["--attack", "pgd-3", "--eot", "3"]
    assert main([str(defended), *options, "--shards", "2"]) == 0
    (sharded,) = [
        path
        for path in (defended / "evaluations").glob("*.json")
        if read_verdicts(path).record["attack"] == "pgd-3"
    ]
    wanted = read_verdicts(sharded)
    sharded.unlink()
    assert main([str(defended), *options]) == 0
    found = read_verdicts(sharded)
    assert found.lost_to.tolist() == wanted.lost_to.tolist()
    assert found.record["threat_model"] == wanted.record["threat_model"]


def test_verdicts_of_other_settings_are_others(build, tmp_path):
    prints = {
        build("TTC", tmp_path, "TRAINER.TTC.TAU", tau).model_fingerprint() for tau in (0.1, 0.2)
    }
    prints.add(build("ZeroshotCLIP", tmp_path).model_fingerprint())
    assert len(prints) == 3


def test_a_draw_depends_on_image_and_seed_only(build, below, tmp_path):
    for method in ("TTC", "RTPT", "TAPT"):
        trainer = build(method, tmp_path)
        trainer.load_model(str(below("AdvIVLP")))
        model = trainer.image_logits()
        assert isinstance(model, DefendedModel)
        images, seeds = torch.rand(3, 3, 32, 32), torch.tensor([4, 5, 4])
        with torch.no_grad():
            whole = model.logits(images, seeds)
            for i in range(3):
                alone = model.logits(images[i : i + 1], seeds[i : i + 1])
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-3, atol=1e-3)
            other = model.logits(images, seeds + 7)
        assert not torch.allclose(whole, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["RTPT", "TAPT"])
def test_through_one_step_of_adamw_the_gradient_is_that_of_constant_prompts(
    build, below, tmp_path, method
):
    gradients = []
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for backward in ("exact", "surrogate"):
        trainer = build(method, tmp_path, f"TRAINER.{method}.BACKWARD", backward)
        trainer.load_model(str(below("AdvIVLP")))
        model = trainer.image_logits()
        images = images.detach().requires_grad_()
        logits = model.logits(images, torch.arange(2))
        gradients += torch.autograd.grad(logits.logsumexp(dim=1).sum(), images)
    exact, surrogate = (gradient.flatten(1) for gradient in gradients)
    cosines = torch.nn.functional.cosine_similarity(exact, surrogate)
    assert cosines.min() > 0.999
