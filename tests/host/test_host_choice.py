"""Which toolbox is picked, and what the seam adds to it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import apd.host
from apd.host import HOST, HOST_VERSION, Registry, register

REPO = Path(__file__).resolve().parents[2]
UPSTREAM = importlib.util.find_spec("dassl") is not None


def import_host(choice, *path):
    """Import apd.host in a process of its own, ``path`` in front of PYTHONPATH."""
    environment = {**os.environ, "APD_HOST": choice}
    folders = [*map(str, path), str(REPO), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    code = (
        "try:\n"
        "    import apd.host; print('HOST', apd.host.HOST)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_every_exported_name_is_there():
    missing = [name for name in apd.host.__all__ if not hasattr(apd.host, name)]
    assert missing == []
    assert HOST in ("dassl", "embedded") and isinstance(HOST_VERSION, str)


def test_unknown_choice_is_a_user_error():
    assert import_host("pytorch").stdout.startswith("UserError APD_HOST is 'pytorch'")


@pytest.mark.skipif(UPSTREAM, reason="Dassl is installed")
def test_forcing_dassl_where_there_is_none_says_so():
    out = import_host("dassl").stdout
    assert out.startswith("UserError APD_HOST is dassl") and "No module named 'dassl'" in out


def test_a_dassl_that_does_not_import_is_named_and_not_used(tmp_path):
    package = tmp_path / "dassl"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0'\nimport no_such_module_wilds\n")
    forced = import_host("dassl", tmp_path)
    assert forced.stdout.startswith("UserError") and "no_such_module_wilds" in forced.stdout
    free = import_host("", tmp_path)
    assert free.stdout.strip() == "HOST embedded" and "no_such_module_wilds" in free.stderr


def test_only_the_seam_imports_dassl():
    files = [p for p in (REPO / "apd").rglob("*.py") if "host" not in p.relative_to(REPO).parts]
    files += [*(REPO / "trainers").glob("*.py"), *(REPO / "datasets").glob("*.py")]
    assert files
    assert [p for p in files if re.search(r"(import|from) dassl", p.read_text())] == []


def test_register_leaves_the_toolboxs_own_class_in_place():
    registry = Registry("TOY")

    class Known:
        pass

    registry.register(Known)
    theirs = Known

    @register(registry)
    class Known:  # noqa: F811
        pass

    @register(registry)
    class New:
        pass

    assert registry.get("Known") is theirs and Known is not theirs
    assert registry.get("New") is New
