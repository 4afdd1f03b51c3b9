"""Plans: written by a sweep, committed, and held against runs."""

import json
import subprocess
from pathlib import Path

import pytest

from apd.config import KEYS, default, plain
from apd.errors import UserError
from apd.plans import Plan, config_sha256
from apd.results import read_results
from apd.sweep.spec import read_spec
from apd.tables.command import main as table


@pytest.fixture
def git(tmp_path):
    """Function: git in tmp_path, a repository; returns what it prints."""

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", tmp_path, *who, *command]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    return git


@pytest.fixture
def commit(git, tmp_path):
    """Function: commit all that is there; returns the commit."""

    def commit():
        git("add", "-A", ".")
        git("commit", "-q", "--allow-empty", "-m", "a")
        return git("rev-parse", "HEAD")

    return commit


def run(config, commit, **fields):
    """Results as far as a plan reads them."""
    return {"config": config, "git_commit": commit, "prompts_from": None, **fields}


def configs(spec):
    return [plain(cell.setup()[0]) for cell in read_spec(spec)]


def test_a_plan_says_what_is_going_to_run_and_runs_nothing(sweep, write_spec, tmp_path):
    spec = write_spec({"seed": [1, 2]})
    path = tmp_path / "plan.json"
    result = sweep(spec, "--plan", path)
    assert (result.code, result.err, result.started) == (0, "", [])
    assert "2 cells. Commit it before they run." in result.out
    found = json.loads(path.read_text())
    assert [cell["folder"] for cell in found["cells"]] == [
        f"shapes/CoOp/method_1shots/seed{seed}" for seed in (1, 2)
    ]
    hashes = [config_sha256(config, False) for config in configs(spec)]
    assert [cell["sha256"] for cell in found["cells"]] == hashes and len(set(hashes)) == 2
    assert found["spec"] == spec.as_posix() and found["finished"] == 0
    assert "OPTIM.LR" in found["keys"]

    again = sweep(spec, "--plan", path)
    assert again.code == 2 and "is there already" in again.err


def test_the_hash_of_a_spec_is_of_its_bases_too(sweep, write_spec, tmp_path):
    def sha256(name):
        assert sweep(tmp_path / "below.yaml", "--plan", tmp_path / name).code == 0
        return json.loads((tmp_path / name).read_text())["spec_sha256"]

    base = write_spec()
    (tmp_path / "below.yaml").write_text("base: spec.yaml\ngrid: {seed: 3}\n")
    first = sha256("a")
    base.write_text(base.read_text() + "# another\n")
    assert sha256("b") != first


def test_a_finished_run_follows_the_plan_that_was_committed_before(
    sweep, write_spec, tmp_path, commit, capsys, monkeypatch
):
    spec, path = write_spec({"seed": [1, 2]}), tmp_path / "plan.json"
    assert sweep(spec, "--plan", path).code == 0
    here = commit()
    import apd.results.schema as schema

    monkeypatch.setattr(schema, "_git_commit", lambda: here)
    assert sweep(spec, "--seed", 1).code == 0
    (cell, _) = read_spec(spec)
    plan = Plan(path)
    assert plan.verdict(read_results(cell.folder)) == ""
    made = tmp_path / "table.json"
    assert table([cell.folder, "--plan", str(path), "--json", str(made)]) == 0
    assert json.loads(made.read_text())["tables"][-1]["plans"] == {
        str(path): {cell.folder: "followed"}
    }
    out = " ".join(capsys.readouterr().out.split())
    assert f"plan {path} ({here[:7]}, made " in out and "followed by 1 of 1 run" in out
    assert "of the plan's 2 cells, 1 have no run here: shapes/CoOp/method_1shots/seed2" in out

    late = sweep(spec, "--plan", tmp_path / "late.json")
    assert "warning: 1 cell had finished before" in late.out
    commit()
    assert any(
        "1 cell had results before the plan" in n for n in Plan(tmp_path / "late.json").notes({})
    )


def test_verdicts(sweep, write_spec, tmp_path, git, commit):
    spec, path = write_spec({"seed": [1, 2]}), tmp_path / "plan.json"
    before = commit()
    assert sweep(spec, "--plan", path).code == 0
    planned = commit()
    after = commit()
    git("checkout", "-q", "-b", "aside", before)
    aside = commit()
    git("checkout", "-q", "-")
    plan, (config, other) = Plan(path), configs(spec)
    assert plan.verdict(run(config, planned)) == plan.verdict(run(other, after)) == ""
    for commit_of_run, why in (
        (before, "of a commit without the plan"),
        (aside, "of a commit without the plan"),
        (f"{after}-dirty", "of a clone with changed files"),
        (None, "of no known commit"),
        ("0" * 40, "of a commit that this clone does not have"),
    ):
        assert plan.verdict(run(config, commit_of_run)) == why
    config = {**config, "OPTIM": {**config["OPTIM"], "LR": 0.5}}
    assert plan.verdict(run(config, after)) == "not in the plan"
    assert plan.verdict(run(other, after, prompts_from={})) == "not in the plan"


def test_a_plan_that_grew_holds_for_the_runs_of_its_first_version(
    sweep, write_spec, tmp_path, commit
):
    path = tmp_path / "plan.json"
    assert sweep(write_spec({"seed": 1}), "--plan", path).code == 0
    first = commit()
    path.unlink()
    spec = write_spec({"seed": [1, 2]})
    assert sweep(spec, "--plan", path).code == 0
    second = commit()
    plan, (one, two) = Plan(path), configs(spec)
    assert plan.verdict(run(one, first)) == plan.verdict(run(two, second)) == ""
    assert plan.verdict(run(two, first)) == "of a commit without the plan"


def test_keys_of_later_versions_count_where_they_have_not_their_default():
    config = plain(default())
    keys = {"OPTIM.LR", "SEED"}
    sha256 = config_sha256(config, False, keys)
    older = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    del older["DATASET"]["CLASSES"]
    assert config_sha256(older, False, keys) == sha256
    other = {**config, "DATASET": {**config["DATASET"], "CLASSES": ["1/2/0"]}}
    assert config_sha256(other, False, keys) != sha256
    # what cannot change a result, and what the method does not read, changes no hash
    assert KEYS["DATALOADER"]["IN_MEMORY"] is False
    harmless = {**config, "OUTPUT_DIR": "x", "TRAINER": {**config["TRAINER"], "NAME": "CoOp"}}
    unread = {**harmless, "TRAINER": {**harmless["TRAINER"], "APD": {"TAU": 9.0}}}
    assert config_sha256(harmless, False) == config_sha256(unread, False) != sha256


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        ("[1]", "is none"),
        ("{}", "lacks cells"),
        ("no", "is none"),
    ],
)
def test_a_file_that_is_no_plan_is_told(tmp_path, git, commit, content, message):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
        commit()
    with pytest.raises(UserError, match=message) as error:
        Plan(tmp_path / "plan.json")
    assert "\n" not in str(error.value)


def test_a_plan_must_be_committed_as_it_is(sweep, write_spec, tmp_path, commit):
    path = tmp_path / "plan.json"
    assert sweep(write_spec(), "--plan", path).code == 0
    with pytest.raises(UserError, match="is not committed as it is"):
        Plan(path)
    commit()
    Plan(path)
    path.write_text(path.read_text().replace('"finished": 0', '"finished": 1'))
    with pytest.raises(UserError, match="is not committed as it is"):
        Plan(Path(path))
