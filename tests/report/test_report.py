"""apd-report: one page that holds everything and asks for nothing."""

import base64
import csv
import hashlib
import re
from html.parser import HTMLParser

import pytest
from sample_results import THREAT, keep_verdicts, record, results

from apd.errors import UserError
from apd.report.command import main
from apd.report.galleries import galleries
from apd.report.page import SCRIPT, page
from apd.results import write_results
from apd.results.runs import load_runs
from apd.tables.compare import compare
from apd.tables.kinds import TABLES, fitting
from apd.tables.write import write

EVIL = "<script>alert('x')</script>"
FLAGS = {"unbounded": "9 % of the images stand & more"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Few-shot runs of three methods, two of them with names that others made up; and the page."""
    root = tmp_path_factory.mktemp("runs")
    for method, lr in (("CoOp", 0.002), ("APD", 0.01), (EVIL, 0.03)):
        for shots in (1, 2, 4):
            config = {"SEED": 1, "OPTIM": {"LR": lr, "NAME": "sgd"}, "DATASET": {"ROOT": EVIL}}
            attacked = record("pgd-100", 42.0, {**THREAT, "restarts": 7, "alpha": 0.625})
            if method == "APD" and shots == 4:
                attacked["flags"] = FLAGS
            values = results(
                method=method,
                shots=shots,
                config=config,
                argv=["--root", EVIL, "--seed", "1"],
                evaluations=[record("clean", 80.0), attacked],
            )
            folder = root / f"{lr}" / str(shots)
            write_results(folder, values)
            rows = [f"{epoch},0.1,2,{4 - epoch}" for epoch in (1, 2, 3)]
            (folder / "history.csv").write_text("\n".join(["epoch,lr,seconds,loss", *rows, ""]))
    runs = load_runs([root])
    return runs, page(runs)


class Page(HTMLParser):
    """Tags, links, and rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.rows, self.text = [], [], [], []
        self.inside = False  # a cell
        self.feed(text)
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text.append(data)
        if self.inside:
            self.rows[-1][-1] += data

    def table(self, *first):
        """The row that begins so, and all rows below it."""
        start = next(i for i, row in enumerate(self.rows) if row[: len(first)] == list(first))
        return self.rows[start], self.rows[start + 1 :]


def test_it_asks_for_no_other_file_and_runs_its_own_script_alone(made):
    _, text = made
    found = Page(text)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert not {"link", "iframe", "object", "base"} & set(found.tags)
    assert "url(" not in text and "@import" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script == SCRIPT.read_text().strip() and found.tags.count("script") == 1
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    for link in found.links:  # nor do the figures in it
        if link.startswith("data:image"):
            svg = base64.b64decode(link.partition(",")[2]).decode()
            assert "<script" not in svg and not re.search(r'href="(?!#)', svg)


def test_what_the_files_say_is_text(made):
    _, text = made
    assert text.count("<script") == 1 and "&lt;script&gt;" in text
    assert EVIL in Page(text).text


def test_it_has_every_table_that_the_runs_suit(made):
    runs, text = made
    tables = [table for name in fitting(runs) for table in TABLES[name](runs)]
    assert len(tables) >= 2
    for table in tables:
        assert table.format("html") in text


def test_tables_are_there_as_csv(made):
    runs, text = made
    links = [link for link in Page(text).links if link.startswith("data:text/csv")]
    overview, whole = (
        list(csv.DictReader(base64.b64decode(link.partition(",")[2]).decode().splitlines()))
        for link in links
    )
    assert [row["method"] for row in overview[::2]] == ["CoOp", "APD", EVIL]
    assert {row["table"] for row in overview} == {"overview"}
    tables = [table for name in fitting(runs) for table in TABLES[name](runs)]
    others = list(csv.DictReader(write(tables, "csv").splitlines()))
    assert [{**row} for row in whole[len(overview) :]] == [{**row} for row in others]


# -- the first table, and the cards above it ------------------------------------------------------


def cards_of(text):
    """Title -> value, name and note of the cards."""
    parts = re.findall(r'<p class="(?:title|value|name|note)">(.*?)</p>', text.split("<nav>")[0])
    return {parts[i]: tuple(parts[i + 1 : i + 4]) for i in range(0, len(parts) - 3, 4)}


def sweep(save, dataset="Digits", shift=0.0):
    """Two seeds of three methods, with verdicts; CoOp is the most robust in seed 1 alone."""
    for method, clean, robust in (("CoOp", 90, 20), ("APT", 60, 40), ("APD", 80, 50)):
        for seed in (1, 2):
            accuracy = robust + shift + 2 * seed
            folder = save(
                f"{dataset}/{method}/{seed}",
                method=method,
                dataset=dataset,
                seed=seed,
                fingerprint="m",
                evaluations=[record("clean", clean + shift, total=100)],
            )
            attacked = record("pgd-100", accuracy, THREAT, key="1" * 16, flags={}, total=100)
            lost = round(100 - clean - shift)
            fell = round(clean + shift - accuracy)
            keep_verdicts(folder, attacked, [-1] * lost + [1] * fell + [0] * round(accuracy))


def test_it_opens_with_the_best_and_with_all_methods_the_most_robust_first(save, tmp_path):
    sweep(save)
    text = page(load_runs([tmp_path]))
    cards = cards_of(text)
    assert cards["best clean"] == ("90.0 ± 0.0 %", "CoOp", "clean")
    assert cards["best robust"] == ("53.0 ± 1.4 %", "APD", "PGD-100 eps=2/255")
    value, name, note = cards["lead"]
    assert name == "APD over APT" and value.startswith("+10.0 [")
    assert note.endswith("95 % interval over test images; chosen because they are first and second")
    header, rows = Page(text).table("method", "clean (%)")
    assert header == ["method", "clean (%)", "PGD-100 eps=2/255 (%)"]
    assert [row[0] for row in rows[:3]] == ["APD", "APT", "CoOp"]
    assert text.index("cards") < text.index('id="tables"')


def test_a_baseline_gets_columns_of_differences_and_is_what_the_first_leads(save, tmp_path):
    sweep(save)
    runs = load_runs([tmp_path])
    text = page(runs, baseline="CoOp")
    header, rows = Page(text).table("method", "clean (%)", "clean, to CoOp")
    of_apd = dict(zip(header, rows[0]))
    assert of_apd["PGD-100 eps=2/255, to CoOp"].startswith("+30.00 [")
    assert rows[2][0] == "CoOp" and rows[2][2] == "-"
    value, name, note = cards_of(text)["lead"]
    assert name == "APD over CoOp" and "chosen" not in note
    # the interval is apd-table's
    (table, *_) = TABLES["methods"](runs)
    (table,) = compare([table], "CoOp")
    row = next(row for row in table.rows if row["method"] == "APD")
    low, high = row["PGD-100 eps=2/255 (%)"].comparison.interval
    assert value == f"+30.0 [{low:+.1f},\N{NO-BREAK SPACE}{high:+.1f}]"
    with pytest.raises(UserError, match="no method Nobody here: there are CoOp, APT, APD"):
        page(runs, baseline="Nobody")


def test_of_several_data_sets_it_opens_with_their_average(save, tmp_path):
    for dataset, shift in (("Digits", 0.0), ("Letters", -4.0), ("Pets", 2.0)):
        sweep(save, dataset, shift)
    text = page(load_runs([tmp_path]), baseline="APT")
    header, rows = Page(text).table("method", "clean (%)", "clean, to APT")
    assert rows[0][1].startswith("79.3 ± 0.0")  # (80 + 76 + 82) / 3
    # the sets do not differ in the difference: an interval of no width
    assert rows[0][2] == "+20.00 [+20.00, +20.00]"
    assert "average of 3 data sets" in text and "95 % interval over 3 data sets" in text
    assert cards_of(text)["best robust"][0] == "52.3 ± 1.4 %"


def test_without_a_table_of_methods_it_opens_with_what_there_is(save, tmp_path):
    for tau in (1.0, 4.0):
        config = {"SEED": 1, "TRAINER": {"APD": {"TAU": tau}}}
        save(f"{tau}", config=config)
    runs = load_runs([tmp_path])
    text = page(runs)
    assert cards_of(text) == {} and Page(text).table("config")
    with pytest.raises(UserError, match="these runs have no table of methods"):
        page(runs, baseline="APD")


def test_it_has_every_figure_that_the_runs_suit(made):
    _, text = made
    kinds = ("clean and robust accuracy", "accuracy by shots", "training")  # there may be others

    def of_kinds(names):
        return [name for name in names if any(f": {kind}," in name for kind in kinds)]

    titles = of_kinds(re.findall(r"<figcaption>(.*?)</figcaption>", text))
    what = [re.search(": (.*?),", title)[1] for title in titles]
    assert what == [*["clean and robust accuracy"] * 3, "accuracy by shots", "training"]
    assert "4 shots" in titles[-1]  # the most
    images = of_kinds(re.findall(r'<img alt="(.*?)"', text))
    panels = [name.rpartition(": ")[2] for name in images]
    attack = "PGD-100, linf eps 2/255"
    assert panels == [*[attack] * 3, "clean", attack, "legend", "loss", "learning rate", "legend"]


def test_threat_models_are_whole(made):
    header, (row, *_) = Page(made[1]).table("attack", "norm")
    assert dict(zip(header, row)) == {
        "attack": "PGD-100",
        "norm": "linf",
        "eps": "2",
        "alpha": "0.625",
        "steps": "100",
        "restarts": "7",
        "random start": "yes",
        "loss": "ce",
        "counts": "any iterate",
        "source": "white-box",
        "precision": "fp32",
        "seeds": "1",
        "evaluations": "9",
        "images": "500 test: Digits",
    }


def test_flags_are_told_with_their_sentences(made):
    found = Page(made[1])
    assert "1 of 18 evaluations raised a flag" in found.text
    header, (row, *_) = found.table("method", "data set", "shots", "seed", "attack")
    assert dict(zip(header, row)) == {
        "method": "APD",
        "data set": "Digits",
        "shots": "4",
        "seed": "1",
        "attack": "PGD-100, linf eps 2/255",
        "accuracy (%)": "42.0",
        "flag": "unbounded",
        "sign": FLAGS["unbounded"],
    }


def test_configurations_show_what_differs_first(made):
    found = Page(made[1])
    header, rows = found.table("key", "default", "CoOp")
    assert header == ["key", "default", "CoOp", "APD", EVIL]
    assert next(row for row in rows if row[0] == "OPTIM.LR")[2:] == ["0.002", "0.01", "0.03"]
    _, rows = found.table("key", "default", "value")
    assert next(row for row in rows if row[0] == "OPTIM.NAME")[2] == "sgd"
    assert not any(row[0] == "DATASET.ROOT" for row in found.rows)  # cannot change a result
    assert "OPTIM.LR: 0.01 OPTIM.NAME: sgd" in found.text  # the whole of it
    assert "train.py --root '<script>" in found.text


def test_without_flags_it_says_so(save, tmp_path):
    save()
    save(method="CoOp")
    text = Page(page(load_runs([tmp_path]))).text
    assert "None of 4 evaluations raised a flag." in text


@pytest.fixture
def commits(monkeypatch):
    """Commits of the next runs."""

    def commits(*commits):
        left = iter(commits)
        monkeypatch.setattr("apd.results.schema._git_commit", lambda: next(left))

    return commits


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (("a" * 40, "b" * 40), "These runs are of 2 git commits"),
        (("a" * 40 + "-dirty",) * 2, "Files had changed since the git commit of 2 of the runs"),
        ((None, None), "The git commit of some runs is not known"),
        (("a" * 40,) * 2, None),
    ],
)
def test_commits_that_differ_or_are_dirty_are_a_warning(save, tmp_path, commits, found, told):
    commits(*found)
    save(host="dassl 0.6.3")
    save(method="CoOp", host="dassl 0.6.3")
    text = page(load_runs([tmp_path]))
    assert (told in text) if told else ('<p class="alarm">' not in text)
    assert (found[0] or "not known") in text and "dassl 0.6.3" in text


