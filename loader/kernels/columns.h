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

// Rows [bounds[0], bounds[num_tiles]) of all columns. `sums` are those of the call above, `stride` apart from column to column; `offsets` has as many
// rows and one for each column, `outs` the address of each column's items, with room for its sums. bad[k] becomes the first list of column k that
// reaches outside of its pool or past its tile's sum, or the number of rows.
EXPORT void headrace_list_rows(const ListPool* columns, u64 num_columns, const u64* bounds, u64 num_tiles, const u64* sums, u64 stride, i64* offsets,
                               const u64* outs, u64* bad, u32 num_threads) {
    const u64 num_rows = bounds[num_tiles] - bounds[0];
    std::vector<u64> places(num_columns * num_tiles);  // where each tile's items begin in its column
    std::vector<std::atomic<u64>> first_bad(num_columns);
    u64 total_bytes = 0;
    for (u64 k = 0; k < num_columns; ++k) {
        u64 at = 0;
        for (u64 tile = 0; tile < num_tiles; ++tile) {
            places[k * num_tiles + tile] = at;
            at += sums[k * stride + tile];
        }
        offsets[(k + 1) * (num_rows + 1) - 1] = (i64)at;
        total_bytes += at * columns[k].out_item_bytes;
        first_bad[k] = num_rows;
    }
    const bool few = total_bytes + num_columns * num_rows * 8 < BYTES_PER_PIECE;
    threads::Team(few ? 1 : num_threads).run({num_columns * num_tiles}, 1, [&](unsigned, size_t, u64 piece, u64) {
        const u64 k = piece / num_tiles, tile = piece % num_tiles, first = bounds[tile] - bounds[0], n = bounds[tile + 1] - bounds[tile];
        const ListPool& c = columns[k];
        const u64* views = c.views + bounds[tile];
        DISPATCH(offsets_of(views, n, (i64)places[piece], offsets + k * (num_rows + 1) + first));
        u8* out = (u8*)outs[k] + places[piece] * c.out_item_bytes;
        const u64 room = sums[k * stride + tile];
        const u64 done = headrace_gather_lists(c.pool, c.pool_count, c.pool_item_bytes, c.base, views, n, out, room, c.out_item_bytes, 1);
        if (done < n) lower(first_bad[k], first + done);
    });
    for (u64 k = 0; k < num_columns; ++k) bad[k] = first_bad[k];
}
