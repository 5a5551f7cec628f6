import os
import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: $CHROMIUM, or the one on the path."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium), or CHROMIUM=/path/to/it")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `test`")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Open a file as a page: width and colours of the window. What goes wrong in it fails the test at its end."""
    opened, wrong = [], []

    def open_file(path, width=1200, colours="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url) if outside(request.url, path) else None)
        page.goto(path.resolve().as_uri())
        opened.append(page)
        return page

    yield open_file
    for page in opened:
        page.close()
    assert not wrong


def outside(url, path):
    return not url.startswith("data:") and url.split("#")[0] != path.resolve().as_uri()
