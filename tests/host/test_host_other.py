"""Where both hosts are present, the contract holds on both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apd.host import HOST

OTHER = "embedded" if HOST == "dassl" else "dassl"


@pytest.mark.skipif("APD_HOST" in os.environ, reason="one host is asked for")
def test_the_contract_holds_on_the_other_host():
    pytest.importorskip("apd.host.upstream", reason="Dassl is not here")
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)],
        env={**os.environ, "APD_HOST": OTHER, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"APD_HOST={OTHER}:\n{run.stdout[-5000:]}"
