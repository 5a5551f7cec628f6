"""The feature store when system calls fail, when the process is killed, and when two writers want it."""

import contextlib
import ctypes
import errno
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from fmcefast import _core
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.manifest import FILE, Manifest
from fmcefast.features.writer import FeatureMapWriter

KILLS = int(os.environ.get("FMCEFAST_KILLS", "12"))
HUNG_AFTER = 60  # seconds for one store
STORES = {
    # Shards of one write each, with the checksums of rows beside them.
    "small": {"shape": (3, 2, 8), "samples": 23, "rows": 10, "row_checksums": True},
    # Shards of two writes and of one.
    "large": {"shape": (7, 7, 128), "samples": 360, "rows": 340},
    "many": {"shape": (3, 2, 8), "samples": 50, "rows": 5, "row_checksums": True},
}
EPOCHS = [2, 5, 9]
BATCH = 7
SAYS = {
    errno.ENOSPC: ("DiskFullError", "is full"),
    errno.EDQUOT: ("DiskFullError", "is full"),
    errno.EACCES: ("InputError", "Permission denied"),
    errno.EROFS: ("InputError", "Read-only file system"),
    errno.EIO: ("FmcefastError", "Input/output error"),
    errno.EFBIG: ("FmcefastError", "File too large"),
    errno.EMFILE: ("FmcefastError", "Too many open files"),
}
FAILURES = {
    "open": (errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOSPC, errno.EIO),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "pwrite": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS),
    "fallocate": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "ftruncate": (errno.EIO, errno.EFBIG),
    "mkdir": (errno.EACCES, errno.EROFS, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EROFS),
}


# From here to `serve`: what the child does.


def open_writer(folder, store, **changes):
    settings = dict(STORES[store])
    row_bytes = 2 * int(np.prod(settings["shape"]))
    return FeatureMapWriter(
        folder,
        epochs=EPOCHS,
        labels=np.arange(settings["samples"]) % 4,
        shard_bytes=4096 + settings.pop("rows") * row_bytes,
        source={"data": "test"},
        **{**settings, **changes},
    )


def feature_maps(store, score):
    settings = STORES[store]
    return np.random.default_rng(score).random((settings["samples"], *settings["shape"]), dtype=np.float32)


def fill(writer, store, pace=0.0):
    with writer:
        for span in writer.spans():
            maps = feature_maps(store, span.score)
            for first in range(span.first, span.end, BATCH):
                writer.write(span.score, maps[first : min(first + BATCH, span.end)])
                time.sleep(pace)


def write(folder, store="small", ranks=1, io_uring=False, direct_io=True, fail=(), limit=None, calls=False):
    """What became of writing a store.

    fail: (call, result, at, for_good) of faults. limit: bytes of a file. calls: tell all of them, in order.
    """
    shim = ctypes.CDLL(None)
    shim.faults_watch(os.fsencode(Path(folder).parent))
    shim.faults_forbid(not io_uring, not direct_io)
    for call, result, at, for_good in fail:
        shim.faults_fail(call.encode(), ctypes.c_long(result), at, for_good)
    outcome = {"error": None, "says": None}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if limit is None else limit, before[1]))
    try:
        writers = []
        for rank in range(ranks):
            writers.append(open_writer(folder, store, rank=rank, ranks=ranks))
        for writer in writers:
            fill(writer, store)
        if ranks > 1:
            writers[0].merge()
        outcome |= {"io_uring": writer._pool.uses_uring, "direct_io": writer.past_page_cache}
    except Exception as error:
        outcome |= {"error": type(error).__name__, "says": str(error)}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kinds = [*FAILURES, "io_uring", "any"]
    outcome["seen"] = {call: shim.faults_seen(call.encode()) for call in kinds}
    outcome["failed"] = sum(shim.faults_failed(call.encode()) for call in kinds)
    shim.faults_calls.restype = ctypes.c_char_p
    outcome["calls"] = [line.split(" ", 1) for line in os.fsdecode(shim.faults_calls()).splitlines()] if calls else []
    return outcome


def write_killed(folder, store, after=None, pace=0.0, io_uring=True):
    """Write a store in a process of its own, killed after so many seconds: its exit status, and how long it took."""
    begun = time.perf_counter()
    process = os.fork()
    if process == 0:
        try:
            ctypes.CDLL(None).faults_forbid(not io_uring, False)
            fill(open_writer(folder, store), store, pace)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"status": status, "seconds": time.perf_counter() - begun}


held = []


def hold(folder, store):
    held.append(open_writer(folder, store))


def let_go():
    with contextlib.suppress(InputError):  # rows are missing
        held.pop().close()


