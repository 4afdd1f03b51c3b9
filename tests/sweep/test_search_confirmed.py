"""From a search to the runs of what it chose."""

import json

from apd.config import flat
from apd.results import read_results
from apd.tables.command import main as table


def test_what_a_search_chooses_is_what_a_confirmation_runs(sweep, write_spec, tmp_path):
    trials = {
        "CoOp": [{"OPTIM.LR": [0.001, 0.1]}],
        "VPT": [{"OPTIM.LR": 0.1}, {"OPTIM.LR": 0.1, "TRAINER.VPT.N_CTX_VISION": 1}],
    }
    spec = write_spec(name="search", search={"budget": 2, "trials": trials})
    found = sweep(spec)
    assert (found.code, len(found.started)) == (0, 4)
    assert sweep(spec).started == []
    clean = read_results(found.started[0])["evaluations"][0]
    assert (clean["split"], clean["total"]) == ("val", 8)  # all of them, at one shot
    runs, chosen = str(tmp_path / "output" / "search"), tmp_path / "search.json"
    assert table([runs, "--table", "search", "--json", str(chosen)]) == 0

    confirm = write_spec({"trainer": ["CoOp", "VPT"]}, name="confirm", chosen=str(chosen))
    (kept,) = json.loads(chosen.read_text())["tables"]
    for folder, method in zip(sweep(confirm).started, ("CoOp", "VPT"), strict=True):
        results = read_results(folder)
        assert kept["chosen"][method] and results["method"] == method
        assert kept["chosen"][method].items() <= dict(flat(results["config"])).items()
        assert results["evaluations"][0]["split"] == "test"
