"""The compiled core against NumPy and published test vectors."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fmcefast import _core

BLOCK = 4 << 20  # bytes that the core writes at a time


def pool(memory_bytes=1 << 26, uring=True):
    return _core.WritePool(memory_bytes, 2, uring)


def shard(path, header=b"head", file_bytes=0, **how):
    return _core.ShardWriter(how.pop("pool", None) or pool(), str(path), header, file_bytes, **how)


def write(path, array, source, target, parts=5, **how):
    writer = shard(path, **how)
    for part in np.array_split(array, parts):
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


@pytest.mark.parametrize("size", [3 * 8192 - 1, 3 * 8192, 3 * 8192 + 13, 100_000])
def test_the_lanes_of_crc32c_agree_with_its_definition(rng, size):
    data = rng.integers(0, 256, size, dtype=np.uint8)
    bits = 0xFFFFFFFF
    for byte in data.tolist():
        bits ^= byte
        for _ in range(8):
            bits = (bits >> 1) ^ (0x82F63B78 if bits & 1 else 0)
    assert _core.crc32c(data) == bits ^ 0xFFFFFFFF


def all_float16_borders():
    """Every float16 value, and the float32 values just around and halfway between neighbours."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    around = [np.nextafter(between, np.float32(0)), between, np.nextafter(between, np.float32(np.inf))]
    large = np.array([65504, 65519.996, 65520, 65536, 1e10, 3.4e38, np.inf], np.float32)
    tiny = np.array([0, 1e-45, 2.98e-8, 2.981e-8, 5.96e-8], np.float32)
    positive = np.concatenate([halves, *around, large, tiny])
    return np.concatenate([positive, -positive])


@pytest.mark.parametrize("instructions", _core.float16_conversions())
def test_float32_is_rounded_as_numpy_rounds_it(instructions):
    values = np.concatenate([all_float16_borders(), np.full(3, np.nan, np.float32)])
    stored, overflowed, not_finite = _core.to_float16(values, instructions)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(stored.view(np.float16), expected)
    np.testing.assert_array_equal(stored[:-3], expected.view(np.uint16)[:-3])
    assert overflowed == np.sum(np.isinf(expected) & np.isfinite(values)) > 0
    assert not_finite == np.sum(~np.isfinite(values)) == 5


@pytest.mark.parametrize("instructions", _core.float16_conversions())
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF])
def test_nan_stays_nan(bits, instructions):
    for count in (1, 8, 16):  # the scalar and the vector paths
        values = np.full(count, bits, np.uint32).view(np.float32)
        assert np.isnan(_core.to_float16(values, instructions)[0].view(np.float16)).all()


def test_instructions_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="has no AMX"):
        _core.to_float16(np.zeros(1, np.float32), "AMX")


