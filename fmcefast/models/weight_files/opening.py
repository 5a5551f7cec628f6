"""Opens a file of weights by what is in it, whatever its name, and names what is no such file."""

from functools import partial
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.models.weight_files.safetensors_files import SafetensorsFile
from fmcefast.models.weight_files.sharded import ShardedFile
from fmcefast.models.weight_files.tensor_file import TensorFile
from fmcefast.models.weight_files.torch_files import TorchFile

_INDEX = ".index.json"
_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", _INDEX)
_START = 512
_SHORTEST = 16
_ELSE = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights themselves. Fetch them: git lfs pull",
    b"\x1f\x8b": "is compressed (gzip). Unpack it first.",
    b"\xfd7zXZ": "is compressed (xz). Unpack it first.",
    b"BZh": "is compressed (bzip2). Unpack it first.",
    b"\x89HDF": "is an HDF5 file, as Keras writes them. Give safetensors or a file of torch.save.",
    b"<": "is a web page, not weights: the download went wrong. Open it in a browser to see what it says.",
}
_DISTRIBUTED = (
    "a checkpoint of torch.distributed. Convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
)
_TAR = "is a tar archive. Unpack it; what PyTorch before 0.1.10 wrote must be saved again with a newer one."


def open_tensors(path: Path, *, is_shard: bool = False) -> TensorFile:
    """The tensors of a safetensors file, a file of torch.save, or the shards of an index.

    is_shard: whether an index names it. Raises InputError for a folder, a file that is missing, truncated or damaged,
    and for anything else.
    """
    if path.is_dir():
        raise InputError(_about_folder(path))
    try:
        with path.open("rb") as file:
            start = file.read(_START)
        if path.suffix == ".distcp":
            raise InputError(f"{path} is a part of {_DISTRIBUTED} {path.parent} weights.pt")
        if start[4:9] == b"\0\0\0\0{":  # the length of the header in 8 bytes, and the header, which is JSON
            return SafetensorsFile(path)
        if start.startswith((b"PK", b"\x80")):
            return TorchFile(path)
        if start.lstrip().startswith(b"{") and not is_shard:
            return ShardedFile(path, partial(open_tensors, is_shard=True))
        raise InputError(f"{path} {_what_else(start)}")
    except FileNotFoundError as error:
        raise InputError(f"There are no weights at {path}.") from error
    except OSError as error:
        raise InputError(f"The weights {path} cannot be read: {error}") from error


def _what_else(start: bytes) -> str:
    """What a file is that begins so."""
    if not start:
        return "is empty. Download or copy it again."
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, what in _ELSE.items():
        if text.startswith(beginning):
            return what
    if start[257:262] == b"ustar":
        return _TAR
    if len(start) < _SHORTEST:
        return "is truncated: its end is missing. Download or copy it again."
    return "is neither a safetensors file nor one of torch.save."


def _about_folder(path: Path) -> str:
    if (path / ".metadata").exists():
        return f"{path} is {_DISTRIBUTED} {path} weights.pt"
    inside = sorted(file.name for file in path.iterdir() if file.name.endswith(_ENDINGS))
    inside.sort(key=lambda name: not name.endswith(_INDEX))  # rather than one of its shards
    named = f", such as {path / inside[0]}" if inside else ""
    return f"{path} is a folder. Name a weights file{named}."
