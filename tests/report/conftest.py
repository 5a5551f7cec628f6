import io
import warnings

import pytest


@pytest.fixture
def draw():
    """Check that a figure can be drawn and read; give the bytes of its picture."""
    from matplotlib.text import Text

    from fmcefast.report.style import style

    def drawn(figure):
        picture = io.BytesIO()
        with style(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(picture, format="png", dpi=40)
            figure.draw_without_rendering()
        assert not any(text.get_parse_math() for text in figure.findobj(Text))
        panels = [axes.get_window_extent() for axes in figure.axes]
        around = [figure._suptitle, *figure.legends, *(axes.get_legend() for axes in figure.axes)]
        for artist in (each for each in around if each is not None):
            box = artist.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, artist
            assert not any(box.padded(-1).overlaps(panel) for panel in panels), artist
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
                if axes.axison and not any(label.get_rotation() for label in axis.get_ticklabels()):
                    overlapping = [one for i, one in enumerate(boxes) for two in boxes[:i] if one.overlaps(two)]
                    assert not overlapping, (axes.get_title("left"), axis)
        return picture.getvalue()

    return drawn