def test_every_bfloat16_is_rounded_as_numpy_rounds_it(tmp_path):
    bits = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    writer = write(tmp_path / "x", bits, "bfloat16", "float16")
    stored = np.frombuffer((tmp_path / "x").read_bytes()[4:], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(stored, expected)
    assert writer.not_finite == np.sum(~np.isfinite(values))
    assert writer.overflowed == np.sum(~np.isfinite(expected) & np.isfinite(values))


@pytest.mark.parametrize("uring", [True, False])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("source", "target"), [("float32", "float16"), ("float16", "float16"), ("float32", "float32")])
@pytest.mark.parametrize("rows", [7, BLOCK // 200, BLOCK // 100 + 11])
def test_the_file_holds_all_batches_in_order_and_their_checksums(tmp_path, rng, uring, direct, source, target, rows):
    """From less than a block to several, with batches across the borders and rows of 200 or 400 bytes."""
    values = rng.standard_normal((rows, 100)).astype(source)
    expected = values.astype(target)
    expected_bytes = 4096 + expected.nbytes
    writer = write(
        tmp_path / "x", values, source, target, header=b"h" * 4096, file_bytes=expected_bytes, parts=3,
        row_bytes=expected[0].nbytes, direct=direct, pool=pool(uring=uring),
    )  # fmt: skip
    content = (tmp_path / "x").read_bytes()
    assert content == b"h" * 4096 + expected.tobytes()
    assert writer.crc32c == _core.crc32c(content)
    assert writer.bytes == len(content)
    assert writer.row_crc32c.tolist() == [_core.crc32c(row) for row in expected]


def test_rows_longer_than_a_block_have_one_checksum(tmp_path, rng):
    values = rng.standard_normal((3, BLOCK)).astype(np.float16)
    writer = write(tmp_path / "x", values, "float16", "float16", parts=2, row_bytes=values[0].nbytes)
    assert writer.row_crc32c.tolist() == [_core.crc32c(row) for row in values]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_not_finite_are_counted_where_nothing_is_converted(tmp_path, rng, dtype):
    values = rng.standard_normal(10_000).astype(dtype)
    values[[3, 700, 9999]] = np.nan, np.inf, -np.inf
    writer = write(tmp_path / "x", values, dtype, dtype)
    assert (writer.not_finite, writer.overflowed) == (3, 0)


def test_a_batch_larger_than_the_memory_budget_is_written(tmp_path, rng):
    values = rng.standard_normal((10, 1 << 20)).astype(np.float32)
    write(tmp_path / "x", values, "float32", "float16", parts=3, pool=pool(memory_bytes=1))
    assert (tmp_path / "x").read_bytes()[4:] == values.astype(np.float16).tobytes()


def test_two_files_share_a_pool(tmp_path, rng):
    values = rng.standard_normal((2, 1 << 22)).astype(np.float16)
    shared = pool()
    writers = [shard(tmp_path / name, b"", pool=shared) for name in "ab"]
    for writer, part in zip(writers, values, strict=True):
        writer.submit(part, "float16", "float16")
    for name, writer, part in zip("ab", writers, values, strict=True):
        writer.close()
        assert (tmp_path / name).read_bytes() == part.tobytes()


def test_a_submitted_array_is_released_when_the_writer_closes(tmp_path):
    for end in ("close", "abandon"):
        values = np.zeros(100, np.float32)
        references = sys.getrefcount(values)
        writer = shard(tmp_path / "x")
        writer.submit(values, "float32", "float16")
        assert sys.getrefcount(values) > references
        getattr(writer, end)()
        assert sys.getrefcount(values) == references


def test_unusable_arrays_and_closed_writers_are_refused(tmp_path):
    writer = shard(tmp_path / "x")
    with pytest.raises((BufferError, ValueError)):
        writer.submit(np.zeros((4, 4), np.float32)[:, ::2], "float32", "float16")
    with pytest.raises(ValueError, match="no conversion"):
        writer.submit(np.zeros(4), "float64", "float16")
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(np.zeros(4, np.float32), "float32", "float16")


def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        shard(tmp_path / "missing" / "x").close()
    assert caught.value.filename == str(tmp_path / "missing" / "x")


def test_a_link_in_the_files_place_is_not_followed(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        shard(tmp_path / "x").close()
    with pytest.raises(OSError, match="symbolic"):
        _core.FeatureReader(8, 1, False).add(str(tmp_path / "x"), 1, 0)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("uring", [True, False])
def test_a_failed_write_reaches_the_next_submit_and_close(tmp_path, uring):
    """A file size limit stands in for a full disk: the kernel refuses the write in the worker thread."""
    script = f"""
import resource, signal, time, numpy as np
from fmcefast import _core
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))
writer = _core.ShardWriter(_core.WritePool(1 << 26, 2, {uring}), {str(tmp_path / "x")!r}, b"", 0)
failures = 0
for _ in range(2000):
    try:
        writer.submit(np.zeros(100_000, np.float32), "float32", "float16")
        time.sleep(0.001)
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


def test_space_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"large|space"):
        shard(tmp_path / "x", file_bytes=1 << 60).close()


def test_a_writer_that_is_dropped_does_not_hang(tmp_path):
    writer = shard(tmp_path / "x", pool=pool(1 << 30))
    for _ in range(50):
        writer.submit(np.zeros(1_000_000, np.float32), "float32", "float16")
    del writer


def test_ctrl_c_interrupts_a_producer_that_waits(tmp_path):
    """The first batch takes a second or more to convert; the second one waits for room."""
    script = f"""
import os, sys, threading, numpy as np
from fmcefast import _core
writer = _core.ShardWriter(_core.WritePool(1, 1, False), os.devnull, b"", 0, direct=False)
batch = np.zeros(1 << 31, np.uint16)  # never written to, so it takes no memory
unused = sys.getrefcount(batch)
writer.submit(batch, "bfloat16", "float16")
threading.Timer(0.2, lambda: os.kill(os.getpid(), {int(signal.SIGINT)})).start()
try:
    writer.submit(np.zeros(8, np.uint16), "bfloat16", "float16")
except KeyboardInterrupt:
    print("interrupted, the first still held:", sys.getrefcount(batch) > unused, flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "interrupted, the first still held: True\n", done.stderr


@pytest.fixture
def two_files(tmp_path, rng):
    """Rows (30, 700) uint16 in two files behind headers of 16 bytes, and what to add to a reader."""
    rows = rng.integers(0, 1 << 16, (30, 700), dtype=np.uint16)
    files = []
    for name, part in (("a", rows[:13]), ("b", rows[13:])):
        (tmp_path / name).write_bytes(b"h" * 16 + part.tobytes())
        files.append((str(tmp_path / name), len(part), 16))
    return rows, files


def reader_of(files, threads=3, direct=False):
    reader = _core.FeatureReader(1400, threads, direct)
    for file in files:
        reader.add(*file)
    return reader


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 5])
def test_rows_are_read_in_any_order(two_files, rng, direct, threads):
    rows, files = two_files
    reader = reader_of(files, threads, direct)
    for wanted in ([], [29], [12, 13], rng.integers(0, 30, 200)):
        wanted = np.array(wanted, np.int64)
        out = np.empty((len(wanted), 700), np.uint16)
        reader.read(wanted, out)
        np.testing.assert_array_equal(out, rows[wanted])
    for number, (path, _, _) in enumerate(files):
        assert reader.checksum(number) == _core.crc32c(np.fromfile(path, np.uint8))


def test_several_threads_may_read_at_a_time(two_files, rng):
    rows, files = two_files
    reader = reader_of(files)

    def read(wanted):
        out = np.empty((len(wanted), 700), np.uint16)
        reader.read(wanted, out)
        return np.array_equal(out, rows[wanted])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, rng.integers(0, 30, (200, 50))))


