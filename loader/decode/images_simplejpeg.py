"""Images by simplejpeg (libjpeg-turbo) on the CPU, scaled by torch. The path of machines without DALI."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from loader.extras import require

if TYPE_CHECKING:
    from loader.decode.images import Bytes, ImageOptions


class SimpleJpegBackend:
    """See `loader.decode.images.Backend`. Both libraries let go of Python's lock while they work, so images divide between threads.

    Args:
        options: Size and normalisation.
        threads: Images at a time.

    Raises:
        MissingDependencyError: simplejpeg or torch is not installed.
    """

    def __init__(self, options: ImageOptions, *, threads: int = 1) -> None:
        self._jpeg, self._torch = require("simplejpeg", extra="images"), require("torch", extra="images")
        self._options = options
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="headrace-images") if threads > 1 else None
        self._mean = self._torch.tensor(options.mean).view(3, 1, 1) * 255
        self._scale = 1 / (self._torch.tensor(options.std).view(3, 1, 1) * 255)

    def decode(self, images: Sequence[Bytes], out: Any) -> dict[int, str]:
        target = out if out.device.type == "cpu" else self._torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        found = list(map(self._decode, images, target) if self._pool is None else self._pool.map(self._decode, images, target))
        if target is not out:
            out.copy_(target)
        return {number: reason for number, reason in enumerate(found) if reason is not None}

    def _decode(self, image: Bytes, target: Any) -> str | None:
        height, width = self._options.shape
        try:
            # libjpeg scales by eighths on the way, so that little is decoded that the resizing throws away
            pixels = self._jpeg.decode_jpeg(image, colorspace="RGB", min_height=height, min_width=width, min_factor=1)
        except ValueError as error:
            return str(error)
        tensor = self._torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        if tuple(tensor.shape[2:]) != (height, width):
            tensor = self._torch.nn.functional.interpolate(tensor, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        self._torch.sub(tensor[0], self._mean, out=target).mul_(self._scale)
        return None