def serve():
    """Do what the lines of the standard input ask for."""
    commands = {command.__name__: command for command in (write, write_killed, hold, let_go)}
    for line in sys.stdin:
        faulthandler.dump_traceback_later(HUNG_AFTER, exit=True)
        name, arguments = json.loads(line)
        print(json.dumps(commands[name](**arguments)), flush=True)
        faulthandler.cancel_dump_traceback_later()


class Child:
    """A process that does what it is asked, with the faults of faults.c in it."""

    def __init__(self, preload):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(preload)},
        )

    def ask(self, command, **arguments):
        self._process.stdin.write(json.dumps([command, arguments], default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{command}({arguments}) ended or hung the process"
        return json.loads(answer)

    def end(self):
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [compiler, "-D_GNU_SOURCE", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def child(preload):
    child = Child(preload)
    yield child
    child.end()


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where there is one: failures that are made up need no disk."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < 1 << 28:
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir=shared) as folder:
            yield Path(folder)


@pytest.fixture(scope="module")
def clean(child, tmp_path_factory):
    """By store: its files written without faults, and how often each call was made."""
    found = {}
    for store in STORES:
        folder = tmp_path_factory.mktemp(store) / "store"
        outcome = child.ask("write", folder=folder, store=store)
        assert outcome["error"] is None, outcome
        found[store] = contents(folder), outcome["seen"]
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(folder, whole):
    found = contents(folder)
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []


def assert_committed_is_whole(folder, whole):
    """What the manifest names is there, as it should be."""
    if not (folder / FILE).exists():
        return 0
    shards = Manifest.read(folder).shards
    for shard in shards:
        content = (folder / shard.file).read_bytes()
        assert (len(content), _core.crc32c(content)) == (shard.bytes, shard.crc32c)
        files = [shard.file] + [shard.file.replace(".npy", ".crc32c.npy")] * shard.row_checksums
        assert [name for name in files if (folder / name).read_bytes() != whole[name]] == []
    return len(shards)


def assert_explained(outcome, folder, number):
    """The error names the cause and the place, promises no more than there is, and has no good store removed."""
    says = outcome["says"]
    assert outcome["error"] in ("FmcefastError", "InputError", "DiskFullError"), outcome
    assert SAYS[number][1] in says and str(folder.parent) in says and "remove" not in says, says
    if safe := re.search(r"([\d,]+) of [\d,]+ feature maps are safe", says):
        kept = [Manifest.read(folder, path.name).rows for path in folder.glob("manifest*.json")]
        assert int(safe[1].replace(",", "")) <= max(kept, default=0), says


def assert_goes_on(child, folder, whole, **how):
    outcome = child.ask("write", folder=folder, **how)
    assert outcome["error"] is None, outcome
    assert_same(folder, whole)
    shutil.rmtree(folder)


@contextlib.contextmanager
def case(*what):
    try:
        yield
    except AssertionError as error:
        error.add_note(" ".join(map(str, what)))
        raise


def chosen(seed, calls, most):
    """Which of so many calls fail: the first, the last and others between."""
    others = random.Random(seed).sample(range(2, max(2, calls)), max(0, min(most, calls) - 2))
    return sorted({1, *others, calls})


def error_name(number):
    return errno.errorcode[number]


@pytest.mark.parametrize("call", FAILURES)
@pytest.mark.parametrize("store", ["small", "large"])
def test_a_call_that_fails_is_named_and_loses_nothing(child, clean, memory, store, call):
    whole, calls = clean[store]
    luck = random.Random(call)
    for at in chosen(call, calls[call], 40 if store == "small" else 3):
        number = luck.choice(FAILURES[call])
        folder = memory / str(at) / "store"
        with case(call, at, error_name(number)):
            io_uring = call != "pwrite" and at % 2 == 0
            outcome = child.ask(
                "write", folder=folder, store=store, io_uring=io_uring, fail=[(call, -number, at, False)]
            )
            assert outcome["failed"] == 1
            assert_explained(outcome, folder, number)
            assert outcome["error"] == SAYS[number][0], outcome
            assert_committed_is_whole(folder, whole)
            assert call == "unlink" or not list(folder.glob("*.partial"))
            assert_goes_on(child, folder, whole, store=store)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=error_name)
def test_a_disk_that_is_gone_for_good_is_named_and_loses_nothing(child, clean, memory, number):
    whole, calls = clean["small"]
    for at in chosen(number, calls["any"], 30):
        folder = memory / str(at) / "store"
        with case("everything from", at, error_name(number)):
            outcome = child.ask("write", folder=folder, fail=[("any", -number, at, True)])
            assert_explained(outcome, folder, number)
            assert_committed_is_whole(folder, whole)
            assert_goes_on(child, folder, whole)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE], ids=error_name)
