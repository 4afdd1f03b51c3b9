"""What scripts/test_time.py makes of runs: the chosen number, the table, the figure."""

import runpy
from pathlib import Path

import pytest
from sample_results import THREAT, keep_verdicts, record, results

from apd.results import write_results

MODULE = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "test_time.py"))
N, SETS = 20, ("one", "other")


def make_run(folder, attacks):
    """``attacks``: (attack, source) -> how many of 20 images stand; 15 are right when clean."""
    clean = record("clean", 75.0, total=N, seconds=2.0)
    write_results(folder, {**results(), "evaluations": [clean], "fingerprint": "m"})
    for number, ((attack, source), standing) in enumerate(attacks.items()):
        threat = {**THREAT, "source": source, "eot": 4}
        evaluation = record(attack, 100 * standing / N, threat, total=N, key=f"k{number}")
        evaluation |= {"flags": {}, "images": "all", "checks": {}}
        lost = [0] * standing + [1] * (15 - standing) + [-1] * 5
        keep_verdicts(folder, evaluation, lost)


@pytest.fixture
def root(tmp_path):
    plain = {("pgd-20", "white-box"): 4, ("autoattack-10", "white-box"): 3}
    plain[("square-100", "white-box")] = 6
    defended = {("pgd-20", "static"): 10, ("pgd-20", "adaptive"): 4}
    defended |= {("autoattack-rand-10", "adaptive"): 5, ("square-100", "adaptive"): 7}
    for name in SETS:
        for row in MODULE["ROWS"]:
            attacks = plain if row in MODULE["UNDEFENDED"] else defended
            make_run(tmp_path / name / row, attacks)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_means_intervals_and_paired_differences(root):
    head, _, *rows = MODULE["table"](root, SETS).splitlines()
    assert cells(head)[1:] == [*MODULE["COLUMNS"], "static - adaptive", "clean images/s"]
    found = {name: values for name, *values in map(cells, rows)}
    assert list(found) == list(MODULE["ROWS"].values())
    means = {name: [value.partition(" ")[0] for value in values] for name, values in found.items()}
    assert means["TTC on APD"] == ["75.0", "50.0", "20.0", "25.0", "35.0", "+30.0", "10.0"]
    assert means["APD"] == ["75.0", "20.0", "20.0", "15.0", "30.0", "-", "10.0"]
    # paired: 6 of 20 images differ, all in one direction; the bootstrap of two such sets
    low, high = (float(v) for v in found["TTC"][5].split("[")[1].strip("]").split(", "))
    assert 10 < low < 30 < high < 50


def test_the_answers_are_paired_differences_and_which_side_of_zero_they_are_on(root):
    answers = {
        (question, difference): (points.partition(" ")[0], answer)
        for question, difference, points, answer in map(
            cells, MODULE["answers"](root, SETS).splitlines()[2:]
        )
    }
    assert len(answers) == 3 + 2 + 6
    static, against, on_apd = MODULE["QUESTIONS"]
    assert answers[static, "R-TPT, static, minus R-TPT, adaptive"] == ("+30.0", "higher")
    assert answers[against, "TTC, adaptive, minus APD, adaptive"] == ("+0.0", "undecided")
    assert answers[on_apd, "TAPT on APD, clean, minus APD, clean"] == ("+0.0", "undecided")


def test_the_checks_are_those_of_more_steps_a_large_radius_and_the_last_iterate(root):
    more = record("pgd-40", 15.0, {**THREAT, "source": "adaptive"}, total=N, key="more")
    large = {**THREAT, "source": "adaptive", "eps": 128.0}
    whole = record("pgd-40", 0.0, large, total=N, key="whole")
    for evaluation in (more, whole):
        evaluation |= {"flags": {}, "images": "all", "checks": {}}
        keep_verdicts(root / "one" / "TTC", evaluation, [1] * 15 + [-1] * 5)
    make_run(root / "one" / "TTC-last", {("pgd-20", "adaptive"): 5})
    head, _, *rows = map(cells, MODULE["checks"](root, "one").splitlines())
    checks = {name: dict(zip(head[1:], values)) for name, *values in rows}
    assert list(checks["TTC"].values()) == ["50.0", "20.0", "25.0", "15.0", "0.0"]
    assert list(checks["R-TPT"].values()) == ["50.0", "20.0", "-", "-", "-"]


def test_a_stronger_attack_stands_beside_the_usual_one_on_the_same_images(root):
    assert MODULE["stronger"](root) == "has not run yet"
    attacks = {("pgd-20", "adaptive"): 8, ("pgd-100", "adaptive"): 7}
    make_run(root / MODULE["STRONGER"], attacks)
    head, _, *rows = map(cells, MODULE["stronger"](root).splitlines())
    robust = {row[0]: dict(zip(head, row))["robust (%)"] for row in rows}
    assert robust == {"pgd-20": "40.0", "pgd-100": "35.0"}


def test_flags_are_listed_with_their_sets(root):
    for name in SETS:
        evaluation = record("pgd-9", 50.0, {**THREAT, "source": "static"}, total=N, key="flagged")
        evaluation |= {"flags": {"static-overstates": "why"}, "images": "all", "checks": {}}
        keep_verdicts(root / name / "TTC", evaluation, [0] * 10 + [1] * 5 + [-1] * 5)
    head, _, *rows = map(cells, MODULE["flags"](root, SETS).splitlines())
    assert head == ["flag", "row", "attack", "sets"]
    assert rows == [["static-overstates", "TTC", "pgd-9 (static, eps 2/255)", "one, other"]]


def test_a_figure_is_drawn(root, tmp_path):
    MODULE["draw"](root, SETS, tmp_path / "static.png")
    assert (tmp_path / "static.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(root, capsys):
    next((root / "one" / "RTPT" / "evaluations").glob("*.json")).unlink()
    assert MODULE["main"]([str(root), *SETS]) == 2
    assert f"{root}/one/RTPT has no evaluation for the column" in capsys.readouterr().err


def test_tau_is_chosen_by_the_harmonic_mean_of_clean_and_adaptive(tmp_path, capsys):
    standing = {"0.02": (8, 2), "0.2": (4, 4), "0.05": (6, 6)}  # of the two sets
    for tau, counts in standing.items():
        for name, count in zip(SETS, counts):
            make_run(tmp_path / name / f"TTC-{tau}", {("pgd-20", "adaptive"): count})
    assert MODULE["main"](["--chosen", str(tmp_path), *SETS]) == 0
    assert capsys.readouterr().out == "0.05\n"
