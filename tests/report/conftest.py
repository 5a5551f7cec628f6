import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fmcefast.report.style import style


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
