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

// Where each of n lists begins when they lie end to end from `place` on. Whether they lie so in their pool too.
static bool offsets_of(const u64* RESTRICT views, u64 n, i64 place, i64* RESTRICT offsets) {
    const u64 ahead = n ? view_start(views[0]) - (u64)place : 0;
    u64 differs = 0;
    for (u64 i = 0; i < n; ++i) {
        offsets[i] = place;
        differs |= view_start(views[i]) ^ (ahead + (u64)place);
        place += view_length(views[i]);
    }
    return !differs;
}

// Items that are copied at once: 8, or 32 bytes of them; 4 where lists are short.
template <class P, class T> constexpr u32 group_items() { return sizeof(P) == sizeof(T) && sizeof(T) < 4 ? 32 / sizeof(T) : 8; }

template <u32 GROUP, class P, class T> FN void copy_group(const P* RESTRICT from, T* RESTRICT to, T base) {
    for (u32 k = 0; k < GROUP; ++k) to[k] = (T)(base + (T)from[k]);
}

// Copies one list, `base` added. Where there is room behind pool and output, whole groups are copied, and one even of an empty list: the
// items past the end are overwritten by the lists that follow, and short lists cost no branches.
template <u32 GROUP, class P, class T> FN void copy_list(const P* RESTRICT from, T* RESTRICT to, u64 length, T base, bool has_room) {
    if (has_room) {
        copy_group<GROUP>(from, to, base);
        for (u64 i = GROUP; i < length; i += GROUP) copy_group<GROUP>(from + i, to + i, base);
    } else {
        for (u64 i = 0; i < length; ++i) to[i] = (T)(base + (T)from[i]);
    }
}

template <u32 GROUP, class P, class T> FN u64 copy_in_groups(const P* pool, u64 pool_count, T base, const u64* views, u64 n, T* out, u64 out_count) {
    u64 at = 0;
    for (u64 i = 0; i < n; ++i) {
        const u64 view = views[i], length = view_length(view), end = view_start(view) + length;
        if (end > pool_count || length > out_count - at) return i;
        if (i + 8 < n) __builtin_prefetch(pool + view_start(views[i + 8]));
        copy_list<GROUP>(pool + view_start(view), out + at, length, base, end + GROUP <= pool_count && at + length + GROUP <= out_count);
        at += length;
    }
    return n;
}

// Lays lists end to end into `out`. Returns the number of the first list that reaches outside of the pool or past `out_count`, else n.
template <class P, class T> static u64 copy_lists(const P* pool, u64 pool_count, u64 base, const u64* views, u64 n, T* out, u64 out_count) {
    if (sizeof(T) > 2 && out_count <= 3 * n) return copy_in_groups<4>(pool, pool_count, (T)base, views, n, out, out_count);
    return copy_in_groups<group_items<P, T>()>(pool, pool_count, (T)base, views, n, out, out_count);
}

// Copies items that stand together in the pool: all of out_count, from `first` on. False where the pool ends before.
template <class P, class T> static bool copy_items(const P* pool, u64 pool_count, u64 base, u64 first, T* out, u64 out_count) {
    if (first > pool_count || out_count > pool_count - first) return false;
    for (u64 i = 0; i < out_count; ++i) out[i] = (T)((T)base + (T)pool[first + i]);
    return true;
}