def test_reads_that_cannot_be_are_refused(two_files, tmp_path):
    _, files = two_files
    reader = reader_of(files)
    for beyond in (30, -1):
        with pytest.raises(IndexError, match=f"row {beyond} is not one of 30"):
            reader.read(np.array([0, beyond]), np.empty((2, 700), np.uint16))
    with pytest.raises(ValueError, match="as many rows"):
        reader.read(np.array([0]), np.empty((2, 700), np.uint16))
    read_only = np.empty((1, 700), np.uint16)
    read_only.flags.writeable = False
    with pytest.raises((BufferError, ValueError), match=r"read-only|not writable"):
        reader.read(np.array([0]), read_only)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        reader.add(str(tmp_path / "pipe"), 1, 0)
    os.truncate(files[1][0], 16 + 1400)
    with pytest.raises(OSError) as caught:
        reader_of(files).read(np.array([29]), np.empty((1, 700), np.uint16))
    assert caught.value.filename == files[1][0]


def test_a_row_that_does_not_fit_its_checksum_is_named(two_files):
    rows, files = two_files
    checksums = np.array([_core.crc32c(row) for row in rows], np.uint32)
    reader = _core.FeatureReader(1400, 2, False)
    reader.add(*files[0], checksums[:13])
    reader.add(*files[1], checksums[13:])
    out = np.empty((30, 700), np.uint16)
    reader.read(np.arange(30), out)
    np.testing.assert_array_equal(out, rows)
    damaged = np.memmap(files[1][0], np.uint8, "r+", offset=16)
    damaged[1400 * 4 + 5] ^= 1
    damaged.flush()
    with pytest.raises(ValueError, match="row 17 is damaged"):
        reader.read(np.arange(30), out)
