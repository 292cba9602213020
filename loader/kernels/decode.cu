// Decodes one vector (up to 1,024 items) of one op: FORMAT.md's input, dictionary, scan and store. Owns no bounds of streams and
// regions: whoever launches has checked those (host.cpp, program.build). What a vector's own bytes say is checked here, so that
// corrupt bytes read at most PADDING_BYTES past the slab or arena and write only the op's own items.
#include "lanes.cuh"

constexpr int ANY = -1;
constexpr u32 BIT_WIDTH = 33;
enum Step { STEP_STORE = 0, STEP_DICTIONARY = 1, STEP_SCAN = 2 };

// One vector of any source, random access: value i is `width` bits at row i / 32, lane i % 32, plus base. A constant has width 0,
// plain u32 values have width 32; BIT_WIDTH is one bit a value, laid out along the words.
struct Stream {
    const u32* words;
    u32 base, width;
};

// Everything that a vector needs, the same for all its lanes.
struct Task {
    const u8* slab;
    u8* arena;
    const ProgramOp* op;
    const ProgramSource* sources;
    u32 id, vector;
    u64* error;
#if defined(HEADRACE_GPU)
    Stream* near;  // shared memory of the warp: four streams
#endif
};

FN u32 words_of(u32 width, u32 num_values) { return ((num_values + LANES - 1) / LANES * width + 31) / 32 * LANES; }

FN u32 bits_mask(u32 width) { return ~0u >> (32 - width); }

// A vector past the stream's end, or with a header that would read past it, is a constant zero; the latter is reported.
FN Stream stream_at(const Task& t, const ProgramSource& source, u32 vector) {
    const Stream nothing = {(const u32*)t.slab, 0, 0};
    const u64 first = (u64)vector * VECTOR;
    if (first >= source.count) return nothing;
    if (source.kind == SOURCE_CONSTANT) return {(const u32*)t.slab, source.value, 0};
    if (source.kind == SOURCE_PLAIN) return {(const u32*)(t.arena + source.data) + first, 0, 32};
    if (source.kind == SOURCE_BITS) return {(const u32*)(t.slab + source.data) + first / 32, 0, BIT_WIDTH};
    const VectorMeta meta = ((const VectorMeta*)(t.slab + source.meta))[vector];
    const u32 num_values = least(source.count - (u32)first, VECTOR);
    if (meta.width > 32 || meta.num_exceptions || (u64)meta.word_offset + words_of(meta.width, num_values) > source.num_words) {
        report(t.error, t.id, t.vector, ERROR_VECTOR_META);
        return nothing;
    }
    return {(const u32*)(t.slab + source.data) + meta.word_offset, meta.base, meta.width};
}

// out = add + the 32 values of a row. `out` is a value for each lane, or on a CPU the output itself.
template <class T> FN void stream_row(const Stream& s, u32 row, T add, T* RESTRICT out) {
    if (s.width == BIT_WIDTH) {
        const u32 word = LOAD(s.words + row);
        FOR_LANES(l) out[AT(l)] = (T)(add + (T)(word >> l & 1));
        return;
    }
    if (s.width == 0) {
        FOR_LANES(l) out[AT(l)] = (T)(add + (T)s.base);
        return;
    }
    const u32 bit = row * s.width, shift = bit & 31, mask = bits_mask(s.width), base = s.base;
    const u32* RESTRICT word = s.words + (bit & ~31u);
    if (shift + s.width > 32) {
        FOR_LANES(l) out[AT(l)] = (T)(add + (T)(((LOAD(word + l) >> shift | LOAD(word + l + LANES) << (32 - shift)) & mask) + base));
    } else {
        FOR_LANES(l) out[AT(l)] = (T)(add + (T)((LOAD(word + l) >> shift & mask) + base));
    }
}

// What 1,024 consecutive ranks of a stream can touch: two of its vectors. A GPU lane picks its value out of the packed words; a CPU
// unpacks both first, which costs a fraction of picking.
#if defined(HEADRACE_GPU)

struct Near {
    const Stream* by_parity;
};

FN u32 stream_value(const Stream& s, u32 i) {
    if (s.width == BIT_WIDTH) return LOAD(s.words + i / 32) >> (i & 31) & 1;
    if (s.width == 0) return s.base;
    const u32 bit = i / LANES * s.width, shift = bit & 31;
    const u32* word = s.words + (bit & ~31u) + i % LANES;
    const u32 high = shift + s.width > 32 ? LOAD(word + LANES) : 0;
    return (__funnelshift_r(LOAD(word), high, shift) & bits_mask(s.width)) + s.base;
}

