"""The table that apd-eval prints."""

from sample_results import results

from apd.evaluate.table import table


def rows_of(made, **flags):
    """The rows, as column -> text; columns are as wide as the rule below the head."""
    for record in made["evaluations"]:
        record["flags"] = flags
    head, rule, *rows = table([(made, made["evaluations"])]).splitlines()
    starts = [i for i, mark in enumerate(rule) if mark == "-" and (not i or rule[i - 1] == " ")]
    ends = [*starts[1:], None]
    cut = lambda line: [line[a:b].strip() for a, b in zip(starts, ends)]  # noqa: E731
    return [dict(zip(cut(head), cut(row))) for row in rows]


def test_a_row_has_both_accuracies_and_the_threat_model():
    made = results(method="APD", seed=2, clean=50.0, robust=25.0)
    (row,) = rows_of(made)
    assert (row["method"], row["seed"]) == ("APD", "2")
    assert (row["clean (%)"], row["robust (%)"]) == ("50.0", "25.0")
    threat = made["evaluations"][1]["threat_model"]
    assert (row["norm"], row["eps"]) == (threat["norm"], f"{threat['eps']:g}/255")


def test_without_an_attack_there_is_no_robust_accuracy():
    made = results(clean=50.0)
    made["evaluations"] = made["evaluations"][:1]
    (row,) = rows_of(made)
    assert (row["clean (%)"], row["robust (%)"], row["eps"]) == ("50.0", "-", "-")


def test_flags_are_footnotes():
    row, footnote = rows_of(results(), chance="is not above chance")
    assert row["flags"] == "1" and "".join(footnote.values()).startswith("[1] chance: is not")
