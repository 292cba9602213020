// Streams: random access to the vectors of a source, and what a vector's own bytes say checked. Part of decode.cu, which includes it
// once for every instruction set.

constexpr u32 BIT_WIDTH = 33;

// One vector of any source, random access: value i is `width` bits at row i / 32, lane i % 32, plus base. A constant has width 0,
// plain u32 values have width 32; BIT_WIDTH is one bit a value, laid out along the words.
struct Stream {
    const u32* words;
    u32 base;
    u16 width, num_exceptions;
};

// What an op expands by rank: two neighbouring vectors of each of its sources. ranks.cuh.
struct Near;

// Everything that a vector needs, the same for all its lanes.
struct Task {
    const u8* slab;
    u8* arena;
    const ProgramOp* op;
    const ProgramSource* sources;
    u32 id, vector;
    u64* error;
    Near* near;  // one for each class; the warp's own, or the thread's
};

FN u32 words_of(u32 width, u32 num_values) { return ((num_values + LANES - 1) / LANES * width + 31) / 32 * LANES; }

FN u32 bits_mask(u32 width) { return ~0u >> (32 - width); }

#if !defined(HEADRACE_GPU)
// A whole row. As 32-byte moves: g++ makes 16-byte ones of a loop, and a 32-byte load right behind them waits for both.
template <class T> FN void copy_row(const T* from, T* to) {
#if defined(HEADRACE_AVX2_BODY)
    for (u32 k = 0; k < sizeof(T); ++k) _mm256_storeu_si256((__m256i*)to + k, _mm256_loadu_si256((const __m256i*)from + k));
#else
    FOR_LANES(l) to[l] = from[l];
#endif
}
#endif

// A vector past the stream's end, or with a header that would read past it, is a constant zero; the latter is reported.
FN Stream stream_at(const Task& t, const ProgramSource& source, u32 vector) {
    const Stream nothing = {(const u32*)t.slab, 0, 0, 0};
    const u64 first = (u64)vector * VECTOR;
    if (first >= source.count) return nothing;
    if (source.kind == SOURCE_CONSTANT) return {(const u32*)t.slab, source.value, 0, 0};
    if (source.kind == SOURCE_PLAIN) return {(const u32*)(t.arena + source.data) + first, 0, 32, 0};
    if (source.kind == SOURCE_BITS) return {(const u32*)(t.slab + source.data) + first / 32, 0, BIT_WIDTH, 0};
    const VectorMeta meta = ((const VectorMeta*)(t.slab + source.meta))[vector];
    const u32 num_values = least(source.count - (u32)first, VECTOR);
    const u32 most = source.kind == SOURCE_PACKED_EXCEPTIONS && meta.width < 32 ? num_values : 0;
    if (meta.width > 32 || meta.num_exceptions > most || (u64)meta.word_offset + words_of(meta.width, num_values) + meta.num_exceptions > source.num_words) {
        report(t.error, t.id, t.vector, ERROR_VECTOR_META);
        return nothing;
    }
    return {(const u32*)(t.slab + source.data) + meta.word_offset, meta.base, meta.width, meta.num_exceptions};
}

// out = add + the 32 values of a row, exceptions left out. `out` is a value for each lane, or on a CPU the output itself.
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

// A vector's exceptions, taken in their order as the rows go by: position in the low 10 bits, what to add above `width` in the others.
struct Exceptions {
    const u32* records;
    u32 next, from;  // the next one, and the least position that it may have
};

FN Exceptions exceptions_of(const Stream& s, u32 num_values) { return {s.words + words_of(s.width, num_values), 0, 0}; }

FN void add_exceptions(const Stream& s, Exceptions& e, u32 row, u32 num_values, u32* x) {
    const u32 end = least(row * LANES + LANES, num_values);
    while (e.next < s.num_exceptions) {
        const u32 record = LOAD(e.records + e.next), at = record & (VECTOR - 1);
        if (at < e.from || at >= end) break;
        FOR_LANE(l, at % LANES) x[AT(l)] += record >> 10 << s.width;
        e.from = at + 1;
        ++e.next;
    }
}

// One that is out of order, or outside of the vector, stops the others: then some are left.
FN void check_exceptions(const Task& t, const Stream& s, const Exceptions& e) {
    if (e.next != s.num_exceptions) report(t.error, t.id, t.vector, ERROR_EXCEPTION);
}

// Running sum of a row from `carry`, which moves on to the next row: inclusive, or of the lanes before.
FN void scan_row(u32* x, u32& carry, bool exclusive) {
#if defined(HEADRACE_GPU)
    const u32 sum = warp_inclusive_sum(x[0]), total = __shfl_sync(0xffffffffu, sum, 31);
    x[0] = carry + (exclusive ? sum - x[0] : sum);
    carry += total;
#elif defined(HEADRACE_AVX2_BODY)
    __m256i before = _mm256_set1_epi32((int)carry);
    for (u32 group = 0; group < LANES; group += 8) {
        const __m256i own = _mm256_loadu_si256((const __m256i*)(x + group));
        __m256i sum = _mm256_add_epi32(own, _mm256_slli_si256(own, 4));
        sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 8));
        // the total of the low half to all lanes of the high half
        const __m256i low = _mm256_shuffle_epi32(_mm256_permute2x128_si256(sum, sum, 0x08), 0xff);
        sum = _mm256_add_epi32(_mm256_add_epi32(sum, low), before);
        _mm256_storeu_si256((__m256i*)(x + group), exclusive ? _mm256_sub_epi32(sum, own) : sum);
        before = _mm256_permutevar8x32_epi32(sum, _mm256_set1_epi32(7));
    }
    carry = (u32)_mm256_cvtsi256_si32(before);
#else
    u32 sum = carry;
    if (exclusive)
        for (u32 l = 0; l < LANES; ++l) { const u32 own = x[l]; x[l] = sum; sum += own; }
    else
        for (u32 l = 0; l < LANES; ++l) { sum += x[l]; x[l] = sum; }
    carry = sum;
#endif
}