def test_going_on_can_fail_as_well(child, clean, memory, number):
    whole, calls = clean["small"]
    begun = memory / "begun" / "store"
    child.ask("write", folder=begun, fail=[("rename", -errno.EIO, calls["rename"] // 2, True)])
    assert 0 < len(Manifest.read(begun).shards) < 9
    for left_by_a_kill in ("score-03-002.npy", "score-03-002.npy.partial", "manifest.rank-1.json.partial"):
        (begun / left_by_a_kill).write_bytes(b"not committed")
    again = memory / "again" / "store"
    shutil.copytree(begun, again)
    calls = child.ask("write", folder=again)["seen"]
    assert_same(again, whole)
    for at in chosen(number, calls["any"], 30)[1:]:  # the first makes the folder that is there
        folder = memory / str(at) / "store"
        shutil.copytree(begun, folder)
        with case("call", at, error_name(number)):
            outcome = child.ask("write", folder=folder, fail=[("any", -number, at, False)])
            assert_explained(outcome, folder, number)
            assert_committed_is_whole(folder, whole)
            assert_goes_on(child, folder, whole)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE], ids=error_name)
def test_one_rank_of_two_that_fails_loses_nothing(child, clean, memory, number):
    whole, _ = clean["small"]
    alone = memory / "alone" / "store"
    calls = child.ask("write", folder=alone, ranks=2)["seen"]
    assert_same(alone, whole)
    for at in chosen(number, calls["any"], 30):
        folder = memory / str(at) / "store"
        with case("call", at, error_name(number)):
            outcome = child.ask("write", folder=folder, ranks=2, fail=[("any", -number, at, False)])
            assert_explained(outcome, folder, number)
            assert_committed_is_whole(folder, whole)
            assert_goes_on(child, folder, whole, ranks=2)


@pytest.mark.parametrize("call", ["pwrite", "io_uring", "write"])
@pytest.mark.parametrize("store", ["small", "large"])
def test_short_writes_are_continued(child, clean, tmp_path, memory, store, call):
    whole, calls = clean[store]
    for cut in (1, 512, 1000, 8191, (1 << 20) + 512):
        cases = [(at, False) for at in chosen(cut, calls["write" if call == "write" else "pwrite"], 3)]
        if store == "small" and cut >= 512:
            cases.append((1, True))
        for at, for_good in cases:
            # A real disk has its own rules for what is written past the page cache.
            folder = (memory if call == "write" else tmp_path) / f"{cut}-{at}-{for_good}" / "store"
            # The kernel takes what is cut from its queue for the whole write, and refuses odd ones past the page cache.
            how = {"io_uring": True, "direct_io": cut % 512 == 0} if call == "io_uring" else {}
            with case(call, at, "and all later" * for_good, "cut to", cut):
                outcome = child.ask("write", folder=folder, store=store, fail=[(call, cut, at, for_good)], **how)
                if call == "io_uring" and not outcome["io_uring"]:
                    pytest.skip("no io_uring here")
                assert outcome["failed"] >= 1 and outcome["error"] is None, outcome
                assert_same(folder, whole)
                shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("call", "number", "for_good"),
    [
        ("pwrite", errno.EINTR, False),
        ("pwrite", errno.EAGAIN, False),
        ("pwrite", errno.EINVAL, False),  # how file systems refuse O_DIRECT late
        ("fallocate", errno.EINTR, False),
        ("fallocate", errno.EOPNOTSUPP, True),
        ("fallocate", errno.ENOSYS, True),
    ],
)
def test_answers_that_are_no_failures(child, clean, memory, call, number, for_good):
    for store in ("small", "large"):
        whole, calls = clean[store]
        for at in chosen(number, calls[call], 4):
            folder = memory / f"{store}-{at}" / "store"
            with case(store, call, at, error_name(number)):
                outcome = child.ask("write", folder=folder, store=store, fail=[(call, -number, at, for_good)])
                assert outcome["failed"] >= 1 and outcome["error"] is None, outcome
                assert_same(folder, whole)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("store", ["small", "large"])
def test_nothing_gets_its_name_before_it_is_durable(child, memory, store, ranks):
    """What a power cut needs and a kill does not show: the order of writes, syncs and renames."""
    folder = memory / "store"
    outcome = child.ask("write", folder=folder, store=store, ranks=ranks, calls=True)
    assert outcome["error"] is None and len(outcome["calls"]) == outcome["seen"]["any"] + outcome["seen"]["fallocate"]
    synced, renamed = set(), set()
    for call, name in outcome["calls"]:
        path = Path(name)
        if call == "rename":
            assert path in synced, f"{path.name} is not synced"
            assert not path.name.startswith("manifest") or not renamed, f"the folder of {renamed} is not synced"
            renamed.add(path)
        elif call == "fsync":
            synced.add(path)
            renamed = {other for other in renamed if other.parent != path}
        else:
            synced.discard(path)
    assert not renamed and folder.parent in synced


