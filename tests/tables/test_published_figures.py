"""Published figures as data, and ours beside them."""

import pytest
import yaml
from sample_results import THREAT, record, trained_elsewhere

from apd.catalog import PUBLISHED
from apd.errors import UserError
from apd.methods import METHODS
from apd.results.published import FOLDER, papers, read_paper
from apd.results.runs import load_runs
from apd.tables.against import against, published, with_published
from apd.tables.command import main
from apd.tables.kinds import base_to_new, few_shot, methods, transfer

PAPER = {
    "paper": "A paper",
    "source": "https://example.org (table 2)",
    "backbone": "ViT-B/32",
    "threat_model": {"attack": "pgd-100", "norm": "linf", "eps": 1, "alpha": 1},
    "figures": [
        {"table": 2, "method": "FAP", "dataset": "ImageNet", "clean": 50.0, "robust": 20.0},
        {
            "table": 2,
            "method": "FAP",
            "dataset": ["EuroSAT", "UCF101"],
            "trained_on": "ImageNet",
            "clean": 40.0,
        },
        {
            "table": 3,
            "method": "FAP",
            "dataset": "ImageNet",
            "subsample": "base",
            "shots": 16,
            "robust": 30.0,
        },
        {"table": 3, "method": "Other", "dataset": "ImageNet", "clean": 70.0},
    ],
}


@pytest.fixture
def paper(tmp_path):
    """Write a file of figures, with changes; return what is read from it."""

    def paper(**changes):
        path = tmp_path / "paper.yaml"
        path.write_text(yaml.safe_dump({**PAPER, **changes}))
        return read_paper(str(path))

    return paper


@pytest.fixture
def ours(save):
    """Save a run of FAP at the paper's threat model."""

    def ours(seed=1, clean=51.0, robust=22.0, threat=None, **fields):
        threat = {**THREAT, "eps": 1, **(threat or {})}
        evaluations = [record("clean", clean), record("pgd-100", robust, threat)]
        values = {"method": "FAP", "dataset": "ImageNet", "backbone": "ViT-B/32", "seed": seed}
        name = f"{fields.get('dataset', 'ImageNet')}-{fields.get('subsample', 'all')}{seed}"
        return save(name, **{**values, "evaluations": evaluations, **fields})

    return ours


def rows(tables):
    return {(row["data set"], row["evaluation"]): row for table in tables for row in table.rows}


@pytest.mark.parametrize("name", papers())
def test_each_file_names_its_source_and_known_methods_and_data_sets(name):
    paper = read_paper(name)
    assert paper.title and paper.source and paper.figures
    for figure in paper.figures:
        assert {*figure.datasets, figure.trained_on} - {""} <= set(PUBLISHED)
        assert figure.method in {*METHODS, "CoAPT"}
        assert figure.subsample in ("all", "base", "new")
        assert figure.clean is not None or figure.robust is not None
        assert all(0 <= v <= 100 for v in (figure.clean, figure.robust) if v is not None)
    assert published(paper).format()


def test_ours_theirs_and_the_difference(ours, paper, tmp_path):
    for seed, shift in ((1, 0), (2, 1)):
        ours(seed, clean=51.0 + shift, robust=22.0 + shift)
    (table,) = against(load_runs([tmp_path]), paper())
    found = rows([table])
    clean, robust = found["ImageNet", "clean"], found["ImageNet", "PGD-100 eps=1/255"]
    assert clean["published"].values == [50] and clean["ours"].values == [51, 52]
    assert clean["ours"].comparison.difference == 1.5
    assert robust["ours"].comparison.difference == 2.5
    text = table.format()
    assert "51.5 ± 0.7 (+1.5)" in text and "difference to the published figure" in text
    assert "published: https://example.org (table 2)" in text


def test_an_average_needs_all_its_data_sets_from_the_same_source(ours, paper, tmp_path):
    transferred = trained_elsewhere("ImageNet", "FAP")
    ours(dataset="EuroSAT", clean=45.0, **transferred)
    with pytest.raises(UserError, match="no such runs on UCF101: FAP on average of 2, from Image"):
        against(load_runs([tmp_path]), paper())
    ours(dataset="UCF101", clean=35.0)  # trained there
    with pytest.raises(UserError, match="no such runs on UCF101"):
        against(load_runs([tmp_path]), paper())
    ours(dataset="UCF101", clean=39.0, **transferred)
    found = rows(against(load_runs([tmp_path]), paper()))
    assert found["average of 2, from ImageNet", "clean"]["ours"].values == [42]


def test_base_classes_are_held_against_base_classes(ours, paper, tmp_path):
    ours(subsample="base", robust=33.0)
    ((key, row),) = rows(against(load_runs([tmp_path]), paper())).items()
    assert key[0] == "ImageNet, base classes, 16 shots" and row["ours"].values == [33]


