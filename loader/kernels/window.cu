// Fills a window on a GPU: scatters patches into decoded columns, then permutes every column of all pieces into the window's own planes.
// A plane is what one column has for every row: values, list views, or validity. A piece is one block of the window.
#include "lanes.cuh"

#if defined(HEADRACE_GPU)

constexpr u32 TILE_ROWS = 1024, ROWS_PER_THREAD = TILE_ROWS / THREADS_PER_BLOCK, PLANES_PER_BLOCK = 8, NO_PLANE = NO_INDEX;

// `plane` is its number in pieces_of. `out`: address of [rows][width] items of 1, 2, 4 or 8 bytes; 0 for a plane that is only checked: none
// of its bytes may be 0 where `validity_plane` has a row, because batches have no place for nulls inside lists.
struct WindowPlane {
    u64 out;
    u32 plane, item_bytes, width, validity_plane, column, reserved;
};

enum PieceKind { PIECE_ITEMS = 0, PIECE_ZEROS = 1, PIECE_ONES = 2, PIECE_INVERTED = 3 };

// What a plane has in one piece: `items` of `num_rows` rows, or the same for all rows. INVERTED bytes are 1 where validity is 0.
struct PieceItems {
    u64 items;
    u32 kind, num_rows;
};

// What a null label reads as: `value` where its time is known and at most `last_closed`; without a time plane everywhere.
struct LabelFill {
    u64 value;
    i64 last_closed;
    u32 value_plane, validity_plane, time_plane, time_validity_plane, time_item_bytes, time_is_unsigned;
};

// New items for some rows of one plane in one piece: target[rows[i]] = items[i], each of `width` units of `unit_bytes`.
struct Patch {
    u64 target, rows, items;
    u32 count, width, unit_bytes, num_rows, column, reserved;
};

static_assert(sizeof(WindowPlane) == 32 && sizeof(PieceItems) == 16 && sizeof(LabelFill) == 40 && sizeof(Patch) == 48, "mirrored by device_tables.py");

template <class T> FN T piece_item(const PieceItems& from, u64 item, u64 width, bool& fits) {
    if (from.kind == PIECE_ZEROS) return (T)0;
    if (from.kind == PIECE_ONES) return (T)1;
    if (item >= from.num_rows * width) {
        fits = false;
        return (T)0;
    }
    const T value = LOAD((const T*)from.items + item);
    return from.kind == PIECE_INVERTED ? (T)(value == (T)0) : value;
}

// The rows of one tile that a thread gathers: `row[k]` of `piece[k]`, for `live` of them.
struct TileRows {
    u32 first, live;
    u32 piece[ROWS_PER_THREAD], row[ROWS_PER_THREAD];
};

template <class T> FN bool permute_rows(const WindowPlane& plane, const PieceItems* pieces, const TileRows& tile) {
    T item[ROWS_PER_THREAD];
    bool fits = true;
    for (u32 k = 0; k < ROWS_PER_THREAD; ++k) item[k] = k < tile.live ? piece_item<T>(pieces[tile.piece[k]], tile.row[k], 1, fits) : (T)0;
    for (u32 k = 0; k < ROWS_PER_THREAD; ++k)
        if (k < tile.live) ((T*)plane.out)[tile.first + k * THREADS_PER_BLOCK] = item[k];
    return fits;
}

// Several items a row: neighbouring threads take neighbouring items.
template <class T> FN bool permute_wide(const WindowPlane& plane, const PieceItems* pieces, const u32* piece, const u32* row, u32 first, u32 num_rows) {
    bool fits = true;
    for (u64 at = threadIdx.x; at < (u64)num_rows * plane.width; at += THREADS_PER_BLOCK) {
        const u32 i = first + (u32)(at / plane.width);
        const u64 item = (u64)row[i] * plane.width + at % plane.width;
        ((T*)plane.out)[(u64)first * plane.width + at] = piece_item<T>(pieces[piece[i]], item, plane.width, fits);
    }
    return fits;
}

