"""What the README shows works as it stands there."""

import glob
import importlib
import re
import shlex
from itertools import chain
from pathlib import Path

import pytest

from apd.config import KEYS
from apd.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = """
    DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 1 OPTIM.WARMUP_EPOCH -1
    AT.TEST.STEPS 2 AT.TEST.SUBSET 16 DATALOADER.NUM_WORKERS 0
"""


def test_paths_that_the_readme_names_exist():
    named = set(re.findall(r"(?:scripts|configs|benchmarks|apd|trainers|docs)/[\w/.-]*\w", README))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing == {"trainers/trades_ivlp.py"}  # the one that its reader is to write


def test_it_is_short():
    assert len(README.splitlines()) <= 200
    cells = [
        cell for row in re.findall(r"^\|(.*)\|$", README, re.MULTILINE) for cell in row.split("|")
    ]
    shown = [re.sub(r"\]\([^)]*\)", "]", cell).strip() for cell in cells]
    assert max(map(len, shown)) <= 60


def test_every_method_is_named_in_its_table():
    named = set(re.findall(r"`(\w+)`", section("Methods").split("---|")[-1]))
    assert METHODS.keys() <= named


def section(heading):
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(heading, language):
    """Code blocks of a section."""
    return re.findall(rf"```{language}\n(.*?)```", section(heading), flags=re.DOTALL)


def commands(block):
    """Name and arguments of each line, expanded as bash does; a loop's line for each value."""
    for line in block.replace("\\\n", " ").splitlines():
        name, *words = shlex.split(line, comments=True)
        yield name, list(chain.from_iterable(map(expanded, words)))


def expanded(word):
    if braces := re.fullmatch(r"(.*)\{(.*,.*)\}(.*)", word):
        return [f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(",")]
    return sorted(glob.glob(word)) if "*" in word else [word]


def in_clone(words):
    """Arguments of train.py, for another working directory: configs are the clone's."""
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words]


def train(run, command, *more):
    """Run ``python train.py ...``, shortened."""
    (_, words), *others = commands(command)
    assert (words[0], others) == ("train.py", [])
    done = run.call([*in_clone(words[1:]), *more, *SHORT.split()])
    assert done.code == 0, done.err


def call(name, arguments):
    """The exit code of a command that setup.py installs."""
    known = re.findall(r'"(apd-\w+) = ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text())
    module, main = {command: where for command, *where in known}[name]
    return getattr(importlib.import_module(module), main)(arguments)


@pytest.fixture(scope="module")
def quick_start(run, tmp_path_factory):
    """A folder in which the quick start has run, but short, with what its last command prints."""
    folder = tmp_path_factory.mktemp("quick_start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (block,) = blocks("Quick start", "bash")
        methods, body, table = re.fullmatch(
            r"for METHOD in (.*?); do\n(.*?)\ndone\n(.*)\n", block, flags=re.DOTALL
        ).groups()
        for method in methods.split():
            train(run, body.replace("$METHOD", method))
        ((name, arguments),) = commands(table)
        yield folder, (name, arguments)


def test_the_quick_start(quick_start, monkeypatch, capsys):
    """Its table has the rows and columns that are shown."""
    folder, (name, arguments) = quick_start
    monkeypatch.chdir(folder)
    assert call(name, arguments) == 0
    printed = capsys.readouterr().out
    (shown,) = blocks("Quick start", "text")
    for line in shown.splitlines()[2:]:
        method, prompts, parameters = re.split(r"  +", line)[:3]
        (row,) = re.findall(rf"^{method} .*$", printed, flags=re.MULTILINE)
        assert re.split(r"  +", row)[1:3] == [prompts, parameters]


def test_use_it_in_python(quick_start, monkeypatch, capsys):
    monkeypatch.chdir(quick_start[0])
    (code,) = blocks("Use it", "python")
    names = {}
    exec(code, names)
    assert re.match(
        r"\[Prediction\(label='\w+', probability=0\.\d+, top=\[", capsys.readouterr().out
    )
    assert names["logits"].shape == (8, 10)
    assert names["letters"](names["torch"].rand(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    "heading, written",
    [
        ("Use it", ["labels.csv", "shared/README.md", "digits.pt2", "gallery.png"]),
        ("Evaluate", ["output/digits/APD/mini_16shots/seed1/evaluations", "report.html"]),
    ],
)
def test_commands_on_the_quick_starts_runs(quick_start, heading, written, monkeypatch):
    """Each line ends well and leaves the file or folder that it names."""
    monkeypatch.chdir(quick_start[0])
    (block,) = blocks(heading, "bash")
    for name, arguments in commands(block):
        if name == "apd-eval":
            arguments += ["--subset", "4"]
        assert call(name, arguments) == 0, name
    for path in written:
        assert Path(path).exists(), path


def test_your_data(run, tiny, tmp_path, monkeypatch):
    """The command, on a tree as shown, with the mini CLIP in place of a download."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/flowers").symlink_to(Path(tiny.root) / "shapes")
    (block,) = blocks("Your data", "bash")
    small = "MODEL.BACKBONE.NAME mini INPUT.SIZE (32,32) AT.TRAIN.STEPS 1"
    depths = "TRAINER.APD.PROMPT_DEPTH_TEXT 3 TRAINER.APD.PROMPT_DEPTH_VISION 3"
    train(run, block, *small.split(), *depths.split())
    assert Path("output/flowers/APD/vit_b32_16shots/seed1/results.json").is_file()


def test_your_method(run, tmp_path, monkeypatch):
    """The method and its key come from the code, and the command trains with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(KEYS["TRAINER"], "TRADES", {})  # takes away what the code adds, in the end
    (method,) = blocks("Your method", "python")
    exec(method, {"__name__": "trades_ivlp"})
    (command,) = blocks("Your method", "bash")
    train(run, command)
    assert (tmp_path / "output/digits/TradesIVLP/mini_16shots/seed1/results.json").is_file()
