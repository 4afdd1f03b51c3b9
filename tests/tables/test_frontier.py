"""Robust accuracy at matched clean accuracy, and when arms differ."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from apd.tables.arms import Point
from apd.tables.command import main
from apd.tables.frontier import matched

RADII = (3.0, 4.5, 6.0)


def points(*pairs):
    return [Point(clean, robust, radius, 1) for radius, (clean, robust) in enumerate(pairs)]


# -- two curves ------------------------------------------------------------------------------------


def test_overlapping_curves_by_hand():
    ours, theirs = points((60, 10), (40, 30)), points((50, 18), (70, 8))
    # over 50 to 60 the difference falls from 20 - 18 to 10 - 13
    assert matched(ours, theirs) == pytest.approx((-0.5, True, 50, 60))


def test_curves_may_bend_inside_the_overlap():
    ours, theirs = points((40, 20), (60, 20)), points((40, 20), (50, 10), (60, 20))
    assert matched(ours, theirs).value == pytest.approx(5)  # a triangle of 20 x 10 / 2, over 20


def test_the_order_of_radii_does_not_matter_and_equal_clean_accuracies_are_averaged():
    ours, theirs = points((60, 10), (40, 30), (50, 16)), points((40, 28), (50, 18), (60, 12))
    assert matched(ours, theirs).value == pytest.approx((2 - 2) / 4 + (-2 - 2) / 4)
    double = points((50, 10), (50, 20), (70, 5))
    assert matched(double, points((50, 12))).value == pytest.approx(3)


def test_curves_that_touch_are_compared_there():
    assert matched(points((30, 20), (40, 10)), points((40, 8), (50, 2))) == (2, True, 40, 40)
    assert matched(points((40, 10)), points((40, 8))) == (2, True, 40, 40)


def test_curves_apart_are_compared_at_the_points_that_face_each_other():
    ours, theirs = points((60, 10), (50, 14), (70, 2)), points((30, 30), (45, 17))
    assert matched(ours, theirs) == (14 - 17, False, 45, 50)
    assert matched(theirs, ours) == (17 - 14, False, 45, 50)


accuracies = st.integers(0, 100).map(float)
curves = st.lists(
    st.tuples(accuracies, accuracies), min_size=1, max_size=5, unique_by=lambda p: p[0]
)


@settings(deadline=None)
@given(curves, curves)
def test_matched_is_antisymmetric_and_the_mean_over_a_fine_grid(ours, theirs):
    found, other = matched(points(*ours), points(*theirs)), matched(points(*theirs), points(*ours))
    assert found.value == pytest.approx(-other.value) and found[1:] == other[1:]
    assume(found.overlap and found.high > found.low)
    steps = 20_000
    grid = found.low + (np.arange(steps) + 0.5) * (found.high - found.low) / steps
    (x, y), (u, v) = (zip(*sorted(curve)) for curve in (ours, theirs))
    fine = (np.interp(grid, x, y) - np.interp(grid, u, v)).mean()
    assert found.value == pytest.approx(fine, abs=0.02)


# -- the tables ------------------------------------------------------------------------------------


@pytest.fixture
def arms(save):
    """Function: save arms on tasks; returns their robust differences to AdvIVLP.

    AdvIVLP is on the line robust = 80 - clean, APD ``gains`` above it; the control half of that.
    """

    def arms(gains, source=lambda task: task.split()[0], radii=RADII):
        for task, gain in gains.items():
            for arm, method, share, keys in (
                ("AdvIVLP", "AdvIVLP", 0, {}),
                ("APD", "APD", 1, {}),
                ("control", "APD", 0.5, {"LAMBDA_KD": 0.0}),
            ):
                for radius in radii:
                    clean = 66 - 4 * radius + (method == "APD")
                    whole, _, part = task.partition(" ")
                    config = {"AT": {"TRAIN": {"EPS": radius, "ALPHA": radius / 2}}, "SEED": 1}
                    config["TRAINER"] = {"APD": keys}
                    config["DATASET"] = {"CLASSES": [f"{part}/0"] if part else []}
                    save(
                        f"runs/{task.replace('/', '-')}/{arm}/{radius}",
                        method=method,
                        dataset=task,
                        clean=clean,
                        robust=80 - clean + share * gain,
                        config=config,
                    )
        return gains

    return arms


def made(tmp_path, capsys, *options):
    file = tmp_path / "table.json"
    assert main([str(tmp_path / "runs"), *options, "--json", str(file)]) == 0
    return json.loads(file.read_text())["tables"], capsys.readouterr().out


CONTROL = ("--arm", "control:TRAINER.APD.LAMBDA_KD=0")
FRONTIER = ("--table", "frontier", *CONTROL)
GAINS = {f"Food {k}/4": gain for k, gain in enumerate((1.0, 2.0, 4.0, 3.0), start=1)}
GAINS |= {"Signs": -1.0, "Birds": 0.5, "Trash": 2.5}


def test_differences_over_tasks_in_sources(arms, tmp_path, capsys):
    gains = arms(GAINS)
    options = ("--difference", "APD", "AdvIVLP", "--difference", "APD", "control")
    (table, levels, _), out = made(tmp_path, capsys, *FRONTIER, *options)
    first, second = table["tests"]
    assert (first["difference"], first["tasks"], first["sources"]) == ("APD - AdvIVLP", 7, 4)
    values = [one["value"] for one in table["differences"] if one["difference"] == "APD - AdvIVLP"]
    assert values == pytest.approx(list(dict(sorted(gains.items())).values()))
    assert {one["source"] for one in table["differences"]} == {"Food", "Signs", "Birds", "Trash"}
    assert second["value"] == pytest.approx(first["value"] / 2)  # and so its interval
    assert second["high"] - second["low"] == pytest.approx((first["high"] - first["low"]) / 2)
    assert second["p"] == pytest.approx(first["p"])
    assert first["p_holm"] == second["p_holm"] == pytest.approx(2 * first["p"])
    assert "7 tasks in 4 sources" in out and "Holm: over 2 tests" in out
    row = table["rows"][0]
    assert row["wins : losses"] == "6 : 1" and row["tasks"] == "7"
    assert f"{first['value']:+.2f} [{first['low']:+.2f}, {first['high']:+.2f}]" in out
    assert [r["trained at (1/255)"] for r in levels["rows"] if r["arm"] == "APD"] == [
        "3",
        "4.5",
        "6",
    ]


def test_differences_at_the_same_radius(arms, save, tmp_path, capsys):
    gains = arms({"A": 1.0, "B": 3.0, "C": -0.5, "D": 2.0})
    lone = {"AT": {"TRAIN": {"EPS": 9.0}}, "TRAINER": {"APD": {}}}
    save("runs/A/APD/9", method="APD", dataset="A", config=lone)  # AdvIVLP has no such radius
    (_, _, table), out = made(tmp_path, capsys, *FRONTIER, "--difference", "APD", "AdvIVLP")
    assert [row["trained at (1/255)"] for row in table["rows"]] == ["3", "4.5", "6"]
    values = np.array(list(gains.values())) - 1  # a point of clean more, and of robust less
    interval = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    for row in table["rows"]:
        assert row["tasks"] == "4"
        assert row["clean (points)"]["mean"] == pytest.approx(1)
        assert row["robust (points)"]["mean"] == pytest.approx(values.mean())
        assert row["robust (points)"]["interval"] == pytest.approx(interval)
    assert "differences at the same training radius" in out


def test_tasks_of_their_own_sources_have_students_interval(arms, tmp_path, capsys):
    gains = arms({"A": 1.0, "B": 3.0, "C": -0.5, "D": 2.0})
    (table, _, _), _ = made(tmp_path, capsys, *FRONTIER, "--baseline", "AdvIVLP")
    one = next(one for one in table["tests"] if one["difference"] == "APD - AdvIVLP")
    values = np.array(list(gains.values()))
    interval = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (one["value"], one["low"], one["high"]) == pytest.approx((values.mean(), *interval))
    assert one["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_sources_can_be_named(arms, tmp_path, capsys):
    arms({"P-art": 1.0, "P-photo": 2.0, "Q": 3.0, "R": 0.0})
    options = ("--difference", "APD", "AdvIVLP", "--source", "P=P-*")
    (table, _, _), _ = made(tmp_path, capsys, *FRONTIER, *options)
    assert table["tests"][0]["sources"] == 3
    assert [one["source"] for one in table["differences"]] == ["P", "P", "Q", "R"]


def test_arms_without_a_name_are_called_by_what_sets_them_apart(arms, tmp_path, capsys):
    arms({"A": 1.0, "B": 3.0})
    options = ("--table", "frontier", "--difference", "APD", "APD: APD.LAMBDA_KD=0.0")
    (table, _, _), _ = made(tmp_path, capsys, *options)
    assert {one["arm"] for one in table["points"]} == {
        "AdvIVLP",
        "APD",
        "APD: APD.LAMBDA_KD=0.0",
    }


def test_flagged_tasks_are_left_out_only_where_it_is_asked(arms, tmp_path, capsys):
    arms(GAINS)
    flagged = tmp_path / "runs" / "Signs" / "control" / "4.5" / "results.json"
    results = json.loads(flagged.read_text())
    results["evaluations"][0]["flags"] = {"chance": "is not above chance"}
    flagged.write_text(json.dumps(results))
    pairs = ("--difference", "APD", "AdvIVLP", "--difference", "APD", "control")
    for options, tasks in (((), [7, 7]), (("--without-flag", "chance"), [7, 6])):
        (table, _, _), out = made(tmp_path, capsys, *FRONTIER, *pairs, *options)
        assert [test["tasks"] for test in table["tests"]] == tasks
        assert ("APD - control: 1 task left out, flagged: Signs" in out) == bool(options)


def test_no_task_is_left_out_silently(arms, save, tmp_path, capsys):
    arms(GAINS)
    config = {"AT": {"TRAIN": {"EPS": 3.0}}}
    save("runs/new/APD", method="APD", dataset="New", config=config)
    options = ("--difference", "APD", "AdvIVLP")
    (table, _, _), out = made(tmp_path, capsys, *FRONTIER, *options)
    assert "APD - AdvIVLP: 1 task left out, without both arms: New" in out
    assert table["tests"][0]["left_out"] == ["New"]
    save("runs/new/AdvIVLP", method="AdvIVLP", dataset="New", clean=70, robust=9, config=config)
    (table, _, _), out = made(tmp_path, capsys, *FRONTIER, *options)
    assert table["rows"][0]["tasks"] == "8 (1 apart)" and table["tests"][0]["apart"] == ["New"]
    assert "with fewer radii than the arm has elsewhere: AdvIVLP on New (1 of 3)" in out


@pytest.mark.parametrize(
    ("robust", "rises"), [(70, True), (38.4, True), (25.6, True), (37.6, False), (26.4, False)]
)
def test_curves_that_rise_are_told(arms, save, tmp_path, capsys, robust, rises):
    arms({"A": 1.0, "B": 3.0}, radii=(3.0, 6.0))  # APD on A: 55/26 and 43/38, clean/robust
    config = {"AT": {"TRAIN": {"EPS": 4.5}}, "TRAINER": {"APD": {}}}
    save("runs/A/APD/4.5", method="APD", dataset="A", clean=54, robust=robust, config=config)
    _, out = made(tmp_path, capsys, *FRONTIER, "--difference", "APD", "AdvIVLP")
    said = "in 1 of 6 curves robust accuracy rises with clean accuracy somewhere"
    assert (said in " ".join(out.split())) == rises


def test_seeds_of_a_radius_are_averaged_first(save, tmp_path, capsys):
    for task, gain in (("A", 1), ("B", 3)):
        for seed, noise in ((1, -2), (2, 2)):
            for method, more in (("AdvIVLP", 0), ("APD", gain)):
                config = {"AT": {"TRAIN": {"EPS": 3.0}}, "SEED": seed}
                save(
                    f"runs/{task}/{method}/{seed}",
                    method=method,
                    dataset=task,
                    seed=seed,
                    clean=50,
                    robust=20 + noise + more,
                    config=config,
                )
    (table, _, _), _ = made(tmp_path, capsys, "--table", "frontier", "--baseline", "AdvIVLP")
    assert [one["value"] for one in table["differences"]] == pytest.approx([1, 3])
    assert {one["seeds"] for one in table["points"]} == {2}


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "give --baseline ARM or --difference ARM ARM: there are AdvIVLP, APD"),
        (("--baseline", "CoOp"), "there is no arm CoOp"),
        (("--arm", "x"), "x is not --arm NAME:KEY=VALUE"),
        (("--arm", "x:TRAINER.APD.TAU=9", "--baseline", "APD"), "no run has these values"),
        (("--arm", "x:AT.TRAIN.EPS=3", "--baseline", "APD"), "its runs differ in the method"),
        (("--source", "x", "--baseline", "APD"), "x is not --source NAME=PATTERN"),
        (("--baseline", "APD", "--commands"), "leave --commands out"),
        (("--baseline", "APD", "--family", "none.json"), "--family none.json"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(arms, tmp_path, capsys, options, message):
    arms({"A": 1.0, "B": 3.0})
    assert main([str(tmp_path / "runs"), "--table", "frontier", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"tables": [{"tests": [{"p": []}]}]}'])
def test_a_family_that_is_no_table_is_refused(arms, tmp_path, capsys, content):
    arms({"A": 1.0, "B": 3.0})
    file = tmp_path / "family.json"
    file.write_text(content)
    options = ("--table", "frontier", "--baseline", "APD", "--family", str(file))
    assert main([str(tmp_path / "runs"), *options]) == 2
    assert f"--family {file} is no table in JSON" in capsys.readouterr().err


def test_a_run_that_is_there_twice_is_told(arms, save, tmp_path, capsys):
    arms({"A": 1.0, "B": 3.0})
    config = {"AT": {"TRAIN": {"EPS": 3.0}}, "TRAINER": {"APD": {}}}
    save("runs/again", method="APD", dataset="A", config=config)
    assert main([str(tmp_path / "runs"), *FRONTIER, "--baseline", "AdvIVLP"]) == 2
    assert "arm APD has seed 1 twice on A at radius 3" in capsys.readouterr().err


# -- the moderator ---------------------------------------------------------------------------------

MODERATOR = (*CONTROL, "--table", "moderator", "--by", "zero-shot")
MODERATOR += ("--difference", "APD", "control")
ABOVE = {"Food 1/4": 10.0, "Food 2/4": 25.0, "Food 3/4": 50.0, "Food 4/4": 35.0}
ABOVE |= {"Signs": -5.0, "Birds": 12.0, "Trash": 30.0}


@pytest.fixture
def zero_shot(save):
    def zero_shot(above):
        for task, points_above in above.items():
            folder = save(
                f"runs/zero/{task.replace('/', '-')}",
                method="ZeroshotCLIP",
                trainable_parameters=0,
                dataset=task,
                clean=points_above + 10,  # ten classes
                config={"TEST": {"SPLIT": "val"}},
            )
            results = json.loads((folder / "results.json").read_text())
            results["evaluations"] = results["evaluations"][:1]
            results["evaluations"][0]["split"] = "val"
            (folder / "results.json").write_text(json.dumps(results))

    return zero_shot


def test_the_slope_over_zero_shot_accuracy(arms, zero_shot, tmp_path, capsys):
    gains = arms({task: 0.2 * above - 1 for task, above in ABOVE.items()} | {"Lone": 1.0})
    zero_shot(ABOVE)
    (table,), out = made(tmp_path, capsys, *MODERATOR, "--at", "0", "60")
    (one,) = table["tests"]
    assert one["value"] == pytest.approx(1.0)  # half of 0.2 for each of ten points
    assert one["at"]["0"]["value"] == pytest.approx(-0.5)
    assert one["at"]["60"]["value"] == pytest.approx(5.5)
    assert (one["tasks"], one["sources"]) == (7, 4)
    assert table["rows"][0]["correlation"]["mean"] == pytest.approx(1)
    assert "1 task left out: Lone (no zero-shot accuracy)" in out
    assert "from -5.0 to 50.0 here" in out and "at 60: the line goes on beyond all tasks" in out
    found = {one["task"]: (one["zero-shot"], one["value"]) for one in table["differences"]}
    wanted = {task: (above, gains[task] / 2) for task, above in ABOVE.items()}
    assert found == {task: pytest.approx(pair) for task, pair in wanted.items()}


def test_tests_of_other_tables_join_the_family(arms, zero_shot, tmp_path, capsys):
    noise = dict(zip(ABOVE, (0.3, -0.2, 0.5, 0.1, -0.4, 0.2, -0.6)))
    arms({task: 0.2 * above - 1 + noise[task] for task, above in ABOVE.items()})
    zero_shot(ABOVE)
    slope = tmp_path / "slope.json"
    assert main([str(tmp_path / "runs"), *MODERATOR, "--json", str(slope)]) == 0
    p = json.loads(slope.read_text())["tables"][0]["tests"][0]["p"]
    options = ("--difference", "APD", "AdvIVLP", "--difference", "APD", "control")
    (table, _, _), out = made(tmp_path, capsys, *FRONTIER, *options, "--family", str(slope))
    ps = [one["p"] for one in table["tests"]]
    smallest = min(*ps, p)
    adjusted = [one["p_holm"] for one in table["tests"]]
    assert smallest == p and adjusted == pytest.approx([2 * q for q in ps])  # equal ones
    assert "Holm: over 3 tests, 1 of them elsewhere" in out


def test_runs_that_judged_zero_shot_clip_give_its_accuracy_too(arms, save, tmp_path, capsys):
    arms({task: 0.2 * above - 1 for task, above in ABOVE.items()})
    for number, (task, above) in enumerate(ABOVE.items()):
        right = {"frozen": round(2 * (above + 10)), "mean": 0, "tuned": 0}  # of 200: chance is 20
        teacher = {"taken": "frozen", "right": right, "images": 200}
        config = {"AT": {"TRAIN": {"EPS": 4.5}}, "TRAINER": {"APD": {"TEACHER": {"MODE": "auto"}}}}
        config["DATASET"] = {"CLASSES": [task.split()[1] + "/0"] if " " in task else []}
        save(f"runs/auto/{number}", method="APD", dataset=task, teacher=teacher, config=config)
    (table,), _ = made(tmp_path, capsys, *MODERATOR)
    assert table["tests"][0]["value"] == pytest.approx(1.0)


def test_zero_shot_accuracies_of_one_kind_that_differ_are_told(
    arms, zero_shot, save, tmp_path, capsys
):
    arms(GAINS)
    zero_shot(ABOVE)
    teacher = {"taken": "frozen", "right": {"frozen": 1}, "images": 200}
    config = {"AT": {"TRAIN": {"EPS": 4.5}}, "TRAINER": {"APD": {"TEACHER": {"MODE": "auto"}}}}
    save("runs/auto", method="APD", dataset="Signs", teacher=teacher, config=config)
    (table,), _ = made(tmp_path, capsys, *MODERATOR)  # a run of ZeroshotCLIP comes first
    found = {one["task"]: one["zero-shot"] for one in table["differences"]}
    assert found == pytest.approx(ABOVE)
    results = json.loads((tmp_path / "runs/zero/Signs/results.json").read_text())
    results["evaluations"][0]["accuracy"] = 60.0
    (tmp_path / "runs/zero/again").mkdir()
    (tmp_path / "runs/zero/again/results.json").write_text(json.dumps(results))
    assert main([str(tmp_path / "runs"), *MODERATOR]) == 2
    assert "two zero-shot accuracies of Signs" in capsys.readouterr().err


def test_without_zero_shot_runs_there_is_no_moderator(arms, tmp_path, capsys):
    arms({"A": 1.0, "B": 3.0})
    assert main([str(tmp_path / "runs"), *MODERATOR]) == 2
    error = capsys.readouterr().err
    assert "run ZeroshotCLIP on the tasks with TEST.SPLIT val" in error and error.count("\n") == 1
