// Assembles batches from decoded columns on a CPU: gathers fixed-width items by row, and lays the lists of a column end to end. Row
// numbers and views are data: one that points outside reads nothing, yields zeros, and is reported. The GPU's are window.cu and batch.cu.
#include "lanes.cuh"

FN u32 view_start(u64 view) { return (u32)view; }

FN u32 view_length(u64 view) { return (u32)(view >> 32); }

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