def test_what_cannot_be_compared_is_named_and_the_rest_is_there(save, tmp_path):
    save()
    save(method="CoOp", threat={"alpha": 0.5})
    text = page(load_runs([tmp_path]))
    assert "No figure scatter: one figure cannot hold two threat models" in text
    assert Page(text).table("attack", "norm")[0]


def test_command_writes_the_same_page_twice(save, tmp_path, capsys):
    save()
    save(method="CoOp")
    pages = []
    for name in ("a", "b"):
        path = tmp_path / name / "report.html"
        assert main([str(tmp_path), "-o", str(path), "--title", "A & B"]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        pages.append(path.read_bytes())
    assert pages[0] == pages[1] and b"<h1>A &amp; B</h1>" in pages[0]


def test_no_runs_are_an_error(tmp_path, capsys):
    assert main([str(tmp_path), "-o", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err.startswith("error: no finished run")
    assert not (tmp_path / "report.html").exists()


def test_images_under_attack_are_drawn_once_from_the_verdicts(run, tmp_path, capsys):
    from apd.evaluate.run import Run, SavedRun
    from apd.results.verdicts import read_verdicts, verdicts_path
    from apd.show.stored import COUNT, SEED, gallery_of_verdicts

    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, "AT.TEST.SUBSET", 17)
    assert run("ZeroshotCLIP", tmp_path / "run", *options, "AT.TEST.EPS", 4.0).code == 0
    (results,) = load_runs([tmp_path]).values()
    attacked = results["evaluations"][1]
    verdicts = read_verdicts(verdicts_path(tmp_path / "run", attacked["key"]))
    gallery = gallery_of_verdicts(Run(SavedRun(tmp_path / "run", results)), verdicts)
    answers = gallery.attacked[0].answers[0]
    survived = [answer == label for (answer, _), label in zip(answers, gallery.labels[0])]
    stands, fell = verdicts.stands.sum(), (verdicts.lost_to > 0).sum()
    assert stands and fell
    expected = min(max(COUNT - fell, COUNT // 2), stands)
    assert survived.count(True) == expected and len(survived) == min(COUNT, stands + fell)
    assert f"drawn with seed {SEED}" in gallery.title and "PGD-3, linf eps 4/255" in gallery.title

    report = tmp_path / "report.html"
    assert main([str(tmp_path), "-o", str(report)]) == 0
    assert "once" in capsys.readouterr().err
    (stored,) = (tmp_path / "run" / "evaluations").glob("*.png")
    assert base64.b64encode(stored.read_bytes()).decode() in report.read_text()
    stored.write_bytes(b"drawn before")
    assert main([str(tmp_path), "-o", str(report)]) == 0
    assert "once" not in capsys.readouterr().err
    assert base64.b64encode(b"drawn before").decode() in report.read_text()
    stored.unlink()
    assert main([str(tmp_path), "-o", str(report), "--root", str(tmp_path)]) == 0
    assert "No gallery of ZeroshotCLIP, seed 1" in report.read_text() and not stored.exists()
    assert main([str(tmp_path), "-o", str(report), "--no-gallery"]) == 0
    assert "gallery of" not in report.read_text().lower()


def test_why_there_is_no_gallery_names_no_folder_of_this_machine(tmp_path):
    folder = tmp_path / "run"
    attacked = record("pgd-100", 40.0, THREAT, key="1" * 16)
    write_results(folder, results(evaluations=[record("clean", 80.0), attacked]))
    keep_verdicts(folder, attacked, [0] * 4)

    def store(folder, run, key):
        raise UserError(f"no checkpoint {folder}/prompt_learner/model-best.pth.tar")

    shown, (line,) = galleries(load_runs([tmp_path]), store)
    assert shown == [] and line.startswith("No gallery of APD, seed 1")
    assert line.endswith(": no checkpoint prompt_learner/model-best.pth.tar")
