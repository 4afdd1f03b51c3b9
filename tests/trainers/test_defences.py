"""Test-time defences: registered, evaluated without training, on top of any method's prompts."""

import pytest

from apd.results import read_results

FEW = ("AT.TEST.EOT", 2, "AT.TEST.DRAWS", 3, "AT.TEST.STEPS", 2, "AT.TEST.SUBSET", 8)


@pytest.fixture(scope="module")
def below(run, tmp_path_factory):
    """Function: a finished run of a method, made once."""
    folders = {}

    def below(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            options = ("OPTIM.MAX_EPOCH", 1, "AT.TEST.EPS", None)
            result = run(method, folders[method], "OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1)
            assert (result.code, result.err) == (0, ""), options
        return folders[method]

    return below


@pytest.mark.parametrize("method, over", [("TTC", None), ("RTPT", None), ("TAPT", "AdvIVLP")])
def test_a_defence_is_evaluated_by_attacks_through_it_and_says_so(
    run, below, tmp_path, method, over
):
    flags = ("--eval-only", "--model-dir", str(below(over))) if over else ()
    result = run(method, tmp_path, *FEW, flags=flags)
    assert (result.code, result.err) == (0, ""), result.err
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
