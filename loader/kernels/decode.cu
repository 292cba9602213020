// Decodes one vector (up to 1,024 items) of one op: FORMAT.md's input, dictionary, scan and store. Owns no bounds of streams and
// regions: whoever launches has checked those (host.cpp, program.build). What a vector's own bytes say is checked here, so that
// corrupt bytes read at most PADDING_BYTES past the slab or arena and write only the op's own items.
#include "lanes.cuh"

constexpr int ANY = -1;  // a template argument that the op says
#include "streams.cuh"
#include "ranks.cuh"
#include "stores.cuh"

enum Step { STEP_STORE = 0, STEP_DICTIONARY = 1, STEP_SCAN = 2 };

// What step 1 of a vector keeps between rows: streams for DIRECT, bitmaps and ranks for the others.
struct Input {
    Stream low, high;
    Exceptions more_low, more_high;
    const u32 *bits0, *bits1;
    Ranks ranks;
    u32 first_rank;
};

FN const u32* bits_at(const Task& t, u64 offset) { return (const u32*)(t.slab + offset) + t.vector * ROWS; }

// On a CPU the values of all classes, `add` added, are made here, into whole rows of `merged`.
FN void open_classes(const Task& t, u32 num_values, u32 add, u32* merged, Input& in) {
    const ProgramOp& op = *t.op;
    const u32 num_rows = (num_values + LANES - 1) / LANES, num_anchors = op.num_sources - 1u;
    const u32* anchors = (const u32*)(t.slab + op.anchors) + (u64)t.vector * num_anchors;
    in.bits1 = num_anchors > 1 ? bits_at(t, op.bits1) : 0;
    for (u32 k = 1; k < MAX_CLASSES; ++k) in.ranks.of[k] = k <= num_anchors ? LOAD(anchors + k - 1) : 0;
    in.ranks.of[0] = t.vector * VECTOR - in.ranks.of[1] - in.ranks.of[2] - in.ranks.of[3];
    const Ranks num_items = count_classes(in.bits0, in.bits1, num_rows, num_values);
    for (u32 k = 0; k < MAX_CLASSES; ++k)
        if (k <= num_anchors) open_near(t, k, t.sources[op.first_source + k], in.ranks.of[k], num_items.of[k]);
        else open_nothing(t, k);
    merge_vector(t, in.ranks, num_items, in.bits0, in.bits1, num_rows, add, merged);
}

template <int KIND> FN void open_input(const Task& t, bool two, u32 num_values, Input& in) {
    const ProgramOp& op = *t.op;
    const ProgramSource* source = t.sources + op.first_source;
    if (KIND == OP_DIRECT) {
        in.low = stream_at(t, source[0], t.vector);
        in.more_low = exceptions_of(in.low, num_values);
        if (!two) return;
        in.high = stream_at(t, source[1], t.vector);
        in.more_high = exceptions_of(in.high, num_values);
        return;
    }
    in.bits0 = bits_at(t, op.bits0);
    if (KIND == OP_SPLIT) {
        open_classes(t, num_values, 0, merged_values(t), in);
    } else {
        in.first_rank = in.ranks.of[0] = LOAD((const u32*)(t.slab + op.anchors) + t.vector);
    }
    if (KIND == OP_NULLS || KIND == OP_RUNS) {
        // a run that began before this vector goes on in it
        const u32 before = KIND == OP_RUNS && in.first_rank && !(LOAD(in.bits0) & 1), num_items = count_set(in.bits0, (num_values + LANES - 1) / LANES) + before;
        open_near(t, 0, source[0], in.first_rank - before, num_items);
        if (two) open_near(t, 1, source[1], in.first_rank - before, num_items);
    }
    if (KIND != OP_RANK) wait_for_near();
}

