import json

import pytest

from apd.attacks import ThreatModel, threat_warnings
from apd.errors import UserError

GOOD = {"norm": "linf", "eps": 2, "alpha": 1, "steps": 10}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eps", -1),
        ("eps", float("nan")),
        ("eps", float("inf")),
        ("eps", None),
        ("alpha", -0.5),
        ("alpha", "2/255"),
        ("steps", -1),
        ("steps", 2.5),
        ("restarts", 0),
        ("norm", "l1"),
        ("loss", "dlr"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=f"attack {field} is .*use "):
        ThreatModel(**{**GOOD, field: value})


def test_name_and_json():
    threat = ThreatModel(norm="l2", eps=128, alpha=25.5, steps=100)
    assert threat.name == "pgd-100"
    assert ThreatModel(**json.loads(json.dumps(threat.asdict()))) == threat


def test_a_ball_twice_as_large_is_walked_in_steps_twice_as_large():
    threat = ThreatModel("l2", eps=3, alpha=0.5, steps=7, restarts=2, loss="margin")
    assert threat.scaled(2) == ThreatModel("l2", 6, 1, 7, restarts=2, loss="margin")
    assert threat.scaled(0.5).eps == 1.5 and threat.scaled(0.5).alpha == 0.25
    assert threat.scaled(0).eps == threat.scaled(0).alpha == 0


@pytest.mark.parametrize(
    ("eps", "steps", "names"),
    [
        (0, 10, ["unmoved"]),
        (0, 0, ["unmoved"]),
        (4 / 255, 10, ["tiny-eps"]),
        (0.999, 10, ["tiny-eps"]),
        (0.999, 0, ["tiny-eps", "unmoved"]),
        (1, 10, []),
        (1, 0, ["unmoved"]),
        (1, 1, []),
        (1, None, []),  # of attacks without steps
        (255, 10, []),
    ],
)
def test_doubts_begin_where_a_radius_or_steps_can_hardly_be_meant(eps, steps, names):
    assert [name for name, _ in threat_warnings(eps, steps)] == names


def test_a_doubt_says_what_is_odd():
    assert dict(threat_warnings(0, 0)) == {"unmoved": "with eps 0 the attack may change nothing"}
    assert "eps 0.5 is 0.5/255" in dict(threat_warnings(0.5, 1))["tiny-eps"]
    assert "0 steps" in dict(threat_warnings(4, 0))["unmoved"]
