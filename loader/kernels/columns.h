// List columns of a block laid end to end, some rows of all columns in one call: threads share tiles of the columns. Part of host.cpp.

// `views` show the lists of a column in `pool`; an output item is base + a pool's item.
struct ListPool {
    const void* pool;
    const u64* views;
    u64 pool_count, base;
    u32 pool_item_bytes, out_item_bytes;
};

static_assert(sizeof(ListPool) == 40, "mirrors native_lists.LIST_POOL");

// sums[column][tile]: items of lists [bounds[tile], bounds[tile + 1]) of a column. A list too long for its pool counts as its view says.
EXPORT void headrace_list_sums(const ListPool* columns, u64 num_columns, const u64* bounds, u64 num_tiles, u64* sums, u32 num_threads) {
    const bool few = num_columns * bounds[num_tiles] < 2 * ROWS_PER_GRAB;
    threads::Team(few ? 1 : num_threads).run({num_columns}, 1, [&](unsigned, size_t, u64 k, u64) {
        for (u64 tile = 0; tile < num_tiles; ++tile)
            sums[k * num_tiles + tile] = DISPATCH(sum_lengths(columns[k].views + bounds[tile], bounds[tile + 1] - bounds[tile]));
    });
}

// Rows [bounds[0], bounds[num_tiles]) of all columns into `memory`: offsets [columns][rows + 1], and the items of column k from byte starts[k] on, with room for
// its sums. `sums` are those of the call above, `stride` apart from column to column. Returns the first column of which a list reaches outside of its pool, and
// which list in `bad_list`; else num_columns.
EXPORT u64 headrace_list_rows(const ListPool* columns, u64 num_columns, const u64* bounds, u64 num_tiles, const u64* sums, u64 stride, const u64* starts,
                              u8* memory, u64* bad_list, u32 num_threads) {
    const u64 num_rows = bounds[num_tiles] - bounds[0];
    i64* offsets = (i64*)memory;
    std::vector<u64> places(num_columns * num_tiles);  // where each tile's items begin in its column
    std::atomic<u64> first_bad{num_columns * num_rows};
    u64 total_bytes = 0;
    for (u64 k = 0; k < num_columns; ++k) {
        u64 at = 0;
        for (u64 tile = 0; tile < num_tiles; ++tile) {
            places[k * num_tiles + tile] = at;
            at += sums[k * stride + tile];
        }
        offsets[(k + 1) * (num_rows + 1) - 1] = (i64)at;
        total_bytes += at * columns[k].out_item_bytes;
    }
    const bool few = total_bytes + num_columns * num_rows * 8 < BYTES_PER_PIECE;
    threads::Team(few ? 1 : num_threads).run({num_columns * num_tiles}, 1, [&](unsigned, size_t, u64 piece, u64) {
        const u64 k = piece / num_tiles, tile = piece % num_tiles, first = bounds[tile] - bounds[0], n = bounds[tile + 1] - bounds[tile];
        const ListPool& c = columns[k];
        const u64* views = c.views + bounds[tile];
        DISPATCH(offsets_of(views, n, (i64)places[piece], offsets + k * (num_rows + 1) + first));
        u8* out = memory + starts[k] + places[piece] * c.out_item_bytes;
        const u64 done = headrace_gather_lists(c.pool, c.pool_count, c.pool_item_bytes, c.base, views, n, out, sums[k * stride + tile], c.out_item_bytes, 1);
        if (done < n) lower(first_bad, k * num_rows + first + done);
    });
    if (first_bad == num_columns * num_rows) return num_columns;
    *bad_list = first_bad % num_rows;
    return first_bad / num_rows;
}
