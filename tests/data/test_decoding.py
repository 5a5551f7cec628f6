"""Image files of every kind: decoded as meant, or named."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fmcefast.data.decoding import encoded_image, find_bad, read_image
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import Recipe
from fmcefast.errors import InputError


@pytest.fixture
def colours(rng):
    """(24, 36, 3) uint8, smooth enough for JPEG."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((36, 24), Image.Resampling.BILINEAR))


def grey_of(colours):
    return np.array(Image.fromarray(colours).convert("L"))


def test_lossless_files_give_their_own_pixels(tmp_path, colours):
    for suffix in ("png", "bmp", "ppm", "tif"):
        Image.fromarray(colours).save(tmp_path / f"image.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"image.{suffix}"), colours)


def test_greys_are_copied_to_three_channels(tmp_path, colours):
    grey = grey_of(colours)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=95)
    pixels = read_image(tmp_path / "grey.jpg")
    assert np.abs(pixels.astype(int) - grey[..., None]).max() < 12


def test_sixteen_bits_become_eight(tmp_path, rng):
    deep = rng.integers(0, 65536, (10, 12), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "deep.pgm").write_bytes(b"P5 12 10 65535\n" + deep.astype(">u2").tobytes())
    for name in ("deep.png", "deep.pgm"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.dstack([deep >> 8] * 3))


def test_palettes_and_transparency(tmp_path, colours):
    palette = Image.fromarray(colours).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    palette.save(tmp_path / "clear.png", transparency=bytes(range(0, 256, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "clear.png"), np.array(palette.convert("RGB")))
    alpha = np.dstack([colours, np.full((24, 36), 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), colours)


def test_of_an_animation_the_first_picture(tmp_path, colours):
    pictures = [Image.fromarray(colours), Image.fromarray(255 - colours)]
    pictures[0].save(tmp_path / "moving.png", save_all=True, append_images=pictures[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "moving.png"), colours)
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    assert np.abs(read_image(tmp_path / "moving.gif").astype(int) - colours).mean() < 8


def test_cmyk_jpegs_are_converted(tmp_path, colours):
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - colours).mean() < 5


@pytest.fixture
def of_every_kind(tmp_path, colours):
    """Files that differ in how they are stored. Their colours are weak: a GPU spreads them over pixels otherwise."""
    grey = colours.mean(axis=2, keepdims=True)
    colours = (grey + (colours - grey) / 10).astype(np.uint8)
    image = Image.fromarray(colours)
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "b.jpg", progressive=True)
    image.convert("L").save(tmp_path / "c.jpg")
    image.convert("CMYK").save(tmp_path / "d.jpg")
    image.quantize(16).save(tmp_path / "e.png")
    image.save(tmp_path / "f.gif")
    image.save(tmp_path / "g.webp", lossless=True)
    Image.fromarray(grey_of(colours).astype(np.uint16) << 8).save(tmp_path / "h.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side: nobody turns the image
    image.save(tmp_path / "i.jpg", exif=exif)
    (tmp_path / "j.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0more after the end")
    image.save(tmp_path / "k.jpg", format="PNG")
    image.quantize(16).save(tmp_path / "l.png", transparency=3)
    image.convert("LA").save(tmp_path / "m.png")
    image.save(tmp_path / "n.jpg", keep_rgb=True)
    image.save(tmp_path / "o.jpg", subsampling=0)
    image.save(tmp_path / "p.jpg", subsampling="4:2:2", restart_marker_blocks=2)
    paths = sorted(tmp_path.iterdir())
    return ImageSet(np.arange(len(paths)), paths=paths)


def loaded(files, loader, device):
    settings = LoaderSettings(Recipe((0.0,), (1.0,)), 40, 4, device, loader=loader)
    return torch.cat([images for images, _ in make_loader(files, settings, training=False)]).cpu()


def test_every_loader_sees_every_kind_as_pillow_does(of_every_kind, cpu):
    resident = loaded(of_every_kind, "resident", cpu)
    for loader, tolerance in (("dali", 0.51), ("nvjpeg", 1.01), ("torchvision", 1.01)):
        torch.testing.assert_close(loaded(of_every_kind, loader, cpu), resident, atol=tolerance / 255, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("loader", ["dali", "nvjpeg"])
def test_a_gpu_sees_every_kind_as_pillow_does(of_every_kind, cpu, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    found, expected = loaded(of_every_kind, loader, torch.device("cuda", 0)), loaded(of_every_kind, "resident", cpu)
    for path, image, other in zip(of_every_kind.paths, found, expected, strict=True):
        assert (image - other).abs().mean() < 2 / 255, path.name


def test_jpegs_are_passed_on_as_they_are_and_others_as_pixels(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.jpg")
    encoded = encoded_image(tmp_path / "a.jpg")
    assert encoded.content.tobytes() == (tmp_path / "a.jpg").read_bytes() and encoded.size == (24, 36)
    Image.fromarray(colours).save(tmp_path / "a.png")
    encoded = encoded_image(tmp_path / "a.png")
    assert encoded.size == (24, 36) and encoded.content.tobytes() == b"P6 36 24 255\n" + colours.tobytes()


BROKEN = {
    "empty.jpg": b"",
    "text.jpg": b"not an image",
    "header.jpg": b"\xff\xd8\xff\xe0" + bytes(100),
    "nothing.png": b"\x89PNG\r\n\x1a\n",
    "float.tif": None,
}


def test_broken_files_are_named_with_the_reason(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "whole.jpg")
    for name, content in BROKEN.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    Image.fromarray(colours[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "absent.jpg"]
    done = []
    bad = find_bad(paths, 2, lambda: done.append(1))
    assert len(done) == len(paths)
    assert {paths[row].name for row in bad} == {*BROKEN, "cut.jpg", "absent.jpg"}
    for row, reason in bad.items():
        with pytest.raises(InputError) as caught:
            read_image(paths[row])
        assert str(caught.value).startswith(f"The image {paths[row]} cannot be read: {reason}. ")
        assert "0x" not in reason and "Errno" not in reason
    assert bad[len(paths) - 1] == "it does not exist"