// x and y of a row: low and high half, or starts and lengths. Returns which lanes hold a value.
template <int KIND> FN u32 read_row(const Task& t, Input& in, bool two, u32 row, u32 num_values, u32* x, u32* y) {
    if (KIND == OP_DIRECT) {
        stream_row<u32>(in.low, row, 0, x);
        if (in.low.num_exceptions) add_exceptions(in.low, in.more_low, row, num_values, x);
        if (!two) return ~0u;
        stream_row<u32>(in.high, row, 0, y);
        if (in.high.num_exceptions) add_exceptions(in.high, in.more_high, row, num_values, y);
        return ~0u;
    }
    const u32 live = least(num_values - row * LANES, LANES), live_lanes = ~0u >> (LANES - live);
    if (KIND == OP_SPLIT) {
        merge_row(t, in.ranks, in.bits0, in.bits1, row, live_lanes, x);
        return ~0u;
    }
    u32 bits = LOAD(in.bits0 + row) & live_lanes;
    u32& rank = in.ranks.of[0];
    if (KIND == OP_RANK) rank_row(rank, bits, x);
    if (KIND == OP_NULLS) {
        expand_row(t.near[0], rank, bits, x);
        if (two) expand_row(t.near[1], rank, bits, y);
    }
    if (KIND == OP_RUNS) {
        if (rank == 0) bits |= 1;  // reported below if it was not set
        repeat_row(t.near[0], rank, bits, x);
        if (two) repeat_row(t.near[1], rank, bits, y);
    }
    rank += count_bits(bits);
    return KIND == OP_NULLS ? bits : ~0u;
}

FN u32 bits_past_end(const u32* bits, u32 num_values) {
    u32 past = num_values % LANES ? LOAD(bits + num_values / LANES) >> num_values % LANES : 0;
    for (u32 row = (num_values + LANES - 1) / LANES; row < ROWS; ++row) past |= LOAD(bits + row);
    return past;
}

// Every vector checks that the next one's anchors count its bits: together, that all anchors are right and the streams have as many
// values as there are set bits. The last one checks that no bits lie past its end.
template <int KIND> FN void check_input(const Task& t, const Input& in, bool two, u32 num_values) {
    const ProgramOp& op = *t.op;
    const ProgramSource* source = t.sources + op.first_source;
    if (KIND == OP_DIRECT) {
        check_exceptions(t, in.low, in.more_low);
        if (two) check_exceptions(t, in.high, in.more_high);
        return;
    }
    const bool is_last = t.vector * VECTOR + num_values >= op.count;
    const u32 num_anchors = KIND == OP_SPLIT ? op.num_sources - 1u : 1u;
    const u32* anchors = (const u32*)(t.slab + op.anchors) + (u64)t.vector * num_anchors;
    bool good = !(bits_past_end(in.bits0, num_values) || (KIND == OP_SPLIT && in.bits1 && bits_past_end(in.bits1, num_values)));
    for (u32 k = 0; k < MAX_CLASSES; ++k) {
        const u32 rank = in.ranks.of[k], anchor = KIND == OP_SPLIT ? k - 1 : k;
        if (anchor < num_anchors) good = good && (t.vector || LOAD(anchors + anchor) == 0) && (is_last || LOAD(anchors + num_anchors + anchor) == rank);
        if (KIND == OP_SPLIT && k > num_anchors) good = good && rank == 0;
        const bool has_source = KIND == OP_SPLIT ? k <= num_anchors : KIND != OP_RANK && k == 0;
        if (is_last && has_source) good = good && source[k].count == rank;
    }
    if (KIND == OP_RUNS && in.first_rank == 0) good = good && (LOAD(in.bits0) & 1);
    if (!good) report(t.error, t.id, t.vector, ERROR_RANK);
}

// The row loop of one vector. Template arguments that are ANY are read from the op: the GPU keeps one loop for each kind, the CPU
// has one for each common combination.
template <int KIND, int STEP, int OUT> FN void decode_rows(const Task& t) {
    const ProgramOp& op = *t.op;
    const bool MASKED = KIND == OP_NULLS;
    const u32 first = t.vector * VECTOR, num_values = least(op.count - first, VECTOR);
    const int step = STEP != ANY ? STEP : op.dict != NO_OFFSET ? (int)STEP_DICTIONARY : op.scan != SCAN_NONE ? (int)STEP_SCAN : (int)STEP_STORE;
    const bool is_view = (OUT == ANY ? op.out_kind : (u32)OUT) == OUT_VIEW, two = KIND != OP_RANK && KIND != OP_SPLIT && op.num_sources > 1;
    u32 carry = step == STEP_SCAN ? LOAD((const u32*)(t.slab + op.scan_anchors) + t.vector) : 0;
    Input in = {};
    open_input<KIND>(t, two, num_values, in);
    for (u32 row = 0; row * LANES < num_values; ++row) {
        const u32 i = first + row * LANES, live = least(num_values - row * LANES, LANES);
        PER_LANE(u32, x);
        PER_LANE(u32, y);
        const u32 present = read_row<KIND>(t, in, two, row, num_values, x, y);
        if (step == STEP_DICTIONARY) {
            if (two && !is_view) FOR_LANES(l) x[AT(l)] = y[AT(l)] ? ~0u : x[AT(l)];
            look_up_row<OUT, MASKED>(t, i, x, present, live);
            continue;
        }
        if (step == STEP_SCAN) {
            if (is_view && op.scan == SCAN_EXCLUSIVE_SUM) FOR_LANES(l) y[AT(l)] = x[AT(l)];
            if (op.scan == SCAN_ZIGZAG_SUM) FOR_LANES(l) x[AT(l)] = x[AT(l)] >> 1 ^ (0u - (x[AT(l)] & 1));
            scan_row(x, carry, op.scan == SCAN_EXCLUSIVE_SUM);
        }
        store_row<OUT, MASKED>(t, i, x, y, two && step == STEP_STORE, present, live);
    }
    check_input<KIND>(t, in, two, num_values);
    if (op.num_patches) apply_patches(t, first, first + num_values);
}

