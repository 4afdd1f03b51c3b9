"""The images of ``apd-eval --figures`` are attacked as its evaluation was; the figure says so."""

from dataclasses import replace

import pytest

from apd.attacks import ThreatModel, find_attack
from apd.evaluate.examples import attack_of
from apd.results.words import attack_text

THREAT = ThreatModel("linf", 4, 0.7, 12, restarts=2, random_start=False, loss="margin")


@pytest.mark.parametrize(
    "name, norm",
    [
        ("pgd-7", "linf"),
        ("fgsm", "l2"),
        ("cw", "linf"),
        ("difgsm", "linf"),
        ("square-50", "l2"),
        ("autoattack", "linf"),
        ("cw-l2", "l2"),
    ],
)
@pytest.mark.parametrize("last_iterate", [True, False])
def test_the_attack_of_a_record_is_found_again(name, norm, last_iterate):
    attack = find_attack(name, replace(THREAT, norm=norm), last_iterate)
    record = {"attack": name, "threat_model": {**attack.conditions, "seed": 1}}
    again = attack_of(record)
    assert (again.name, again.conditions) == (attack.name, attack.conditions)
    assert [stage.name for stage in again.stages] == [stage.name for stage in attack.stages]


def test_the_figure_names_the_attack():
    attack = find_attack("autoattack", THREAT)
    said = attack_text(attack.name, attack.conditions)
    assert said == "AutoAttack, linf eps 4/255, white-box"
