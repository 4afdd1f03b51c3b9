"""``apd-demo``, clicked through in headless Chromium."""

import os
import re
import subprocess
import sys

import pytest

import apd
from apd.demo.command import main


@pytest.fixture(scope="module")
def sources(run, tmp_path_factory, tiny):
    """A run, and zero-shot CLIP of the same classes."""
    folder = tmp_path_factory.mktemp("demo")
    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, "AT.TEST.STEPS", 2)
    assert run("AdvIVLP", folder / "run", *options).code == 0
    names = apd.load(folder / "run").class_names
    return [str(folder / "run"), str(apd.zero_shot(tiny.clip, names).save(folder / "zero"))]


@pytest.fixture
def served(sources):
    """Address of the page of ``sources``, from a process of its own."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'apd-clip[demo]'")
    command = [sys.executable, "-m", "apd.demo.command", *sources]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert (address := re.match(r"http://127\.0\.0\.1:\d+/", said)), said
            yield address[0]
        finally:
            process.terminate()


def test_a_picture_is_dropped_and_attacked(served, browser, sources, tiny):
    picture = f"{tiny.root}/shapes/test/star/0.png"
    page = browser
    page.goto(served)
    page.get_by_role("button", name="Attack", exact=True).click()
    page.get_by_text("there is no picture: drop one first").wait_for()

    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_label("number input for eps (1/255)").fill("8")
    page.get_by_label("number input for Steps of PGD").fill("5")
    page.get_by_label("number input for Steps of PGD").press("Tab")
    page.get_by_role("img").first.wait_for()
    page.get_by_role("button", name="Attack", exact=True).click()
    page.get_by_text("PGD-5, linf eps 8/255, white-box").wait_for()
    for name, source in zip(("AdvIVLP", "ZeroshotCLIP"), sources):
        heading = page.get_by_role("heading", name=name)
        label = apd.load(source).predict(picture)[0].label
        said = heading.locator("xpath=following-sibling::p").inner_text()
        assert said.startswith(("\N{CHECK MARK} withstands: still ", "\N{BALLOT X} fooled: "))
        assert label in said
    if folder := os.environ.get("APD_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/demo.png", full_page=True)

    page.get_by_label("ZeroshotCLIP").uncheck()
    page.get_by_role("button", name="Attack", exact=True).click()
    page.get_by_role("heading", name="ZeroshotCLIP").wait_for(state="hidden")
    elsewhere = [url for url in page.requested if not url.startswith((served, "data:", "blob:"))]
    assert elsewhere == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{run}", "{tmp}/none"], "is no classifier"),
        (["{run}", "{wide}"], "differ in resolution"),
        (["{run}", "--port", "0"], "--port"),
    ],
)
def test_bad_input_is_one_line(sources, tmp_path, tiny, capsys, arguments, said):
    pytest.importorskip("gradio")
    names = apd.load(sources[0]).class_names
    wide = apd.zero_shot(tiny.wide, names).save(tmp_path / "wide")
    capsys.readouterr()
    places = {"run": sources[0], "tmp": tmp_path, "wide": wide}
    assert main([text.format(**places) for text in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and said in err


def test_without_gradio_one_line_says_what_to_install(sources, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "apd.demo.page", raising=False)
    assert main(sources) == 2
    assert "pip install 'apd-clip[demo]'" in capsys.readouterr().err
