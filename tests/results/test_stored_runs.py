"""Runs and their evaluations, as they lie in folders."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sample_results import THREAT, keep_verdicts, record

from apd.errors import UserError
from apd.results import EVALUATIONS, read_results
from apd.results.runs import image_verdicts, load_runs
from apd.results.words import header


def attacked(key, accuracy=40.0, total=4, **fields):
    return record("pgd-100", accuracy, {**THREAT, **fields}, total=total, key=key)


def verdicts(folder, evaluation):
    found = image_verdicts(folder, evaluation)
    return found and found[0]


def attacks_of(folder):
    (run,) = load_runs([folder]).values()
    return [(e["attack"], (e["threat_model"] or {}).get("eps")) for e in run["evaluations"]]


def test_evaluations_of_the_same_prompts_are_added(save, tmp_path):
    run = save(fingerprint="m")
    keep_verdicts(run, attacked("b", eps=8), [0, 1, 1, 0])
    keep_verdicts(run, attacked("a", eps=4), [0, 1, 1, 0])
    keep_verdicts(run, attacked("c", eps=1), [0, 1, 1, 0], model="other prompts")
    assert attacks_of(run) == [("clean", None), ("pgd-100", 2), ("pgd-100", 4), ("pgd-100", 8)]


def test_results_without_a_fingerprint_learn_it_from_their_own_evaluation(save, tmp_path):
    own = attacked("own")
    run = save(evaluations=[record("clean", 75.0, total=4), own])
    keep_verdicts(run, attacked("new", eps=4), [0, 1, 1, 0])
    assert len(attacks_of(run)) == 2  # nothing tells which prompts those are about
    keep_verdicts(run, own, [0, 1, 1, 0])
    keep_verdicts(run, attacked("old", eps=8), [0, 1, 1, 0], model="other prompts")
    assert attacks_of(run)[2:] == [("pgd-100", 4)]


def test_what_results_json_knows_is_not_read_again(save):
    own = attacked("own")
    run = save(evaluations=[own], fingerprint="m")
    (run / EVALUATIONS).mkdir()
    (run / EVALUATIONS / "own.json").write_text("{")
    (run / EVALUATIONS / "own.pt").touch()  # of an evaluation that has not finished
    assert attacks_of(run) == [("pgd-100", 2)]


@pytest.mark.parametrize("text", ["{", "[]", '{"record": {}, "identity": {}}'])
def test_a_damaged_evaluation_is_named(save, text):
    path = keep_verdicts(save(fingerprint="m"), attacked("k", eps=4), [0])
    path.write_text(text)
    with pytest.raises(UserError, match="k.json is damaged"):
        load_runs([path.parent.parent])


@pytest.mark.parametrize("name", ["model", "images"])
def test_verdicts_without_a_fingerprint_are_refused(save, name):
    path = keep_verdicts(save(fingerprint="m"), attacked("k", eps=4), [0], **{name: None})
    with pytest.raises(UserError, match="k.json is damaged .no fingerprint"):
        load_runs([path.parent.parent])


def test_runs_that_have_not_finished_are_left_out(save, tmp_path):
    done, begun = save("done"), save("begun", seed=2)
    path = begun / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    assert list(load_runs([tmp_path])) == [done.resolve()]
    with pytest.raises(UserError, match="begun"):
        load_runs([done, begun])


def test_a_run_named_twice_is_read_once(save, tmp_path):
    run = save()
    assert list(load_runs([run, tmp_path, str(run)])) == [run.resolve()]


def test_verdicts_under_attack_and_of_clean_images(save):
    clean = record("clean", 75.0, total=4)
    run = save(evaluations=[clean, attacked("k", total=4)])
    assert verdicts(run, clean) is None and verdicts(run, attacked("k")) is None
    assert verdicts(run, record("pgd-100", 40.0, THREAT)) is None  # of a version without keys
    keep_verdicts(run, attacked("k"), [0, 1, -1, 2])
    np.testing.assert_array_equal(verdicts(run, attacked("k")), [True, False, False, False])
    np.testing.assert_array_equal(verdicts(run, clean), [True, True, False, True])


@pytest.mark.parametrize(
    "fields, lost",
    [
        ({"last_iterate": True}, [0, 1, 0, 2]),  # wrong images are attacked too
        ({}, [0, 1, 2, 2]),  # other prompts: all clean images are right
        ({}, [0, 1, -1]),  # other images
    ],
)
def test_clean_verdicts_come_from_the_same_images_only(save, fields, lost):
    run = save()
    keep_verdicts(run, attacked("k", **fields), lost)
    assert verdicts(run, record("clean", 75.0, total=4)) is None


def test_clean_verdicts_come_from_the_same_prompts_only(save):
    clean = record("clean", 75.0, total=4)
    run = save(evaluations=[clean], fingerprint="m")
    keep_verdicts(run, attacked("a"), [0, -1, 0, 2], model="other prompts")
    assert verdicts(run, clean) is None
    keep_verdicts(run, attacked("b"), [0, 1, -1, 2])
    np.testing.assert_array_equal(verdicts(run, clean), [True, True, False, True])


def test_verdicts_that_are_not_those_of_their_record_are_refused(save):
    path = keep_verdicts(save(fingerprint="m"), attacked("k", eps=4), [0, 1, 1, 0])
    path.write_text(path.read_text().replace("[0, 1, 1, 0]", "[0, 1, 1, 1]", 1))
    with pytest.raises(UserError, match="k.json is damaged .its verdicts"):
        load_runs([path.parent.parent])


def test_runs_behind_links_are_found_and_links_may_go_round(save, tmp_path):
    run = save("elsewhere/seed1")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "seed1").symlink_to(run)
    (runs / "up").symlink_to(runs)
    assert list(load_runs([runs])) == [run.resolve()]


def test_header_tells_a_subset():
    part = {"images": {"count": 1000, "seed": 0}}
    assert header(record("clean", 1.0, **part)) == "clean, 1,000 images (%)"
    assert header(record("pgd-9", 1.0, THREAT, **part)) == "PGD-9 eps=2/255, 1,000 images (%)"


def test_header_tells_validation_images():
    part = {"images": {"count": 1000, "seed": 0}}
    assert header(record("clean", 1.0, split="val")) == "clean, validation images (%)"
    assert header(record("pgd-9", 1.0, THREAT, split="val", **part)) == (
        "PGD-9 eps=2/255, 1,000 validation images (%)"
    )


@pytest.mark.parametrize(
    "config, split",
    [({}, "test"), ({"TEST": {"SPLIT": "val"}}, "val"), ({"TEST": {"SPLIT": "valid"}}, "test")],
)
def test_older_results_have_the_split_that_they_were_evaluated_on(save, config, split):
    evaluation = record("clean", 75.0, total=4)
    del evaluation["split"]
    run = save(evaluations=[evaluation], config=config)
    assert [one["split"] for one in read_results(run)["evaluations"]] == [split]


def test_tables_do_not_wait_for_pytorch():
    program = "import sys, apd.tables.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
