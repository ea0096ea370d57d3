"""The report in a real browser: every chart is drawn, nothing complains, nothing is fetched."""

import shutil
from pathlib import Path

import pytest
from reported import report_on, rich_search

from moetune.autotune.report.page import page_of

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def test_a_browser_draws_every_chart_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    """No message on its console above a log line, no request but for the file itself, curves in every chart."""
    request, _, study = rich_search(tmp_path / "state")
    report = report_on(study, request.state_dir)
    file = tmp_path / "report.html"
    file.write_text(page_of(report), encoding="utf-8")
    installed = next(filter(None, map(shutil.which, _BROWSERS)), None)
    with playwright.sync_playwright() as started:
        try:
            # The sandbox needs rights that a container may not have; the page is our own.
            browser = started.chromium.launch(executable_path=installed, chromium_sandbox=False)
        except playwright.Error as error:
            pytest.skip(f"there is no browser: {error.message.splitlines()[0]}")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda sent: requests.append(sent.url))
        page.goto(file.as_uri())
        page.wait_for_function(
            "document.querySelectorAll('[data-chart] .main-svg').length"
            " >= document.querySelectorAll('[data-chart]').length"
        )
        drawn = page.locator("[data-chart]")
        marks = [
            drawn.nth(i).locator("path.point, .bars path, .contour, .heatmaplayer image").count()
            for i in range(drawn.count())
        ]
        boxes = [drawn.nth(i).bounding_box() for i in range(drawn.count())]
        wide = page.evaluate("document.documentElement.scrollWidth")
        ran = page.evaluate(
            "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            " document.body.append(s); return window.ran })()"
        )
        browser.close()
    assert ran is None, "the policy let a foreign script run"
    assert [m for m in messages if "Content Security Policy" not in m] == []
    assert requests == [file.as_uri()]
    assert len(marks) == sum(not figure.empty for figure in report.figures)
    assert min(marks) > 0
    small = [box for box in boxes if box is None or min(box["width"], box["height"]) < 150]
    assert small == []
    assert wide <= 1280
