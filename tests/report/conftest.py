import os
import shutil
import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fmcefast.report.figures.style import style


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


@pytest.fixture
def draw():
    """Check that a figure can be drawn and read; give its pixels."""

    def drawn(figure):
        figure.set_dpi(50)
        canvas = FigureCanvasAgg(figure)
        with style(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            canvas.draw()
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())
        panels = [axes.get_window_extent() for axes in figure.axes]
        around = [figure._suptitle, *figure.legends, *(axes.get_legend() for axes in figure.axes)]
        for artist in (each for each in around if each is not None):
            box = artist.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, artist
            assert not any(box.padded(-1).overlaps(panel) for panel in panels), artist
        for axes in (each for panel in figure.axes for each in (panel, *panel.child_axes)):
            for axis in (axes.xaxis, axes.yaxis):
                boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
                if axes.axison and not any(label.get_rotation() for label in axis.get_ticklabels()):
                    overlapping = [one for i, one in enumerate(boxes) for two in boxes[:i] if one.overlaps(two)]
                    assert not overlapping, (axes.get_title("left"), axis)
        return bytes(canvas.buffer_rgba())

    return drawn
