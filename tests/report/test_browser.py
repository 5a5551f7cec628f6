"""The pages in a browser: their controls say what Python says, and everybody can read and use them."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from fmcefast import cqi, find_markers
from fmcefast.errors import InputError
from fmcefast.progress import Progress
from fmcefast.report.report import report
from fmcefast.run.epochs import Epoch, read_epochs, write_epochs
from fmcefast.run.folder import read_run


@pytest.fixture(scope="module")
def shown(finished_runs, tmp_path_factory):
    """A run with its report."""
    folder = tmp_path_factory.mktemp("shown") / "run"
    shutil.copytree(finished_runs / "seed-0", folder)
    run = read_run(folder)
    report(run, Progress(quiet=True))
    return run


@pytest.fixture
def page_file(shown):
    return shown.report_html


def in_python(losses, settings):
    """The end, E0 and markers that Python finds; a refused division has none."""
    try:
        found = find_markers(losses, **settings)
    except InputError:
        return "refused"
    return [found.markers[-1] if found.markers else 0, found.e0, found.markers, found.adjusted]


FIND = """cases => cases.map(([losses, settings]) => {
    const smooth = smoothLosses(losses, settings), window = Math.min(settings.window, losses.length);
    const cqi = cqiOf(smooth, window), found = findMarkers(losses, smooth, cqi, {...settings, window});
    return found.problem ? "refused" : [found.end, found.e0, found.markers, found.adjusted];
})"""


def test_the_page_finds_the_markers_that_python_finds(open_page, page_file, rng):
    cases = []
    for number in range(400):
        length = int(rng.integers(2, 200))
        losses = 3 * np.exp(-np.arange(length) / rng.uniform(1, 60)) + rng.uniform(0.01, 0.5)
        losses *= np.exp(rng.normal(0, rng.choice([0, 0.02, 0.4]), length))
        losses[int(rng.integers(length))] *= rng.choice([1, 1, 20])  # a spike
        settings = {
            "phases": int(rng.integers(2, 13)),
            "mu": float(10 ** rng.uniform(-5, 0)),
            "alpha": float(rng.choice([0.5, 0.85, 0.99])),
            "window": int(rng.choice([1, 2, 5, 30])),
            "smoothing": ["ema", "literal"][number % 2],
            "start": int(rng.choice([1, 1, 20])),
            "min_drop": float(rng.choice([0, 0.05, 0.5])),
        }
        if number % 5 == 0 and length > settings["window"] + 2:  # exactly at the threshold
            settings["mu"] = float(
                cqi(losses, **{name: settings[name] for name in ("alpha", "window", "smoothing")})[-1]
            )
        cases.append([losses.tolist(), settings])
    expected = [in_python(*case) for case in cases]
    kinds = {"refused" if found == "refused" else bool(found[0]) for found in expected}
    assert kinds == {"refused", True, False}
    found = open_page(page_file).evaluate(FIND, cases)
    assert found == expected


def test_the_controls_move_the_markers_to_where_python_has_them(open_page, shown):
    page = open_page(shown.report_html)
    losses = [row.loss for row in read_epochs(shown.losses_csv)]
    usual = shown.config.marker_settings
    for phases, mu in ((3, 9.0), (2, 0.05), (4, 9.0), (2, 1e-9)):
        page.locator("[name=phases]").fill(str(phases))
        page.locator("[name=mu]").fill(str(mu))
        expected = in_python(losses, {**usual, "phases": phases, "mu": mu})
        verdict = page.locator(".verdict").inner_text()
        if expected == "refused":
            assert "too few for 4 phases" in verdict
        elif expected[0]:
            end, _, markers, _ = expected
            listed = [int(word) for word in re.findall(r"\d+", verdict.split(": ")[1])]
            assert listed[:phases] == markers and verdict.startswith(f"Converged at epoch {end}.")
            assert page.locator(".chart .dot").count() >= phases
        else:
            assert verdict.startswith("Not converged")
        assert (
            page.locator(".command")
            .inner_text()
            .endswith(f"losses.csv --window 2 --start 6 --min-drop 0.0 --phases {phases} --mu {mu}")
        )
    page.locator("[name=mu-slider]").fill("1000")
    mu = float(page.locator("[name=mu]").input_value())
    assert mu > max(value for value in cqi(losses, **shown.config.cqi_settings) if value > 0)
    page.locator("[name=reset]").click()
    assert page.locator("[name=mu]").input_value() == "9"


def test_the_chart_is_read_with_pointer_and_keyboard(open_page, shown):
    page, rows = open_page(shown.report_html), read_epochs(shown.losses_csv)
    chart, readout = page.locator(".chart"), page.locator(".readout")
    chart.focus()
    page.keyboard.press("End")
    assert readout.inner_text().startswith(f"epoch {len(rows)} · loss {rows[-1].loss:.4g} · smoothed")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith(f"epoch 2 · loss {rows[1].loss:.4g}")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
    assert readout.inner_text().startswith(f"epoch {len(rows)} ")


def test_tables_sort_by_value(open_page, page_file):
    page = open_page(page_file)
    table = page.locator("table", has_text="Epoch markers")

    def losses():
        return [float(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]

    head = table.get_by_role("button", name="loss")
    head.press("Enter")
    assert losses() == sorted(losses())
    head.click()
    assert losses() == sorted(losses(), reverse=True) and len(set(losses())) > 1
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("loss")


@pytest.mark.parametrize(("width", "colours"), [(390, "light"), (390, "dark"), (1200, "light"), (1200, "dark")])
def test_the_page_can_be_read_by_all_on_any_screen(open_page, page_file, tmp_path, width, colours):
    page = open_page(page_file, width, colours)
    checked = Axe().run(page)
    assert checked.violations_count == 0, checked.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_long_curves_are_thinned_and_keep_their_extremes(open_page, page_file, rng):
    y = rng.standard_normal(12_346)
    y[[1234, 12_345]], y[777] = 99, -99
    kept = open_page(page_file).evaluate("y => thinned(Float64Array.from(y))", y.tolist())
    assert len(kept) <= 10_000 and kept == sorted(set(kept)) and {777, 1234, 12_345} <= set(kept)
    for stretch in np.arange(12_345).reshape(-1, 3):
        assert {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])} <= set(kept)


def test_a_long_run_and_two_phases(open_page, run):
    """300 epochs that fall from a start of their own, K = 2."""
    losses = 2 * np.exp(-np.arange(300) / 40) + 0.01
    write_epochs(run.losses_csv, [Epoch(n, loss, 0.5, 1e-3, 1.0) for n, loss in enumerate(losses, start=1)])
    run.config = dataclasses.replace(run.config, phases=2, mu=1e-3, epochs=300)
    for path in (run.resume, run.markers_json, run.fit_json):
        path.unlink(missing_ok=True)
    report(run, Progress(quiet=True))
    expected = find_markers(losses, **run.config.marker_settings).markers
    verdict = open_page(run.report_html).locator(".verdict").inner_text()
    assert verdict == f"Converged at epoch {expected[-1]}. E1 to E2: {expected[0]}, {expected[1]}."


def test_markup_in_names_stays_text(open_page, run):
    """A class and a run that are named like scripts: any that ran would open a dialog, or ask for a file."""
    facts = json.loads(run.data_json.read_text())
    facts["classes"] = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(2)>",
        "</script><b>3",
        *facts["classes"][3:],
    ]
    run.data_json.write_text(json.dumps(facts))
    folder = run.path.with_name("<img src=y onerror=alert(4)>")
    run.path.rename(folder)
    run.path = folder
    report(run, Progress(quiet=True))
    page = open_page(run.report_html)
    assert "<img src=x onerror=alert(2)>" in page.locator("table", has_text="Images (data.json)").inner_text()
    assert "<img src=y onerror=alert(4)>" in page.locator("main > p").first.inner_text()
