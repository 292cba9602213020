// Encoding loops: widths, packing, differences and class splits of 32-bit streams; the inverse of decode.cu's. Host only; included once
// for each instruction set, so it includes nothing.

FN u32 bit_length(u32 x) { return x ? 32 - (u32)__builtin_clz(x) : 0; }

FN u32 packed_words(u32 num_rows, u32 width) { return (num_rows * width + 31) / 32 * LANES; }

static u32 count_above(const u32* RESTRICT values, u32 num_values, u32 base, u32 limit) {
    u32 sum = 0;
    for (u32 i = 0; i < num_values; ++i) sum += values[i] - base > limit;
    return sum;
}

// Base and width of at most 1,024 values. With exceptions, the width that takes the fewest words in all, the least of equals: an
// exception takes a word, and has room for 22 bits above the width.
static VectorPlan plan_vector(const u32* RESTRICT values, u32 num_values, bool with_exceptions) {
    u32 least_value = values[0], greatest = values[0];
    for (u32 i = 1; i < num_values; ++i) {
        least_value = values[i] < least_value ? values[i] : least_value;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    const u32 tight = bit_length(greatest - least_value), num_rows = (num_values + LANES - 1) / LANES;
    VectorPlan best = {least_value, tight, packed_words(num_rows, tight), 0};
    if (!with_exceptions) return best;
    u32 best_words = best.num_words;
    for (u32 width = tight; width-- > 0 && tight - width <= 22;) {
        const u32 num_exceptions = count_above(values, num_values, least_value, (u32)((1ull << width) - 1));
        const u32 num_words = packed_words(num_rows, width);
        if (num_exceptions > best_words) break;  // narrower widths have more
        if (num_words + num_exceptions > best_words) continue;
        best_words = num_words + num_exceptions;
        best = {least_value, width, num_words, num_exceptions};
    }
    return best;
}

// Packs the low `width` bits of at most 1,024 values into `words`, which has room for 1,024.
static void pack_words(const u32* RESTRICT values, u32 num_values, u32 base, u32 width, u32* RESTRICT words) {
    const u32 num_rows = (num_values + LANES - 1) / LANES, num_words = packed_words(num_rows, width);
    const u32 mask = width ? ~0u >> (32 - width) : 0;
    for (u32 i = 0; i < num_words; ++i) words[i] = 0;
    for (u32 row = 0; width && row < num_rows; ++row) {
        const u32 bit = row * width, shift = bit & 31, live = num_values - row * LANES < LANES ? num_values - row * LANES : LANES;
        const u32* RESTRICT x = values + row * LANES;
        u32* RESTRICT word = words + (bit & ~31u);
        if (live == LANES) {
            FOR_LANES(l) word[l] |= (x[l] - base & mask) << shift;
            if (shift + width > 32) FOR_LANES(l) word[l + LANES] = (x[l] - base & mask) >> (32 - shift);
        } else {
            FOR_FIRST_LANES(l, live) word[l] |= (x[l] - base & mask) << shift;
            if (shift + width > 32) FOR_FIRST_LANES(l, live) word[l + LANES] = (x[l] - base & mask) >> (32 - shift);
        }
    }
}

// Packs a vector as planned. Returns the number of words; `words` has room for 1,024 and the exceptions.
static u32 pack_vector(const u32* RESTRICT values, u32 num_values, const VectorPlan& plan, u32* RESTRICT words, VectorMeta& meta) {
    meta.base = plan.base;
    meta.width = (u8)plan.width;
    meta.reserved = 0;
    meta.num_exceptions = (u16)plan.num_exceptions;
    pack_words(values, num_values, plan.base, plan.width, words);
    u32* exception = words + plan.num_words;
    for (u32 i = 0; plan.num_exceptions && i < num_values; ++i) {
        const u32 high = (u32)((u64)(values[i] - plan.base) >> plan.width);
        if (high) *exception++ = i | high << 10;
    }
    return plan.num_words + plan.num_exceptions;
}

// Differences, zigzagged or not; a vector's first takes the step of its second, and its anchor lies that much before its value.
static void find_differences(const u32* RESTRICT values, u64 n, bool zigzag, u32* RESTRICT steps, u32* RESTRICT anchors) {
    for (u64 i = 1; i < n; ++i) steps[i] = values[i] - values[i - 1];
    for (u64 i = 0; i < n; i += VECTOR) {
        steps[i] = i + 1 < n ? values[i + 1] - values[i] : 0;
        anchors[i / VECTOR] = values[i] - steps[i];
    }
    if (zigzag)
        for (u64 i = 0; i < n; ++i) steps[i] = steps[i] << 1 ^ (0u - (steps[i] >> 31));
}

// How many items each class has: class k holds values from limits[k − 1] up to limits[k].
static void count_at_least(const u32* RESTRICT values, u64 n, const u32* limits, u32 num_limits, u64* counts) {
    for (u32 k = 0; k < num_limits; ++k) {
        u64 sum = 0;
        for (u64 first = 0; first < n; first += 1 << 20) {
            const u64 end = first + (1 << 20) < n ? first + (1 << 20) : n;
            u32 part = 0;
            for (u64 i = first; i < end; ++i) part += values[i] >= limits[k];
            sum += part;
        }
        counts[k] = sum;
    }
}

static void find_range(const u32* RESTRICT values, u64 n, u32& low, u32& high) {
    u32 least_value = values[0], greatest = values[0];
    for (u64 i = 1; i < n; ++i) {
        least_value = values[i] < least_value ? values[i] : least_value;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    low = least_value;
    high = greatest;
}

#if defined(HEADRACE_AVX2_BODY)
// For each byte of a bitmap: its set bits, in their order.
struct SetBits {
    u8 of[256][8];

    constexpr SetBits() : of() {
        for (u32 byte = 0; byte < 256; ++byte)
            for (u32 bit = 0, k = 0; bit < 8; ++bit)
                if (byte >> bit & 1) of[byte][k++] = (u8)bit;
    }
};

static constexpr SetBits SET_BITS;

// Appends the lanes of `mask` to a stream; writes eight values whatever the mask.
FN void append_lanes(__m256i values, u32 mask, u32*& to) {
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)SET_BITS.of[mask]));
    _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(values, lanes));
    to += __builtin_popcount(mask);
}

