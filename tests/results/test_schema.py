import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from sample_results import results
from yacs.config import CfgNode

import apd
from apd.errors import UserError
from apd.results import (
    RESULTS_NAME,
    SCHEMA_VERSION,
    environment,
    is_complete,
    read_results,
    schema,
    write_results,
)


def test_round_trip(tmp_path):
    run = tmp_path / "a" / "b"
    given = results(config=CfgNode({"INPUT": CfgNode({"SIZE": (32, 32)})}), note="kept")
    assert not is_complete(run)
    write_results(run, given)
    assert is_complete(run)
    read = read_results(run)
    assert read["schema"] == SCHEMA_VERSION and read["complete"] is True
    assert read["note"] == "kept"
    assert read["config"] == {"INPUT": {"SIZE": [32, 32]}}
    assert read["evaluations"] == given["evaluations"]
    assert read["versions"] == environment()["versions"]
    assert [p.name for p in run.iterdir()] == [RESULTS_NAME]


def test_a_folder_is_not_a_finished_run(tmp_path):
    (tmp_path / "log.txt").touch()
    assert not is_complete(tmp_path)
    write_results(tmp_path, results())
    path = tmp_path / RESULTS_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    assert not is_complete(tmp_path)


def test_a_forgotten_field_is_named(tmp_path):
    given = results()
    del given["backbone"]
    with pytest.raises(ValueError, match="backbone"):
        write_results(tmp_path, given)
    assert not (tmp_path / RESULTS_NAME).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "compl', "damaged"),
        ("\udcff", "damaged"),
        ("[]", "not a result"),
        ('{"accuracy": 3}', "not a result"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1}', "lacks .*method"),
    ],
)
def test_foreign_and_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / RESULTS_NAME
    path.write_bytes(text.encode(errors="surrogateescape"))
    for read in (read_results, is_complete):
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path)
        assert str(path) in str(error.value)


def test_an_evaluation_that_lacks_a_field_is_refused(tmp_path):
    given = results()
    del given["evaluations"][1]["threat_model"]
    write_results(tmp_path, given)
    with pytest.raises(UserError, match="threat_model"):
        read_results(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=RESULTS_NAME):
        read_results(tmp_path)


def test_environment_names_the_packages():
    versions = environment()["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == metadata.version("torch")
    assert versions["apd"] == apd.__version__
    assert versions["clip"].split()[0] in ("openai-clip", "clip-anytorch", "clip")
    assert set(versions) == {"python", "torch", "torchvision", "clip", "dassl", "apd"}


def test_git_commit_of_the_clone_only(tmp_path, monkeypatch):
    package = tmp_path / "clone" / "apd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(schema, "CLONE", package.parent)

    def git(*args):
        who = ("-c", "user.name=n", "-c", "user.email=e@x")
        return subprocess.run(
            ["git", *who, *args], cwd=package.parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert environment()["git_commit"] is None
    git("init", "-q")
    assert environment()["git_commit"] is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "-a", "v1", "-m", "v1")
    head = git("rev-parse", "HEAD")
    assert environment()["git_commit"] == head
    (package / "__init__.py").write_text("changed")
    assert environment()["git_commit"] == f"{head}-dirty"

    monkeypatch.setattr(schema, "CLONE", None)  # an installation, perhaps inside a clone
    assert environment()["git_commit"] is None


def test_git_is_optional(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(schema.subprocess, "run", missing)
    monkeypatch.setattr(schema.Path, "exists", lambda self: True)
    assert environment()["git_commit"] is None
    assert Path(apd.__file__).name == "__init__.py"
