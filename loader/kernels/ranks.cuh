// Expansion by rank: nulls, runs and classes, whose item i is a source's value number (set bits before i). Part of decode.cu, which
// includes it once for every instruction set.
//
// What 1,024 items can touch is two neighbouring vectors of each source. A GPU lane picks its value out of the packed words; a CPU
// unpacks both first, which costs a fraction of picking, and keeps them for the op's next vector.

// The ranks before a row, by class; nulls and runs use the first.
struct Ranks {
    u32 of[MAX_CLASSES];
};

#if defined(HEADRACE_GPU)

struct Near {
    Stream by_parity[2];
};

FN u32 count_bits(u32 bits) { return __popc(bits); }

FN u32 stream_value(const Stream& s, u32 i) {
    if (s.width == BIT_WIDTH) return LOAD(s.words + i / 32) >> (i & 31) & 1;
    if (s.width == 0) return s.base;
    const u32 bit = i / LANES * s.width, shift = bit & 31;
    const u32* word = s.words + (bit & ~31u) + i % LANES;
    const u32 high = shift + s.width > 32 ? LOAD(word + LANES) : 0;
    return (__funnelshift_r(LOAD(word), high, shift) & bits_mask(s.width)) + s.base;
}

FN u32 near_value(const Near& near, u32 rank) { return stream_value(near.by_parity[rank / VECTOR & 1], rank % VECTOR); }

FN void open_near(const Task& t, u32 k, const ProgramSource& source, u32 rank, u32) {
    const u32 vector = rank / VECTOR, lane = lane_id();
    if (lane < 2) t.near[k].by_parity[lane] = stream_at(t, source, vector + ((vector ^ lane) & 1));
}

// A class without a source, which corrupt planes may name all the same: its values are 0.
FN void open_nothing(const Task& t, u32 k) {
    if (lane_id() < 2) t.near[k].by_parity[lane_id()] = {(const u32*)t.slab, 0, 0, 0};
}

FN void wait_for_near() { __syncwarp(); }

FN u32 count_set(const u32*, u32) { return 0; }

FN Ranks count_classes(const u32*, const u32*, u32, u32) { return {}; }

FN u32* merged_values(const Task&) { return 0; }

FN u32 lanes_below() { return (1u << lane_id()) - 1u; }

// x = value number `rank` + set bits below the lane, or 0 where the lane's bit is not set.
FN void expand_row(const Near& near, u32 rank, u32 bits, u32* x) {
    x[0] = bits >> lane_id() & 1 ? near_value(near, rank + __popc(bits & lanes_below())) : 0;
}

// x = value number `rank` + set bits up to the lane − 1. Lanes that are not live read past the end of their run, not of the vector.
FN void repeat_row(const Near& near, u32 rank, u32 bits, u32* x) {
    x[0] = near_value(near, rank + __popc(bits & (lanes_below() << 1 | 1u)) - 1u);
}

FN void rank_row(u32 rank, u32 bits, u32* x) { x[0] = rank + __popc(bits & (lanes_below() << 1 | 1u)) - 1u; }

// x = the next value of each lane's class; ranks move on behind the row.
FN void merge_row(const Task& t, Ranks& ranks, const u32* bits0, const u32* bits1, u32 row, u32 live_lanes, u32* x) {
    const u32 low = LOAD(bits0 + row) & live_lanes, high = bits1 ? LOAD(bits1 + row) & live_lanes : 0, both = low & high;
    const Ranks classes = {{live_lanes & ~(low | high), low ^ both, high ^ both, both}};
    u32 own = classes.of[0], rank = ranks.of[0], chosen = 0;
    for (u32 other = 1; other < MAX_CLASSES; ++other) {
        const bool here = classes.of[other] >> lane_id() & 1;
        own = here ? classes.of[other] : own;
        rank = here ? ranks.of[other] : rank;
        chosen = here ? other : chosen;
    }
    x[0] = own >> lane_id() & 1 ? near_value(t.near[chosen], rank + __popc(own & lanes_below())) : 0;
    for (u32 k = 0; k < MAX_CLASSES; ++k) ranks.of[k] += count_bits(classes.of[k]);
}

FN void merge_vector(const Task&, Ranks&, const Ranks&, const u32*, const u32*, u32, u32, u32*) {}

#else

struct Near {
    const u32* values;  // from rank `first` on
    u32 first, vector, num_held;
    const ProgramSource* held;  // whose vectors lie in `room`
    u32 room[2 * VECTOR + LANES];  // a row or a byte may be read past the last value
    u32 merged[VECTOR];            // of the first: what merge_vector made
};

FN u32 count_bits(u32 bits) { return (u32)__builtin_popcount(bits); }

FN u32* merged_values(const Task& t) { return t.near->merged; }

