// Many list columns in one call: offsets, then lists end to end, threads over pieces of all of them. Part of host.cpp.

// One column: `views` show lists in `pool`; `offsets` has n + 1 places, `out` as many items as offsets[n] says.
struct ListColumn {
    const void* pool;
    const u64* views;
    i64* offsets;
    void* out;
    u64 pool_count, num_lists, base, bad_list;
    u32 pool_item_bytes, out_item_bytes;
};

static_assert(sizeof(ListColumn) == 72, "mirrors native.LIST_COLUMN");

EXPORT void headrace_list_columns_offsets(const ListColumn* columns, u64 num_columns, u32 num_threads) {
    threads::Team((unsigned)std::min<u64>(num_threads, num_columns)).run({num_columns}, 1, [&](unsigned, size_t, u64 k, u64) {
        headrace_list_offsets(columns[k].views, columns[k].num_lists, columns[k].offsets);
    });
}

// Sets bad_list of each column to the first list that reaches outside of its pool, or to num_lists. `offsets` are those of the call before.
EXPORT void headrace_list_columns(ListColumn* columns, u64 num_columns, u32 num_threads) {
    struct Piece {
        u64 column, first, end;
    };
    std::vector<Piece> pieces;
    for (u64 k = 0; k < num_columns; ++k) {
        columns[k].bad_list = columns[k].num_lists;
        const u64 n = columns[k].num_lists, num_bytes = (u64)columns[k].offsets[n] * columns[k].out_item_bytes;
        const u64 step = std::max<u64>(n / (num_bytes / BYTES_PER_PIECE + 1), 64);
        for (u64 first = 0; first < n; first += step) pieces.push_back({k, first, std::min(first + step, n)});
    }
    std::vector<std::atomic<u64>> bad(num_columns);
    for (u64 k = 0; k < num_columns; ++k) bad[k] = columns[k].num_lists;
    const bool few = pieces.size() < 2 * num_threads;
    threads::Team(few ? 1 : num_threads).run({pieces.size()}, 1, [&](unsigned, size_t, u64 number, u64) {
        const Piece& piece = pieces[number];
        const ListColumn& c = columns[piece.column];
        const u64 place = (u64)c.offsets[piece.first], room = (u64)c.offsets[piece.end] - place;
        u8* out = (u8*)c.out + place * c.out_item_bytes;
        const u64 done = headrace_gather_lists(c.pool, c.pool_count, c.pool_item_bytes, c.base, c.views + piece.first, piece.end - piece.first, out, room, c.out_item_bytes, 1);
        if (done < piece.end - piece.first) lower(bad[piece.column], piece.first + done);
    });
    for (u64 k = 0; k < num_columns; ++k) columns[k].bad_list = bad[k];
}
