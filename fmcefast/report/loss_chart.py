"""What the loss chart of a page draws, and what its controls start from."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmcefast.kernels.cqi.search import SMALLEST
from fmcefast.run.config import SETTINGS

# The page finds markers among all losses; more would make it heavy.
LONGEST = 100_000
_MOST_PHASES = 40


def loss_chart(
    losses: Sequence[float] | np.ndarray,
    settings: Mapping[str, Any],
    *,
    command: str,
    label: str,
    axis: str = "epoch",
    places: Sequence[float] | np.ndarray | None = None,
    others: Sequence[tuple[str, str, Sequence[float] | np.ndarray]] = (),
) -> dict[str, Any] | None:
    """The content of a loss chart; None for fewer than two losses, more than 100,000, or one that has no logarithm.

    losses: (M,); settings: the keyword arguments of `find_markers`; command: finds the same markers, without `phases`
    and `mu`; label: what is drawn, in words; places: (M,) on the x axis, 1 to M by default; others: (title, name,
    values (M,)) of panels below.
    """
    values = np.asarray(losses, np.float64)
    if not 2 <= len(values) <= LONGEST or not (np.isfinite(values) & (values >= SMALLEST)).all():
        return None
    return {
        "losses": encoded(values),
        "axis": axis,
        "places": None if places is None else encoded(places),
        "settings": dict(settings),
        "most_phases": max(2, settings["phases"], min(_MOST_PHASES, len(values) - 1)),
        "others": [{"title": title, "name": name, "values": encoded(values)} for title, name, values in others],
        "command": command,
        "label": label,
    }


def changed_settings(settings: Mapping[str, Any]) -> list[str]:
    """The flags of the settings that differ from the usual ones, without those that the controls change."""
    names = ("alpha", "window", "smoothing", "start", "min_drop")
    changed = [name for name in names if settings[name] != SETTINGS[name].default]
    return [word for name in changed for word in (f"--{name.replace('_', '-')}", str(settings[name]))]


def encoded(values: Sequence[float] | np.ndarray) -> str:
    """Numbers as the page reads them: base64 of little-endian float64."""
    return base64.b64encode(np.asarray(values, "<f8").tobytes()).decode("ascii")