static void hold_vector(const Task& t, const ProgramSource& source, u32 vector, u32* RESTRICT out) {
    const Stream s = stream_at(t, source, vector);
    const u64 first = (u64)vector * VECTOR;
    const u32 left = first < source.count ? least(source.count - (u32)first, VECTOR) : VECTOR;
    for (u32 row = 0; row * LANES < left; ++row) stream_row<u32>(s, row, 0, out + row * LANES);
}

// Makes values `rank` to `rank` + `num_needed` readable, at most 1,025 of them.
FN void open_near(const Task& t, u32 k, const ProgramSource& source, u32 rank, u32 num_needed) {
    Near& near = t.near[k];
    if (source.kind == SOURCE_PLAIN && (u64)rank + num_needed <= source.count) {
        near.values = (const u32*)(t.arena + source.data) + rank;
        near.first = rank;
        return;
    }
    const u32 vector = rank / VECTOR;
    if (near.held == &source && near.num_held == 2 && near.vector + 1 == vector) {
        __builtin_memcpy(near.room, near.room + VECTOR, VECTOR * sizeof(u32));
        near.num_held = 1;
    } else if (near.held != &source || near.vector != vector) {
        hold_vector(t, source, vector, near.room);
        near.num_held = 1;
    }
    near.held = &source;
    near.vector = vector;
    if (near.num_held == 1 && rank % VECTOR + num_needed > VECTOR) {
        hold_vector(t, source, vector + 1, near.room + VECTOR);
        near.num_held = 2;
    }
    near.values = near.room;
    near.first = vector * VECTOR;
}

FN void open_nothing(const Task&, u32) {}

FN void wait_for_near() {}

// Set bits of a vector's first rows, and items of each class in them: how far `open_near` must see.
FN u32 count_set(const u32* bits, u32 num_rows) {
    u32 sum = 0;
    for (u32 row = 0; row < num_rows; ++row) sum += count_bits(bits[row]);
    return sum;
}

FN Ranks count_classes(const u32* bits0, const u32* bits1, u32 num_rows, u32 num_values) {
    u32 low = 0, high = 0, both = 0;
    for (u32 row = 0; row < num_rows; ++row) {
        low += count_bits(bits0[row]);
        high += bits1 ? count_bits(bits1[row]) : 0;
        both += bits1 ? count_bits(bits0[row] & bits1[row]) : 0;
    }
    return {{num_values - low - high + both, low - both, high - both, both}};
}

// For each byte of a bitmap and each of its bits: the set bits below, and the set bits of the whole byte.
struct BitRanks {
    u8 below[256][8];
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
FN __m256i ranks_below(u32 byte) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)BIT_RANKS.below[byte])); }

// All bits of the lanes whose bit is set.
FN __m256i all_set(u32 byte) {
    const __m256i in_signs = _mm256_sllv_epi32(_mm256_set1_epi32((int)byte), _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
    return _mm256_srai_epi32(in_signs, 31);
}

// Consecutive values on the set bits of a byte; the other lanes hold any.
FN __m256i spread(const u32* value, u32 byte) { return _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)value), ranks_below(byte)); }

FN __m256i blend(__m256i a, __m256i b, __m256i signs) {
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), _mm256_castsi256_ps(signs)));
}

FN void put_eight(u32* x, __m256i eight) { _mm256_storeu_si256((__m256i*)x, eight); }
#endif

// Spreads consecutive values over the set bits of a byte; the other lanes become 0.
FN void expand_byte(const u32* value, u32 byte, u32* x) {
#if defined(HEADRACE_AVX2_BODY)
    put_eight(x, _mm256_and_si256(spread(value, byte), all_set(byte)));
#else
    for (u32 k = 0; k < 8; ++k) {
        const u32 bit = byte >> k & 1;
        x[k] = *value & (0u - bit);
        value += bit;
    }
#endif
}

FN void expand_row(const Near& near, u32 rank, u32 bits, u32* RESTRICT x) {
    const u32* RESTRICT value = near.values + (rank - near.first);
    if (bits == ~0u) return copy_row(value, x);
    for (u32 group = 0; group < LANES; group += 8) {
        const u32 byte = bits >> group & 255;
        expand_byte(value, byte, x + group);
        value += BIT_RANKS.total[byte];
    }
}

// The value of lane 0 is the one before `rank` where its bit is not set.
FN void repeat_row(const Near& near, u32 rank, u32 bits, u32* RESTRICT x) {
    const u32* RESTRICT value = near.values + (int)(rank - 1 - near.first);
    if (bits == 0) {
        FOR_LANES(l) x[l] = value[0];
        return;
    }
    for (u32 group = 0; group < LANES; group += 8) {
        const u32 byte = bits >> group & 255, starts = byte & 1;
        const u32* from = value + starts;
#if defined(HEADRACE_AVX2_BODY)
        const __m256i ranks = _mm256_sub_epi32(_mm256_sub_epi32(ranks_below(byte), all_set(byte)), _mm256_set1_epi32((int)starts));
        put_eight(x + group, _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)from), ranks));
