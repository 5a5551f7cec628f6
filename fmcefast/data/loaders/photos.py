"""Cuts frames out of photos in memory, on threads."""

from typing import Any

import numpy as np

from fmcefast import _core
from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.threaded import ThreadedLoader


class PhotoLoader(ThreadedLoader):
    """Loads `photos` (see photos.in_memory), which may differ in size."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        mean, std = (np.resize(np.array(values, np.float32), 3) for values in (self.recipe.mean, self.recipe.std))
        self._scale, self._black = 1 / (255 * std), mean / std

    def _fill(self, out: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        photos = [self.images.pixels_of(row) for row in rows]
        drawn = changes(self.recipe, np.array([photo.shape[:2] for photo in photos]), self.image_size, draws)
        _core.cut_out(photos, *drawn, scale=self._scale, black=self._black, out=out)
