"""``apd-predict``: a table, JSON or CSV of images of one's own."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

import apd
from apd.predict.command import main

NAMES = ["circle", "square", "star", "triangle"]


@pytest.fixture
def predict(capsys):
    """Function: ``apd-predict`` in this process; its exit code, and what it printed."""

    def predict(*args):
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return predict


@pytest.fixture
def photos(tiny, tmp_path):
    """A folder with images in two folders, and a file that is none."""
    for name in ("star", "circle"):
        shutil.copytree(f"{tiny.root}/shapes/test/{name}", tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_flags_are_told_before_pytorch_is_imported():
    code = """
import sys
from apd.predict.command import parse_args
try:
    parse_args(["--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_table_of_a_folder(folder, photos, predict):
    code, out, err = predict(folder, photos, "--top", 2, "--batch-size", 3)
    assert (code, err) == (0, "")
    header, _, *rows = out.splitlines()
    assert header.split() == ["image", "AdvIVLP"] and len(rows) == 10
    first = f"{photos}/circle/0.png"
    (said,) = apd.load(folder).predict(first, top=2)
    best = ", ".join(f"{label} {share:.1%}" for label, share in said.top)
    assert rows[0].split(maxsplit=1) == [first, best]


def test_files_patterns_and_the_standard_input(folder, photos, predict, monkeypatch):
    one, pattern = photos / "star" / "1.png", photos / "*" / "0.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/circle/2.png\n\n{one}\n"))
    code, out, _ = predict(folder, one, pattern, "-", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["image"].removeprefix(f"{photos}/") for row in found] == [
        "star/1.png",
        "circle/0.png",
        "star/0.png",
        "circle/2.png",
        "star/1.png",
    ]
    said = found[0]["predictions"]["AdvIVLP"]
    (expected,) = apd.load(folder).predict(one, top=1)
    assert said["label"] == expected.label == said["top"][0][0]
    assert said["probability"] == pytest.approx(expected.probability, abs=1e-5)


def test_several_runs_other_classes_and_csv(folder, trained, photos, predict, tmp_path):
    saved = apd.load(folder).save(tmp_path / "saved")
    names = tmp_path / "names.txt"
    names.write_text("cat\n\nsmall dog\nbird\n")
    table = tmp_path / "table.csv"
    runs = (trained("CoOp")[0], saved)
    code, out, _ = predict(*runs, photos / "star", "--classes", names, "--top", 3, "--csv", table)
    assert (code, out) == (0, "")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 5 * 2 * 3 and {row["run"] for row in rows} == {"CoOp", "AdvIVLP"}
    assert {row["label"] for row in rows} == {"cat", "small dog", "bird"}
    for i in range(0, len(rows), 3):
        shares = [float(row["probability"]) for row in rows[i : i + 3]]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    _, out, _ = predict(folder, saved, photos / "star")
    assert out.split()[1:3] == [str(folder), str(saved)]  # alike in all but this


def test_damaged_images_are_told_and_the_rest_goes_on(folder, photos, predict):
    (photos / "star" / "1.png").write_bytes(b"\x89PNG no")
    code, out, err = predict(folder, photos / "star", photos / "star" / "2.png")
    assert code == 1 and len(out.splitlines()) == 2 + 5
    (line,) = err.splitlines()
    assert line.startswith(f"{photos}/star/1.png: cannot identify image")
    code, out, err = predict(folder, photos / "star", "--json", "--batch-size", 1)
    assert code == 1 and "cannot identify" in json.loads(out.splitlines()[1])["error"]
    assert len(out.splitlines()) == 5
    code, out, err = predict(folder, photos / "star" / "1.png")
    assert code == 1 and "cannot identify" in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{photos}"], "is a classifier: give a run's folder"),
        (["{run}"], "which images is"),
        (["{run}", "{photos}/*.gif"], "there are no images"),
        (["{run}", "none.png"], "none.png: there are no images"),
        (["{run}", "{photos}", "--classes", "a,a"], "class names have a twice"),
        (["{run}", "{photos}", "--classes", "none.txt"], "there is no such file"),
        (["{run}", "{photos}", "--csv", "{photos}/star/1.png"], "must end in .csv"),
        (["{run}", "{photos}", "--csv", "{photos}/notes.txt/a.csv"], "is no folder"),
        (["{run}", "{photos}", "--top", "0"], "whole number from 1"),
        (["{run}", "{photos}", "--trainer", "CoOp"], "is a run: it takes no trainer="),
        (["{run}", "{photos}", "--device", "tpu"], "device"),
    ],
)
def test_bad_input_is_one_line(folder, photos, predict, arguments, said):
    filled = [text.format(run=folder, photos=photos) for text in arguments]
    code, out, err = predict(*filled)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("error: ") and said in err


def test_names_of_files_may_hold_any_byte(folder, photos, tmp_path):
    image = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(photos / "star" / "1.png", image)
    for arguments, given in ((["-"], image), ([image, "--csv", tmp_path / "a.csv"], b"")):
        done = subprocess.run(
            [sys.executable, "-m", "apd.predict.command", folder, *arguments],
            input=given,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )
        assert (done.returncode, done.stderr) == (0, b"")
    assert image in (tmp_path / "a.csv").read_bytes()


def test_no_images_on_the_standard_input_is_an_error(folder, predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    code, _, err = predict(folder, "-", "--json")
    assert code == 2 and "names no images" in err


def test_many_class_names_and_names_that_are_read_alike(folder, photos, predict):
    names = [f"kind{i}" for i in range(300)]
    code, _, err = predict(folder, photos / "star", "--classes", ",".join([*names, "Cat", "cat"]))
    assert (code, len(err.splitlines())) == (0, 1) and err.startswith("warning: CLIP reads")
