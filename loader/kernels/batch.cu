// Assembles a batch on a GPU from parts of windows: rows of planes gathered, lists laid end to end, all columns in five launches. A list
// column may come unexpanded: each view once, and for every row the number of its view. Views and rows are data: what points outside
// of its pool counts as empty and is reported.
#include "lanes.cuh"

#if defined(HEADRACE_GPU)

constexpr u32 TILE_ROWS = 1024, ROWS_PER_THREAD = TILE_ROWS / THREADS_PER_BLOCK, PLANES_PER_BLOCK = 8, TILE_VALUES = 2048, TILE_LISTS = 1024;
constexpr u32 ENTRY_BITS = 24;  // of a packed pair of sums: entries below, values above
constexpr u64 ENTRY_MASK = (1ull << ENTRY_BITS) - 1;

// Rows start, start + step, … of a window lie at rows at, at + 1, … of the batch. `planes`: u64 address of each plane (0: every byte
// is 1); `pieces`: u32 piece of each window row; `pools`: [list column][piece].
struct BatchPart {
    u64 planes, pieces, pools;
    u32 at, start, step, num_pieces;
};

struct BatchPlane {
    u64 out;
    u32 plane, item_bytes, width, reserved;
};

// The pool of a list column in one piece; views past its end go on in `more`, the values of patches, which are as wide as the output.
struct PoolPiece {
    u64 pool, more;
    i64 base;
    u32 pool_count, more_count, item_bytes, reserved;
};

// A list column. `slots` is 0 for one that is laid out row by row; else a power of two above the rows, and `table` that many zeros.
// `first`, `number` and `entry_row` are u32 [rows] of scratch.
struct ListColumn {
    u64 table, first, number, entry_row;
    u32 plane, list, slots, column;
};

// Where a list column goes: offsets i64 [entries + 1], values, inverse i64 [rows] (unexpanded ones only). Its values are tiles
// [first_tile, …) of list_values.
struct ListOut {
    u64 offsets, values, inverse;
    u32 first_tile, num_tiles, item_bytes, num_entries;
};

static_assert(sizeof(BatchPart) == 40 && sizeof(BatchPlane) == 24 && sizeof(PoolPiece) == 40 && sizeof(ListColumn) == 48 && sizeof(ListOut) == 40, "mirrored by device_tables.py");

// The part that holds row i of the batch; parts are in order, none is empty.
FN u32 part_of(const BatchPart* parts, u32 low, u32 high, u32 i) {
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (parts[middle].at <= i) low = middle;
        else high = middle;
    }
    return low;
}

FN u32 window_row(const BatchPart& part, u32 i) { return part.start + (i - part.at) * part.step; }

// The parts that a tile of rows touches: searches stay between them.
struct TileParts {
    u32 low, high;
};

FN TileParts tile_parts(const BatchPart* parts, u32 num_parts, u32 num_samples, u32 first, u32 end) {
    if (first >= num_samples) return {0, 1};
    const u32 low = part_of(parts, 0, num_parts, first);
    return {low, part_of(parts, low, num_parts, least(end, num_samples) - 1) + 1};
}

// ---- rows ----

template <class T> FN void gather_plane(const BatchPart* parts, const BatchPlane& plane, TileParts near, u32 num_samples, u32 first, u32 num_rows) {
    T* out = (T*)plane.out;
    for (u64 at = threadIdx.x; at < (u64)num_rows * plane.width; at += THREADS_PER_BLOCK) {
        const u32 i = first + (plane.width == 1 ? (u32)at : (u32)(at / plane.width));
        T item = 0;
        if (i < num_samples) {
            const BatchPart& part = parts[part_of(parts, near.low, near.high, i)];
            const T* from = (const T*)LOAD((const u64*)part.planes + plane.plane);
            const u64 row = window_row(part, i);
            item = from ? LOAD(from + (plane.width == 1 ? row : row * plane.width + at % plane.width)) : (T)1;
        }
        out[(u64)first * plane.width + at] = item;
    }
}

