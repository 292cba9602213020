// Encoding loops: frame of reference + bit packing of one vector, the inverse of decode.cu's stream_row. Host only; included once for
// each instruction set, so it includes nothing.

FN u32 bit_length(u32 x) { return x ? 32 - (u32)__builtin_clz(x) : 0; }

// Packs at most 1,024 values into `words`, which has room for 1,024. Returns the number of words and fills meta.base and meta.width.
static u32 pack_vector(const u32* RESTRICT values, u32 num_values, u32* RESTRICT words, VectorMeta& meta) {
    u32 least_value = values[0], greatest = values[0];
    for (u32 i = 1; i < num_values; ++i) {
        least_value = values[i] < least_value ? values[i] : least_value;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    const u32 width = bit_length(greatest - least_value), num_rows = (num_values + LANES - 1) / LANES;
    const u32 num_words = (num_rows * width + 31) / 32 * LANES;
    meta.base = least_value;
    meta.width = (u8)width;
    meta.reserved = 0;
    meta.num_exceptions = 0;
    for (u32 i = 0; i < num_words; ++i) words[i] = 0;
    for (u32 row = 0; width && row < num_rows; ++row) {
        const u32 bit = row * width, shift = bit & 31, live = num_values - row * LANES < LANES ? num_values - row * LANES : LANES;
        const u32* RESTRICT x = values + row * LANES;
        u32* RESTRICT word = words + (bit & ~31u);
        if (live == LANES) {
            FOR_LANES(l) word[l] |= (x[l] - least_value) << shift;
            if (shift + width > 32) FOR_LANES(l) word[l + LANES] = (x[l] - least_value) >> (32 - shift);
        } else {
            FOR_FIRST_LANES(l, live) word[l] |= (x[l] - least_value) << shift;
            if (shift + width > 32) FOR_FIRST_LANES(l, live) word[l + LANES] = (x[l] - least_value) >> (32 - shift);
        }
    }
    return num_words;
}
