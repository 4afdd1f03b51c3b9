"""The built wheel, unpacked where nothing of the clone is: configs and weights are inside it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".*", "output", "data", "build", "dist", "*.egg-info", "__pycache__", "docs", "tests")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"  # building leaves folders beside setup.py
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*LEFT_OUT))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(clone)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    shutil.rmtree(clone)
    return folder / "site"


def test_it_has_every_config_asset_and_command(site):
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert (site / "apd" / path.relative_to(ROOT)).is_file(), path
    for path in (ROOT / "apd" / "assets").iterdir():
        assert (site / "apd/assets" / path.name).read_bytes() == path.read_bytes()
    (points,) = site.glob("*.dist-info/entry_points.txt")
    for line in points.read_text().splitlines():
        if line.startswith("apd-"):
            module = line.partition(" = ")[2].partition(":")[0]
            assert (site / module.replace(".", "/")).with_suffix(".py").is_file(), line


def test_a_whole_run_outside_the_clone_with_the_shipped_config_names(site, tmp_path):
    """One epoch of APD on the digits, with the mini CLIP."""
    others = [path for path in sys.path if path and not Path(path).resolve().is_relative_to(ROOT)]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    program = (
        "import sys, apd; from apd.train.command import main; print(apd.__file__, flush=True);"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = """
        --root data --seed 1 --trainer APD --dataset-config-file configs/datasets/digits.yaml
        --config-file configs/trainers/APD/mini.yaml --output-dir out
        DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1 AT.TEST.STEPS 1 AT.TEST.SUBSET 100
    """
    path = os.pathsep.join([str(site), *others, *packages])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["method"], results["dataset"], results["backbone"]) == ("APD", "Digits", "mini")
    clean, robust = results["evaluations"]
    assert clean["total"] == robust["total"] == 100
    assert clean["correct"] > robust["correct"] > 0
    assert clean["accuracy"] > 30  # mini CLIP knows digits
    assert (tmp_path / "data" / "digits").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]
