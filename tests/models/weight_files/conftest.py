"""Files of torch.save with any pickle in them."""

import io
import sys
import zipfile

import pytest
import torch


class Pickle:
    """Writes instructions of a pickle one by one."""

    @staticmethod
    def of(value):
        """A value of plain Python, or instructions as they are."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return b"V" + value.encode("raw-unicode-escape") + b"\n"
        if value is None:
            return b"N"
        if isinstance(value, int):
            return b"I%d\n" % value
        if isinstance(value, tuple):
            return b"(" + b"".join(map(Pickle.of, value)) + b"t"
        return b"(" + b"".join(Pickle.of(key) + Pickle.of(item) for key, item in value.items()) + b"d"

    @staticmethod
    def of_bytes(content):
        return b"B" + len(content).to_bytes(4, "little") + content

    @staticmethod
    def name(module, name):
        return f"c{module}\n{name}\n".encode()

    @classmethod
    def call(cls, module, name, *arguments):
        return cls.name(module, name) + cls.of(arguments) + b"R"

    @classmethod
    def tensor(cls, key="0", elements=4, offset=0, shape=(4,), stride=(1,), kind="FloatStorage", location="cpu"):
        storage = cls.of(("storage", cls.name("torch", kind), key, location, elements)) + b"Q"
        hooks = cls.call("collections", "OrderedDict")
        return cls.call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, stride, b"I00\n", hooks)


@pytest.fixture(scope="session")
def pickles():
    return Pickle


def archive(path, pickled, parts=(("data/0", b"\0" * 16),), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
        for name, content in parts:
            file.writestr(f"archive/{name}", content)


def legacy(path, pickled, storages=None):
    if storages is None:
        storages = [("0", 4, b"\0" * 16)] if b"V0\n" in pickled else []
    head = io.BytesIO()
    torch.save({}, head, _use_new_zipfile_serialization=False)
    numbers = b"".join(elements.to_bytes(8, "little") + content for _, elements, content in storages)
    keys = b"(" + b"".join(Pickle.of(key) for key, _, _ in storages) + b"l."
    # The empty dictionary and the empty list of keys are the last two pickles.
    empty = b"\x80\x02}q\x00.\x80\x02]q\x00."
    assert head.getvalue().endswith(empty)
    path.write_bytes(head.getvalue().removesuffix(empty) + pickled + keys + numbers)


@pytest.fixture(params=["zip", "legacy"])
def write(request):
    """(path, pickle) -> a file of torch.save with that pickle, and a storage 0 of four zeros."""
    return archive if request.param == "zip" else legacy


@pytest.fixture
def in_archive():
    return archive


@pytest.fixture
def in_legacy():
    return legacy


@pytest.fixture(params=["zip", "legacy"])
def save(request):
    """torch.save in one of its two formats."""

    def write(content, path):
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")

    return write


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that was never imported; whatever of it runs, and its import alone, leaves the file `sprung`."""
    folder = tmp_path / "modules"
    folder.mkdir()
    sprung = tmp_path / "sprung"
    (folder / "trap_for_pickles.py").write_text(
        f"def spring(*arguments, **named):\n"
        f"    open({str(sprung)!r}, 'w').close()\n"
        "spring()\n"
        "class Trap(dict):\n"
        "    __new__ = __init__ = __call__ = __setstate__ = __setitem__ = append = extend = spring\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield sprung
    sys.modules.pop("trap_for_pickles", None)