FN void gather_planes(const BatchPart* parts, const BatchPlane* planes, u32 begin, u32 end, TileParts near, u32 num_samples, u32 first, u32 num_rows) {
    for (u32 k = begin; k < end; ++k) {
        const BatchPlane plane = planes[k];
        if (plane.item_bytes == 4) gather_plane<u32>(parts, plane, near, num_samples, first, num_rows);
        else if (plane.item_bytes == 8) gather_plane<u64>(parts, plane, near, num_samples, first, num_rows);
        else if (plane.item_bytes == 2) gather_plane<u16>(parts, plane, near, num_samples, first, num_rows);
        else gather_plane<u8>(parts, plane, near, num_samples, first, num_rows);
    }
}

// ---- lists ----

// Which list a row shows: the part and piece of its pool, and the view. Every empty list is the same.
struct ListKey {
    u64 view;
    u32 part, piece;
};

FN u32 view_start(u64 view) { return (u32)view; }
FN u32 view_length(u64 view) { return (u32)(view >> 32); }

FN const PoolPiece& pool_of(const BatchPart& part, const ListColumn& c, u32 piece) { return ((const PoolPiece*)part.pools)[(u64)c.list * part.num_pieces + piece]; }

FN bool view_fits(const PoolPiece& pool, u64 view) {
    const u64 end = (u64)view_start(view) + view_length(view);
    return end <= pool.pool_count || (view_start(view) >= pool.pool_count && end <= (u64)pool.pool_count + pool.more_count);
}

FN ListKey list_key(const BatchPart* parts, TileParts near, u32 num_samples, const ListColumn& c, u32 i, u64* error) {
    const ListKey empty = {0, NO_INDEX, NO_INDEX};
    if (i >= num_samples) return empty;
    const u32 number = part_of(parts, near.low, near.high, i);
    const BatchPart& part = parts[number];
    const u32 row = window_row(part, i);
    const u64 view = LOAD((const u64*)LOAD((const u64*)part.planes + c.plane) + row);
    if (!view_length(view)) return empty;
    const u32 piece = LOAD((const u32*)part.pieces + row);
    if (!view_fits(pool_of(part, c, piece), view)) {
        if (error) report(error, c.column, i / TILE_ROWS, ERROR_VIEW);
        return empty;
    }
    return {view, number, piece};
}

FN bool is_same(const ListKey& a, const ListKey& b) { return a.view == b.view && a.part == b.part && a.piece == b.piece; }

// A slot to begin with: a mix of the key's words (Steele, Lea, Flood 2014).
FN u32 slot_of(const ListKey& key, u32 slots) {
    u64 x = key.view + ((u64)key.part << 20 | key.piece) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return (u32)(x ^ (x >> 31)) & (slots - 1);
}

// A slot holds ~row of the first row that shows its list, 0 while it is free. All that is ever in one slot are rows of one list.
FN void insert_list(const BatchPart* parts, TileParts all, u32 num_samples, const ListColumn& c, u32 i, const ListKey& key) {
    u32* table = (u32*)c.table;
    for (u32 slot = slot_of(key, c.slots);; slot = (slot + 1) & (c.slots - 1)) {
        const u32 held = atomicCAS(table + slot, 0u, ~i);
        if (!held) return;
        if (!is_same(list_key(parts, all, num_samples, c, ~held, 0), key)) continue;
        if (held < ~i) atomicMax(table + slot, ~i);
        return;
    }
}

FN u32 first_row(const BatchPart* parts, TileParts all, u32 num_samples, const ListColumn& c, const ListKey& key) {
    const u32* table = (const u32*)c.table;
    u32 slot = slot_of(key, c.slots);
    while (!is_same(list_key(parts, all, num_samples, c, ~table[slot], 0), key)) slot = (slot + 1) & (c.slots - 1);
    return ~table[slot];
}

