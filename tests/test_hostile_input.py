"""Drawn configs, data sets and damaged files: every command ends in 0, 1 or 2, with one line.

APD_DRAWS=500 draws that many (default: a few, always the same ones).
"""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from apd.arguments.convert import main as convert
from apd.arguments.evaluate import main as evaluate
from apd.config import default, flat
from apd.doctor.command import main as doctor
from apd.figures.command import main as plot
from apd.report.command import main as report
from apd.results import read_results
from apd.sweep.command import main as sweep
from apd.tables.command import main as table

PROPERTIES = 5
DRAWS = int(os.environ.get("APD_DRAWS", 10))
drawn = settings(
    max_examples=-(-DRAWS // PROPERTIES),
    derandomize="APD_DRAWS" not in os.environ,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the draws are small, and shrinking takes many runs
    suppress_health_check=list(HealthCheck),
)

KEYS = sorted(key for key, _ in flat(default()) if key not in ("OUTPUT_DIR", "USE_CUDA"))
JUNK = st.one_of(
    st.sampled_from(
        [
            *"0 -1 -3 1 2 0.5 4/255 1e-3 1e999 nan True None [] () [1] {} ' abc a,b".split(),
            *"../.. / ~ ε pgd-3,fgsm mini val {0.__class__} {x} %s".split(),
            *("", "(32, 32)", "a\nb", "\0", "\ud800"),
        ]
    ),
    st.integers(-5, 5).map(str),
    st.floats(-2, 2).map(str),
    st.text(max_size=6),
)
YAML = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | JUNK,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["OPTIM", "LR", "AT", "TEST", "EPS", "grid"]) | JUNK, inner, max_size=3
        )
    ),
    max_leaves=6,
)


def told(call, *argv):
    """Run a command; returns its exit code, having looked at what it says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call([*argv])
    check(code, err.getvalue())
    return code


def check(code, err):
    lines = [line for line in err.split("\n") if line]
    assert code in (0, 1, 2), (code, err)
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("error: "), err
    else:
        assert len(lines) <= code, err


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """Folder of a small finished run, to be damaged in copies."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    assert run("AdvIVLP", folder, "OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1).code == 0
    return folder


@contextlib.contextmanager
def scratch():
    with tempfile.TemporaryDirectory(prefix="hostile") as folder:
        here = os.getcwd()
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(here)


# -- configs ---------------------------------------------------------------------------------------


@drawn
@given(
    st.sampled_from(["CoOp", "ZeroshotCLIP", "APD", "VPT", "AdvPT", "FAP"]),
    st.lists(st.tuples(st.sampled_from(KEYS), JUNK), min_size=1, max_size=2),
    st.sampled_from([(), ("--no-train",), ("--seed", "x"), ("--transforms", "random_flip")]),
)
def test_configs(run, method, pairs, flags):
    with scratch():
        options = ("OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1, *(part for p in pairs for part in p))
        result = run(method, "out", *options, flags=flags)
        check(result.code, result.err)


@drawn
@given(st.one_of(YAML.map(json.dumps), st.text(max_size=40), st.binary(max_size=20)))
def test_yaml(run, text):
    with scratch() as folder:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (folder / "a.yaml").write_bytes(raw)
        result = run("CoOp", "out", flags=("--dataset-config-file", "a.yaml", "--no-train"))
        check(result.code, result.err)
        told(sweep, "a.yaml", "--dry-run")


# -- data sets -------------------------------------------------------------------------------------

NAME = st.one_of(
    st.sampled_from(["a", "b", "café", "{}", "a b", ".hidden", "a\nb", "-", "ε" * 60, "x_y"]),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=5),
).filter(lambda name: name not in (".", ".."))
MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I", "F", "I;16", "YCbCr"]
IMAGE = st.tuples(
    st.sampled_from(["0.png", "1.jpg", "2.tif", "3.PNG", "4.bmp", "5.webp", "6.txt"]),
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["whole", "whole", "whole", "cut", "empty", "link", "folder", "junk"]),
)
TREE = st.dictionaries(NAME, st.lists(IMAGE, max_size=6), max_size=3)


def plant(folder, classes):
    for name, images in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, mode, size, state in images:
            path = folder / name / file
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            if state == "link":
                path.symlink_to("nowhere")
            elif state == "folder":
                path.mkdir()
            elif state == "junk":
                path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
            else:
                buffer = io.BytesIO()
                suffix = {"jpg": "JPEG", "tif": "TIFF"}.get(file[-3:].lower(), file[-3:].upper())
                try:
                    Image.new(mode, size).save(
                        buffer, {"EBP": "WEBP", "TXT": "PNG"}.get(suffix, suffix)
                    )
                except (OSError, ValueError, KeyError):
                    Image.new("RGB", size).save(buffer, "PNG")
                raw = buffer.getvalue()
                path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b""}.get(state, raw))


