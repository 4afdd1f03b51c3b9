"""Which toolbox is picked, and what the seam adds to it."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import apd.host
from apd.errors import UserError
from apd.host import HOST, HOST_VERSION, Registry, _choose, register

REPO = Path(__file__).resolve().parents[2]
UPSTREAM = importlib.util.find_spec("dassl") is not None


@pytest.fixture
def choose(monkeypatch):
    """Function: the name of the host that is picked, no Dassl being imported yet."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "dassl" or name == "apd.host.upstream":
            monkeypatch.delitem(sys.modules, name)

    def choose(wanted):
        monkeypatch.setenv("APD_HOST", wanted)
        return _choose()[0]

    return choose


def test_every_exported_name_is_there():
    missing = [name for name in apd.host.__all__ if not hasattr(apd.host, name)]
    assert missing == []
    assert HOST in ("dassl", "embedded") and isinstance(HOST_VERSION, str)


def test_unknown_choice_is_a_user_error(choose):
    with pytest.raises(UserError, match="APD_HOST is 'pytorch'"):
        choose("pytorch")


@pytest.mark.skipif(UPSTREAM, reason="Dassl is installed")
def test_forcing_dassl_where_there_is_none_says_so(choose):
    with pytest.raises(UserError, match="APD_HOST is dassl, .*No module named 'dassl'"):
        choose("dassl")


def test_a_dassl_that_does_not_import_is_named_and_not_used(choose, tmp_path, monkeypatch):
    package = tmp_path / "dassl"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0'\nimport no_such_module_wilds\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_module_wilds"):
        choose("dassl")
    with pytest.warns(UserWarning, match="no_such_module_wilds.*using the embedded host"):
        assert choose("") == "embedded"


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