// Contract: grid (ceil(n / 1024), ceil(num_planes / 8) + num_unique), block 256; num_samples <= n. Gathers planes, and enters the rows of
// the first num_unique list columns, which are the unexpanded ones, into their tables. Rows past num_samples are zeros and empty lists.
extern "C" __global__ void __launch_bounds__(256)
batch_rows(const BatchPart* parts, u32 num_parts, const BatchPlane* planes, u32 num_planes, const ListColumn* lists, u32 n, u32 num_samples, u64* error) {
    const u32 first = blockIdx.x * TILE_ROWS, num_rows = least(n - first, TILE_ROWS), groups = (num_planes + PLANES_PER_BLOCK - 1) / PLANES_PER_BLOCK;
    const TileParts near = tile_parts(parts, num_parts, num_samples, first, first + num_rows);
    if (blockIdx.y < groups) {
        const u32 begin = blockIdx.y * PLANES_PER_BLOCK;
        gather_planes(parts, planes, begin, least(begin + PLANES_PER_BLOCK, num_planes), near, num_samples, first, num_rows);
        return;
    }
    const ListColumn c = lists[blockIdx.y - groups];
    for (u32 i = first + threadIdx.x; i < first + num_rows; i += THREADS_PER_BLOCK)
        insert_list(parts, {0, num_parts}, num_samples, c, i, list_key(parts, near, num_samples, c, i, error));
}

FN u64 warp_inclusive_sum64(u64 x) {
    for (u32 step = 1; step < LANES; step <<= 1) {
        const u64 below = __shfl_up_sync(0xffffffffu, x, step);
        if (lane_id() >= step) x += below;
    }
    return x;
}

// Inclusive sum over the 256 threads of a block, and its total. `warp_sums` is shared, 8 entries, free again on return.
FN u64 block_inclusive_sum(u64 x, u64* warp_sums, u64& total) {
    const u64 sum = warp_inclusive_sum64(x);
    const u32 warp = threadIdx.x / LANES;
    u64 before = 0;
    total = 0;
    if (lane_id() == LANES - 1) warp_sums[warp] = sum;
    __syncthreads();
    for (u32 w = 0; w < WARPS_PER_BLOCK; ++w) {
        if (w == warp) before = total;
        total += warp_sums[w];
    }
    __syncthreads();
    return before + sum;
}

