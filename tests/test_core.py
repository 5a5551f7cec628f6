"""The compiled core against NumPy and published test vectors."""

import errno
import signal
import subprocess
import sys

import numpy as np
import pytest

from fmcefast import _core


def write(path, array, source, target, queue_bytes=1 << 20):
    writer = _core.FeatureWriter(str(path), b"head", queue_bytes)
    for part in np.array_split(array, 5):
        writer.submit(part, source, target)
    writer.close()
    return writer


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_test_vectors_of_rfc_3720(data, expected):
    assert _core.crc32c(data) == expected
    assert _core.crc32c(data[5:], _core.crc32c(data[:5])) == expected


def all_float16_borders():
    """Every float16 value, and the float32 values just around and halfway between neighbours."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    around = [np.nextafter(between, np.float32(0)), between, np.nextafter(between, np.float32(np.inf))]
    large = np.array([65504, 65519.996, 65520, 65536, 1e10, 3.4e38, np.inf], np.float32)
    tiny = np.array([0, 1e-45, 2.98e-8, 2.981e-8, 5.96e-8], np.float32)
    positive = np.concatenate([halves, *around, large, tiny])
    return np.concatenate([positive, -positive])


def test_float32_is_rounded_as_numpy_rounds_it(tmp_path):
    values = all_float16_borders()
    writer = write(tmp_path / "x", values, "float32", "float16")
    stored = np.frombuffer((tmp_path / "x").read_bytes()[4:], np.float16)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(stored.view(np.uint16), expected.view(np.uint16))
    assert writer.overflowed == np.sum(np.isinf(expected) & np.isfinite(values)) > 0


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF])
def test_nan_stays_nan(tmp_path, bits):
    for count in (1, 8):  # the scalar and the vector path
        values = np.full(count, bits, np.uint32).view(np.float32)
        write(tmp_path / "x", values, "float32", "float16")
        assert np.isnan(np.frombuffer((tmp_path / "x").read_bytes()[4:], np.float16)).all()


def test_every_bfloat16_is_rounded_as_numpy_rounds_it(tmp_path):
    bits = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    write(tmp_path / "x", bits, "bfloat16", "float16")
    stored = np.frombuffer((tmp_path / "x").read_bytes()[4:], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(stored, values.astype(np.float16))


def test_the_file_holds_all_batches_in_order_and_its_checksum(tmp_path, rng):
    values = rng.standard_normal((1000, 37)).astype(np.float32)
    writer = write(tmp_path / "x", values, "float32", "float32", queue_bytes=1000)
    content = (tmp_path / "x").read_bytes()
    assert content == b"head" + values.tobytes()
    assert writer.crc32c == _core.crc32c(content)
    assert writer.bytes_written == len(content)


def test_odd_sizes_are_written_whole(tmp_path):
    writer = _core.FeatureWriter(str(tmp_path / "x"), b"", 1 << 20)
    writer.submit(b"12345", "float16", "float16")
    writer.close()
    assert (tmp_path / "x").read_bytes() == b"12345"


def test_a_submitted_array_is_released_when_the_writer_closes(tmp_path):
    values = np.zeros(100, np.float32)
    references = sys.getrefcount(values)
    writer = _core.FeatureWriter(str(tmp_path / "x"), b"", 1 << 20)
    writer.submit(values, "float32", "float16")
    writer.close()
    assert sys.getrefcount(values) == references


def test_unusable_arrays_and_closed_writers_are_refused(tmp_path):
    writer = _core.FeatureWriter(str(tmp_path / "x"), b"", 1 << 20)
    with pytest.raises((BufferError, ValueError)):
        writer.submit(np.zeros((4, 4), np.float32)[:, ::2], "float32", "float16")
    with pytest.raises(ValueError, match="no conversion"):
        writer.submit(np.zeros(4), "float64", "float16")
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(np.zeros(4, np.float32), "float32", "float16")


def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        _core.FeatureWriter(str(tmp_path / "missing" / "x"), b"", 1)
    assert caught.value.filename == str(tmp_path / "missing" / "x")


def test_a_failed_write_reaches_the_next_submit_and_close(tmp_path):
    """A file size limit stands in for a full disk: the kernel refuses the write in the worker thread."""
    script = f"""
import resource, signal, numpy as np
from fmcefast import _core
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer = _core.FeatureWriter({str(tmp_path / "x")!r}, b"", 1 << 16)
failures = 0
for _ in range(200):
    try:
        writer.submit(np.zeros(10_000, np.float32), "float32", "float16")
    except OSError as error:
        failures += 1
        assert error.errno == {errno.EFBIG} and error.filename.endswith("x"), error
        break
assert failures == 1
try:
    writer.close()
except OSError as error:
    assert error.errno == {errno.EFBIG}
    print("reported twice")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "reported twice\n", done.stderr


def test_a_writer_that_is_dropped_does_not_hang(tmp_path):
    writer = _core.FeatureWriter(str(tmp_path / "x"), b"", 1 << 30)
    for _ in range(50):
        writer.submit(np.zeros(1_000_000, np.float32), "float32", "float16")
    del writer


def test_ctrl_c_interrupts_a_producer_that_waits(tmp_path):
    script = f"""
import os, threading, numpy as np
from fmcefast import _core
os.mkfifo({str(tmp_path / "pipe")!r})
reader = os.open({str(tmp_path / "pipe")!r}, os.O_RDONLY | os.O_NONBLOCK)
writer = _core.FeatureWriter({str(tmp_path / "pipe")!r}, b"", 1)
threading.Timer(0.5, lambda: os.kill(os.getpid(), {int(signal.SIGINT)})).start()
try:
    while True:
        writer.submit(np.zeros(1_000_000, np.float32), "float32", "float16")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "interrupted\n", done.stderr