// False where a list that is there has an item that is not.
FN bool has_all_items(const WindowPlane& plane, const PieceItems* pieces, const PieceItems* valid, const u32* piece, const u32* row, u32 first, u32 num_rows) {
    bool fits = true, whole = true;
    for (u64 at = threadIdx.x; at < (u64)num_rows * plane.width; at += THREADS_PER_BLOCK) {
        const u32 i = first + (u32)(at / plane.width);
        const bool is_there = piece_item<u8>(valid[piece[i]], row[i], 1, fits);
        if (is_there && !piece_item<u8>(pieces[piece[i]], (u64)row[i] * plane.width + at % plane.width, plane.width, fits)) whole = false;
    }
    return whole;
}

FN i64 time_of(const PieceItems& from, u32 row, u32 item_bytes, u32 is_unsigned, bool& fits) {
    if (item_bytes == 8) return (i64)piece_item<u64>(from, row, 1, fits);
    if (item_bytes == 4) return is_unsigned ? (i64)piece_item<u32>(from, row, 1, fits) : (i64)(int)piece_item<u32>(from, row, 1, fits);
    if (item_bytes == 2) return is_unsigned ? (i64)piece_item<u16>(from, row, 1, fits) : (i64)(short)piece_item<u16>(from, row, 1, fits);
    return is_unsigned ? (i64)piece_item<u8>(from, row, 1, fits) : (i64)(signed char)piece_item<u8>(from, row, 1, fits);
}

// The label's value or validity plane: as permute_rows, with the default where a null may be filled.
template <class T>
FN bool fill_label(const WindowPlane& plane, const PieceItems* all, u32 num_pieces, const LabelFill& label, const u32* pieces, const u32* rows, u32 first, u32 num_rows) {
    bool fits = true;
    for (u32 i = first + threadIdx.x; i < first + num_rows; i += THREADS_PER_BLOCK) {
        const u32 piece = LOAD(pieces + i), row = LOAD(rows + i);
        T item = piece_item<T>(all[(u64)plane.plane * num_pieces + piece], row, 1, fits);
        bool fill = !piece_item<u8>(all[(u64)label.validity_plane * num_pieces + piece], row, 1, fits);
        if (fill && label.time_plane != NO_PLANE) {
            const i64 time = time_of(all[(u64)label.time_plane * num_pieces + piece], row, label.time_item_bytes, label.time_is_unsigned, fits);
            const bool is_after = label.time_is_unsigned && time < 0;  // an unsigned time past every limit
            fill = !is_after && time <= label.last_closed;
            fill = fill && piece_item<u8>(all[(u64)label.time_validity_plane * num_pieces + piece], row, 1, fits);
        }
        if (fill) item = plane.plane == label.validity_plane ? (T)1 : (T)label.value;
        ((T*)plane.out)[i] = item;
    }
    return fits;
}

