import pytest

from fmcefast.data.loaders import choose


@pytest.fixture(autouse=True)
def nvjpeg_on_a_cpu(monkeypatch):
    """The loader "nvjpeg" works on a CPU as well, where libjpeg-turbo decodes, but is refused there to users."""
    refused = choose.nvjpeg_is_missing
    monkeypatch.setattr(choose, "nvjpeg_is_missing", lambda device: refused(device) if device.type == "cuda" else None)