def test_new_classes_are_tested_with_prompts_of_the_base_classes(ours, paper, tmp_path):
    figures = [{**PAPER["figures"][2], "subsample": "new"}]
    ours(subsample="new", robust=33.0)  # trained on the new classes
    with pytest.raises(UserError, match="trained on new classes of ImageNet, published base"):
        against(load_runs([tmp_path]), paper(figures=figures))
    ours(subsample="new", robust=31.0, **trained_elsewhere("ImageNet", "FAP", "base"))
    (table,) = against(load_runs([tmp_path]), paper(figures=figures))
    assert table.rows[0]["ours"].values == [31]


def test_an_average_needs_seeds_that_all_its_data_sets_have(ours, paper, tmp_path):
    for seed, name in enumerate(("EuroSAT", "UCF101")):
        ours(seed, dataset=name, **trained_elsewhere("ImageNet", "FAP", seed=seed))
    with pytest.raises(UserError, match="no seed that all its data sets have"):
        against(load_runs([tmp_path]), paper())


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"threat": {"eps": 4}}, "under another threat model (eps 4, published 1)"),
        ({"threat": {"alpha": 0.25}}, "under another threat model (alpha 0.25, published 1)"),
        ({"threat": {"norm": "l2"}}, "under another threat model (norm l2, published linf)"),
        ({"evaluations": [record("clean", 51.0)]}, "no attack on all test images"),
    ],
)
def test_other_threat_models_are_refused_and_told(ours, paper, tmp_path, changed, reason):
    ours(**changed)
    (table,) = against(load_runs([tmp_path]), paper())
    assert list(rows([table])) == [("ImageNet", "clean")]
    assert f"not compared, {reason}" in table.format()


@pytest.mark.parametrize(
    "threat, said",
    [
        ({"loss": "margin"}, "loss margin, published ce"),
        ({"restarts": 10}, "restarts 10, published 1"),
        ({"random_start": False}, "random_start False, published True"),
        ({"precision": "bf16"}, "precision bf16, published fp32"),
        ({"source": "transfer:zeroshot"}, "source transfer:zeroshot, published white-box"),
        ({"last_iterate": True}, "last_iterate True, published False"),
    ],
)
def test_what_a_paper_does_not_say_of_its_attack_is_the_usual(ours, paper, tmp_path, threat, said):
    ours(threat=threat)
    (table,) = against(load_runs([tmp_path]), paper())
    assert list(rows([table])) == [("ImageNet", "clean")]
    assert f"under another threat model ({said} (not said, but usual))" in table.format()
    runs = load_runs([tmp_path])
    (table,) = with_published(methods(runs), runs, paper())
    row = row_of(table, "FAP")
    assert row["clean (%)"].values == [50]
    assert not any(row[name].values for name in table.measured[1:])
    said_by_the_paper = {**PAPER["threat_model"], **threat}
    assert len(rows(against(load_runs([tmp_path]), paper(threat_model=said_by_the_paper)))) == 2


def test_what_is_taken_for_usual_is_told(ours, paper, tmp_path):
    ours()
    (table,) = against(load_runs([tmp_path]), paper())
    assert (
        "not said by the paper of its attack, taken to be: source white-box, precision fp32, "
        "last_iterate False, loss ce, restarts 1, random_start True"
    ) in table.format()


def test_prompts_of_another_source_are_not_those_of_the_figure(ours, paper, tmp_path):
    for name in ("EuroSAT", "UCF101"):
        ours(dataset=name, **trained_elsewhere("DescribableTextures", "FAP"))
    with pytest.raises(UserError) as error:
        against(load_runs([tmp_path]), paper())
    assert (
        "nearest: FAP on average of 2, from ImageNet (ours: trained on all classes of "
        "DescribableTextures, published all classes of ImageNet)"
    ) in str(error.value)


@pytest.mark.parametrize(
    "fields, nearest",
    [
        (
            {"subsample": "base", "shots": 8},
            "FAP on ImageNet, base classes, 16 shots (ours: shots 8, published 16)",
        ),
        ({"method": "APD"}, "FAP on ImageNet (ours: method APD, published FAP), Other on ImageNet"),
        ({"dataset": "DTD"}, "FAP on ImageNet (ours: data set DTD, published ImageNet"),
    ],
)
def test_the_nearest_figures_are_named(ours, paper, tmp_path, fields, nearest):
    ours(**fields)
    with pytest.raises(UserError) as error:
        against(load_runs([tmp_path]), paper())
    assert f"no run for 4 figures, nearest: {nearest}" in str(error.value)
    assert len(str(error.value)) < 400


def test_counting_every_iterate_is_not_counting_the_last(ours, paper, tmp_path):
    threat = {**PAPER["threat_model"], "last_iterate": True}
    ours()
    (table,) = against(load_runs([tmp_path]), paper(threat_model=threat))
    assert "(last_iterate False, published True)" in table.format()
    ours(threat={"last_iterate": True})
    assert len(rows(against(load_runs([tmp_path]), paper(threat_model=threat)))) == 2


def test_a_part_of_the_test_images_is_not_compared(ours, paper, tmp_path):
    images = {"count": 100, "seed": 0}
    ours(evaluations=[record("clean", 51.0, total=100, images=images)])
    with pytest.raises(UserError, match="no clean evaluation on all test images"):
        against(load_runs([tmp_path]), paper())