FN void open_near(const Task& t, const ProgramSource& source, u32 rank, u32 half, Near& near) {
    const u32 vector = rank / VECTOR, lane = lane_id();
    if (lane < 2) t.near[half * 2 + lane] = stream_at(t, source, vector + ((vector ^ lane) & 1));
    near.by_parity = t.near + half * 2;
    __syncwarp();
}

// x = value number `rank` + set bits below the lane, or 0 where the lane's bit is not set.
FN void expand_row(const Near& near, u32 rank, u32 bits, u32* x) {
    const u32 r = rank + __popc(bits & ((1u << lane_id()) - 1u));
    x[0] = bits >> lane_id() & 1 ? stream_value(near.by_parity[r / VECTOR & 1], r % VECTOR) : 0;
}

FN void rank_row(u32 rank, u32 bits, u32* x) { x[0] = rank + __popc(bits & ((2u << lane_id()) - 1u)) - 1u; }

FN u32 count_bits(u32 bits) { return __popc(bits); }

#else

struct Near {
    u32 first;
    u32 values[2 * VECTOR + LANES];  // a row or a byte may be read past the last value
};

FN void open_near(const Task& t, const ProgramSource& source, u32 rank, u32, Near& near) {
    const u32 vector = rank / VECTOR;
    near.first = vector * VECTOR;
    for (u32 k = 0; k < 2; ++k) {
        const Stream s = stream_at(t, source, vector + k);
        const u64 first = ((u64)vector + k) * VECTOR;
        const u32 left = first < source.count ? least(source.count - (u32)first, VECTOR) : VECTOR;
        for (u32 row = 0; row * LANES < left; ++row) stream_row<u32>(s, row, 0, near.values + k * VECTOR + row * LANES);
    }
}

// For each byte of a bitmap and each of its bits: the set bits below, and the set bits of the whole byte.
struct BitRanks {
    u32 below[256][8];
    u8 total[256];

    constexpr BitRanks() : below(), total() {
        for (u32 byte = 0; byte < 256; ++byte)
            for (u32 bit = 0; bit < 8; ++bit) {
                below[byte][bit] = total[byte];
                total[byte] = (u8)(total[byte] + (byte >> bit & 1));
            }
    }
};

static constexpr BitRanks BIT_RANKS;

#if defined(HEADRACE_AVX2_BODY)
typedef u32 Eight __attribute__((vector_size(32)));

FN Eight ranks_below(u32 byte) {
    Eight below;
    __builtin_memcpy(&below, BIT_RANKS.below[byte], sizeof below);
    return below;
}

FN Eight set_lanes(u32 byte) {
    const Eight bit = {1, 2, 4, 8, 16, 32, 64, 128};
    return (Eight)((bit & byte) == bit);
}
#endif

// Spreads consecutive values over the set bits of a byte; the other lanes become 0.
FN void expand_byte(const u32* value, u32 byte, u32* x) {
#if defined(HEADRACE_AVX2_BODY)
    Eight values;
    __builtin_memcpy(&values, value, sizeof values);
    const Eight spread = __builtin_shuffle(values, ranks_below(byte)) & set_lanes(byte);
    __builtin_memcpy(x, &spread, sizeof spread);
#else
    for (u32 k = 0; k < 8; ++k) x[k] = value[BIT_RANKS.below[byte][k]] & (0u - (byte >> k & 1));
#endif
}

FN void expand_row(const Near& near, u32 rank, u32 bits, u32* RESTRICT x) {
    const u32* RESTRICT value = near.values + (rank - near.first);
    if (bits == ~0u) {
        FOR_LANES(l) x[l] = value[l];
        return;
    }
    for (u32 group = 0; group < LANES; group += 8) {
        const u32 byte = bits >> group & 255;
        expand_byte(value, byte, x + group);
        value += BIT_RANKS.total[byte];
    }
}

FN void rank_row(u32 rank, u32 bits, u32* RESTRICT x) {
    u32 below = rank - 1;
    for (u32 group = 0; group < LANES; group += 8) {
        const u32 byte = bits >> group & 255;
#if defined(HEADRACE_AVX2_BODY)
        const Eight ranks = below + ranks_below(byte) - set_lanes(byte);
        __builtin_memcpy(x + group, &ranks, sizeof ranks);
#else
        for (u32 k = 0; k < 8; ++k) x[group + k] = below + BIT_RANKS.below[byte][k] + (byte >> k & 1);
#endif
        below += BIT_RANKS.total[byte];
    }
}

FN u32 count_bits(u32 bits) { return (u32)__builtin_popcount(bits); }

