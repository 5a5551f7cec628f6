"""Pickles are read as data, whatever they would do."""

import io
import sys
import zipfile
from contextlib import suppress

import pytest
import torch

from fmcefast.errors import InputError
from fmcefast.models.weight_files.opening import open_tensors
from fmcefast.models.weight_files.pickles import Global, Placeholder, read_pickle

MODULE = "trap_for_pickles"


# Pickles that would leave the file `sprung`, each by another instruction: (writer of pickles, sprung) -> bytes.
HOSTILE = {
    "reduce": lambda p, _: p.call(MODULE, "spring"),
    "reduce of what is there": lambda p, sprung: p.call("builtins", "open", str(sprung), "w"),
    "exec": lambda p, sprung: p.call("builtins", "exec", f"open({str(sprung)!r}, 'w')"),
    "import": lambda p, _: p.call("builtins", "__import__", MODULE),
    "name alone": lambda p, _: p.name(MODULE, "Trap"),
    "name from the stack": lambda p, _: p.of(MODULE) + p.of("spring") + b"\x93)R",
    "dotted name": lambda p, _: p.name(MODULE, "Trap.__init__"),
    "new object": lambda p, _: p.name(MODULE, "Trap") + b")\x81",
    "new object with names": lambda p, _: p.name(MODULE, "Trap") + b")}\x92",
    "instance": lambda p, _: b"(i" + f"{MODULE}\nTrap\n".encode(),
    "object": lambda p, _: b"(" + p.name(MODULE, "Trap") + b"o",
    "setstate": lambda p, _: p.name(MODULE, "Trap") + b")\x81}b",
    "state of a class": lambda p, _: p.name(MODULE, "Trap") + p.of((None, {"x": 1})) + b"b",
    "item": lambda p, _: p.name(MODULE, "Trap") + b")\x81Vx\nNs",
    "items": lambda p, _: p.name(MODULE, "Trap") + b")\x81(Vx\nNu",
    "append": lambda p, _: p.name(MODULE, "Trap") + b")\x81Na",
    "appends": lambda p, _: p.name(MODULE, "Trap") + b")\x81(Ne",
    "called twice": lambda p, _: p.name(MODULE, "Trap") + b")R)R",
    "persistent": lambda p, _: p.of(("storage", p.name(MODULE, "Trap"), "0", "cpu", 4)) + b"Q",
    "persistent text": lambda p, _: b"Pstorage\n",
    "source of a module": lambda p, _: p.of(("module", p.name(MODULE, "Trap"), "file", "source")) + b"Q)\x81",
    "nested": lambda p, _: p.call("pickle", "loads", p.of_bytes(p.call(MODULE, "spring") + b".")),
    "nested storage": lambda p, _: p.call(
        "torch.storage", "_load_from_bytes", p.of_bytes(p.call(MODULE, "spring") + b".")
    ),
    "rebuild": lambda p, _: p.call(
        "torch._tensor", "_rebuild_from_type_v2", p.name(MODULE, "spring"), p.name(MODULE, "Trap"), (), {}
    ),
    "extension": lambda p, _: b"\x82\x01)R",
    "partial": lambda p, _: p.call("functools", "partial", p.name(MODULE, "spring")),
    "reconstructor": lambda p, _: p.call(
        "copyreg", "_reconstructor", p.name(MODULE, "Trap"), p.name("builtins", "dict"), {}
    ),
    "attribute": lambda p, _: p.call("builtins", "getattr", p.name(MODULE, "Trap"), "append"),
}


def write_hostile(kind, path, write, pickles, sprung):
    write(path, pickles.of({"w": pickles.tensor(), "other": HOSTILE[kind](pickles, sprung)}) + b".")


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_runs_and_nothing_is_imported(tmp_path, pickles, write, trap, kind):
    path = tmp_path / "w.pt"
    write_hostile("reduce", path, write, pickles, trap)
    open_tensors(path)  # what the readers themselves need is imported now
    write_hostile(kind, path, write, pickles, trap)
    before = set(sys.modules)
    try:
        assert torch.equal(open_tensors(path).read(["w"])["w"], torch.zeros(4))
    except InputError as error:
        assert str(path) in str(error)
    assert not trap.exists() and set(sys.modules) == before


# These two need what torch.load does not accept, or what was registered before.
@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - {"persistent text", "extension"}))
def test_the_traps_would_spring(tmp_path, pickles, in_archive, trap, kind):
    path = tmp_path / "w.pt"
    write_hostile(kind, path, in_archive, pickles, trap)
    with suppress(Exception):
        torch.load(path, weights_only=False)
    assert trap.exists()


def read(pickled):
    return read_pickle(io.BytesIO(pickled + b"."), lambda identifier: ("persistent", identifier))


def test_objects_keep_what_they_would_have_been_made_of(pickles):
    made = read(pickles.call("a.b", "C.d", 1, {"x": 2}) + pickles.of({"y": 3}) + b"b(" + pickles.of("k") + b"Nu")
    assert isinstance(made, Placeholder) and (made.name, made.arguments, made.state) == (
        "a.b.C.d",
        (1, {"x": 2}),
        {"y": 3},
    )
    assert dict(made) == {"k": None} and read(pickles.name("os", "system")) == Global("os.system")
    assert read(b"Pkey\n") == ("persistent", "key")
    assert read(b"(Va\nI1\nI2\nI3\nd") == {"a": 1}  # what has no name is left out


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    content = {"a": [1, -2.5, None, True, 10**30, "x" * 300, ("é", (), [[]])], "b": {"c": {"d": {}}}, "": 0}
    content["again"] = content["a"]
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol)
    with zipfile.ZipFile(file) as archive, archive.open("archive/data.pkl") as pickled:
        found = read_pickle(pickled, None)
    assert found == content and found["again"] is found["a"]


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"a",
        b"e",
        b"]e",
        b"h\x07",
        b"(I1\nR",
        b"I1\nI2\n",
        b"I1\n)R",
        b"I1\n]R",
        b"]I1\n}s",
        b"(I1\nd",
        b"\x97",
        b"\x98",
        b"I9x\n",
        b"cos\n",
        b")]\x93",
        b"\x80",
        b"\xff",
        b"(o",
    ],
    ids=repr,
)
def test_nonsense_is_refused(pickled):
    with pytest.raises(ValueError):
        read(pickled)


def test_a_few_bytes_cannot_take_all_memory_or_time(pickles):
    doubled = b"(I1\nt" + b"2\x86" * 200  # a pair of pairs of pairs ..., which takes 2^200 steps to hash or to print
    assert read(b"}" + doubled + b"Ns") == {}
    assert read(b"]r\xff\xff\xff\xff") == []
    assert len(read(b"(" + doubled + doubled + b"l")) == 2
    with pytest.raises(ValueError):
        read(doubled + pickles.of("name") + b"\x93")
    for claim in (b"\x8e" + b"\xff" * 7 + b"\x0f", b"\x8b\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x0f"):
        with pytest.raises(ValueError):
            read(claim)
    deep = read(b"]" * 200_000 + b"a" * 199_999)
    del deep