#else
        for (u32 k = 0; k < 8; ++k) x[group + k] = from[BIT_RANKS.below[byte][k] + (byte >> k & 1) - starts];
#endif
        value += BIT_RANKS.total[byte];
    }
}

FN void rank_row(u32 rank, u32 bits, u32* RESTRICT x) {
    u32 below = rank - 1;
    for (u32 group = 0; group < LANES; group += 8) {
        const u32 byte = bits >> group & 255;
#if defined(HEADRACE_AVX2_BODY)
        put_eight(x + group, _mm256_sub_epi32(_mm256_add_epi32(_mm256_set1_epi32((int)below), ranks_below(byte)), all_set(byte)));
#else
        for (u32 k = 0; k < 8; ++k) x[group + k] = below + BIT_RANKS.below[byte][k] + (byte >> k & 1);
#endif
        below += BIT_RANKS.total[byte];
    }
}

// Values of rows by class, `add` added. `value` are the next ones of each class; those of a class that no lane has may lie anywhere readable.
template <u32 NUM_CLASSES>
FN void merge_rows(const u32* const value[MAX_CLASSES], const u32* RESTRICT bits0, const u32* RESTRICT bits1, u32 num_rows, u32 add, u32* RESTRICT x) {
    const u32 *value0 = value[0], *value1 = value[1], *value2 = value[2], *value3 = value[3];
#if defined(HEADRACE_AVX2_BODY)
    const __m256i added = _mm256_set1_epi32((int)add);
    for (u32 row = 0; row < num_rows; ++row, x += LANES) {
        const u32 low = bits0[row], high = NUM_CLASSES > 2 ? bits1[row] : 0;
        const u32 both = low & high, only_low = low ^ both, only_high = high ^ both, none = ~(low | high);
        const __m256i lows = _mm256_set1_epi32((int)low), highs = _mm256_set1_epi32((int)high);
#pragma GCC unroll 4
        for (u32 group = 0; group < LANES; group += 8) {
            // the bit of each lane of the group, in its sign
            const __m256i to_sign = _mm256_sub_epi32(_mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), _mm256_set1_epi32((int)group));
            const __m256i signs = _mm256_sllv_epi32(lows, to_sign);
            const u32 byte0 = none >> group & 255, byte1 = only_low >> group & 255;
            __m256i merged = blend(spread(value0, byte0), spread(value1, byte1), signs);
            value0 += count_bits(byte0);
            value1 += count_bits(byte1);
            if (NUM_CLASSES > 2) {
                const u32 byte2 = only_high >> group & 255;
                __m256i others = spread(value2, byte2);
                value2 += count_bits(byte2);
                if (NUM_CLASSES > 3) {
                    const u32 byte3 = both >> group & 255;
                    others = blend(others, spread(value3, byte3), signs);
                    value3 += count_bits(byte3);
                }
                merged = blend(merged, others, _mm256_sllv_epi32(highs, to_sign));
            }
            put_eight(x + group, _mm256_add_epi32(merged, added));
        }
    }
#else
    const u32* next[MAX_CLASSES] = {value0, value1, value2, value3};
    for (u32 row = 0; row < num_rows; ++row, x += LANES) {
        const u32 low = bits0[row], high = NUM_CLASSES > 2 ? bits1[row] : 0;
        FOR_LANES(l) x[l] = add + *next[(low >> l & 1) | (high >> l & 1) << 1]++;
    }
#endif
}

// All values of a vector, by class, `add` added, into whole rows of x; ranks move on behind the vector. Lanes that are not live get any value.
FN void merge_vector(const Task& t, Ranks& ranks, const Ranks& num_items, const u32* bits0, const u32* bits1, u32 num_rows, u32 add, u32* x) {
    const u32* value[MAX_CLASSES];
    const u32 num_classes = t.op->num_sources;
    for (u32 k = 0; k < MAX_CLASSES; ++k) {
        // bits may say a class that there is not: what it takes then is readable, and check_input reports it
        value[k] = k < num_classes ? t.near[k].values + (ranks.of[k] - t.near[k].first) : t.near[k].room;
        ranks.of[k] += num_items.of[k];
    }
    if (num_classes == 2) merge_rows<2>(value, bits0, bits1, num_rows, add, x);
    else if (num_items.of[3] == 0) merge_rows<3>(value, bits0, bits1, num_rows, add, x);
    else merge_rows<4>(value, bits0, bits1, num_rows, add, x);
}

FN void merge_row(const Task& t, Ranks&, const u32*, const u32*, u32 row, u32, u32* RESTRICT x) {
    copy_row(t.near->merged + row * LANES, x);
}

#endif
