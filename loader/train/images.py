"""The image stage of a loader: which columns are images, and their place in a batch once they are decoded. Decoding itself is in `loader.decode.images`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from loader.batch.assemble import BatchArrays
from loader.batch.batch import Batch, BatchLayout, on_host
from loader.batch.device_arrays import DeviceArrays
from loader.decode.images import CONTENT_JPEG, CONTENT_KEY, ImageDecoder, ImageOptions
from loader.encodings.leaf import is_bytes
from loader.errors import ColumnNotFoundError, SchemaError, did_you_mean

if TYPE_CHECKING:
    from loader.scan.mix import AnyPlan

Images = ImageOptions | Mapping[str, ImageOptions]


def image_columns(plan: AnyPlan, images: Images | None) -> dict[str, ImageOptions]:
    """The options of every image column among the columns of a plan.

    Args:
        plan: Its schema says which columns are marked: the field's metadata has headrace.content = image/jpeg.
        images: By column; or one for all marked columns.

    Raises:
        ColumnNotFoundError: A name is not among the columns.
        SchemaError: A column is not binary, or none is marked.
    """
    if images is None:
        return {}
    if isinstance(images, ImageOptions):
        schema = plan.view.schema
        marked = [name for name in plan.columns if (schema.column(name).metadata or {}).get(CONTENT_KEY) == CONTENT_JPEG]
        if not marked:
            key = f"{CONTENT_KEY.decode()} = {CONTENT_JPEG.decode()}"
            raise SchemaError(f"images is given for all marked columns, and none is: name them, images={{'photo': …}}, or mark their fields with {key}")
        images = dict.fromkeys(marked, images)
    types = {column.name: column.type for column in plan.read}
    for name in images:
        if name not in plan.columns:
            raise ColumnNotFoundError(f"images names {name!r}, which is not read: {did_you_mean(name, plan.columns)}")
        if not is_bytes(types[name]):
            raise SchemaError(f"images names {name!r}, which is {types[name]}: images are the bytes of JPEG files, in a binary column")
    return dict(images)


class ImageStage:
    """Decodes the image columns of batch after batch.

    Args:
        layout: Of the batches.
        options: By column.
        device: Where the tensors are to lie.
        threads: For decoding on the CPU.
    """

    def __init__(self, layout: BatchLayout, options: Mapping[str, ImageOptions], *, device: str, threads: int) -> None:
        self._layout = layout
        self._decoders = {name: ImageDecoder(each, device=device, threads=threads) for name, each in options.items()}

    def apply(self, batch: Batch, arrays: BatchArrays | DeviceArrays) -> dict[str, int]:
        """Put pixels in the place of the bytes; broken images leave zeros, and False in the column's validity. Returns their number, by column.

        Raises:
            BadRecordError: An image is broken, and the policy is "fail"; names its segment and row.
        """
        counts = {}
        for name, decoder in self._decoders.items():
            index = self._layout.index[name]
            # nvJPEG's entropy stage, too, reads an image on the host
            values, offsets, _ = (on_host(array) for array in arrays.list_column(index))
            valid = on_host(arrays.validity_of(index))
            present = np.arange(arrays.num_rows) < arrays.num_samples if valid is None else valid != 0
            decoded = decoder.decode(values, offsets, present, lambda row, name=name: _place(batch, name, row))  # type: ignore[misc]
            if decoded.bad:
                counts[name] = len(decoded.bad)
                present[list(decoded.bad)] = False
            batch.put(name, decoded.pixels if self._layout.has_tensors else decoded.pixels.numpy(), present)
        return counts


def _place(batch: Batch, name: str, row: int) -> str:
    segment, number = batch.positions()[row].tolist()
    return f"column {name!r}, segment {segment}, row {number:,}"