def test_another_backbone_is_told(ours, paper, tmp_path):
    ours(backbone="ViT-B/16")
    with pytest.raises(UserError, match="of ViT-B/32, and ours of ViT-B/16"):
        against(load_runs([tmp_path]), paper())


def test_a_step_size_in_thirds_agrees(ours, paper, tmp_path):
    threat = {**PAPER["threat_model"], "eps": 4, "alpha": 2.667}
    ours(threat={"eps": 4, "alpha": 8 / 3})
    assert len(rows(against(load_runs([tmp_path]), paper(threat_model=threat)))) == 2


def test_the_command_prints_them_and_adds_published_rows(ours, paper, tmp_path, capsys):
    ours()
    paper()
    run, file = str(tmp_path / "ImageNet-all1"), str(tmp_path / "paper.yaml")
    assert main([run, "--against", file]) == 0
    assert "ours and published, A paper, ViT-B/32" in capsys.readouterr().out
    assert main([run, "--published", file, "--csv", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert "ImageNet, 16 shots, ViT-B/32" in out and "published, not ours: A paper" in out
    assert "Other (paper)" in out and "Other" in (tmp_path / "t.csv").read_text()
    row = next(line for line in out.splitlines() if line.startswith("FAP (paper)"))
    assert row.split()[-3:] == ["50.0", "20.0", "-"] and "published" in row
    assert "(paper): published, not ours: https://example.org" in out


def row_of(table, method):
    (row,) = [row for row in table.rows if row["method"] == f"{method} (paper)"]
    return row


def test_published_rows_stand_in_the_columns_that_they_are_about(ours, paper, tmp_path):
    transferred = trained_elsewhere("ImageNet", "FAP")
    for name in ("EuroSAT", "UCF101"):
        ours(dataset=name, **transferred)
    ours()
    runs = load_runs([tmp_path])
    clean, robust = with_published(transfer(runs), runs, paper())
    row = row_of(clean, "FAP")
    assert row["ImageNet (source)"].values == [50] and row["average of targets"].values == [40]
    assert row["EuroSAT"].values == row["UCF101"].values == []
    assert row_of(robust, "FAP")["ImageNet (source)"].values == [20]
    assert "FAP (paper)" in clean.format("latex") and "FAP (paper)" in clean.format("json")
    tables = with_published(methods(runs), runs, paper())
    assert row_of(tables[0], "FAP")["average"].values == []  # an average that was trained there


def test_published_base_and_new_have_their_harmonic_mean(ours, paper, tmp_path):
    ours(subsample="base")
    ours(subsample="new", **trained_elsewhere("ImageNet", "FAP", "base"))
    figures = [
        {**PAPER["figures"][2], "subsample": half, "clean": value, "robust": value / 2}
        for half, value in (("base", 60.0), ("new", 30.0))
    ]
    runs = load_runs([tmp_path])
    (table,) = with_published(base_to_new(runs), runs, paper(figures=figures))
    row = row_of(table, "FAP")
    assert row["base clean (%)"].values == [60] and row["H clean (%)"].values == pytest.approx([40])
    assert row["H PGD-100 eps=1/255 (%)"].values == pytest.approx([20])


def test_the_source_is_named_once_below_each_table_with_published_rows(ours, paper, tmp_path):
    for dataset in ("ImageNet", "EuroSAT"):
        ours(dataset=dataset, subsample="base")
    figures = [{**PAPER["figures"][2], "dataset": name} for name in ("ImageNet", "EuroSAT")]
    runs = load_runs([tmp_path])
    tables = with_published(base_to_new(runs), runs, paper(figures=figures))
    named = ["\n".join(table.notes).count("published, not ours") for table in tables]
    assert named == [1, 1, 0]  # there is no average of both


def test_published_rows_need_the_shots_the_threat_model_and_the_backbone(ours, paper, tmp_path):
    ours(threat={"eps": 4})
    runs = load_runs([tmp_path])
    clean, robust = with_published(few_shot(runs), runs, paper())
    assert row_of(clean, "FAP")["16 shots"].values == [50] and len(robust.rows) == 1
    eight = [{**PAPER["figures"][0], "shots": 8}]
    for other in (paper(figures=eight), paper(backbone="RN50")):
        (table,) = with_published(methods(runs), runs, other)
        assert len(table.rows) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--against", "coapd"], "no published figures coapd: there are coapt"),
        (["--against", "coapt", "--table", "cost"], "--against is a table of its own"),
    ],
)
def test_bad_input_is_told_in_one_line(ours, capsys, arguments, message):
    assert main([str(ours()), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"figures": [{"method": "FAP"}]}, "does not hold published figures"),
        ({"figures": [{**PAPER["figures"][0], "acc": 3}]}, "unknown acc"),
        ({"figures": 3}, "does not hold published figures"),
        ({"threat_model": None}, "has robust figures, but no threat_model"),
    ],
)
def test_a_faulty_file_is_told(paper, changes, message):
    with pytest.raises(UserError, match=message):
        paper(**changes)


def test_files_come_with_the_package():
    assert {"coapt", "maple"} <= set(papers()) and FOLDER.is_dir()