// Which of eight values reach a limit.
FN u32 reach(__m256i values, u32 limit) {
    const __m256i limits = _mm256_set1_epi32((int)limit);
    return (u32)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(values, limits), values)));
}
#endif

// A whole row by class: values behind `next`, the bits of their class numbers to low and high.
FN void partition_row(const u32* RESTRICT values, const u32* limits, u32 num_limits, u32** next, u32& low, u32& high) {
    low = high = 0;
#if defined(HEADRACE_AVX2_BODY)
    for (u32 group = 0; group < LANES; group += 8) {
        const __m256i eight = _mm256_loadu_si256((const __m256i*)(values + group));
        const u32 first = reach(eight, limits[0]), second = num_limits > 1 ? reach(eight, limits[1]) : 0, third = num_limits > 2 ? reach(eight, limits[2]) : 0;
        append_lanes(eight, first ^ 255, next[0]);
        append_lanes(eight, first & ~second, next[1]);
        if (num_limits > 1) append_lanes(eight, second & ~third, next[2]);
        if (num_limits > 2) append_lanes(eight, third, next[3]);
        low |= ((first & ~second) | third) << group;
        high |= second << group;
    }
#else
    for (u32 l = 0; l < LANES; ++l) {
        const u32 x = values[l], number = (u32)(x >= limits[0]) + (u32)(num_limits > 1 && x >= limits[1]) + (u32)(num_limits > 2 && x >= limits[2]);
        low |= (number & 1) << l;
        high |= number >> 1 << l;
        *next[number]++ = x;
    }
#endif
}

// Splits values into planes (padded to whole vectors with zeros), anchors and streams; limits ascend. Each stream has room for its
// values, as `count_at_least` says, and eight more.
static void partition_values(const u32* RESTRICT values, u64 n, const u32* limits, u32 num_limits, u32* RESTRICT plane0, u32* RESTRICT plane1,
                             u32* RESTRICT anchors, u32* const* streams) {
    u32* next[MAX_CLASSES] = {streams[0], streams[1], streams[2], streams[3]};
    for (u64 first = 0; first < n; first += LANES) {
        if (first % VECTOR == 0)
            for (u32 k = 0; k < num_limits; ++k) *anchors++ = (u32)(next[k + 1] - streams[k + 1]);
        u32 low = 0, high = 0;
        if (n - first >= LANES) {
            partition_row(values + first, limits, num_limits, next, low, high);
        } else {
            for (u32 l = 0; l < n - first; ++l) {
                const u32 x = values[first + l];
                u32 number = 0;
                for (u32 k = 0; k < num_limits; ++k) number += x >= limits[k];
                low |= (number & 1) << l;
                high |= number >> 1 << l;
                *next[number]++ = x;
            }
        }
        plane0[first / LANES] = low;
        if (num_limits > 1) plane1[first / LANES] = high;
    }
    for (u64 word = (n + LANES - 1) / LANES; word % ROWS; ++word) {
        plane0[word] = 0;
        if (num_limits > 1) plane1[word] = 0;
    }
}

// integers = value × scale rounded, and whether dividing gives back the value's bits; both as decoding computes them.
template <class F, class U> static void try_scale(const F* RESTRICT values, u64 n, u32 scale, double limit, i64* RESTRICT integers, u8* RESTRICT exact) {
    const double times = (double)scale;
    const F over = (F)scale;
    for (u64 i = 0; i < n; ++i) {
        const double scaled = (double)values[i] * times;
        const bool fits = __builtin_fabs(scaled) < limit;
        const double rounded = __builtin_rint(fits ? scaled : 0.0) + 0.0;  // no negative zero: an integer has none
        integers[i] = (i64)rounded;
        const F back = (F)rounded / over;
        U bits, own;
        __builtin_memcpy(&bits, &back, sizeof bits);
        __builtin_memcpy(&own, values + i, sizeof own);
        exact[i] = bits == own;
    }
}
