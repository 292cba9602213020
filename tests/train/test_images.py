"""A binary column of JPEG images becomes a tensor of the batch; broken ones stay in their place, masked and counted in what was handed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.errors import BadRecordError, ColumnNotFoundError, SchemaError

torch = pytest.importorskip("torch")
simplejpeg = pytest.importorskip("simplejpeg")
ROWS, BROKEN, NULLS = 60, (7, 23, 24, 51), (5, 40)
OPTIONS: dict[str, Any] = {"global_batch_size": 16, "rank": 0, "world_size": 1, "threads": 1, "remainder": "pad"}
SKIP = loader.ImageOptions(size=(6, 8), bad="skip", backend="simplejpeg")


def photo(row: int) -> bytes | None:
    """A plain grey whose level is the row's number; BROKEN ones are cut short."""
    if row in NULLS:
        return None
    image = simplejpeg.encode_jpeg(np.full((10 + row % 5, 9, 3), 2 * row, np.uint8), quality=100)
    return image[: len(image) // 2] if row in BROKEN else image


@pytest.fixture
def table(lake: loader.Lake) -> loader.Table:
    mark = {"headrace.content": "image/jpeg"}
    fields = [pa.field("id", pa.int64(), nullable=False), pa.field("photo", pa.binary(), metadata=mark), pa.field("other", pa.binary())]
    table = lake.create_table("photos", pa.schema(fields), primary_key=["id"])
    photos = [photo(row) for row in range(ROWS)]
    table.append(pa.table({"id": range(ROWS), "photo": photos, "other": photos}, schema=pa.schema(fields)))
    return table


@pytest.mark.parametrize("output", ["dict", "numpy"])
@pytest.mark.parametrize("images", [SKIP, {"photo": SKIP}])
def test_pixels_stand_in_the_rows_place(table: loader.Table, output: str, images: Any) -> None:
    seen = {}
    with loader.DataLoader(table.scan(columns=["id", "photo"]), images=images, output=output, **OPTIONS) as batches:
        for batch in batches:
            assert batch["photo"].shape == (16, 3, 6, 8)
            for row in range(16):
                valid, pixels = bool(batch.validity["photo"][row]), np.asarray(batch["photo"][row])
                number = int(batch["id"][row]) if row < batch.num_samples else -1
                assert valid == (number >= 0 and number not in BROKEN + NULLS)
                np.testing.assert_allclose(pixels, 2 * number / 255 if valid else 0, atol=1.5 / 255)
                seen[number] = valid
        stats = batches.stats()
    assert len(seen) == ROWS + 1 and sum(seen.values()) == ROWS - len(BROKEN) - len(NULLS)
    assert stats.bad_records == {"photo": len(BROKEN)} and stats.to_dict()["bad_records"] == {"photo": len(BROKEN)}
    assert stats.pipeline_seconds["images"] > 0


def test_only_batches_that_were_handed_over_count(table: loader.Table) -> None:
    with loader.DataLoader(table.scan(columns=["id", "photo"]), images=SKIP, shuffle=False, **OPTIONS) as batches:
        for number, _ in enumerate(batches, start=1):
            assert batches.stats().bad_records.get("photo", 0) == sum(row < 16 * number for row in BROKEN)


def test_a_broken_image_stops_the_loader_with_its_place(table: loader.Table) -> None:
    options = loader.ImageOptions(size=8)
    with loader.DataLoader(table.scan(columns=["id", "photo"]), images=options, shuffle=False, **OPTIONS) as batches:
        with pytest.raises(BadRecordError, match=r"column 'photo', segment \d+, row 7: .*bad='skip'") as error:
            list(batches)
        assert "\n" not in str(error.value)


def test_transforms_and_faces_see_pixels(table: loader.Table) -> None:
    def brighter(batch: Any) -> Any:
        return batch.replace(photo=batch["photo"] + 1.0)

    with loader.DataLoader(table.scan(columns=["id", "photo"]), images=SKIP, transforms=brighter, **OPTIONS) as batches:
        batch = next(iter(batches)).to("cpu")
        assert float(batch["photo"].min()) >= 1.0 and batch.validity["photo"].dtype == torch.bool
    with loader.DataLoader(table.scan(columns=["id", "photo"]), images=SKIP, **OPTIONS) as batches:
        assert batches.stats().bad_records == {}
        assert next(iter(batches)).to_arrow().schema.field("photo").type == pa.binary()


@pytest.mark.parametrize(
    ("columns", "options", "kind", "message"),
    [
        (["id", "photo"], {}, SchemaError, r"images=\{'photo': ImageOptions"),
        (["id", "photo"], {"images": {"phot": SKIP}}, ColumnNotFoundError, "did you mean photo"),
        (["id", "photo"], {"images": {"id": SKIP}}, SchemaError, "JPEG files, in a binary column"),
        (["id", "other"], {"images": SKIP, "output": "numpy"}, SchemaError, "headrace.content = image/jpeg"),
        (["id", "photo"], {"images": SKIP, "output": "arrow"}, SchemaError, "use output='dict' or 'numpy'"),
    ],
)
def test_what_cannot_be_an_image_is_refused(table: loader.Table, columns: list[str], options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        loader.DataLoader(table.scan(columns=columns), **OPTIONS, **options)
