"""``apd-convert --push`` and ``apd.load("hf:...")``, by the hub's own client against a stand-in."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_stand_in import Hub

import apd
from apd.arguments.convert import main

pytest.importorskip("huggingface_hub", reason="the extra [hf] is not installed")


# In a process of its own, since the client reads HF_ENDPOINT when it is imported.
PROGRAM = """
import contextlib, io, json, sys
import torch
import apd
from apd.arguments.convert import main

def convert(*args):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*args, "--format", "apd"])
    return code, out.getvalue(), err.getvalue()

def load(source, revision):
    try:
        model = apd.load(source, revision=revision)
    except apd.UserError as error:
        return str(error)
    with torch.no_grad():
        return [model.class_names, model.results["shots"], model(images).tolist()]

first, second, folder, images = *sys.argv[1:4], torch.load(sys.argv[4])
done = {
    "pushed": [
        convert(run, f"{folder}/{i}", "--push", "somebody/robust")
        for i, run in enumerate((first, second))
    ],
    "loaded": [load("hf:somebody/robust", revision) for revision in (None, sys.argv[5])],
    "none": load("hf:somebody/nothing", None),
    "no revision": load("hf:somebody/robust", "v9"),
    "no name": load("hf:no/such/name", None),
    "clip": load("hf:open/clip", None),
    "no place": convert(first, f"{folder}/2", "--push", "a/b/c"),
}
json.dump(done, open(f"{folder}/done.json", "w"))
"""


@pytest.fixture(scope="module")
def hub():
    hub = Hub()
    hub.repositories["open/clip"] = [("1" * 40, {"config.json": b'{"model_type": "clip"}'})]
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def done(hub, folder, trained, images, tmp_path_factory):
    """What happened when two runs were pushed to one repository, and fetched."""
    place = tmp_path_factory.mktemp("hub")
    torch.save(images, place / "images.pt")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(place / "home"),
        "HF_TOKEN": "hf_stand_in",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    runs = [str(folder), str(trained("IVLP")[0])]
    command = [sys.executable, "-c", PROGRAM, *runs, place, place / "images.pt", "first"]
    subprocess.run(command, check=True, env=environment)
    return json.loads((place / "done.json").read_text())


def test_pushed(hub, done):
    for code, out, _ in done["pushed"]:
        assert code == 0 and f"{hub.endpoint}/somebody/robust" in out
    _, first, second = hub.repositories["somebody/robust"]
    assert second[1].keys() == {"config.json", "prompts.safetensors", "README.md"}
    assert b"AdvIVLP" in first[1]["README.md"] and b"AdvIVLP" not in second[1]["README.md"]


def test_loaded_by_revision(hub, done, folder, trained, images):
    for run, (names, shots, logits) in zip((trained("IVLP")[0], folder), done["loaded"]):
        assert names == ["circle", "square", "star", "triangle"] and shots == 2
        with torch.no_grad():
            assert torch.equal(torch.tensor(logits), apd.load(run)(images))
    fetched = {path for _, path in hub.requests if "/resolve/" in path}
    assert fetched and not any("README.md" in path for path in fetched)


def test_what_is_not_there_is_one_line(done):
    assert "hf:somebody/nothing could not be downloaded" in done["none"]
    assert "hf:somebody/robust could not be downloaded" in done["no revision"]
    assert "hf:no/such/name could not be downloaded" in done["no name"]
    assert "hf:open/clip has no prompts of ours" in done["clip"]
    code, _, err = done["no place"]
    assert code == 2 and err.startswith("error: a/b/c could not be written")
    assert len(err.splitlines()) == 1


def test_convert_to_a_folder_and_its_refusals(folder, tmp_path, capsys, images, tiny):
    assert main([str(folder), str(tmp_path / "saved"), "--format", "apd"]) == 0
    assert torch.equal(apd.load(tmp_path / "saved")(images), apd.load(folder)(images))
    capsys.readouterr()
    for args, said in (
        ([folder, tmp_path / "saved", "--format", "apd"], "exists: choose another folder"),
        ([folder, tmp_path / "peers", "--push", "a/b"], "give that too"),
        ([folder, tmp_path / "peers", "--classes", "a,b"], "--classes is of use with --format apd"),
        ([tmp_path / "none", tmp_path / "x", "--format", "apd"], "there is no"),
    ):
        assert main([str(arg) for arg in args]) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1
    theirs = tmp_path / "theirs"
    assert main([str(folder), str(theirs)]) == 0  # as our peers have it, and back to a classifier
    named = ["--trainer", "AdvIVLP", "--backbone", tiny.clip, "--classes", "cat,dog"]
    assert main([str(theirs), str(tmp_path / "again"), "--format", "apd", *named]) == 0
    assert torch.equal(
        apd.load(tmp_path / "again")(images), apd.load(folder).classes(["cat", "dog"])(images)
    )
