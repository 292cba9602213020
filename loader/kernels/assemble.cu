// Assembles batches from decoded columns: gathers fixed-width items by row, and lays the lists of a column end to end. Row numbers
// and views are data: one that points outside reads nothing, yields zeros, and is reported.
#include "lanes.cuh"

// A fixed-width column to gather: addresses of its values and of the output, items of 1, 2, 4 or 8 bytes.
struct FixedColumn {
    u64 values, out;
    u32 item_bytes, num_values;
};

// A list column to lay out: addresses of the views (u64: start low, length high) and of the pool they point into.
struct ListColumn {
    u64 views, pool;
    i64 base;
    u32 pool_item_bytes, pool_count;
};

static_assert(sizeof(FixedColumn) == 24 && sizeof(ListColumn) == 32, "mirrored by the executors");

FN u32 view_start(u64 view) { return (u32)view; }

FN u32 view_length(u64 view) { return (u32)(view >> 32); }

FN bool view_fits(u64 view, u64 pool_count) { return (u64)view_start(view) + view_length(view) <= pool_count; }

// out[i] = values[rows[i]] for the (at most 1,024) rows of a tile. False in a lane that met a row outside of the column.
template <class T, class R> FN bool gather_tile(const T* RESTRICT values, u64 num_values, const R* RESTRICT rows, T* RESTRICT out, u32 num_rows) {
    bool fits = true;
    for (u32 row = 0; row * LANES < num_rows; ++row) {
        const u32 i = row * LANES, live = least(num_rows - i, LANES);
        PER_LANE(u64, at);
        PER_LANE(T, item);
        if (IS_FULL_ROW(live)) {
            FOR_LANES(l) at[AT(l)] = (u64)rows[i + l];
        } else {
            FOR_LANES(l) at[AT(l)] = l < live ? (u64)rows[i + l] : 0;
        }
        u32 outside = 0;
        FOR_LANES(l) outside |= at[AT(l)] >= num_values;
        if (outside) {
            FOR_FIRST_LANES(l, live) fits &= at[AT(l)] < num_values;
            FOR_LANES(l) item[AT(l)] = at[AT(l)] < num_values ? LOAD(values + at[AT(l)]) : (T)0;
        } else {
            FOR_LANES(l) item[AT(l)] = LOAD(values + at[AT(l)]);
        }
        FOR_FIRST_LANES(l, live) out[i + l] = item[AT(l)];
    }
    return fits;
}

#if defined(HEADRACE_GPU)

constexpr u32 TILE_ROWS = 1024, TILE_VALUES = 2048, TILE_LISTS = 1024;

// Contract: grid (ceil(n / 8192), num_columns), block 256; a warp gathers 1,024 rows of one column. report's op is the column.
extern "C" __global__ void __launch_bounds__(256) gather_columns(const FixedColumn* columns, const u32* rows, u32 n, u64* error) {
    const u32 tile = blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / 32, first = tile * TILE_ROWS;
    if (first >= n) return;
    const FixedColumn c = columns[blockIdx.y];
    const u32 num_rows = least(n - first, TILE_ROWS);
    const u32* from = rows + first;
    bool fits;
    if (c.item_bytes == 4) fits = gather_tile((const u32*)c.values, c.num_values, from, (u32*)c.out + first, num_rows);
    else if (c.item_bytes == 8) fits = gather_tile((const u64*)c.values, c.num_values, from, (u64*)c.out + first, num_rows);
    else if (c.item_bytes == 2) fits = gather_tile((const u16*)c.values, c.num_values, from, (u16*)c.out + first, num_rows);
    else fits = gather_tile((const u8*)c.values, c.num_values, from, (u8*)c.out + first, num_rows);
    if (!fits) report(error, blockIdx.y, tile, ERROR_ROW);
}

// Inclusive sum over the 256 threads of a block, and its total. `warp_sums` is shared, 8 entries, free again on return.
FN u32 block_inclusive_sum(u32 x, u32* warp_sums, u32& total) {
    const u32 sum = warp_inclusive_sum(x), warp = threadIdx.x / 32;
    u32 before = 0;
    total = 0;
    if (lane_id() == 31) warp_sums[warp] = sum;
    __syncthreads();
    for (u32 w = 0; w < WARPS_PER_BLOCK; ++w) {
        if (w == warp) before = total;
        total += warp_sums[w];
    }
    __syncthreads();
    return before + sum;
}

// The length of a list; a view outside of its pool counts as empty, here as in list_values.
FN u32 checked_length(const ListColumn& c, u32 i) {
    const u64 view = ((const u64*)c.views)[i];
    return view_fits(view, c.pool_count) ? view_length(view) : 0;
}