template <class T> FN void copy_vector(const u8* from, u8* to, u32 num_items) {
#if defined(HEADRACE_GPU)
    const u32 num_words = (((u64)from | (u64)to) & 7) == 0 ? num_items * sizeof(T) / 8 : 0;  // 8 bytes a lane where both sides allow
    for (u32 i = lane_id(); i < num_words; i += LANES) ((u64*)to)[i] = LOAD((const u64*)from + i);
    for (u32 i = num_words * 8 / sizeof(T) + lane_id(); i < num_items; i += LANES) ((T*)to)[i] = LOAD((const T*)from + i);
#else
    __builtin_memcpy(to, from, num_items * sizeof(T));
#endif
}

FN void copy_views(const u64* from, u64* to, u32 num_items, u32 view_base) {
    for (u32 i = 0; i < num_items; i += LANES) FOR_FIRST_LANES(l, least(num_items - i, LANES)) to[i + l] = moved_view(from[i + l], view_base);
}

FN void decode_copy(const Task& t) {
    const ProgramOp& op = *t.op;
    const u32 first = t.vector * VECTOR, num_items = least(op.count - first, VECTOR), shift = item_shift(op.out_kind);
    const u8* from = t.slab + t.sources[op.first_source].data + ((u64)first << shift);
    u8* to = t.arena + op.out + ((u64)first << shift);
    if (op.out_kind == OUT_VIEW && op.view_base) return copy_views((const u64*)from, (u64*)to, num_items, op.view_base);
    if (shift == 0) copy_vector<u8>(from, to, num_items);
    else if (shift == 1) copy_vector<u16>(from, to, num_items);
    else if (shift == 2) copy_vector<u32>(from, to, num_items);
    else copy_vector<u64>(from, to, num_items);
}

#if defined(HEADRACE_GPU)

constexpr u32 ROWS_AT_ONCE = 4;

// The values of four rows. All loads come before their uses and none is behind a branch, so that they wait for memory together. Rows
// past the end read what lies behind the stream.
FN void four_rows(const Stream& s, u32 row, u32* x) {
    const u32 mask = s.width ? bits_mask(s.width) : 0;
    u32 low[ROWS_AT_ONCE], high[ROWS_AT_ONCE];
#pragma unroll
    for (u32 k = 0; k < ROWS_AT_ONCE; ++k) {
        const u32 bit = (row + k) * s.width;
        const u32* word = s.words + (bit & ~31u) + lane_id();
        low[k] = LOAD(word);
        high[k] = (bit & 31) + s.width > 32 ? LOAD(word + LANES) : 0;
    }
#pragma unroll
    for (u32 k = 0; k < ROWS_AT_ONCE; ++k) x[k] = (__funnelshift_r(low[k], high[k], (row + k) * s.width) & mask) + s.base;
}

template <class T> FN void direct_rows(const Task& t, const Stream& low, const Stream& high, bool wide, u32 num_values) {
    const u64 base = (u64)t.op->base;
    T* out = (T*)(t.arena + t.op->out) + t.vector * VECTOR;
    for (u32 row = 0; row * LANES < num_values; row += ROWS_AT_ONCE) {
        u32 x[ROWS_AT_ONCE], y[ROWS_AT_ONCE] = {};
        four_rows(low, row, x);
        if (sizeof(T) == 8 && wide) four_rows(high, row, y);
#pragma unroll
        for (u32 k = 0; k < ROWS_AT_ONCE; ++k) {
            const u32 i = (row + k) * LANES + lane_id();
            if (i < num_values) out[i] = (T)(base + (x[k] | (u64)y[k] << 32));
        }
    }
}

