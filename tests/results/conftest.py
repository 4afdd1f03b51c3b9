import pytest
from sample_results import results

from apd.results import write_results


@pytest.fixture
def save(tmp_path):
    """Write a run; its folder is named after method and seed unless given."""

    def save(folder=None, **fields):
        values = results(**fields)
        run = tmp_path / (folder or f"{values['method']}/seed{values['seed']}")
        write_results(run, values)
        return run

    return save
