"""What the README shows works as it stands there."""

import glob
import importlib
import re
import shlex
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_paths_that_the_readme_names_exist():
    named = set(re.findall(r"(?:scripts|configs|benchmarks|apd|trainers)/[\w/.-]*\w", README))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing == {"trainers/trades_ivlp.py"}  # the one that its reader is to write


def test_the_method_in_one_file_trains(run, tmp_path):
    (method,) = re.findall(r"```python\n(# trainers/trades_ivlp.*?)```", README, flags=re.DOTALL)
    exec(method, {"__name__": "trades_ivlp"})
    assert run("TradesIVLP", tmp_path).code == 0


@pytest.fixture(scope="module")
def demo(run, tmp_path_factory):
    """A folder with what "Use it" is about: the digits, and two of the demo's runs, but short."""
    folder = tmp_path_factory.mktemp("demo")
    for method in ("AdvIVLP", "APD"):
        config = ROOT / f"configs/trainers/{method}/mini.yaml"
        arguments = f"""
            --root {folder}/data --seed 1 --trainer {method} --config-file {config}
            --dataset-config-file {ROOT}/configs/datasets/digits.yaml
            --output-dir {folder}/output/digits/{method}/mini_16shots/seed1
            DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 1 OPTIM.WARMUP_EPOCH -1
            AT.TEST.STEPS 2 AT.TEST.SUBSET 16 DATALOADER.NUM_WORKERS 0
        """
        assert run.call(arguments.split()).code == 0
    return folder


def blocks(heading, language):
    """Code blocks of a section."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def commands(block):
    """Name and arguments of each line, expanded as bash does."""
    for line in block.splitlines():
        name, *words = shlex.split(line, comments=True)
        yield name, list(chain.from_iterable(map(expanded, words)))


def expanded(word):
    if braces := re.fullmatch(r"(.*)\{(.*)\}(.*)", word):
        return [f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(",")]
    return sorted(glob.glob(word)) if "*" in word else [word]


def test_use_it_in_python(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    (code,) = blocks("Use it", "python")
    found = {}
    exec(code, found)
    assert re.match(
        r"\[Prediction\(label='\w+', probability=0\.\d+, top=\[", capsys.readouterr().out
    )
    assert found["logits"].shape == (8, 10)
    assert found["letters"](found["torch"].rand(1, 3, 32, 32)).shape == (1, 2)


def test_use_it_in_the_shell(demo, monkeypatch):
    """Each line ends well and leaves the file or folder that it names."""
    monkeypatch.chdir(demo)
    (block,) = blocks("Use it", "bash")
    setup = (ROOT / "setup.py").read_text()
    known = re.findall(r'"(apd-\w+) = ([\w.]+):(\w+)"', setup)
    mains = {name: (module, main) for name, module, main in known}
    for name, arguments in commands(block):
        module, main = mains[name]
        assert getattr(importlib.import_module(module), main)(arguments) == 0, name
    for made in ("labels.csv", "shared/README.md", "digits.pt2", "gallery.png"):
        assert (demo / made).exists(), made


def test_use_it_is_short():
    section = README.split("\n## Use it\n")[1].split("\n## ")[0]
    assert len(section.splitlines()) <= 25
