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

template <class P> bool copy_items_from(const ListPool& c, u64 first, void* out, u64 count) {
    const P* pool = (const P*)c.pool;
    switch (c.out_item_bytes) {
        case 1: return DISPATCH(copy_items(pool, c.pool_count, c.base, first, (u8*)out, count));
        case 2: return DISPATCH(copy_items(pool, c.pool_count, c.base, first, (u16*)out, count));
        case 4: return DISPATCH(copy_items(pool, c.pool_count, c.base, first, (u32*)out, count));
        default: return DISPATCH(copy_items(pool, c.pool_count, c.base, first, (u64*)out, count));
    }
}

// Lists that nothing shares stand in the pool as they do in a batch: one copy. False where the pool ends before they do.
inline bool copy_together(const ListPool& c, u64 first, void* out, u64 count) {
    switch (c.pool_item_bytes) {
        case 1: return copy_items_from<u8>(c, first, out, count);
        case 2: return copy_items_from<u16>(c, first, out, count);
        case 4: return copy_items_from<u32>(c, first, out, count);
        default: return copy_items_from<u64>(c, first, out, count);
    }
}

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

// Rows on their way into a batch's memory.
class ListRows {
  public:
    ListRows(const ListPool* columns, u64 num_columns, u64 first, u64 num_rows, const u64* sums, const u64* counts, const u64* starts, u8* memory)
        : columns_(columns), num_columns_(num_columns), first_(first), num_rows_(num_rows), num_tiles_((num_rows + LISTS_PER_TILE - 1) / LISTS_PER_TILE),
          sums_(sums), starts_(starts), memory_(memory), places_(num_columns * num_tiles_), first_bad_(num_columns * num_rows) {
        num_bytes_ = num_columns * num_rows * sizeof(i64);
        for (u64 k = 0; k < num_columns; ++k) {
            for (u64 tile = 0, at = 0; tile < num_tiles_; at += sums[k * num_tiles_ + tile++]) places_[k * num_tiles_ + tile] = at;
            offsets(k)[num_rows] = (i64)counts[k];
            num_bytes_ += counts[k] * columns[k].out_item_bytes;
        }
    }

    u64 num_pieces() const { return places_.size(); }

    u64 num_bytes() const { return num_bytes_; }

    void lay(u64 piece) {
        const u64 k = piece / num_tiles_, row = piece % num_tiles_ * LISTS_PER_TILE, n = std::min(num_rows_ - row, LISTS_PER_TILE);
        const ListPool& c = columns_[k];
        const u64* views = c.views + first_ + row;
        const bool together = DISPATCH(offsets_of(views, n, (i64)places_[piece], offsets(k) + row));
        u8* out = memory_ + starts_[k] + places_[piece] * c.out_item_bytes;
        if (together && copy_together(c, (u32)views[0], out, sums_[piece])) return;
        const u64 done = headrace_gather_lists(c.pool, c.pool_count, c.pool_item_bytes, c.base, views, n, out, sums_[piece], c.out_item_bytes, 1);
        if (done < n) lower(first_bad_, k * num_rows_ + row + done);
    }

    // The first column of which a list reaches outside of its pool, and which list; else the number of columns.
    u64 bad_column(u64& bad_list) const {
        const u64 bad = first_bad_;
        if (bad == num_columns_ * num_rows_) return num_columns_;
        bad_list = bad % num_rows_;
        return bad / num_rows_;
    }

  private:
    i64* offsets(u64 k) { return (i64*)memory_ + k * (num_rows_ + 1); }

    const ListPool* columns_;
    u64 num_columns_, first_, num_rows_, num_tiles_, num_bytes_;
    const u64 *sums_, *starts_;
    u8* memory_;
    std::vector<u64> places_;  // where each tile's items begin in its column
    std::atomic<u64> first_bad_;
};

struct ListWork {
    ListRows* rows;

    void operator()(unsigned, size_t, u64 piece, u64) const { rows->lay(piece); }
};

struct StartedLists {
    ListRows rows;
    threads::Stages<ListWork> stages;

    template <class... Arguments>
    explicit StartedLists(u32 num_threads, Arguments... arguments)
        : rows(arguments...), stages({rows.num_pieces()}, 1, ListWork{&rows}, rows.num_bytes() < BYTES_PER_PIECE ? 1 : num_threads) {}
};

// Starts to lay rows [first, first + num_rows) of all columns into `memory`, measured by the call above. All arguments must live until the end, and a child of
// fork() cannot end it.
EXPORT StartedLists* headrace_list_rows_start(const ListPool* columns, u64 num_columns, u64 first, u64 num_rows, const u64* sums, const u64* counts,
                                              const u64* starts, u8* memory, u32 num_threads) {
    return new StartedLists(num_threads, columns, num_columns, first, num_rows, sums, counts, starts, memory);
}

// Lays what is not laid yet, and waits. Returns the first column of which a list reaches outside of its pool, and which list in `bad_list`; else num_columns.
EXPORT u64 headrace_list_rows_finish(StartedLists* started, u64* bad_list) {
    started->stages.finish();
    const u64 column = started->rows.bad_column(*bad_list);
    delete started;
    return column;
}
