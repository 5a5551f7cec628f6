"""TensorBoard event files."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from fmcefast._core import crc32c
from fmcefast.errors import InputError
from fmcefast.logs.table import Cell, Table


class TensorBoardEvents(Table):
    """The scalars of a TensorBoard event file; each tag is a column."""

    format = "TensorBoard events"
    place = "value"

    def __init__(self, path: Path):
        super().__init__(path)
        self._scalars: dict[str, list[float]] = {}
        for tag, scalar in _scalars(path):
            self._scalars.setdefault(tag, []).append(scalar)

    def columns(self) -> list[str]:
        return list(self._scalars)

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        yield np.array(self._scalars[column]), 0

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        yield from enumerate(self._scalars[column], start=1)


def _scalars(path: Path) -> Iterator[tuple[str, float]]:
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise InputError("to read TensorBoard events: pip install tensorboard") from error
    scalar_tags = set()  # only a tag's first value has the type
    for number, record in enumerate(_records(path), start=1):
        try:
            event = Event.FromString(record)
        except DecodeError as error:
            raise ValueError(f"record {number} is not a TensorBoard event") from error
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                scalar_tags.add(value.tag)
            if value.HasField("simple_value"):
                yield value.tag, float(value.simple_value)
            elif value.HasField("tensor") and value.tag in scalar_tags:
                yield value.tag, float(make_ndarray(value.tensor))


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file; the last may be incomplete, as in a log that is still being written."""
    with path.open("rb") as file:
        for number in count(1):
            header = file.read(12)
            if len(header) < 12:
                return
            length = int.from_bytes(header[:8], "little")
            sound = _masked_crc32c(header[:8]) == int.from_bytes(header[8:], "little")
            if sound:
                record, checksum = file.read(length), file.read(4)
                if len(checksum) < 4:
                    return
                sound = _masked_crc32c(record) == int.from_bytes(checksum, "little")
            if not sound:
                raise ValueError(f"the checksum of event {number} is wrong")
            yield record


def is_events(head: bytes) -> bool:
    """Whether a file begins like a TFRecord: 8 bytes with the length of the first event, and their masked CRC-32C."""
    return len(head) >= 12 and _masked_crc32c(head[:8]) == int.from_bytes(head[8:12], "little")


def _masked_crc32c(content: bytes) -> int:
    """The checksum used in TFRecord files."""
    checksum = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