// Packed values straight into integers, the commonest op. False where the vector is not as simple.
FN bool decode_straight(const Task& t) {
    const ProgramOp& op = *t.op;
    const bool wide = op.num_sources > 1;
    if (op.dict != NO_OFFSET || op.scan != SCAN_NONE || op.out_kind > OUT_U64 || (wide && op.out_kind != OUT_U64)) return false;
    const ProgramSource* source = t.sources + op.first_source;
    const Stream low = stream_at(t, source[0], t.vector), high = wide ? stream_at(t, source[1], t.vector) : low;
    if (low.num_exceptions || high.num_exceptions || low.width == BIT_WIDTH || high.width == BIT_WIDTH) return false;
    const u32 num_values = least(op.count - t.vector * VECTOR, VECTOR);
    if (op.out_kind == OUT_U8) direct_rows<u8>(t, low, high, wide, num_values);
    else if (op.out_kind == OUT_U16) direct_rows<u16>(t, low, high, wide, num_values);
    else if (op.out_kind == OUT_U32) direct_rows<u32>(t, low, high, wide, num_values);
    else direct_rows<u64>(t, low, high, wide, num_values);
    return true;
}

FN void decode_vector(const Task& t) {
    const u32 kind = t.op->kind;
    if (kind == OP_DIRECT) {
        if (!decode_straight(t)) decode_rows<OP_DIRECT, ANY, ANY>(t);
    }
    else if (kind == OP_NULLS) decode_rows<OP_NULLS, ANY, ANY>(t);
    else if (kind == OP_RANK) decode_rows<OP_RANK, ANY, ANY>(t);
    else if (kind == OP_SPLIT) decode_rows<OP_SPLIT, ANY, ANY>(t);
    else if (kind == OP_RUNS) decode_rows<OP_RUNS, ANY, ANY>(t);
    else decode_copy(t);
}

// The last k with starts[k] <= item, of which starts[0] is one. The lanes look at 32 places a step: 20,000 ops take three loads in a row.
FN u32 last_at_most(const u32* starts, u32 count, u32 item) {
    u32 low = 0;
    while (count > 1) {
        const u32 step = (count + LANES - 1) / LANES, at = lane_id() * step;
        const u32 below = __popc(__ballot_sync(0xffffffffu, at < count && LOAD(starts + low + at) <= item));
        low += (below - 1) * step;
        count = least(step, count - (below - 1) * step);
    }
    return low;
}

// Contract: grid ceil(num_items / 8), block 256; a warp decodes one vector of one op of a level. `ops` and `first_items` start at the
// level's first op; first_items[k] = vectors of the level before op k, first_items[num_ops] = all of them. `first_op` is the number of
// ops[0] in the program, for reports. Reads the slab and regions of earlier launches; ops of one launch write regions of their own.
extern "C" __global__ void __launch_bounds__(256, 3)
decode_stage(const u8* slab, u8* arena, const ProgramOp* ops, const ProgramSource* sources, const u32* first_items, u32 first_op, u32 num_ops, u64* error) {
    __shared__ Near near[WARPS_PER_BLOCK][MAX_CLASSES];
    const u32 warp = threadIdx.x / 32, item = blockIdx.x * WARPS_PER_BLOCK + warp;
    if (item >= LOAD(first_items + num_ops)) return;
    const u32 found = last_at_most(first_items, num_ops, item);
    const Task t = {slab, arena, ops + found, sources, first_op + found, item - LOAD(first_items + found), error, near[warp]};
    decode_vector(t);
}

#if defined(HEADRACE_SHIM)
SHIM_KERNEL(decode_stage)
#endif

#else

// Kinds of op and step with a loop of their own for the commonest stores.
template <int KIND, int STEP> FN void decode_by_out(const Task& t) {
    if (t.op->out_kind == OUT_U32) return decode_rows<KIND, STEP, OUT_U32>(t);
    if (t.op->out_kind == OUT_U64) return decode_rows<KIND, STEP, OUT_U64>(t);
    decode_rows<KIND, STEP, ANY>(t);
}