#endif

template <class T> FN void store_items(T* RESTRICT out, const T* item, u32 live) {
    if (IS_FULL_ROW(live)) {
        FOR_LANES(l) out[l] = item[AT(l)];
    } else {
        FOR_FIRST_LANES(l, live) out[l] = item[AT(l)];
    }
}

FN u64 moved_view(u64 view, u32 view_base) { return (view & ~0xffffffffull) | (u32)((u32)view + view_base); }

// An op's low half in x, high half (or the lengths of views) in y; lanes that are not present store 0.
template <class T, bool MASKED> FN void store_values(const Task& t, u32 i, const u32* x, const u32* y, bool wide, u32 present, u32 live) {
    PER_LANE(T, item);
    const u64 base = (u64)t.op->base;
    if (sizeof(T) == 8 && wide) {
        FOR_LANES(l) item[AT(l)] = (T)(base + (x[AT(l)] | (u64)y[AT(l)] << 32));
    } else {
        FOR_LANES(l) item[AT(l)] = (T)((T)base + (T)x[AT(l)]);
    }
    if (MASKED) FOR_LANES(l) item[AT(l)] &= (T)0 - (T)(present >> l & 1);
    store_items((T*)(t.arena + t.op->out) + i, item, live);
}

template <bool MASKED> FN void store_views(const Task& t, u32 i, const u32* start, const u32* length, u32 present, u32 live) {
    PER_LANE(u64, item);
    FOR_LANES(l) item[AT(l)] = (u64)(start[AT(l)] + t.op->view_base) | (u64)length[AT(l)] << 32;
    if (MASKED) FOR_LANES(l) item[AT(l)] &= 0ull - (u64)(present >> l & 1);
    store_items((u64*)(t.arena + t.op->out) + i, item, live);
}

// Stores entry x of the dictionary. A code past its end stores entry 0 and is reported.
template <class T, bool MASKED> FN void look_up(const Task& t, u32 i, u32* x, u32 present, u32 live, u32 view_base) {
    const T* RESTRICT dict = (const T*)(t.arena + t.op->dict);
    const u32 dict_count = t.op->dict_count;
    PER_LANE(T, item);
    u32 outside = 0;
    FOR_LANES(l) outside |= x[AT(l)] >= dict_count;
    if (outside) {
        u32 bad = 0;
        FOR_FIRST_LANES(l, live) bad |= x[AT(l)] >= dict_count ? present >> l : 0;
        if (bad & 1) report(t.error, t.id, t.vector, ERROR_DICTIONARY);
        FOR_LANES(l) x[AT(l)] = x[AT(l)] < dict_count ? x[AT(l)] : 0;
    }
    FOR_LANES(l) item[AT(l)] = LOAD(dict + x[AT(l)]);
    if (sizeof(T) == 8 && view_base) FOR_LANES(l) item[AT(l)] = (T)moved_view(item[AT(l)], view_base);
    if (MASKED) FOR_LANES(l) item[AT(l)] &= (T)0 - (T)(present >> l & 1);
    store_items((T*)(t.arena + t.op->out) + i, item, live);
}

// Every vector checks that the next one's anchor counts its bits: together, that all anchors are right and the stream has as many
// values as there are set bits. The last one checks that no bits lie past its end.
FN void check_ranks(const Task& t, const u32* bits0, u32 num_values, u32 first_rank, u32 rank) {
    const u32 end = t.vector * VECTOR + num_values;
    const u32* anchors = (const u32*)(t.slab + t.op->anchors);
    bool good = t.vector != 0 || first_rank == 0;
    if (end < t.op->count) good = good && LOAD(anchors + t.vector + 1) == rank;
    else if (t.op->kind == OP_NULLS) good = good && t.sources[t.op->first_source].count == rank;
    u32 past = num_values % LANES ? LOAD(bits0 + num_values / LANES) >> num_values % LANES : 0;
    for (u32 row = (num_values + LANES - 1) / LANES; row < ROWS; ++row) past |= LOAD(bits0 + row);
    if (!good || past) report(t.error, t.id, t.vector, ERROR_RANK);
}

