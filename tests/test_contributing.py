"""CONTRIBUTING's "Change one thing" is true: one of each is added to a copy of the repository.

In the copy, exactly the files of a row are edited. Then what was added works there
(``tests/added/checks.py``), and the tests which hold lists pass (``FILES``).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDED = Path(__file__).parent / "added"  # the test of what is added, and its source
LEFT_OUT = ("docs/study/", "docs/digits/", "tests/gpu/")  # of the copy, but for what is read
READ = ("docs/study/search.json",)  # by scripts/make_configs.py

# the tests that hold lists, and of those that try everything in a list what is new in it
FILES = """
    tests/test_added.py tests/test_layers.py tests/test_names.py tests/test_ranges.py
    tests/attacks/test_gradient.py tests/attacks/test_registry.py
    tests/datasets/test_dataset_configs.py tests/figures/test_plot.py tests/report/test_report.py
    tests/tables/test_table.py
    tests/trainers/test_build_geometry.py tests/trainers/test_configs.py
    tests/trainers/test_register.py
""".split()
CHOSEN = """
    test_added or test_layers or test_names or test_dataset_configs or documentation
    or has_a_range or its_range or as_the_script_makes_them or its_configs or visual_prompts
    or minis or docs_name or test_register or MirrorIVLP or mifgsm or autograds_to_the_bit
    or (merge_and_fit and APT) or every_kind or leaves_no_file
    or every_figure
"""


def rows():
    """What to add -> the number of files, and the files, as CONTRIBUTING.md has them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Change one thing\n")[1].split("\n## ")[0]
    table = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {
        name.strip(): (int(count), re.findall(r"`([\w<>-]+(?:/[\w<>-]+)+\.\w+)`", places))
        for name, count, places in table[1:]
    }


class Copy:
    """A copy of the repository; ``edited`` has the files of each thing that was added."""

    def __init__(self, folder):
        self.folder, self.edited = folder, {}

    def begin(self, name):
        """What is edited from now on is for what has this name."""
        self.editing = self.edited[name] = set()

    def new(self, path, text):
        assert not (self.folder / path).exists()
        self._write(path, text)

    def insert(self, path, before, text):
        """Insert ``text`` before what stands in the file once."""
        file = self.folder / path
        old = file.read_text(encoding="utf-8")
        assert old.count(before) == 1, f"{path} has {old.count(before)} of {before!r}"
        self._write(path, old.replace(before, text + before))

    def append(self, path, text):
        self._write(path, (self.folder / path).read_text(encoding="utf-8") + text)

    def _write(self, path, text):
        self.editing.add(path)
        content = text if isinstance(text, bytes) else text.encode()
        (self.folder / path).write_bytes(content)


# -- one of each -----------------------------------------------------------------------------------


def source(name):
    return (ADDED / name).read_text(encoding="utf-8")


def add_method(copy):
    copy.new("trainers/mirror_ivlp.py", source("mirror_ivlp.py"))
    copy.insert(
        "apd/methods.py",
        '    "APD": Method(',
        '    "MirrorIVLP": Method("MirrorIVLP", "text + visual", "each step", 4, 2, GREEN, "8"),\n',
    )
    copy.insert(
        "scripts/make_configs.py",
        '    "APD": Method(\n',
        """\
    "MirrorIVLP": Method(
        "Our choice [O]: made up.",
        section="MirrorIVLP",
        prompts={**both(2, visual=9, text=9), "LAMBDA_MIRROR": 0.25},
        mini={**both(4, visual=4, text=3), "LAMBDA_MIRROR": 0.25},
        lr=0.0035,
        epochs=50,
        train=ONE_STEP,
    ),
""",
    )
    copy.insert(
        "apd/config.py",
        '        "APD": _APD,\n',
        """\
        "MirrorIVLP": {
            **_IVLP,
            "LAMBDA_MIRROR": 0.5,  # mirrored clean images [O]
        },
""",
    )
    copy.new(
        "docs/methods/mirror_ivlp.md",
        """\
# MirrorIVLP

| key (`TRAINER.MirrorIVLP.`) | default | |
|---|---|---|
| `N_CTX_TEXT`, `PROMPT_DEPTH_TEXT` | 2, 9 | M_t, J_t |
| `N_CTX_VISION`, `PROMPT_DEPTH_VISION` | 2, 9 | M_v, J_v |
| `CTX_INIT`, `PREC` | `a photo of a`, `fp32` | as for IVLP |
| `LAMBDA_MIRROR` | 0.5 | weight of mirrored clean images |
""",
    )


