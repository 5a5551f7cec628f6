"""Reads image files ahead, as bytes for a decoder."""

from concurrent.futures import Executor, Future

import numpy as np

from fmcefast.data.decoding import Encoded
from fmcefast.data.image_set import ImageSet

_IMAGES_PER_TASK = 16  # threads that take turns with every image would wait for the interpreter's lock

Reading = list[Future[list[Encoded]]]


def begin_reading(pool: Executor, images: ImageSet, rows: np.ndarray) -> Reading:
    """Have the images at the indices `rows` (n,) read."""

    def read(part: np.ndarray) -> list[Encoded]:
        return [images.encoded(row) for row in part]

    return [
        pool.submit(read, rows[first : first + _IMAGES_PER_TASK]) for first in range(0, len(rows), _IMAGES_PER_TASK)
    ]


def finish_reading(reading: Reading) -> list[Encoded]:
    """The images. Raises InputError with the name of a file that cannot be read."""
    return [image for task in reading for image in task.result()]