@drawn
@given(st.one_of(st.tuples(TREE, TREE, TREE), TREE), st.sampled_from([-1, 1, 2]))
def test_data_sets(run, trees, shots):
    with scratch() as folder:
        splits = (
            dict(zip(("train", "val", "test"), trees)) if isinstance(trees, tuple) else {"": trees}
        )
        for split, classes in splits.items():
            plant(folder / "data" / "shapes" / split, classes)
        (folder / "data").mkdir(exist_ok=True)
        result = run(
            "CoOp",
            "out",
            "DATASET.NUM_SHOTS",
            shots,
            "OPTIM.MAX_EPOCH",
            1,
            "AT.TEST.STEPS",
            1,
            flags=("--root", "data"),
        )
        check(result.code, result.err)
        if result.code == 0:  # every image that is there counts, and once
            dataset = result.trainer.dm.dataset
            found = read_results("out")["evaluations"]
            assert {r["total"] for r in found} == {len(dataset.test)}
            if "test" in splits:
                assert len(dataset.test) == sum(
                    len({f for f, *_ in images if not f.endswith("txt")})
                    for name, images in trees[2].items()
                    if not name.startswith(".")
                )
        assert doctor(["--root", "data", "--dataset", "DescribableTextures"]) in (1, 2)


# -- caches, results, checkpoints ------------------------------------------------------------------

BYTES = st.tuples(st.floats(0, 1), st.binary(max_size=8), st.booleans())


def damage(path, how):
    """Replace or insert some bytes, or cut the file off."""
    place, junk, cut = how
    raw = path.read_bytes()
    at = int(place * len(raw))
    path.write_bytes(raw[:at] + junk + (b"" if cut else raw[at + len(junk) :]))


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """A data root with small textures in CoOp's layout, and a draw of them."""
    root = tmp_path_factory.mktemp("textures")
    draw = np.random.default_rng(0)
    for name in ("banded", "dotted"):
        for i in range(10):
            path = root / "dtd" / "images" / name / f"{name}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        doctor(["--root", str(root), "--dataset", "DescribableTextures", "--make-split"])
    return root


@drawn
@given(
    st.sampled_from(
        [
            "split_zhou_DescribableTextures.json",
            "split_fewshot/shot_2-seed_1.json",
            "split_fewshot/shot_2-seed_1.pkl",
        ]
    ),
    st.one_of(BYTES, YAML.map(json.dumps), YAML.map(pickle.dumps)),
)
def test_caches_and_splits(run, textures, name, how):
    with scratch() as folder:
        shutil.copytree(textures, folder / "data")
        options = ("DATASET.NAME", "DescribableTextures", "DATASET.NUM_SHOTS", 2)
        flags = ("--root", "data", "--no-train")
        if "shot" in name:
            assert run("CoOp", "out", *options, flags=flags).code == 0
        path = folder / "data" / "dtd" / name
        if isinstance(how, tuple):
            if not path.exists():
                path.write_bytes(pickle.dumps({"train": [], "val": []}))
            damage(path, how)
        else:
            path.write_bytes(how if isinstance(how, bytes) else how.encode())
        result = run("CoOp", "out", *options, flags=flags)
        check(result.code, result.err)
        if result.code == 0 and result.trainer:
            assert len(result.trainer.dm.dataset.train_x) == 4
        told(doctor, "--root", "data", "--dataset", "DescribableTextures", "--deep")


NAMES = """
    method evaluations config seed shots classes seconds threat_model eps total correct
    accuracy images flags split versions host fingerprint AT INPUT SIZE key norm identity
    record lost_to labels checks
""".split()
FIELDS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)


def put(value, fields, junk, chance):
    """Put ``junk`` where one of the fields is, anywhere in JSON data."""
    if isinstance(value, dict):
        for key in value:
            if key in fields and chance.random() < 0.6:
                value[key] = junk
            else:
                put(value[key], fields, junk, chance)
    if isinstance(value, list):
        for item in value:
            put(item, fields, junk, chance)


def shown(folder):
    told(table, "run")


def plotted(folder):
    told(plot, "run", "-o", "figures")


def reported(folder):
    told(report, "run")


def converted(folder):
    told(convert, "run", "converted")


def evaluated(folder):
    told(evaluate, "run", "--attack", "fgsm")


READERS = [
    ("results.json", shown),
    ("results.json", plotted),
    ("results.json", reported),
    ("results.json", evaluated),
    ("evaluations", shown),
    ("evaluations", reported),
    ("evaluations", evaluated),
    ("history.csv", plotted),
    ("model.pth.tar-1", converted),
    ("model.pth.tar-1", "load"),
    ("checkpoint", "load"),
    ("resume.pth.tar", "resume"),
]


@drawn
@given(st.sampled_from(READERS), st.one_of(BYTES, st.tuples(FIELDS, YAML, st.integers(0, 99))))
def test_finished_runs(run, finished, reader, how):
    name, read = reader
    with scratch() as folder:
        shutil.copytree(finished, folder / "run")
        path = next(
            p
            for p in sorted((folder / "run").rglob("*"))
            if p.is_file() and (p.name == name or p.parent.name == name)
        )
        if isinstance(how[0], list):
            fields, junk, seed = how
            if path.suffix == ".json":
                found = json.loads(path.read_text())
                put(found, fields, junk, random.Random(seed))
                path.write_text(json.dumps(found))
            elif ".tar" in path.name:
                found = torch.load(path, weights_only=True)
                for field in random.Random(seed).sample(sorted(found), 2):
                    found[field] = junk
                torch.save(found, path)
            else:
                path.write_text(json.dumps(junk))
        else:
            damage(path, how)
        if callable(read):
            read(folder)
            return
        options = ("OPTIM.MAX_EPOCH", 1, "AT.TEST.STEPS", 1)
        if read == "resume":
            (folder / "run" / "results.json").unlink()
            result = run("AdvIVLP", "run", *options)
        else:
            flags = ("--eval-only", "--model-dir", "run")
            result = run("AdvIVLP", "out", *options, flags=flags)
        check(result.code, result.err)
