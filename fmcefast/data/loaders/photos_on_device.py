"""Takes photos from the memory of the device."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.cutting import Cutter


class PhotosOnDeviceLoader(Loader):
    """Cuts each batch out of photos that may differ in size."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._cutter = Cutter(self.recipe, self.image_size, self.device)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        assert self.images.photos is not None
        photos = self.images.photos.take(order)
        yield from self._cutter.batches(
            photos, changes(self.recipe, photos.sizes, self.image_size, draws), self.batch_size
        )
