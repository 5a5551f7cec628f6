"""Chooses how the threads of a computation wait for one another."""

import os

# Variables by which users choose it themselves, for any OpenMP library.
_CHOICES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY", "OMP_WAIT_POLICY")
# About 50 microseconds: longer than most moments between two layers, short enough to leave the core to others.
_SPINS = "2000"


def waiting_settings() -> dict[str, str]:
    """Environment variables that choose it: the user's, or else a short spin before a thread sleeps.

    By default, GNU's OpenMP, which PyTorch's wheels use, spins for milliseconds. On a busy machine that takes a core
    from the very thread that all others wait for, and training slows down by ten times and more.
    """
    chosen = {name: os.environ[name] for name in _CHOICES if name in os.environ}
    return chosen or {"GOMP_SPINCOUNT": _SPINS}


def wait_briefly() -> None:
    """Set them for this process and those that it starts; OpenMP reads them when PyTorch is loaded."""
    os.environ.update(waiting_settings())
