"""JPEGs with damaged data are named by every loader; sound ones, however odd, have the pixels that Pillow gives."""

import io

import numpy as np
import pytest
from PIL import Image

from fmcefast.data.decoding import encoded_image, find_bad, read_image
from fmcefast.data.image_set import ImageSet
from fmcefast.data.jpeg import is_sound, jpeg_size
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.errors import InputError

LOADERS = ("dali", "nvjpeg", "torchvision", "resident")
RECIPE = recipe_of("folder:anywhere")


def as_jpeg(image, **settings):
    content = io.BytesIO()
    image.save(content, "JPEG", **settings)
    return content.getvalue()


@pytest.fixture
def photo(rng):
    """(96, 128) pixels with detail everywhere."""
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (128, 96), Image.Resampling.BICUBIC
    )


@pytest.fixture
def put(tmp_path):
    def make(content):
        path = tmp_path / "image.jpg"
        path.write_bytes(content)
        return path

    return make


def changed(content, place, new):
    return content[:place] + new + content[place + len(new) :]


def middle(content):
    return (content.index(b"\xff\xda") + len(content)) // 2


def without_restarts(content):
    """One of the restart markers bears the number of another."""
    place = content.index(b"\xff\xd2")
    return changed(content, place, b"\xff\xd6")


SOUND = {
    "plain": {},
    "progressive": {"progressive": True},
    "all colours": {"subsampling": 0},
    "half the colours": {"subsampling": "4:2:2"},
    "RGB": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (128, 96)])
@pytest.mark.parametrize("kind", SOUND)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_those_of_pillow(put, photo, kind, size, mode):
    if kind == "RGB" and mode != "RGB":
        pytest.skip("of colour images only")
    content = as_jpeg(photo.resize(size).convert(mode), **SOUND[kind])
    path = put(content)
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    if mode != "CMYK":
        assert is_sound(content)
        encoded = encoded_image(path)
        passed_on = content if kind != "RGB" else b"P6 %d %d 255\n" % size + expected.tobytes()
        assert encoded.content.tobytes() == passed_on and encoded.size == size[::-1]


HARMLESS = {
    "garbage after the end": lambda content: content + b"\0 camera data \xff\xd8",
    "a second picture": lambda content: content + content,
    "padding before the end": lambda content: content[:-2] + b"\xff\xff" + content[-2:],
    "parameters of a progressive scan": lambda content: changed(content, content.index(b"\xff\xda") + 11, b"\0\0"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_harms_no_pixel_is_no_damage(put, photo, kind):
    whole = as_jpeg(photo)
    expected = read_image(put(whole))
    path = put(HARMLESS[kind](whole))
    np.testing.assert_array_equal(read_image(path), expected)
    encoded_image(path)
    assert find_bad([path], 1, lambda: None) == {}


DAMAGES = {
    "lost inside": lambda jpeg: jpeg()[: middle(jpeg())] + jpeg()[-2:],
    "cut off": lambda jpeg: jpeg()[: middle(jpeg())],
    "without its end": lambda jpeg: jpeg()[:-2],
    "zeroed to the end": lambda jpeg: changed(jpeg(), middle(jpeg()), bytes(len(jpeg()) - 2 - middle(jpeg()))),
    "a wrong code": lambda jpeg: changed(jpeg(), middle(jpeg()), b"\xff\0" * 9),
    "a marker inside": lambda jpeg: changed(jpeg(), middle(jpeg()), b"\xff\xd3"),
    "bytes too many": lambda jpeg: jpeg()[:-2] + bytes(40) + jpeg()[-2:],
    "another restart": lambda jpeg: without_restarts(jpeg(restart_marker_blocks=3)),
    "progressive": lambda jpeg: jpeg(progressive=True)[: middle(jpeg(progressive=True))] + jpeg()[-2:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_loader_names_damaged_data(put, photo, cpu, damage, mode):
    content = DAMAGES[damage](lambda **settings: as_jpeg(photo.convert(mode), **settings))
    path = put(content)
    (reason,) = find_bad([path], 1, lambda: None).values()
    assert reason.startswith(("its data is damaged (", "image file is truncated"))
    images = ImageSet(np.zeros(1, np.int64), paths=[path])
    for loader in LOADERS:
        with pytest.raises(InputError) as refused:
            list(make_loader(images, LoaderSettings(RECIPE, 32, 1, cpu, loader=loader), training=False))
        assert str(refused.value).startswith(f"The image {path} cannot be read: {reason}. Repair it, or ")


def test_nothing_is_printed_of_damage(put, photo, capfd):
    """libjpeg writes its warnings to standard error, unless it is told not to."""
    assert find_bad([put(DAMAGES["lost inside"](lambda **settings: as_jpeg(photo)))], 1, lambda: None)
    assert capfd.readouterr() == ("", "")


def test_sound_jpegs_are_looked_through_once(tmp_path, photo, monkeypatch):
    looked = []
    monkeypatch.setattr("fmcefast.data.decoding.is_sound", lambda content: looked.append(1) or is_sound(content))
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        photo.save(path)
    images = ImageSet(np.zeros(3, np.int64), paths=paths)
    for part in (images, images.take(np.array([2, 0])), images):
        for row in range(len(part)):
            part.encoded(row)
    assert len(looked) == 3


def test_jpegs_too_large_for_pillow_are_left_to_it(photo):
    content = as_jpeg(photo)
    sides = content.index(b"\xff\xc0") + 5
    assert jpeg_size(content) == (96, 128)
    assert jpeg_size(changed(content, sides, b"\x30\0\x30\0")) == (0x3000, 0x3000)
    assert jpeg_size(changed(content, sides, b"\x40\0\x40\0")) is None
