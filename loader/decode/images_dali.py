"""Images by NVIDIA DALI: one pipeline that decodes, scales and normalises a batch, on the GPU where the tensors are, else DALI's CPU pipeline.

API as of DALI 2.4 (docs.nvidia.com/deeplearning/dali). The CPU pipeline needs no driver and was run; the GPU pipeline has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loader.extras import require

if TYPE_CHECKING:
    from loader.decode.images import Bytes, ImageOptions

INPUT = "jpeg"


class DaliBackend:
    """See `loader.decode.images.Backend`. A pipeline that met a broken image is no longer valid, so it is built anew (milliseconds), and halves of the
    batch say which image it was.

    Args:
        options: Size and normalisation.
        device: A torch device.
        threads: Of the CPU pipeline.

    Raises:
        MissingDependencyError: DALI or torch is not installed.
    """

    def __init__(self, options: ImageOptions, *, device: str = "cpu", threads: int = 1) -> None:
        self._dali, self._torch = require("nvidia.dali", extra="dali"), require("torch", extra="dali")
        self._options, self._threads = options, threads
        self._fn, self._types = require("nvidia.dali.fn", extra="dali"), require("nvidia.dali.types", extra="dali")
        target = self._torch.device(device)
        self._device_id = None if target.type == "cpu" else target.index or 0
        self._pipeline: Any = None
        self._capacity = 0

    def decode(self, images: Sequence[Bytes], out: Any) -> dict[int, str]:
        bad: dict[int, str] = {}
        pending = [range(len(images))]
        while pending:
            numbers = pending.pop()
            reason = self._run([images[number] for number in numbers], out[numbers.start : numbers.stop])
            if reason is None:
                continue
            if len(numbers) == 1:
                bad[numbers.start] = reason
                continue
            middle = numbers.start + len(numbers) // 2
            pending += [range(middle, numbers.stop), range(numbers.start, middle)]
        return bad

    def _run(self, images: Sequence[Bytes], out: Any) -> str | None:
        """Decode all of them, or say why one of them does not."""
        if self._pipeline is None or len(images) > self._capacity:
            self._capacity = max(self._capacity, 1 << (len(images) - 1).bit_length())
            self._pipeline = self._build()
        try:
            self._pipeline.feed_input(INPUT, list(images))
            (decoded,) = self._pipeline.run()  # without a stream: done when it returns
        except RuntimeError as error:
            self._pipeline = None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return next((line for line in lines if "failure" in line.lower()), lines[-1] if lines else "DALI refused it")
        out.copy_(self._torch.from_dlpack(decoded.as_tensor()))
        if self._device_id is not None:
            self._torch.cuda.current_stream(self._device_id).synchronize()  # the pipeline writes to the same memory next time
        return None

    def _build(self) -> Any:
        """The pipeline for batches of up to `_capacity`; nothing is prefetched, since the loader runs ahead itself."""
        fn, types, options = self._fn, self._types, self._options
        pipeline = self._dali.Pipeline(
            batch_size=self._capacity, num_threads=self._threads, device_id=self._device_id, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
        )
        with pipeline:
            encoded = fn.external_source(name=INPUT, device="cpu", dtype=types.UINT8, ndim=1)
            # "mixed": the entropy coding on the host, the rest on the GPU, as nvJPEG divides it
            decoded = fn.decoders.image(encoded, device="cpu" if self._device_id is None else "mixed", output_type=types.RGB)
            scaled = fn.resize(decoded, size=options.shape, interp_type=types.INTERP_LINEAR, antialias=True)
            mean, std = ([255 * value for value in values] for values in (options.mean, options.std))
            pipeline.set_outputs(fn.crop_mirror_normalize(scaled, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std))
        pipeline.build()
        return pipeline