def add_loss_of_the_method(copy):
    copy.append(
        "apd/distill/losses.py",
        """

def spread(features: Tensor) -> Tensor:
    \"\"\"Mean cosine similarity of features (C, d) of different classes, between -1 and 1.\"\"\"
    similarity = F.normalize(features, dim=-1) @ F.normalize(features, dim=-1).T
    count = len(features)
    return (similarity.sum() - count) / (count * (count - 1))
""",
    )
    copy.insert(
        "trainers/mirror_ivlp.py",
        '        return {"loss": loss, "mirror": mirror}\n',
        """\
        apart = 1 + spread(text)
        loss = loss + self.options.LAMBDA_SPREAD * apart
        return {"loss": loss, "mirror": mirror, "spread": apart}
""",
    )
    copy.insert(
        "trainers/mirror_ivlp.py",
        "from apd.host import",
        "from apd.distill.losses import spread\n",
    )
    copy.insert(
        "apd/config.py",
        '            "LAMBDA_MIRROR": 0.5,',
        '            "LAMBDA_SPREAD": 0.0,  # classes apart [O]\n',
    )
    copy.append(
        "docs/methods/mirror_ivlp.md",
        "| `LAMBDA_SPREAD` | 0.0 | weight of classes' distances |\n",
    )


def add_folder(copy):
    copy.new(
        "configs/datasets/puppets.yaml",
        """\
DATASET:
  NAME: "Folder"
  FOLDER: {DIR: "puppets", NAME: "Puppets", TEMPLATE: "a photo of a {}, a hand puppet."}
""",
    )


def add_data_set(copy):
    copy.new("datasets/stripes.py", source("stripes.py"))
    copy.new("configs/datasets/stripes.yaml", 'DATASET:\n  NAME: "Stripes"\n')
    copy.insert("apd/catalog.py", '"Digits": "a photo', '"Stripes": "a drawing of {}.", ')
    copy.append("docs/datasets.md", "\n`Stripes` draws its images itself.\n")


def add_attack(copy):
    copy.insert(
        "apd/attack_catalog.py",
        '    "apgd-ce": LibraryAttack(',
        """\
    "mifgsm": LibraryAttack(
        name="MIFGSM",
        arguments=("eps", "alpha", "steps"),
        options={"decay": 0.9},
        steps=10,
        loss="ce",
        norms=("linf",),
        moves_all=True,
    ),
""",
    )
    copy.insert(
        "docs/evaluation.md",
        "| `apgd-dlr` |",
        "| `mifgsm` | momentum 0.9 | linf | 10 steps of `ALPHA` |\n",
    )


def add_loss_of_the_attack(copy):
    copy.insert(
        "apd/attacks/losses.py",
        "LOSSES: dict",
        """\
def right_logit(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    \"\"\"The right logit, which is to become small.\"\"\"
    return -logits.gather(1, labels[:, None]).sum()


""",
    )
    copy.insert("apd/attacks/losses.py", '"margin": margin}', '"logit": right_logit, ')
    copy.insert("apd/choices.py", '"margin")  # of PGD', '"logit", ')
    copy.insert("docs/evaluation.md", "or margin |", "logit ")


def add_table(copy):
    copy.insert(
        "apd/tables/kinds.py",
        "TABLES: dict",
        """\
def worst_seed(runs: dict[Path, dict]) -> list[Table]:
    \"\"\"The lowest accuracy of any seed, by method.\"\"\"
    grid = Grid(runs, same=("backbone", "subsample", "shots", "dataset"))
    (place,) = grid.places
    rows = []
    for method in grid.rows:
        cells = {name: grid.accuracies(method, place, name) for name in grid.headers}
        worst = {name: min(cell.values, default=None) for name, cell in cells.items()}
        rows.append({"method": method} | {name: accuracy_cell(x) for name, x in worst.items()})
    return [Table("worst-seed", f"worst seed, {_title(runs, 'dataset', 'shots')}", rows)]


""",
    )
    copy.insert("apd/tables/kinds.py", '    "cost": cost,\n}', '    "worst-seed": worst_seed,\n')
    copy.insert("docs/tables.md", "**`cost`**: ", "**`worst-seed`**: the worst seed.\n\n")