@pytest.mark.parametrize("io_uring", [False, True], ids=["pwrite", "io_uring"])
@pytest.mark.parametrize("direct_io", [False, True], ids=["through the page cache", "past the page cache"])
def test_every_way_to_write_gives_the_same_bytes(child, clean, tmp_path, io_uring, direct_io):
    for store, (whole, _) in clean.items():
        folder = tmp_path / store / "store"
        outcome = child.ask("write", folder=folder, store=store, io_uring=io_uring, direct_io=direct_io)
        assert outcome["error"] is None
        assert outcome["io_uring"] <= io_uring and outcome["direct_io"] <= direct_io
        assert (outcome["seen"]["pwrite"] == 0) == (outcome["seen"]["io_uring"] > 0) == outcome["io_uring"]
        assert_same(folder, whole)
        manifest = Manifest.read(folder)
        assert manifest.complete
        for phase in manifest.phases:
            stored = np.concatenate([np.load(folder / shard.file) for shard in phase.shards])
            np.testing.assert_array_equal(stored, feature_maps(store, phase.score).astype(np.float16))


@pytest.mark.parametrize("limit", [100, 1500, 4095, (1 << 20) + 777, 4 << 20, (4 << 20) + 8192 + 1])
@pytest.mark.parametrize("way", ["fallocate", "pwrite", "io_uring"])
def test_a_limit_on_the_size_of_files(child, clean, tmp_path, way, limit):
    """A failure that the kernel makes itself: it writes up to the limit, then answers EFBIG."""
    whole, _ = clean["large"]
    folder = tmp_path / "store"
    fail = [] if way == "fallocate" else [("fallocate", -errno.EOPNOTSUPP, 1, True)]
    io_uring = way == "io_uring"
    outcome = child.ask("write", folder=folder, store="large", io_uring=io_uring, fail=fail, limit=limit)
    assert_explained(outcome, folder, errno.EFBIG)
    assert_committed_is_whole(folder, whole)
    assert not list(folder.glob("*.partial"))
    assert_goes_on(child, folder, whole, store="large", io_uring=io_uring)


def test_killed_again_and_again_it_ends_equal_to_the_byte(preload, clean, tmp_path):
    """FMCEFAST_KILLS=200 pytest tests/features/test_store_faults.py -k killed"""
    whole, _ = clean["many"]
    luck = random.Random(KILLS)
    child = Child(preload)
    how = {"store": "many", "pace": 0.002}
    seconds = child.ask("write_killed", folder=tmp_path / "clean" / "store", **how)["seconds"]
    kills = stores = 0
    committed = set()
    while kills < KILLS:
        stores += 1
        folder = tmp_path / str(stores) / "store"
        how["io_uring"] = stores % 2 == 0
        status = None
        while status != 0 and kills < KILLS:
            after = luck.uniform(0, seconds if luck.random() < 0.8 else seconds / 10)
            with case("store", stores, "kill", kills + 1, "after", after):
                status = child.ask("write_killed", folder=folder, after=after, **how)["status"]
                assert status in (0, -signal.SIGKILL)
                kills += status != 0
                committed.add(assert_committed_is_whole(folder, whole))
        assert child.ask("write_killed", folder=folder, **how)["status"] == 0
        assert_same(folder, whole)
        shutil.rmtree(folder)
    child.end()
    print(f"{kills} kills of {stores} stores, after 0 to {seconds:.2f} s, with {sorted(committed)} shards committed")
    assert len(committed) > 1


def test_two_writers_do_not_meet(child, clean, tmp_path):
    whole, _ = clean["small"]
    folder = tmp_path / "store"
    maps = [feature_maps("small", score) for score in (1, 2, 3)]
    with open_writer(folder, "small") as writer:
        writer.write(1, maps[0][:15])
        with pytest.raises(FmcefastError, match="Another fmcefast process is using"):
            open_writer(folder, "small")
        outcome = child.ask("write", folder=folder)
        assert outcome["error"] == "FmcefastError" and "Another fmcefast process is using" in outcome["says"]
        writer.write(1, maps[0][15:])
        writer.write(2, maps[1])
        writer.write(3, maps[2])
    assert_same(folder, whole)


def test_a_writer_of_another_process_is_waited_for(child, clean, tmp_path):
    whole, _ = clean["small"]
    folder = tmp_path / "store"
    child.ask("hold", folder=folder, store="small")
    with pytest.raises(FmcefastError, match="Another fmcefast process is using"):
        open_writer(folder, "small")
    child.ask("let_go")
    fill(open_writer(folder, "small"), "small")
    assert_same(folder, whole)


if __name__ == "__main__":
    serve()