// The row loop of one vector. Template arguments that are ANY are read from the op: the GPU keeps one loop for each kind, the CPU
// has one for each common combination.
template <int KIND, int STEP, int OUT> FN void decode_rows(const Task& t) {
    const ProgramOp& op = *t.op;
    const bool MASKED = KIND == OP_NULLS;
    const u32 first = t.vector * VECTOR, num_values = least(op.count - first, VECTOR);
    const u32 out_kind = OUT == ANY ? op.out_kind : (u32)OUT;
    const int step = STEP != ANY ? STEP : op.dict != NO_OFFSET ? (int)STEP_DICTIONARY : op.scan != SCAN_NONE ? (int)STEP_SCAN : (int)STEP_STORE;
    const bool is_view = out_kind == OUT_VIEW, two = KIND != OP_RANK && op.num_sources > 1;
    const ProgramSource* source = t.sources + op.first_source;
    const u32* bits0 = KIND == OP_DIRECT ? 0 : (const u32*)(t.slab + op.bits0) + first / 32;
    u32 rank = KIND == OP_DIRECT ? 0 : LOAD((const u32*)(t.slab + op.anchors) + t.vector);
    u32 carry = step == STEP_SCAN ? LOAD((const u32*)(t.slab + op.scan_anchors) + t.vector) : 0;
    Stream low = {}, high = {};
    Near near_low, near_high;
    if (KIND == OP_DIRECT) {
        low = stream_at(t, source[0], t.vector);
        if (two) high = stream_at(t, source[1], t.vector);
    }
    if (KIND == OP_NULLS) {
        open_near(t, source[0], rank, 0, near_low);
        if (two) open_near(t, source[1], rank, 1, near_high);
    }
    const u32 first_rank = rank;
    for (u32 row = 0; row * LANES < num_values; ++row) {
        const u32 i = first + row * LANES, live = least(num_values - row * LANES, LANES);
        if (KIND == OP_DIRECT && STEP == STEP_STORE && OUT < OUT_VIEW && IS_FULL_ROW(live) && !two) {
            u8* out = t.arena + op.out;
            if (OUT == OUT_U8) stream_row<u8>(low, row, (u8)op.base, out + i);
            if (OUT == OUT_U16) stream_row<u16>(low, row, (u16)op.base, (u16*)out + i);
            if (OUT == OUT_U32) stream_row<u32>(low, row, (u32)op.base, (u32*)out + i);
            if (OUT == OUT_U64) stream_row<u64>(low, row, (u64)op.base, (u64*)out + i);
            continue;
        }
        PER_LANE(u32, x);
        PER_LANE(u32, y);
        u32 present = ~0u;
        if (KIND == OP_DIRECT) {
            stream_row<u32>(low, row, 0, x);
            if (two) stream_row<u32>(high, row, 0, y);
        } else {
            present = LOAD(bits0 + row);
            if (live < LANES) present &= (1u << live) - 1u;
            if (KIND == OP_NULLS) {
                expand_row(near_low, rank, present, x);
                if (two) expand_row(near_high, rank, present, y);
            } else {
                rank_row(rank, present, x);
            }
            rank += count_bits(present);
            if (KIND == OP_RANK) present = ~0u;
        }
        if (step == STEP_DICTIONARY) {
            if (two && !is_view) FOR_LANES(l) x[AT(l)] = y[AT(l)] ? ~0u : x[AT(l)];
            if (out_kind == OUT_U8) look_up<u8, MASKED>(t, i, x, present, live, 0);
            else if (out_kind == OUT_U16) look_up<u16, MASKED>(t, i, x, present, live, 0);
            else if (out_kind == OUT_U32) look_up<u32, MASKED>(t, i, x, present, live, 0);
            else look_up<u64, MASKED>(t, i, x, present, live, is_view ? op.view_base : 0);
            continue;
        }
        if (step == STEP_SCAN) {
            if (is_view && op.scan == SCAN_EXCLUSIVE_SUM) FOR_LANES(l) y[AT(l)] = x[AT(l)];
            if (op.scan == SCAN_ZIGZAG_SUM) FOR_LANES(l) x[AT(l)] = x[AT(l)] >> 1 ^ (0u - (x[AT(l)] & 1));
            scan_row(x, carry, op.scan == SCAN_EXCLUSIVE_SUM);
        }
        const bool wide = two && step == STEP_STORE;
        if (out_kind == OUT_U8) store_values<u8, MASKED>(t, i, x, y, false, present, live);
        else if (out_kind == OUT_U16) store_values<u16, MASKED>(t, i, x, y, false, present, live);
        else if (out_kind == OUT_U32) store_values<u32, MASKED>(t, i, x, y, false, present, live);
        else if (out_kind == OUT_U64) store_values<u64, MASKED>(t, i, x, y, wide, present, live);
        else store_views<MASKED>(t, i, x, y, present, live);
    }
    if (KIND != OP_DIRECT) check_ranks(t, bits0, num_values, first_rank, rank);
}

