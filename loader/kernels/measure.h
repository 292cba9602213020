// What encoders ask of whole arrays: ranges, distances from the smallest, neighbours that differ, present values. Host only; included
// once for each instruction set, so it includes nothing.

template <class T> static void value_range(const T* RESTRICT values, u64 n, T& low, T& high) {
    T least_value = values[0], greatest = values[0];
    for (u64 i = 1; i < n; ++i) {
        least_value = values[i] < least_value ? values[i] : least_value;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    low = least_value;
    high = greatest;
}

// Smallest and largest float that is a number, by the bits as integers of the same order; S is signed, as wide as the float. Returns
// false where there is none. `infinity`: the bits of +infinity.
template <class S> static bool number_range(const S* RESTRICT bits, u64 n, S infinity, S& low, S& high) {
    const S largest = (S)(((u64)1 << (8 * sizeof(S) - 1)) - 1), smallest = (S)~largest;
    S least_value = largest, greatest = smallest;
    for (u64 i = 0; i < n; ++i) {
        const S sign = (S)(bits[i] < 0 ? largest : (S)0), ordered = (S)(bits[i] ^ sign);
        const bool number = (S)(bits[i] & largest) <= infinity;
        const S up = number ? ordered : largest, down = number ? ordered : smallest;
        least_value = up < least_value ? up : least_value;
        greatest = down > greatest ? down : greatest;
    }
    low = (S)(least_value ^ (S)(least_value < 0 ? largest : (S)0));
    high = (S)(greatest ^ (S)(greatest < 0 ? largest : (S)0));
    return least_value <= greatest;
}

// Distances from the base, modulo 2^32: exact where the range is below.
template <class T> static void subtract_base(const T* RESTRICT values, u64 n, u64 base, u32* RESTRICT out) {
    for (u64 i = 0; i < n; ++i) out[i] = (u32)((u64)values[i] - base);
}

static void subtract_wide(const u64* RESTRICT values, u64 n, u64 base, u64* RESTRICT out) {
    for (u64 i = 0; i < n; ++i) out[i] = values[i] - base;
}

static void take_halves(const u64* RESTRICT values, u64 n, u32* RESTRICT low, u32* RESTRICT high) {
    for (u64 i = 0; i < n; ++i) {
        low[i] = (u32)values[i];
        high[i] = (u32)(values[i] >> 32);
    }
}

// How many items differ from the one before; the first does.
template <class T> static u64 count_starts(const T* RESTRICT values, u64 n) {
    u64 sum = n ? 1 : 0;
    for (u64 first = 1; first < n; first += 1 << 20) {
        const u64 end = first + (1 << 20) < n ? first + (1 << 20) : n;
        u32 part = 0;
        for (u64 i = first; i < end; ++i) part += values[i] != values[i - 1];
        sum += part;
    }
    return sum;
}

template <class T> static void find_starts(const T* RESTRICT values, u64 n, u8* RESTRICT mask) {
    if (n) mask[0] = 1;
    for (u64 i = 1; i < n; ++i) mask[i] = values[i] != values[i - 1];
}

static u64 count_set(const u8* RESTRICT mask, u64 n) {
    u64 sum = 0;
    for (u64 first = 0; first < n; first += 1 << 20) {
        const u64 end = first + (1 << 20) < n ? first + (1 << 20) : n;
        u32 part = 0;
        for (u64 i = first; i < end; ++i) part += mask[i];
        sum += part;
    }
    return sum;
}

// Values whose byte is 1, end to end; `out` has room for one more. Returns how many.
template <class T> static u64 keep_set(const T* RESTRICT values, const u8* RESTRICT mask, u64 n, T* RESTRICT out) {
    u64 kept = 0;
    for (u64 i = 0; i < n; ++i) {
        out[kept] = values[i];
        kept += mask[i];
    }
    return kept;
}

// Bits of bytes 0 and 1, padded with zeros to whole vectors.
static void pack_mask(const u8* RESTRICT mask, u64 n, u32* RESTRICT words) {
    const u64 num_words = (n + VECTOR - 1) / VECTOR * ROWS;
    u64 word = 0;
    for (; (word + 1) * 32 <= n; ++word) {
        u32 bits = 0;
        for (u32 group = 0; group < 4; ++group) {
            u64 eight;
            __builtin_memcpy(&eight, mask + word * 32 + group * 8, 8);
            bits |= (u32)(eight * 0x0102040810204080ull >> 56) << (8 * group);
        }
        words[word] = bits;
    }
    for (; word < num_words; ++word) {
        u32 bits = 0;
        for (u64 i = word * 32; i < n && i < word * 32 + 32; ++i) bits |= (u32)mask[i] << (i & 31);
        words[word] = bits;
    }
}

// Bits first … first + n of a bitmap as bytes 0 and 1.
static void unpack_mask(const u8* RESTRICT bits, u64 first, u64 n, u8* RESTRICT mask) {
    for (u64 i = 0; i < n; ++i) mask[i] = bits[(first + i) >> 3] >> ((first + i) & 7) & 1;
}

// Set bits before each vector.
static void count_before(const u32* RESTRICT words, u64 num_vectors, u32* RESTRICT anchors) {
    u32 sum = 0;
    for (u64 vector = 0; vector < num_vectors; ++vector) {
        anchors[vector] = sum;
        for (u32 row = 0; row < ROWS; ++row) sum += (u32)__builtin_popcount(words[vector * ROWS + row]);
    }
}