def add_table_over_tasks(copy):
    copy.new("apd/tables/median.py", source("median.py"))
    copy.insert(
        "apd/tables/command.py",
        "from apd.tables.missing import",
        "from apd.tables.median import median_over_tasks\n",
    )
    copy.insert(
        "apd/tables/command.py", '"frontier": frontier, "mod', '"median": median_over_tasks, '
    )
    copy.append("docs/tasks.md", "\n`apd-table --table median` has the median over tasks.\n")


def add_figure(copy):
    copy.insert(
        "apd/figures/kinds.py",
        "class Kind(NamedTuple)",
        """\
@look
def seeds(runs: dict[Path, dict]) -> Figures:
    \"\"\"A panel for each attack, with a point for each method and seed.\"\"\"
    figures = {}
    for setting, shots, group in _at_shots(points(runs)):
        attacks = _grouped(group, "attack")
        figure, all_axes = panels(len(attacks), _title(setting, "seeds", group, shots))
        for axes, (attack, some) in zip(all_axes, attacks):
            axes.plot([p.seed for p in some], [p.accuracy for p in some], "o")
            axes.set(xlabel="seed", ylabel="accuracy (%)", title=attack)
        figures[_stem("seeds", setting, shots)] = figure
    return figures


""",
    )
    copy.insert(
        "apd/figures/kinds.py",
        '    "training": Kind(',
        '    "seeds": Kind(seeds, "each seed\'s accuracy", "a seed"),\n',
    )
    copy.insert(
        "docs/figures.md",
        "| `training` |",
        "| `seeds` | each seed's accuracy | number of shots | a seed |\n",
    )


def add_configs_of_a_clip(copy):
    copy.insert(
        "scripts/make_configs.py",
        '    "mini": Mini(\n',
        '    "vit_b16_240": Clip("models/vit_b16_240.pt", like="vit_b16", size=240),\n',
    )


def add_mini_clip(copy):
    weights = (ROOT / "apd/assets/mini_photo.pt").read_bytes()
    copy.new("apd/assets/mini_new.pt", weights)
    copy.insert(
        "apd/clip/load.py",
        '"mini-photo": ASSETS',
        '"mini-new": ASSETS / "mini_new.pt", ',
    )
    copy.insert(
        "scripts/make_configs.py",
        '    "mini_photo": Mini(\n',
        '    "mini_new": Mini("mini-new", about="Made up: our choice throughout [O]"),\n',
    )


ADDITIONS = {
    "a method": add_method,
    "a loss of a method": add_loss_of_the_method,
    "a data set: one folder of images per class": add_folder,
    "a data set in a layout of its own": add_data_set,
    "an attack of torchattacks": add_attack,
    "a loss of our attack": add_loss_of_the_attack,
    "a table": add_table,
    "a table of differences over tasks": add_table_over_tasks,
    "a figure": add_figure,
    "configs for another CLIP": add_configs_of_a_clip,
    "a mini CLIP": add_mini_clip,
}


# -- the tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The copy, with one of each."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    copy = Copy(tmp_path_factory.mktemp("copy"))
    for path in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
        if path in READ or not path.startswith(LEFT_OUT) and (ROOT / path).is_file():
            (copy.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, copy.folder / path)
    for name, add in ADDITIONS.items():
        copy.begin(name)
        add(copy)
    return copy


def test_every_row_of_the_table_is_tried_or_needs_no_trial():
    assert {*rows()} == {*ADDITIONS, "a CLIP of OpenAI's geometry"}


@pytest.mark.parametrize("name", rows())
def test_the_count_is_that_of_the_files(name):
    count, files = rows()[name]
    assert len(set(files)) == len(files) == count
    assert all("<name>" in file or (ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("name", ADDITIONS)
def test_the_files_of_the_table_are_edited_and_no_others(copy, name):
    _, files = rows()[name]
    edited = sorted(copy.edited[name])
    assert len(edited) == len(files)
    for file in files:
        pattern = re.escape(file).replace("<name>", r"\w+")
        assert [path for path in edited if re.fullmatch(pattern, path)], file


def test_what_was_added_works_and_the_tests_of_lists_pass(copy):
    environment = {**os.environ, "PYTHONPATH": str(copy.folder)}
    options = {"cwd": copy.folder, "env": environment, "capture_output": True, "text": True}
    made = subprocess.run([sys.executable, "scripts/make_configs.py"], **options)
    assert made.returncode == 0, made.stderr
    shutil.copyfile(ADDED / "checks.py", copy.folder / "tests" / "test_added.py")
    chosen = ["-p", "no:cacheprovider", "-k", " ".join(CHOSEN.split())]
    command = [sys.executable, "-m", "pytest", "-q", *chosen, *FILES]
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
