"""The report's page as headless Chromium shows it."""

import os
from itertools import product

import pytest
from sample_results import THREAT, record, results

from apd.report.command import main
from apd.results import write_results

METHODS = ("ZeroshotCLIP", "CoOp", "MaPLe", "AdvVPT", "AdvIVLP", "AdvMaPLe", "FAP", "APD")
SETS = ("Caltech101", "OxfordPets", "StanfordCars", "Flowers102", "FGVCAircraft", "EuroSAT")
WIDER = """() => [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1
  ).map(e => e.outerHTML.slice(0, 80))"""
CLIPPED = """() => [...document.querySelectorAll(".card *, h1, figcaption, a, p")].filter(
    e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1
      && getComputedStyle(e).display !== "inline"
  ).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of eight methods on six data sets, two seeds each, some numbers with flags."""
    root = tmp_path_factory.mktemp("runs")
    flags = {"chance": "24.1 % is not above 22.0 %, the share of the commonest class"}
    for (place, method), (number, dataset), seed in product(
        enumerate(METHODS), enumerate(SETS), (1, 2)
    ):
        robust, threat = 8.0 + 4 * place + number + 0.5 * seed, {**THREAT, "seed": seed}
        evaluations = [
            record("clean", 62.5 - place + number, flags=flags if number == 3 else {}),
            record("pgd-100", robust, threat),
        ]
        if place > 3:
            evaluations.append(record("autoattack", robust - 2, threat))
        fields = {"dataset": dataset, "method": method, "seed": seed, "evaluations": evaluations}
        folder = root / dataset / method / f"{seed}"
        write_results(folder, results(**fields))
        if number == 0:
            rows = [f"{epoch},0.1,2,{9 - epoch},1,2" for epoch in range(1, 6)]
            (folder / "history.csv").write_text("\n".join(["epoch,lr,seconds,loss,kd,ce", *rows]))
    path = root / "report.html"
    assert main([str(root), "-o", str(path), "--baseline", "AdvIVLP", "--no-gallery"]) == 0
    return path.as_uri()


def first_column(page, place=0):
    return (
        page.locator(".results table").nth(place).locator("tbody td:first-child").all_inner_texts()
    )


@pytest.mark.parametrize("width", [500, 1280, 1600])
def test_nothing_overflows_and_averages_stay_in_sight(browser, report, width):
    page = browser
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(report)
    for details in page.locator("details > summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(WIDER) == [] and page.evaluate(CLIPPED) == []
    for cell in page.locator("td.average").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    images = [image.bounding_box() for image in page.locator(".panels").last.locator("img").all()]
    assert len(images) > 3
    stacked = len({round(box["x"]) for box in images}) == 1
    assert stacked == (width == 500)
    # a table that goes on beyond its edge says so, and no other one
    for area in page.locator(".scroll").all():
        goes_on = area.evaluate("e => e.scrollWidth > e.clientWidth + 1")
        said = area.evaluate("e => getComputedStyle(e, '::before').content")
        assert ("scroll sideways" in said) == goes_on
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
    if folder := os.environ.get("APD_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/report-{width}.png", full_page=True)


def test_a_click_on_a_column_sorts_and_lacking_numbers_stay_last(browser, report):
    browser.goto(report)
    assert first_column(browser) == [*reversed(METHODS)]  # by robust accuracy
    clean = browser.get_by_role("button", name="clean (%)", exact=True).first
    clean.click()
    assert first_column(browser) == [*METHODS]
    head = browser.locator("th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending" and head.count() == 1
    clean.click()
    assert first_column(browser) == [*reversed(METHODS)]
    gold = browser.get_by_role("button", name="AutoAttack eps=2/255 (%)").first
    for order in (METHODS[:3:-1], METHODS[4:]):
        gold.click()
        assert first_column(browser)[:4] == [*order]
    browser.get_by_role("button", name="method", exact=True).first.click()
    assert first_column(browser) == sorted(METHODS, key=str.lower)
    with browser.expect_download() as download:
        browser.get_by_role("link", name="this table as CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("table,title,method,column,mean") and "overview" in lines[1]


def test_without_scripts_the_tables_are_there(browser, report):
    session = browser.context.new_cdp_session(browser)
    session.send("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.goto(report)
    assert first_column(browser) == [*reversed(METHODS)]
    assert browser.locator("th button").count() == 0  # nothing to click that would do nothing
