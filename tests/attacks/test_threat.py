import json

import pytest

from apd.attacks import ThreatModel
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
