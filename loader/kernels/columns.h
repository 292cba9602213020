// List columns laid end to end, some rows of all columns in one call: threads share tiles of the columns. Part of host.cpp.

// `views` show the lists of a column in `pool`; an output item is base + a pool's item. The items of a column that starts a group are aligned, those of the
// others of the group lie behind them without a gap.
struct ListPool {
    const void* pool;
    const u64* views;
    u64 pool_count, base;
    u32 pool_item_bytes, out_item_bytes, starts_group, reserved;
};

static_assert(sizeof(ListPool) == 48, "mirrors native_lists.LIST_POOL");

const u64 LISTS_PER_TILE = 1024, GROUP_ALIGNMENT = 64;

inline u64 round_up(u64 value, u64 multiple) { return (value + multiple - 1) / multiple * multiple; }

// Measures rows [first, first + num_rows): sums[column][tile] items in 1,024 lists, counts[column] in all, and the byte starts[column] where a column's items
// begin in memory that has offsets [columns][num_rows + 1] first. Returns the bytes of that memory. A list too long for its pool counts as its view says.
EXPORT u64 headrace_list_measure(const ListPool* columns, u64 num_columns, u64 first, u64 num_rows, u64* sums, u64* counts, u64* starts) {
    const u64 num_tiles = (num_rows + LISTS_PER_TILE - 1) / LISTS_PER_TILE;
    u64 at = num_columns * (num_rows + 1) * sizeof(i64);
    for (u64 k = 0; k < num_columns; ++k) {
        counts[k] = 0;
        for (u64 tile = 0; tile < num_tiles; ++tile) {
            const u64 row = tile * LISTS_PER_TILE;
            counts[k] += sums[k * num_tiles + tile] = DISPATCH(sum_lengths(columns[k].views + first + row, std::min(num_rows - row, LISTS_PER_TILE)));
        }
        starts[k] = columns[k].starts_group ? round_up(at, GROUP_ALIGNMENT) : at;
        at = starts[k] + counts[k] * columns[k].out_item_bytes;
    }
    return at;
}

// Rows [first, first + num_rows) of all columns into `memory`, measured by the call above. Returns the first column of which a list reaches outside of its
// pool, and which list in `bad_list`; else num_columns.
EXPORT u64 headrace_list_rows(const ListPool* columns, u64 num_columns, u64 first, u64 num_rows, const u64* sums, const u64* counts, const u64* starts,
                              u8* memory, u64* bad_list, u32 num_threads) {
    const u64 num_tiles = (num_rows + LISTS_PER_TILE - 1) / LISTS_PER_TILE;
    i64* offsets = (i64*)memory;
    std::vector<u64> places(num_columns * num_tiles);  // where each tile's items begin in its column
    std::atomic<u64> first_bad{num_columns * num_rows};
    u64 total_bytes = num_columns * num_rows * sizeof(i64);
    for (u64 k = 0; k < num_columns; ++k) {
        for (u64 tile = 0, at = 0; tile < num_tiles; at += sums[k * num_tiles + tile++]) places[k * num_tiles + tile] = at;
        offsets[(k + 1) * (num_rows + 1) - 1] = (i64)counts[k];
        total_bytes += counts[k] * columns[k].out_item_bytes;
    }
    threads::Team(total_bytes < BYTES_PER_PIECE ? 1 : num_threads).run({num_columns * num_tiles}, 1, [&](unsigned, size_t, u64 piece, u64) {
        const u64 k = piece / num_tiles, row = piece % num_tiles * LISTS_PER_TILE, n = std::min(num_rows - row, LISTS_PER_TILE);
        const ListPool& c = columns[k];
        const u64* views = c.views + first + row;
        DISPATCH(offsets_of(views, n, (i64)places[piece], offsets + k * (num_rows + 1) + row));
        u8* out = memory + starts[k] + places[piece] * c.out_item_bytes;
        const u64 done = headrace_gather_lists(c.pool, c.pool_count, c.pool_item_bytes, c.base, views, n, out, sums[piece], c.out_item_bytes, 1);
        if (done < n) lower(first_bad, k * num_rows + row + done);
    });
    if (first_bad == num_columns * num_rows) return num_columns;
    *bad_list = first_bad % num_rows;
    return first_bad / num_rows;
}