// Contract: grid (tiles = ceil(n / 1024), num_columns), block 256. tile_sums[column][tile] = values in 1,024 lists. Must stay below 2^32.
extern "C" __global__ void __launch_bounds__(256) list_tile_sums(const ListColumn* columns, u32 n, u32* tile_sums, u64* error) {
    __shared__ u32 warp_sums[WARPS_PER_BLOCK];
    const ListColumn c = columns[blockIdx.y];
    u32 sum = 0, total;
    for (u32 k = 0; k < 4; ++k) {
        const u32 i = blockIdx.x * TILE_ROWS + k * THREADS_PER_BLOCK + threadIdx.x;
        if (i >= n) continue;
        sum += checked_length(c, i);
        if (!view_fits(((const u64*)c.views)[i], c.pool_count)) report(error, blockIdx.y, blockIdx.x, ERROR_VIEW);
    }
    block_inclusive_sum(sum, warp_sums, total);
    if (threadIdx.x == 0) tile_sums[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// Contract: grid 1, block 256. tile_bases[t] = sum of tile_sums before t; tile_bases[num_tiles] = total, which the host reads by event.
extern "C" __global__ void __launch_bounds__(256) scan_tiles(const u32* tile_sums, u32 num_tiles, u64* tile_bases) {
    __shared__ u32 warp_sums[WARPS_PER_BLOCK];
    u64 carry = 0;
    for (u32 first = 0; first < num_tiles; first += THREADS_PER_BLOCK) {
        const u32 t = first + threadIdx.x, x = t < num_tiles ? tile_sums[t] : 0;
        u32 total;
        const u32 sum = block_inclusive_sum(x, warp_sums, total);
        if (t < num_tiles) tile_bases[t] = carry + sum - x;
        carry += total;
    }
    if (threadIdx.x == 0) tile_bases[num_tiles] = carry;
}

// Contract: grid as list_tile_sums. offsets has num_columns × n + 1 entries, one running sum over all columns (the layout of a
// KeyedJaggedTensor). first_list[p], p < ceil(capacity / 2048): the list that holds value 2,048 p.
extern "C" __global__ void __launch_bounds__(256)
list_offsets(const ListColumn* columns, u32 n, const u64* tile_bases, i64* offsets, u32* first_list, u64 capacity) {
    __shared__ u32 warp_sums[WARPS_PER_BLOCK];
    const ListColumn c = columns[blockIdx.y];
    const u32 first = blockIdx.x * TILE_ROWS + threadIdx.x * 4;
    const u64 row0 = (u64)blockIdx.y * n;
    u32 x[4], sum = 0, total;
    for (u32 k = 0; k < 4; ++k) {
        x[k] = first + k < n ? checked_length(c, first + k) : 0;
        sum += x[k];
    }
    u64 at = tile_bases[blockIdx.y * gridDim.x + blockIdx.x] + block_inclusive_sum(sum, warp_sums, total) - sum;
    for (u32 k = 0; k < 4; ++k) {
        if (first + k < n) offsets[row0 + first + k] = (i64)at;
        for (u64 p = (at + TILE_VALUES - 1) / TILE_VALUES; p * TILE_VALUES < at + x[k] && p * TILE_VALUES < capacity; ++p) first_list[p] = (u32)(row0 + first + k);
        at += x[k];
    }
    const bool is_last = blockIdx.x + 1 == gridDim.x && blockIdx.y + 1 == gridDim.y && threadIdx.x == 0;
    if (is_last) offsets[row0 + n] = (i64)tile_bases[gridDim.x * gridDim.y];
}

// The last list in [low, high) that starts at or before value v of the tile; empty lists are skipped by themselves.
FN u32 list_at(const int* staged, const i64* offsets, i64 tile_start, u32 low, u32 high, int v) {
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        const int start = staged ? staged[middle] : (int)(offsets[middle] - tile_start);
        if (start <= v) low = middle;
        else high = middle;
    }
    return low;
}

FN u64 pool_item(const ListColumn& c, u64 i) {
    if (c.pool_item_bytes == 4) return LOAD((const u32*)c.pool + i);
    if (c.pool_item_bytes == 8) return LOAD((const u64*)c.pool + i);
    return c.pool_item_bytes == 2 ? LOAD((const u16*)c.pool + i) : LOAD((const u8*)c.pool + i);
}

// Output-driven: a block owns 2,048 values whatever the lengths of the lists, and searches the list of each.
template <class T>
FN void list_values_tile(const ListColumn* columns, u32 n, u32 num_columns, const i64* offsets, const u32* first_list, T* values, u64 capacity, u64* error) {
    __shared__ int staged[TILE_LISTS];
    const u32 num_lists = n * num_columns;
    const u64 total = (u64)offsets[num_lists], stop = total < capacity ? total : capacity, tile_start = (u64)blockIdx.x * TILE_VALUES;
    if (total > capacity && blockIdx.x == 0 && threadIdx.x == 0) report(error, 0, 0, ERROR_CAPACITY);
    if (tile_start >= stop) return;
    const u32 size = stop - tile_start < TILE_VALUES ? (u32)(stop - tile_start) : TILE_VALUES, first = first_list[blockIdx.x];
    const u32 last = tile_start + TILE_VALUES < stop ? first_list[blockIdx.x + 1] : num_lists - 1, num = last - first + 1;
    const bool fits = num <= TILE_LISTS;
    if (fits)
        for (u32 k = threadIdx.x; k < num; k += THREADS_PER_BLOCK) staged[k] = (int)(offsets[first + k] - (i64)tile_start);
    __syncthreads();
    for (u32 v = threadIdx.x; v < size; v += THREADS_PER_BLOCK) {
        const u32 list = first + list_at(fits ? staged : 0, offsets + first, (i64)tile_start, 0, num, (int)v), column = list / n;
        const ListColumn& c = columns[column];
        const u64 start = view_start(((const u64*)c.views)[list - column * n]), inside = tile_start + v - (u64)offsets[list];
        values[tile_start + v] = (T)((u64)c.base + pool_item(c, start + inside));
    }
}

// Contract: grid ceil(capacity / 2048) (blocks past the total leave), block 256; views, offsets and first_list as list_offsets left them.
extern "C" __global__ void __launch_bounds__(256)
list_values_i64(const ListColumn* columns, u32 n, u32 num_columns, const i64* offsets, const u32* first_list, u64* values, u64 capacity, u64* error) {
    list_values_tile<u64>(columns, n, num_columns, offsets, first_list, values, capacity, error);
}
extern "C" __global__ void __launch_bounds__(256)
list_values_i32(const ListColumn* columns, u32 n, u32 num_columns, const i64* offsets, const u32* first_list, u32* values, u64 capacity, u64* error) {
    list_values_tile<u32>(columns, n, num_columns, offsets, first_list, values, capacity, error);
}

#if defined(HEADRACE_SHIM)
SHIM_KERNEL(gather_columns)
SHIM_KERNEL(list_tile_sums)
SHIM_KERNEL(scan_tiles)
SHIM_KERNEL(list_offsets)
SHIM_KERNEL(list_values_i64)
SHIM_KERNEL(list_values_i32)
#endif

#else

// Gathers any number of rows. False if one of them lies outside of the column.
template <class T, class R> static bool gather_rows(const T* values, u64 num_values, const R* rows, T* out, u64 num_rows) {
    bool fits = true;
    for (u64 i = 0; i < num_rows; i += VECTOR) fits &= gather_tile(values, num_values, rows + i, out + i, num_rows - i < VECTOR ? (u32)(num_rows - i) : VECTOR);
    return fits;
}

// The items of n lists.
static u64 sum_lengths(const u64* views, u64 n) {
    u64 sum = 0;
    for (u64 i = 0; i < n; ++i) sum += view_length(views[i]);
    return sum;
}

// Where each of n lists begins when they lie end to end from `place` on.
static void offsets_of(const u64* RESTRICT views, u64 n, i64 place, i64* RESTRICT offsets) {
    for (u64 i = 0; i < n; ++i) {
        offsets[i] = place;
        place += view_length(views[i]);
    }
}

// Items that are copied at once: 8, or 32 bytes of them.
template <class P, class T> constexpr u32 group_items() { return sizeof(P) == sizeof(T) && sizeof(T) < 4 ? 32 / sizeof(T) : 8; }

template <class P, class T> FN void copy_group(const P* RESTRICT from, T* RESTRICT to, T base) {
    for (u32 k = 0; k < group_items<P, T>(); ++k) to[k] = (T)(base + (T)from[k]);
}

// Copies one list, `base` added. Where there is room behind pool and output, whole groups are copied, and one even of an empty list: the
// items past the end are overwritten by the lists that follow, and short lists cost no branches.
template <class P, class T> FN void copy_list(const P* RESTRICT from, T* RESTRICT to, u32 length, T base, bool has_room) {
    if (has_room) {
        copy_group(from, to, base);
        for (u32 i = group_items<P, T>(); i < length; i += group_items<P, T>()) copy_group(from + i, to + i, base);
    } else {
        for (u32 i = 0; i < length; ++i) to[i] = (T)(base + (T)from[i]);
    }
}

// Lays lists end to end into `out`. Returns the number of the first list that reaches outside of the pool or past `out_count`, else n.
template <class P, class T> static u64 copy_lists(const P* pool, u64 pool_count, u64 base, const u64* views, u64 n, T* out, u64 out_count) {
    const u32 room = group_items<P, T>();
    u64 at = 0;
    for (u64 i = 0; i < n; ++i) {
        const u64 view = views[i], length = view_length(view), end = view_start(view) + length;
        if (end > pool_count || length > out_count - at) return i;
        if (i + 8 < n) __builtin_prefetch(pool + view_start(views[i + 8]));
        copy_list(pool + view_start(view), out + at, (u32)length, (T)base, end + room <= pool_count && at + length + room <= out_count);
        at += length;
    }
    return n;
}

#endif