// A whole vector of classes, merged into the items themselves. False where there are fewer items than rows.
FN bool merge_straight(const Task& t) {
    const ProgramOp& op = *t.op;
    const u32 first = t.vector * VECTOR;
    if (op.count - first < VECTOR) return false;
    Input in = {};
    in.bits0 = bits_at(t, op.bits0);
    open_classes(t, VECTOR, (u32)op.base, (u32*)(t.arena + op.out) + first, in);
    check_input<OP_SPLIT>(t, in, false, VECTOR);
    return true;
}

// One stream without exceptions, unpacked into the items themselves. False where the vector is not as simple.
template <class T, int OUT> FN bool decode_straight(const Task& t) {
    const ProgramOp& op = *t.op;
    if (op.num_sources > 1) return false;
    const Stream s = stream_at(t, t.sources[op.first_source], t.vector);
    if (s.num_exceptions) return false;
    const u32 first = t.vector * VECTOR, num_values = least(op.count - first, VECTOR), num_full = num_values / LANES;
    T* out = (T*)(t.arena + op.out) + first;
    for (u32 row = 0; row < num_full; ++row) stream_row<T>(s, row, (T)op.base, out + row * LANES);
    if (num_values % LANES == 0) return true;
    u32 x[LANES];
    stream_row<u32>(s, num_full, 0, x);
    store_kind<false>(t, OUT, first + num_full * LANES, x, x, false, ~0u, num_values % LANES);
    return true;
}

static void decode_plain(const Task& t) {
    switch (t.op->out_kind) {
        case OUT_U8: if (decode_straight<u8, OUT_U8>(t)) return; break;
        case OUT_U16: if (decode_straight<u16, OUT_U16>(t)) return; break;
        case OUT_U32: if (decode_straight<u32, OUT_U32>(t)) return; break;
        case OUT_U64: if (decode_straight<u64, OUT_U64>(t)) return; break;
        default: break;
    }
    decode_rows<OP_DIRECT, STEP_STORE, ANY>(t);
}

static void decode_vector(const Task& t) {
    const bool dictionary = t.op->dict != NO_OFFSET, plain = !dictionary && t.op->scan == SCAN_NONE;
    switch (t.op->kind) {
        case OP_COPY: return decode_copy(t);
        case OP_RANK: return t.op->out_kind == OUT_VIEW ? decode_rows<OP_RANK, STEP_DICTIONARY, OUT_VIEW>(t) : decode_rows<OP_RANK, ANY, ANY>(t);
        case OP_RUNS: return decode_rows<OP_RUNS, ANY, ANY>(t);
        case OP_NULLS: return plain ? decode_by_out<OP_NULLS, STEP_STORE>(t) : decode_rows<OP_NULLS, ANY, ANY>(t);
        case OP_SPLIT:
            if (dictionary) return decode_by_out<OP_SPLIT, STEP_DICTIONARY>(t);
            if (t.op->out_kind == OUT_U32 && merge_straight(t)) return;
            return decode_by_out<OP_SPLIT, STEP_STORE>(t);
        default: break;
    }
    if (dictionary) return decode_by_out<OP_DIRECT, STEP_DICTIONARY>(t);
    if (plain) return decode_plain(t);
    if (t.op->out_kind == OUT_VIEW) return decode_rows<OP_DIRECT, STEP_SCAN, OUT_VIEW>(t);
    decode_rows<OP_DIRECT, STEP_SCAN, ANY>(t);
}

// All vectors of one op.
static void decode_op(const u8* slab, u8* arena, const ProgramOp* ops, const ProgramSource* sources, u32 op, u64* error) {
    Near near[MAX_CLASSES];
    for (u32 k = 0; k < MAX_CLASSES; ++k) near[k].held = 0;
    for (u32 vector = 0; (u64)vector * VECTOR < ops[op].count; ++vector) decode_vector({slab, arena, ops + op, sources, op, vector, error, near});
}

// A run of vectors over ops, in the order of `first_items`, which has the vectors before each op; vectors [item, stop).
static void decode_items(const u8* slab, u8* arena, const ProgramOp* ops, const ProgramSource* sources, const u64* first_items, u64 op, u64 item, u64 stop,
                         u64* error) {
    Near near[MAX_CLASSES];
    for (u32 k = 0; k < MAX_CLASSES; ++k) near[k].held = 0;
    for (; item < stop; ++item) {
        while (first_items[op + 1] <= item) ++op;
        decode_vector({slab, arena, ops + op, sources, (u32)op, (u32)(item - first_items[op]), error, near});
    }
}

#endif