template <class T> FN void copy_vector(const u8* from, u8* to, u32 num_items) {
#if defined(HEADRACE_GPU)
    for (u32 i = lane_id(); i < num_items; i += LANES) ((T*)to)[i] = LOAD((const T*)from + i);
#else
    __builtin_memcpy(to, from, num_items * sizeof(T));
#endif
}

FN void copy_views(const u64* from, u64* to, u32 num_items, u32 view_base) {
    for (u32 i = 0; i < num_items; i += LANES) FOR_FIRST_LANES(l, least(num_items - i, LANES)) to[i + l] = moved_view(from[i + l], view_base);
}

FN void decode_copy(const Task& t) {
    const ProgramOp& op = *t.op;
    const u32 first = t.vector * VECTOR, num_items = least(op.count - first, VECTOR), shift = op.out_kind >= OUT_U64 ? 3 : op.out_kind;
    const u8* from = t.slab + t.sources[op.first_source].data + ((u64)first << shift);
    u8* to = t.arena + op.out + ((u64)first << shift);
    if (op.out_kind == OUT_VIEW && op.view_base) return copy_views((const u64*)from, (u64*)to, num_items, op.view_base);
    if (shift == 0) copy_vector<u8>(from, to, num_items);
    else if (shift == 1) copy_vector<u16>(from, to, num_items);
    else if (shift == 2) copy_vector<u32>(from, to, num_items);
    else copy_vector<u64>(from, to, num_items);
}

#if defined(HEADRACE_GPU)

FN void decode_vector(const Task& t) {
    const u32 kind = t.op->kind;
    if (kind == OP_DIRECT) decode_rows<OP_DIRECT, ANY, ANY>(t);
    else if (kind == OP_NULLS) decode_rows<OP_NULLS, ANY, ANY>(t);
    else if (kind == OP_RANK) decode_rows<OP_RANK, ANY, ANY>(t);
    else decode_copy(t);
}

// Contract: grid ceil(num_items / 8), block 256; a warp decodes one vector of one op of a level. `ops` and `first_items` start at the
// level's first op; first_items[k] = vectors of the level before op k, first_items[num_ops] = all of them. `first_op` is the number of
// ops[0] in the program, for reports. Reads the slab and regions of earlier launches; ops of one launch write regions of their own.
extern "C" __global__ void __launch_bounds__(256, 4)
decode_stage(const u8* slab, u8* arena, const ProgramOp* ops, const ProgramSource* sources, const u32* first_items, u32 first_op, u32 num_ops, u64* error) {
    __shared__ Stream near[WARPS_PER_BLOCK][4];
    const u32 warp = threadIdx.x / 32, item = blockIdx.x * WARPS_PER_BLOCK + warp;
    if (item >= LOAD(first_items + num_ops)) return;
    u32 found = 0;
    for (u32 end = num_ops; end - found > 1;) {
        const u32 middle = (found + end) / 2;
        if (LOAD(first_items + middle) <= item) found = middle;
        else end = middle;
    }
    const Task t = {slab, arena, ops + found, sources, first_op + found, item - LOAD(first_items + found), error, near[warp]};
    decode_vector(t);
}

#if defined(HEADRACE_SHIM)
SHIM_KERNEL(decode_stage)
#endif

#else

template <int KIND, int STEP> FN void decode_by_out(const Task& t) {
    switch (t.op->out_kind) {
        case OUT_U8: return decode_rows<KIND, STEP, OUT_U8>(t);
        case OUT_U16: return decode_rows<KIND, STEP, OUT_U16>(t);
        case OUT_U32: return decode_rows<KIND, STEP, OUT_U32>(t);
        case OUT_U64: return decode_rows<KIND, STEP, OUT_U64>(t);
        default: return decode_rows<KIND, STEP, OUT_VIEW>(t);
    }
}

static void decode_vector(const Task& t) {
    const bool dictionary = t.op->dict != NO_OFFSET, plain = !dictionary && t.op->scan == SCAN_NONE;
    if (t.op->kind == OP_COPY) return decode_copy(t);
    if (t.op->kind == OP_RANK) return decode_rows<OP_RANK, ANY, ANY>(t);
    if (t.op->kind == OP_NULLS) return plain ? decode_by_out<OP_NULLS, STEP_STORE>(t) : decode_rows<OP_NULLS, ANY, ANY>(t);
    if (dictionary) return decode_by_out<OP_DIRECT, STEP_DICTIONARY>(t);
    if (plain) return decode_by_out<OP_DIRECT, STEP_STORE>(t);
    decode_rows<OP_DIRECT, ANY, ANY>(t);
}

#endif
