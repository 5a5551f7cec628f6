"""The figure of a metric: its values at the log's own epochs, and its CQI against mu."""

import numpy as np
import pytest

from fmcefast.logs.metric import judge_log
from fmcefast.logs.read import read_losses
from fmcefast.report.figures.metric import metric_figure

ACCURACY = 0.9 - 0.8 * 0.85 ** np.arange(60)


@pytest.mark.parametrize("relative", [False, True])
def test_a_metric_and_its_cqi(tmp_path, draw, relative):
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_acc\n" + "\n".join(f"{10 + i},{value!r}" for i, value in enumerate(ACCURACY.tolist())))
    settings = {"mu": 1e-3, "alpha": 0.85, "window": 5, "smoothing": "ema", "relative": relative}
    judged = judge_log(read_losses(log, "val_acc", any_sign=True), higher_is_better=True, **settings)
    figure = metric_figure(judged)
    metric, cqi = figure.axes
    raw, smoothed, converged = metric.lines
    np.testing.assert_allclose(raw.get_ydata(), ACCURACY)
    assert raw.get_xdata().tolist() == list(range(10, 70)) and converged.get_xdata()[0] == judged.verdict.epoch
    limit = cqi.lines[1].get_ydata()
    np.testing.assert_allclose(limit, 1e-3 * smoothed.get_ydata() if relative else np.full(60, 1e-3))
    assert judged.verdict.text in figure.get_suptitle().replace("\n", " ")
    draw(figure)
