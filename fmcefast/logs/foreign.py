"""Names files that are not logs, and says what to do with each."""

from fmcefast.errors import InputError

WANDB = (
    "it is W&B's own binary file. Export the history of the run as CSV on its page, or in Python: "
    'wandb.Api().run("ENTITY/PROJECT/RUN").history().to_csv("history.csv")'
)
# By how they begin, in lower case.
_FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer; the log itself was not fetched. Fetch it: git lfs pull",
    b"traceback (most recent": "it is the traceback of a program that failed.",
    b":w&b": WANDB,
    b"\x89hdf": "it is an HDF5 file. Save the losses in it as CSV or .npy.",
    b"sqlite format 3": "it is an SQLite database. Export its table of metrics as CSV.",
    b"arrow1": "it is an Arrow file. Save it as parquet or CSV.",
    b"<!doctype html": "it is a web page. Download the raw file.",
    b"<html": "it is a web page. Download the raw file.",
    **{
        bytes([0x80, protocol]): "it is a Python pickle, which is never loaded. Save the losses as CSV, JSON or .npy."
        for protocol in range(2, 6)
    },
}


def refuse_foreign(head: bytes) -> None:
    """Raise InputError for a file that begins with `head` if it is known not to be a log."""
    start = head.lstrip()[:64].lower()
    for beginning, what in _FOREIGN.items():
        if start.startswith(beginning):
            raise InputError(what)