// Contract: grid (tiles = ceil(n / 1024), num_lists), block 256; behind batch_rows. tile_sums[list][tile] = entries | values << 24 of the
// tile's rows; of an unexpanded column only of rows that show a list first. n must be below 2^24.
extern "C" __global__ void __launch_bounds__(256)
list_sums(const BatchPart* parts, u32 num_parts, const ListColumn* lists, u32 n, u32 num_samples, u64* tile_sums, u64* error) {
    __shared__ u64 warp_sums[WARPS_PER_BLOCK];
    const ListColumn c = lists[blockIdx.y];
    const u32 first = blockIdx.x * TILE_ROWS, end = least(n - first, TILE_ROWS) + first;
    const TileParts near = tile_parts(parts, num_parts, num_samples, first, end);
    u64 sum = 0, total;
    for (u32 i = first + threadIdx.x; i < end; i += THREADS_PER_BLOCK) {
        const ListKey key = list_key(parts, near, num_samples, c, i, error);
        const u32 shown = c.slots ? first_row(parts, {0, num_parts}, num_samples, c, key) : i;
        if (c.slots) ((u32*)c.first)[i] = shown;
        if (shown == i) sum += (u64)view_length(key.view) << ENTRY_BITS | 1;
    }
    block_inclusive_sum(sum, warp_sums, total);
    if (threadIdx.x == 0) tile_sums[(u64)blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// Contract: grid (1, num_lists), block 256. Turns each column's tile sums into the sums before each tile, and writes totals[list].
extern "C" __global__ void __launch_bounds__(256) scan_lists(u64* tile_sums, u32 num_tiles, u64* totals) {
    __shared__ u64 warp_sums[WARPS_PER_BLOCK];
    u64* sums = tile_sums + (u64)blockIdx.y * num_tiles;
    u64 carry = 0;
    for (u32 first = 0; first < num_tiles; first += THREADS_PER_BLOCK) {
        const u32 t = first + threadIdx.x;
        const u64 x = t < num_tiles ? sums[t] : 0;
        u64 total;
        const u64 sum = block_inclusive_sum(x, warp_sums, total);
        if (t < num_tiles) sums[t] = carry + sum - x;
        carry += total;
    }
    if (threadIdx.x == 0) totals[blockIdx.y] = carry;
}

// Contract: grid as list_sums; tile_sums as scan_lists left them. Writes the offsets, and first_entry[first_tile + p]: the entry of the
// column that holds its value 2,048 p.
extern "C" __global__ void __launch_bounds__(256)
list_offsets(const BatchPart* parts, u32 num_parts, const ListColumn* lists, const ListOut* outs, u32 n, u32 num_samples, const u64* tile_sums, u32* first_entry) {
    __shared__ u64 warp_sums[WARPS_PER_BLOCK];
    const ListColumn c = lists[blockIdx.y];
    const u32 tile = blockIdx.x * TILE_ROWS, end = least(n - tile, TILE_ROWS) + tile, first = tile + threadIdx.x * ROWS_PER_THREAD;
    const TileParts near = tile_parts(parts, num_parts, num_samples, tile, end);
    u32 length[ROWS_PER_THREAD];  // NO_INDEX for rows that are no entries
    u64 sum = 0, total;
    for (u32 k = 0; k < ROWS_PER_THREAD; ++k) {
        const u32 i = first + k;
        const bool is_entry = i < end && (!c.slots || ((const u32*)c.first)[i] == i);
        length[k] = is_entry ? view_length(list_key(parts, near, num_samples, c, i, 0).view) : NO_INDEX;
        if (is_entry) sum += (u64)length[k] << ENTRY_BITS | 1;
    }
    u64 at = tile_sums[(u64)blockIdx.y * gridDim.x + blockIdx.x] + block_inclusive_sum(sum, warp_sums, total) - sum;
    const ListOut out = outs[blockIdx.y];
    for (u32 k = 0; k < ROWS_PER_THREAD; ++k) {
        if (length[k] == NO_INDEX) continue;
        const u32 entry = (u32)(at & ENTRY_MASK);
        const u64 value = at >> ENTRY_BITS;
        ((i64*)out.offsets)[entry] = (i64)value;
        if (c.slots) {
            ((u32*)c.number)[first + k] = entry;
            ((u32*)c.entry_row)[entry] = first + k;
        }
        for (u64 p = (value + TILE_VALUES - 1) / TILE_VALUES; p * TILE_VALUES < value + length[k] && p < out.num_tiles; ++p) first_entry[out.first_tile + p] = entry;
        at += (u64)length[k] << ENTRY_BITS | 1;
    }
    if (end == n && threadIdx.x == THREADS_PER_BLOCK - 1) ((i64*)out.offsets)[out.num_entries] = (i64)(at >> ENTRY_BITS);
}

// ---- values ----

// The last entry in [low, high) that starts at or before value v of the tile; empty lists are skipped by themselves.
FN u32 entry_at(const int* staged, const i64* offsets, i64 tile_start, u32 low, u32 high, int v) {
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        const int start = staged ? staged[middle] : (int)(offsets[middle] - tile_start);
        if (start <= v) low = middle;
        else high = middle;
    }
    return low;
}

// Item i of a view's pool as the bits of an output of `item_bytes`; only narrower items have a base.
FN u64 pool_item(const PoolPiece& pool, u32 item_bytes, u64 i) {
    const bool is_more = i >= pool.pool_count;
    const u8* from = (const u8*)(is_more ? pool.more : pool.pool);
    const u32 size = is_more ? item_bytes : pool.item_bytes;
    const u64 at = is_more ? i - pool.pool_count : i, base = size < item_bytes ? (u64)pool.base : 0;
    if (size == 4) return base + LOAD((const u32*)from + at);
    if (size == 8) return base + LOAD((const u64*)from + at);
    return base + (size == 2 ? LOAD((const u16*)from + at) : LOAD(from + at));
}

FN void store_item(u64 address, u32 item_bytes, u64 at, u64 value) {
    if (item_bytes == 8) ((u64*)address)[at] = value;
    else if (item_bytes == 4) ((u32*)address)[at] = (u32)value;
    else if (item_bytes == 2) ((u16*)address)[at] = (u16)value;
    else ((u8*)address)[at] = (u8)value;
}

// Contract: grid (num_tiles + num_unique * ceil(n / 1024), 1), block 256; behind list_offsets. num_tiles is the sum over all outs. A block
// owns 2,048 values of one column, whatever the lengths of its lists; the blocks past num_tiles write the inverses, tile by tile of rows.
extern "C" __global__ void __launch_bounds__(256)
list_values(const BatchPart* parts, u32 num_parts, const ListColumn* lists, const ListOut* outs, u32 num_lists, u32 num_tiles, u32 n, u32 num_samples, const u32* first_entry) {
    __shared__ int staged[TILE_LISTS];
    if (blockIdx.x >= num_tiles) {
        const u32 tiles = (n + TILE_ROWS - 1) / TILE_ROWS, number = (blockIdx.x - num_tiles) / tiles, first = (blockIdx.x - num_tiles) % tiles * TILE_ROWS;
        const ListColumn& c = lists[number];
        for (u32 i = first + threadIdx.x; i < n && i < first + TILE_ROWS; i += THREADS_PER_BLOCK)
            ((i64*)outs[number].inverse)[i] = (i64)((const u32*)c.number)[((const u32*)c.first)[i]];
        return;
    }
    u32 number = 0;
    for (u32 high = num_lists; high - number > 1;) {
        const u32 middle = (number + high) / 2;
        if (outs[middle].first_tile <= blockIdx.x) number = middle;
        else high = middle;
    }
    const ListColumn c = lists[number];
    const ListOut out = outs[number];
    const i64* offsets = (const i64*)out.offsets;
    const u32 tile = blockIdx.x - out.first_tile, first = first_entry[blockIdx.x];
    const u64 tile_start = (u64)tile * TILE_VALUES, total = (u64)offsets[out.num_entries];
    const u32 last = tile + 1 < out.num_tiles ? first_entry[blockIdx.x + 1] : out.num_entries - 1, num = last - first + 1;
    const u32 size = total - tile_start < TILE_VALUES ? (u32)(total - tile_start) : TILE_VALUES;
    const bool fits = num <= TILE_LISTS;
    if (fits)
        for (u32 k = threadIdx.x; k < num; k += THREADS_PER_BLOCK) staged[k] = (int)(offsets[first + k] - (i64)tile_start);
    __syncthreads();
    for (u32 v = threadIdx.x; v < size; v += THREADS_PER_BLOCK) {
        const u32 entry = first + entry_at(fits ? staged : 0, offsets + first, (i64)tile_start, 0, num, (int)v);
        const u32 row = c.slots ? ((const u32*)c.entry_row)[entry] : entry;
        const ListKey key = list_key(parts, {0, num_parts}, num_samples, c, row, 0);
        const u64 inside = tile_start + v - (u64)offsets[entry];
        store_item(out.values, out.item_bytes, tile_start + v, pool_item(pool_of(parts[key.part], c, key.piece), out.item_bytes, view_start(key.view) + inside));
    }
}

#if defined(HEADRACE_SHIM)
SHIM_KERNEL(batch_rows)
SHIM_KERNEL(list_sums)
SHIM_KERNEL(scan_lists)
SHIM_KERNEL(list_offsets)
SHIM_KERNEL(list_values)
#endif
#endif
