"""The figure of probed checkpoints: every value is drawn, and what is missing is not."""

from dataclasses import replace

import numpy as np
import pytest

from fmcefast.maturity.probe_files import ProbeResult, ProbeRow
from fmcefast.report.figures.probe import probe_figure


def result(files=3, modules=("layer3", "layer4"), labels=True, missing=()):
    """bn_inv_ccos is 0.1 for the first checkpoint in the first module, and 0.1 more for each next one of either."""
    rows = []
    for number in range(files):
        for place, module in enumerate(modules):
            value = None if (number, module) in missing else 0.1 * (number + place + 1)
            statistics = {"bn_inv_ccos": value, **({"ridge_probe": value} if labels else {})}
            fresh = {"bn_inv_ccos": 0.05, **({"ridge_probe": 0.3} if labels else {})}
            rows.append(ProbeRow(f"weights/epoch-{number}.pt", module, statistics, fresh, False, value is None))
    return ProbeResult("resnet18", "digits", "test", "digits", 64, 1200, ["noise"], None, rows)


def lines_of(axes):
    """{module: values}, and how many dotted lines there are."""
    named = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    return named, sum(line.get_linestyle() == ":" for line in axes.lines)


def test_a_line_for_each_module_and_its_value_before_training(draw):
    figure = probe_figure(result())
    invariance, probe = figure.axes
    for axes in (invariance, probe):
        named, dotted = lines_of(axes)
        assert list(named) == ["layer3", "layer4", "before training"] and dotted == 3
        np.testing.assert_allclose(named["layer3"], [0.1, 0.2, 0.3])
        np.testing.assert_allclose(named["layer4"], [0.2, 0.3, 0.4])
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["epoch-0", "epoch-1", "epoch-2"]
    assert figure.get_suptitle() == "resnet18 on digits, invariance to noise (n = 1,200 held-out images)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["layer3", "layer4", "before training"]
    draw(figure)


def test_without_labels_there_is_one_panel(draw):
    figure = probe_figure(result(labels=False))
    assert len(figure.axes) == 1
    draw(figure)


def test_values_that_are_missing(draw):
    figure = probe_figure(result(missing={(1, "layer4")}))
    values = lines_of(figure.axes[0])[0]["layer4"]
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    draw(figure)
    constant = {(number, module) for number in range(3) for module in ("layer3", "layer4")}
    figure = probe_figure(result(missing=constant))
    assert not figure.axes and "no statistic is known" in figure.get_suptitle()
    draw(figure)


@pytest.mark.parametrize("files", [1, 12, 40])
def test_few_and_many_checkpoints(draw, files):
    figure = probe_figure(result(files=files, modules=("a", "b", "c", "d", "e", "f", "g")))
    named, _ = lines_of(figure.axes[0])
    del named["before training"]
    assert len(named) == 7 and all(len(values) == files for values in named.values())
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ("epoch-0" in labels) == (files <= 12)
    draw(figure)


def test_names_from_outside_are_drawn_as_they_are(draw):
    rows = [
        replace(row, weights=f"w/{'long-' * 9}{number} $\\bad{{ ü.pt", module=f"_mod.$\\bad{{.{number % 25}")
        for number, row in enumerate(result(modules=[*map(str, range(25))]).rows)
    ]
    figure = probe_figure(replace(result(), data="folder:/<a>/$\\bad{" + "/long" * 30, rows=rows))
    assert len(figure.legends[0].get_texts()) == 21 and "the first 20 of 25 modules" in figure.get_suptitle()
    draw(figure)
