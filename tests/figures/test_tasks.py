"""The frontier and the moderator as figures: what they draw is what the tables tell."""

import json

import numpy as np
import pytest

from apd.figures.command import main
from apd.figures.tasks import frontier, moderator
from apd.results.runs import load_runs
from apd.tables.arms import Design
from apd.tables.moderator import moderator as moderator_table
from apd.tables.nested import mean_over

TASKS = {"A": 1.0, "B": 3.0, "C": 0.5, "D": -1.0}
DESIGN = Design(differences=(("APD", "AdvIVLP"),))


@pytest.fixture
def runs(save, tmp_path):
    """Two arms at two radii on four tasks, and a fifth on which one radius is missing."""
    for number, (task, gain) in enumerate([*TASKS.items(), ("E", 2.0)]):
        for method, more in (("AdvIVLP", 0.0), ("APD", gain)):
            for radius in (3.0, 6.0)[: 1 if (task, method) == ("E", "APD") else 2]:
                clean = 70 - 4 * radius + 3 * number
                config = {"AT": {"TRAIN": {"EPS": radius}}}
                save(
                    f"runs/{task}/{method}/{radius}",
                    method=method,
                    dataset=task,
                    clean=clean,
                    robust=30 - number + radius + more,
                    config=config,
                )
        folder = save(
            f"runs/zero/{task}",
            method="ZeroshotCLIP",
            trainable_parameters=0,
            dataset=task,
            clean=20.0 + 10 * number,
        )
        results = json.loads((folder / "results.json").read_text())
        results["evaluations"] = [{**results["evaluations"][0], "split": "val"}]
        (folder / "results.json").write_text(json.dumps(results))
    return load_runs([tmp_path / "runs"])


def test_the_frontier_has_a_point_a_radius_over_the_tasks_that_are_whole(runs):
    ((stem, figure),) = frontier(runs, DESIGN).items()
    (axes,) = figure.axes
    assert stem == "frontier_mini" and "4 of 5 tasks" in axes.get_title()
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert sorted(lines) == ["APD", "AdvIVLP"]
    gain = np.mean(list(TASKS.values()))
    np.testing.assert_allclose(lines["AdvIVLP"], [[50.5, 34.5], [62.5, 31.5]])
    np.testing.assert_allclose(lines["APD"] - lines["AdvIVLP"], [[0, gain]] * 2)
    assert {text.get_text() for text in axes.texts} == {"3", "6"}
    # a band as wide as the interval of what is left without the task's level
    left = np.array(list(TASKS.values())) / 2
    estimate, _ = mean_over(left, list(TASKS))
    (band, _) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert np.ptp(heights) - 3 == pytest.approx(estimate.high - estimate.low)


def test_the_moderator_has_a_point_a_task_and_the_table_s_line(runs):
    ((stem, figure),) = moderator(runs, DESIGN).items()
    (axes,) = figure.axes
    (table,) = moderator_table(runs, DESIGN, at=(10.0, 50.0))
    test = table.extra["tests"][0]
    assert f"slope {test['value']:+.2f}" in axes.get_title()
    drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    found = {one["task"]: one for one in table.extra["differences"]}
    for task, one in found.items():
        np.testing.assert_allclose(drawn[task], [[one["zero-shot"], one["value"]]])
    line = axes.get_lines()[-1].get_xydata()
    for x, at in ((0, "10"), (-1, "50")):
        np.testing.assert_allclose(line[x], [float(at), test["at"][at]["value"]])


def test_a_source_looks_the_same_in_all_panels(runs, save, tmp_path):
    for number, task in enumerate("BCD"):  # the second difference lacks the first source
        config = {"AT": {"TRAIN": {"EPS": 3.0}}}
        folder = f"runs/{task}/AdvVPT"
        save(folder, method="AdvVPT", dataset=task, clean=60, robust=30 + number, config=config)
    pairs = (("APD", "AdvIVLP"), ("APD", "AdvVPT"))
    (figure,) = moderator(load_runs([tmp_path / "runs"]), Design(differences=pairs)).values()
    first, second = (
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.get_lines()}
        for axes in figure.axes
    )
    assert "A" in first and "A" not in second
    assert [first[task] for task in "BCD"] == [second[task] for task in "BCD"]


def test_the_command_draws_both_when_they_are_named(runs, tmp_path, capsys):
    options = ["--kind", "frontier", "moderator", "--baseline", "AdvIVLP"]
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "f"), *options]) == 0
    names = sorted(path.name for path in (tmp_path / "f").iterdir())
    assert names == ["frontier_mini.png", "moderator_mini.png"]
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "g"), "--kind", "frontier"]) == 0
    capsys.readouterr()
    nothing = ["--kind", "moderator", "-o", str(tmp_path / "h"), "--baseline", "AdvIVLP"]
    assert main([str(tmp_path / "runs" / "A"), *nothing]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run ZeroshotCLIP on the tasks" in error
