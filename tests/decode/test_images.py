"""JPEG bytes to pixels: scaled and normalised as a plain reference does it, broken ones named or counted exactly, whichever decoder is there."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from loader.decode.images import ImageDecoder, ImageOptions, flaw
from loader.errors import BadRecordError, MissingDependencyError

torch = pytest.importorskip("torch")
simplejpeg = pytest.importorskip("simplejpeg")
HAS_DALI = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
BACKENDS = ["simplejpeg", pytest.param("dali", marks=pytest.mark.skipif(not HAS_DALI, reason="DALI is not installed"))]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth ramps, which JPEG keeps to a grey level or two."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1).astype(np.uint8)


def jpeg(height: int, width: int, **options: Any) -> np.ndarray:
    return np.frombuffer(simplejpeg.encode_jpeg(picture(height, width), quality=95, **options), np.uint8)


def laid_out(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.zeros(0, np.uint8), *images]), np.cumsum([0, *map(len, images)])


def broken() -> dict[str, np.ndarray]:
    """Images that no decoder may accept, by what is wrong with them."""
    good = jpeg(64, 48)
    frame = int(np.flatnonzero((good[:-1] == 0xFF) & (good[1:] == 0xC0))[0])
    huge, none, depth = good.copy(), good.copy(), good.copy()
    huge[frame + 5 : frame + 9] = 255
    none[frame + 5 : frame + 7] = 0
    depth[frame + 4] = 13
    return {
        "breaks off before its end": good[: len(good) // 2],
        "breaks off inside its header": good[:30],
        "0 bytes that are no JPEG": good[:0],
        "4 bytes that are no JPEG": np.frombuffer(b"PNG!", np.uint8),
        "a size of 65535 × 65535": huge,
        "a size of 0 ×": none,
        "": depth,  # each decoder says it in its own words
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_images_are_scaled_and_normalised(backend: str, threads: int) -> None:
    shapes = [(64, 48), (20, 100), (32, 40), (300, 200)]
    options = ImageOptions(size=(32, 40), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), backend=backend)
    values, offsets = laid_out([jpeg(*shape) for shape in shapes])
    decoded = ImageDecoder(options, threads=threads).decode(values, offsets, np.ones(4, np.bool_), str)
    assert decoded.bad == {} and decoded.pixels.shape == (4, 3, 32, 40) and decoded.pixels.dtype == torch.float32
    for pixels, shape in zip(decoded.pixels, shapes, strict=True):
        whole = torch.from_numpy(picture(*shape)).permute(2, 0, 1)[None].float()
        scaled = torch.nn.functional.interpolate(whole, size=(32, 40), mode="bilinear", antialias=True)[0] / 255
        expected = (scaled - torch.tensor(options.mean).view(3, 1, 1)) / torch.tensor(options.std).view(3, 1, 1)
        grey_levels = (pixels - expected).abs() * torch.tensor(options.std).view(3, 1, 1) * 255
        assert grey_levels.mean() < 2 and grey_levels.max() < 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_images_are_counted_and_leave_zeros(backend: str) -> None:
    good, bad = jpeg(50, 60), broken()
    images = [good, *bad.values(), good, good]
    present = np.ones(len(images), np.bool_)
    present[-1] = False
    decoder = ImageDecoder(ImageOptions(size=16, bad="skip", backend=backend))
    for _ in range(2):  # a decoder goes on after a broken image
        decoded = decoder.decode(*laid_out(images), present, str)
        assert sorted(decoded.bad) == list(range(1, len(bad) + 1))
        for reason, expected in zip(decoded.bad.values(), bad, strict=False):
            assert expected in reason
        shown = decoded.pixels.abs().amax((1, 2, 3)) > 0
        assert shown.tolist() == [True, *[False] * len(bad), True, False]
    np.testing.assert_array_equal(decoded.pixels[0], decoded.pixels[-2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_image_stops_with_its_place(backend: str) -> None:
    decoder = ImageDecoder(ImageOptions(size=16, backend=backend))
    for image in broken().values():
        with pytest.raises(BadRecordError, match="row 1: the image does not decode"):
            decoder.decode(*laid_out([jpeg(20, 20), image]), np.ones(2, np.bool_), lambda row: f"row {row}")


def test_no_image_is_no_work() -> None:
    decoded = ImageDecoder(ImageOptions(size=4)).decode(*laid_out([jpeg(8, 8)] * 3), np.zeros(3, np.bool_), str)
    assert decoded.bad == {} and not decoded.pixels.any()


@pytest.mark.parametrize("sampling", ["444", "420", "Gray"])
def test_common_kinds_of_jpeg_have_no_flaw(sampling: str) -> None:
    image = jpeg(33, 65, colorsubsampling=sampling)
    assert flaw(image) is None
    assert flaw(np.concatenate([image, np.zeros(16, np.uint8)])) is None
    assert all(flaw(image[:cut]) is not None for cut in range(len(image) - 2))


def test_random_bytes_behind_a_header_never_raise() -> None:
    rng, image = np.random.default_rng(17), jpeg(24, 24)
    decoder = ImageDecoder(ImageOptions(size=8, bad="skip"))
    for _ in range(200):
        damaged = image.copy()
        damaged[rng.integers(2, len(image), 3)] = rng.integers(0, 256, 3)
        decoded = decoder.decode(*laid_out([image, damaged]), np.ones(2, np.bool_), str)
        assert 0 not in decoded.bad and torch.isfinite(decoded.pixels).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 0}, "at least 1"), ({"std": (1, 0, 1)}, "above 0"), ({"bad": "drop"}, "fail, skip"), ({"backend": "cv"}, "auto")]
)
def test_options_must_make_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageOptions(**{"size": 8, **options})


def test_a_missing_decoder_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    with pytest.raises(MissingDependencyError, match=r"headrace\[images\]"):
        ImageDecoder(ImageOptions(size=8, backend="simplejpeg"))
