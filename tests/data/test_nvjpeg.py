"""Decoding with nvJPEG; on a CPU libjpeg-turbo stands in for it. See test_loaders for what all loaders share."""

import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders import choose, nvjpeg
from fmcefast.data.loaders.choose import choose_loader, make_loader
from fmcefast.data.loaders.nvjpeg import nvjpeg_is_missing
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import Recipe
from fmcefast.errors import InputError


@pytest.fixture
def files(tmp_path, rng):
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((40 + i, 30), Image.Resampling.BILINEAR).save(path, subsampling=0)
    return ImageSet(np.arange(6), paths=paths)


@pytest.fixture
def decoder(monkeypatch):
    """Put a function in the place of torchvision's, and hide TorchCodec; or put a module in TorchCodec's."""

    def forget():
        nvjpeg._decoder.cache_clear()
        nvjpeg_is_missing.cache_clear()

    def use(function, torchcodec=None):
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", torchcodec)
        monkeypatch.setattr(torchvision.io, "decode_jpeg", function)
        forget()

    yield use
    forget()


def load(files, device):
    settings = LoaderSettings(Recipe((0.0,), (1.0,)), 32, 3, device, workers=2, loader="nvjpeg")
    return torch.cat([images for images, _ in make_loader(files, settings, training=False)])


def test_a_cpu_is_refused(files, cpu, monkeypatch):
    monkeypatch.setattr(choose, "nvjpeg_is_missing", nvjpeg_is_missing)
    with pytest.raises(InputError, match="`loader=nvjpeg` cannot be used: nvJPEG needs an NVIDIA GPU"):
        choose_loader(files, cpu, "nvjpeg")


def test_whether_nvjpeg_is_there_is_found_out_with_an_image(decoder):
    gpu = torch.device("cuda", 5)
    for raised, expected in (
        (None, None),
        (RuntimeError("compiled without\nnvJPEG"), "nvJPEG cannot be used (compiled without nvJPEG)"),
    ):

        def function(contents, *, mode, device, raised=raised):
            assert len(contents) == 1 and mode == "RGB" and device == gpu
            if raised:
                raise raised
            return [torch.zeros(3, 16, 16, dtype=torch.uint8)]

        decoder(function)
        assert nvjpeg_is_missing(gpu) == expected


def test_torchcodec_is_taken_where_it_is_installed(files, cpu, decoder):
    real = torchvision.io.decode_jpeg
    expected = load(files, cpu)
    called = []

    def function(contents, **settings):
        called.append(len(contents))
        return real(contents, **settings)

    decoder(lambda *_, **__: pytest.fail("torchvision's"), types.SimpleNamespace(decode_jpeg=function))
    assert torch.equal(load(files, cpu), expected) and called == [3, 3]
    decoder(function, types.SimpleNamespace())  # an earlier version, for videos alone
    assert torch.equal(load(files, cpu), expected) and called == [3, 3, 3, 3]


def test_what_only_pillow_decodes_is_explained(files, cpu, decoder):
    def function(*_, **__):
        raise RuntimeError("Failed to decode jpeg stream: 2")

    decoder(function)
    with pytest.raises(InputError, match="nvJPEG cannot decode an image that Pillow can: use `loader=torchvision`"):
        load(files, cpu)


def test_a_batch_of_large_images_is_decoded_in_parts(files, cpu, decoder, monkeypatch):
    real, expected, together = torchvision.io.decode_jpeg, load(files, cpu), []

    def function(contents, **settings):
        together.append(len(contents))
        return real(contents, **settings)

    decoder(function)
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", 2500)  # two images of 40x30, or so
    assert torch.equal(load(files, cpu), expected)
    assert sum(together) == 6 and max(together) == 2


def test_too_little_memory_is_not_taken_for_a_bad_image(files, cpu, decoder):
    def function(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder(function)
    with pytest.raises(torch.OutOfMemoryError):
        load(files, cpu)


def test_a_batch_without_jpegs_needs_no_decoder(tmp_path, cpu, rng, decoder):
    decoder(lambda *_, **__: pytest.fail("called"))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    images = load(ImageSet(np.arange(3), paths=paths), cpu)
    torch.testing.assert_close(images * 255, torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), atol=1e-4, rtol=0)


def test_without_a_decoder_it_is_said_what_to_install(decoder, monkeypatch):
    decoder(None)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert "it takes TorchCodec 0.16 or later: pip install torchcodec" in nvjpeg_is_missing(torch.device("cuda", 5))


@pytest.mark.gpu
def test_a_gpu_decodes_as_a_cpu(files, cpu):
    gpu = torch.device("cuda", 0)
    assert nvjpeg_is_missing(gpu) is None
    difference = (load(files, gpu).cpu() - load(files, cpu)).abs()
    assert difference.mean() < 1 / 255 and difference.max() < 8 / 255
