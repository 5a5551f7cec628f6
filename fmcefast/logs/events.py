"""TensorBoard event files."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from fmcefast._core import crc32c
from fmcefast.errors import InputError
from fmcefast.logs.table import Table


class TensorBoardEvents(Table):
    """The scalars of TensorBoard's event files: a row for each, with its tag, its step and its value."""

    format = "TensorBoard events"
    place = "value"

    def __init__(self, paths: Sequence[Path]):
        self._scalars = [scalar for path in paths for scalar in _scalars(path)]

    def columns(self) -> list[str]:
        return ["step", "value"] if self._scalars else []

    def text_columns(self) -> list[str]:
        return ["tag"]

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        positions = [("tag", "step", "value").index(name) for name in names]
        for number, scalar in enumerate(self._scalars, start=1):
            yield number, [scalar[position] for position in positions]


def _scalars(path: Path) -> Iterator[tuple[str, int, float]]:
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
                yield value.tag, event.step, float(value.simple_value)
            elif value.HasField("tensor") and value.tag in scalar_tags and not value.tensor.tensor_shape.dim:
                try:
                    yield value.tag, event.step, float(make_ndarray(value.tensor))
                except (TypeError, KeyError) as error:
                    raise ValueError(f"record {number} holds no number") from error


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
