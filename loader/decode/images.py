"""Images: a batch's JPEG bytes to one float tensor, decoded, resized and normalised; a broken image follows the bad-record policy.

Owns the options, the structural check that every backend shares, and the policy. The backends stand beside: images_dali.py (NVIDIA DALI, on the GPU
or its CPU pipeline) and images_simplejpeg.py (libjpeg-turbo, and torch for the scaling). They round differently: pixels agree to a few grey levels,
not bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loader.decode.images_dali import DaliBackend
from loader.decode.images_simplejpeg import SimpleJpegBackend
from loader.errors import BadRecordError, MissingDependencyError
from loader.extras import require

Bytes = npt.NDArray[np.uint8]
CONTENT_KEY, CONTENT_JPEG = b"headrace.content", b"image/jpeg"  # field metadata that marks a column
POLICIES = ("fail", "skip")
BACKENDS = ("auto", "dali", "simplejpeg")
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])  # markers without a segment behind them
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame: not Huffman tables, not reserved, not arithmetic conditioning
_SCAN, _END, _START = 0xDA, b"\xff\xd9", b"\xff\xd8"
TAIL_BYTES = 64  # some cameras write zeros behind the end
MAX_PIXELS = 1 << 28  # larger than any camera's; a header that states more is broken


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What a column of JPEG images becomes: float32 [rows, 3, height, width], (pixel / 255 - mean) / std, red first.

    Attributes:
        size: (height, width), or one number for both. Images are scaled to it, with antialiasing, whatever their shape.
        mean: Of each channel, in 0 to 1.
        std: Likewise.
        bad: "fail" raises at the first broken image; "skip" leaves zeros in its place and False in the column's validity, and counts it in
            `stats().bad_records`.
        backend: "dali", "simplejpeg", or "auto" for DALI where it is installed, else simplejpeg.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bad: str = "fail"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"size is {self.size!r}; height and width must be at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean is {self.mean!r} and std is {self.std!r}; each has three numbers, and those of std are above 0")
        for name, known in (("bad", POLICIES), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Backend(Protocol):
    """Decodes images that passed `flaw`."""

    def decode(self, images: Sequence[Bytes], out: Any) -> dict[int, str]:
        """Write image i to out[i]; returns what is wrong with those that do not decode, by their number. What lies in `out` there is undefined.

        Args:
            images: JPEG bytes.
            out: float32 torch tensor [images, 3, height, width], on the backend's device.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImages:
    """The images of a batch.

    Attributes:
        pixels: float32 torch tensor [rows, 3, height, width]; zeros where a row has no image.
        bad: Rows whose image is broken, and why.
    """

    pixels: Any
    bad: dict[int, str]


class ImageDecoder:
    """Decodes the images of a column, batch after batch, from one thread at a time.

    Args:
        options: What they become.
        device: A torch device; tensors are made there.
        threads: For decoding on the CPU.

    Raises:
        MissingDependencyError: Neither backend, or not the one that was asked for, is installed.
    """

    def __init__(self, options: ImageOptions, *, device: str = "cpu", threads: int = 1) -> None:
        self._options, self._device, self._threads = options, device, threads
        self._backend = open_backend(options, device, threads)

    def decode(self, values: Bytes, offsets: npt.NDArray[np.int64], present: npt.NDArray[np.bool_], place: Callable[[int], str]) -> DecodedImages:
        """The images of some rows.

        Args:
            values: uint8 [total], the bytes of all rows end to end.
            offsets: int64 [rows + 1], where each row's begin.
            present: bool [rows]; other rows are nulls or padding.
            place: Names a row for an error.

        Raises:
            BadRecordError: An image is broken, and the policy is "fail".
        """
        torch = require("torch", extra="images")
        rows, bad = [], {}
        for row in np.flatnonzero(present).tolist():
            reason = flaw(values[offsets[row] : offsets[row + 1]])
            if reason is None:
                rows.append(row)
            else:
                bad[row] = reason
        shape = (3, *self._options.shape)
        pixels = torch.zeros((len(present), *shape), dtype=torch.float32, device=self._device)
        if rows and not (bad and self._options.bad == "fail"):
            out = pixels if len(rows) == len(present) else torch.empty((len(rows), *shape), dtype=torch.float32, device=self._device)
            broken = self._backend.decode([values[offsets[row] : offsets[row + 1]] for row in rows], out)
            for number in broken:
                out[number] = 0
            if out is not pixels:
                pixels[torch.tensor(rows, device=self._device)] = out
            bad |= {rows[number]: reason for number, reason in broken.items()}
        if bad and self._options.bad == "fail":
            row = min(bad)
            raise BadRecordError(f"{place(row)}: the image does not decode: {bad[row]}; mend the row, or use bad='skip' to count such images and go on")
        return DecodedImages(pixels=pixels, bad=bad)


def open_backend(options: ImageOptions, device: str, threads: int) -> Backend:
    """The backend of the options that is installed.

    Raises:
        MissingDependencyError: There is none.
    """
    if options.backend != "simplejpeg":
        try:
            return DaliBackend(options, device=device, threads=threads)
        except MissingDependencyError:
            if options.backend == "dali":
                raise
    return SimpleJpegBackend(options, threads=threads)


def flaw(image: Bytes) -> str | None:
    """What is wrong with the frame of a JPEG, or None: it must begin, state a size, reach its scan and end. Looks at headers only, not at pixels.

    Decoders differ in how much of a truncated image they forgive; so that a count does not depend on the decoder, none is given one.
    """
    if image.nbytes < 4 or image[:2].tobytes() != _START:
        return f"{image.nbytes:,} bytes that are no JPEG"
    at, size = 2, None
    while at + 4 <= image.nbytes:
        if image[at] != 0xFF:
            return f"its header breaks off at byte {at}"
        marker = int(image[at + 1])
        if marker == 0xFF or marker in _NO_LENGTH:  # a fill byte, or nothing behind the marker
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            if size is None:
                return "its scan begins before its size is stated"
            return None if _END in image[-TAIL_BYTES:].tobytes() else "it breaks off before its end"
        length = int(image[at + 2]) << 8 | int(image[at + 3])
        if marker in _FRAMES and at + 9 <= image.nbytes:
            size = (int(image[at + 5]) << 8 | int(image[at + 6]), int(image[at + 7]) << 8 | int(image[at + 8]))
            if 0 in size or size[0] * size[1] > MAX_PIXELS:
                return f"it states a size of {size[0]} × {size[1]} pixels"
        at += 2 + length
    return "it breaks off inside its header"