// Contract: grid (ceil(n / 1024), ceil(num_planes / 8)), block 256. pieces_of is [plane][piece]; row i of the window is row `row[i]` of
// piece `piece[i]`, each piece[i] < num_pieces. `label` may be null. Reads what launches before it decoded and patched. A report's op is the column.
extern "C" __global__ void __launch_bounds__(256, 4)
permute_window(const WindowPlane* planes, u32 num_planes, const PieceItems* pieces_of, u32 num_pieces, const u32* piece, const u32* row, u32 n, const LabelFill* label, u64* error) {
    const u32 first = blockIdx.x * TILE_ROWS, num_rows = least(n - first, TILE_ROWS);
    TileRows tile;
    tile.first = first + threadIdx.x;
    tile.live = threadIdx.x < num_rows ? (num_rows - threadIdx.x + THREADS_PER_BLOCK - 1) / THREADS_PER_BLOCK : 0;
    for (u32 k = 0; k < ROWS_PER_THREAD; ++k) {
        tile.piece[k] = k < tile.live ? piece[tile.first + k * THREADS_PER_BLOCK] : 0;
        tile.row[k] = k < tile.live ? row[tile.first + k * THREADS_PER_BLOCK] : 0;
    }
    const u32 end = least((blockIdx.y + 1) * PLANES_PER_BLOCK, num_planes);
    for (u32 number = blockIdx.y * PLANES_PER_BLOCK; number < end; ++number) {
        const WindowPlane plane = planes[number];
        const PieceItems* items = pieces_of + (u64)plane.plane * num_pieces;
        const bool is_label = label && (plane.plane == label->value_plane || plane.plane == label->validity_plane);
        bool fits = true;
        if (!plane.out) {
            const PieceItems* valid = pieces_of + (u64)plane.validity_plane * num_pieces;
            if (!has_all_items(plane, items, valid, piece, row, first, num_rows)) report(error, plane.column, blockIdx.x, ERROR_NULL_ITEM);
        } else if (plane.item_bytes == 4) {
            fits = is_label ? fill_label<u32>(plane, pieces_of, num_pieces, *label, piece, row, first, num_rows)
                   : plane.width == 1 ? permute_rows<u32>(plane, items, tile) : permute_wide<u32>(plane, items, piece, row, first, num_rows);
        } else if (plane.item_bytes == 8) {
            fits = is_label ? fill_label<u64>(plane, pieces_of, num_pieces, *label, piece, row, first, num_rows)
                   : plane.width == 1 ? permute_rows<u64>(plane, items, tile) : permute_wide<u64>(plane, items, piece, row, first, num_rows);
        } else if (plane.item_bytes == 1) {
            fits = is_label ? fill_label<u8>(plane, pieces_of, num_pieces, *label, piece, row, first, num_rows)
                   : plane.width == 1 ? permute_rows<u8>(plane, items, tile) : permute_wide<u8>(plane, items, piece, row, first, num_rows);
        } else {
            fits = is_label ? fill_label<u16>(plane, pieces_of, num_pieces, *label, piece, row, first, num_rows)
                   : plane.width == 1 ? permute_rows<u16>(plane, items, tile) : permute_wide<u16>(plane, items, piece, row, first, num_rows);
        }
        if (!fits) report(error, plane.column, blockIdx.x, ERROR_ROW);
    }
}

template <class T> FN bool scatter_items(const Patch& patch, u64 at) {
    const u32 row = ((const u32*)patch.rows)[at / patch.width];
    if (row >= patch.num_rows) return false;
    ((T*)patch.target)[(u64)row * patch.width + at % patch.width] = ((const T*)patch.items)[at];
    return true;
}

// Contract: grid (num_patches, any), block 256: a window may have more patches than y has blocks. The rows of a patch differ from each other, and so do the targets of patches.
extern "C" __global__ void __launch_bounds__(256) scatter_patches(const Patch* patches, u64* error) {
    const Patch& patch = patches[blockIdx.x];
    bool fits = true;
    for (u64 at = (u64)blockIdx.y * THREADS_PER_BLOCK + threadIdx.x; at < (u64)patch.count * patch.width; at += (u64)gridDim.y * THREADS_PER_BLOCK) {
        if (patch.unit_bytes == 4) fits = scatter_items<u32>(patch, at) && fits;
        else if (patch.unit_bytes == 8) fits = scatter_items<u64>(patch, at) && fits;
        else if (patch.unit_bytes == 2) fits = scatter_items<u16>(patch, at) && fits;
        else fits = scatter_items<u8>(patch, at) && fits;
    }
    if (!fits) report(error, patch.column, blockIdx.y, ERROR_PATCH);
}

#if defined(HEADRACE_SHIM)
SHIM_KERNEL(permute_window)
SHIM_KERNEL(scatter_patches)
#endif
#endif
