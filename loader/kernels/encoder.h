// The C ABI of the encoders; part of host.cpp, after the instruction sets. native_encoder.py is its only caller.

static VectorPlan plan_of(const u32* values, u64 n, u64 first, bool with_exceptions) {
    return DISPATCH(plan_vector(values + first, n - first < VECTOR ? (u32)(n - first) : VECTOR, with_exceptions));
}

// Packs one vector behind `num_words` words, which becomes the number of words with it.
static void pack_behind(const u32* values, u64 n, u64 first, const VectorPlan& plan, u32* words, u64& num_words, VectorMeta& meta) {
    meta.word_offset = (u32)num_words;
    num_words += DISPATCH(pack_vector(values + first, n - first < VECTOR ? (u32)(n - first) : VECTOR, plan, words + num_words, meta));
}

// Frame of reference + bit packing of n values; words has room for n rounded up to 1,024, metas for one a vector. Returns the number of words.
EXPORT u64 headrace_pack(const u32* values, u64 n, u32* words, VectorMeta* metas) {
    u64 num_words = 0;
    for (u64 first = 0; first < n; first += VECTOR) pack_behind(values, n, first, plan_of(values, n, first, false), words, num_words, metas[first / VECTOR]);
    return num_words;
}

// Bases, widths, words without and numbers of exceptions of the vectors.
EXPORT void headrace_plan(const u32* values, u64 n, int with_exceptions, u32* bases, u8* widths, i64* words, i64* exceptions) {
    for (u64 first = 0; first < n; first += VECTOR) {
        const VectorPlan plan = plan_of(values, n, first, with_exceptions != 0);
        bases[first / VECTOR] = plan.base;
        widths[first / VECTOR] = (u8)plan.width;
        words[first / VECTOR] = plan.num_words;
        exceptions[first / VECTOR] = plan.num_exceptions;
    }
}

// Packs as planned; `words` has room for all words and exceptions.
EXPORT u64 headrace_pack_planned(const u32* values, u64 n, const u32* bases, const u8* widths, const i64* plan_words, const i64* exceptions, u32* words,
                                 VectorMeta* metas) {
    u64 num_words = 0;
    for (u64 first = 0; first < n; first += VECTOR) {
        const u64 k = first / VECTOR;
        pack_behind(values, n, first, {bases[k], widths[k], (u32)plan_words[k], (u32)exceptions[k]}, words, num_words, metas[k]);
    }
    return num_words;
}

EXPORT void headrace_differences(const u32* values, u64 n, int zigzag, u32* steps, u32* anchors) {
    DISPATCH(find_differences(values, n, zigzag != 0, steps, anchors));
}

// thresholds: room for three; returns how many.
EXPORT u32 headrace_split_search(const u32* values, u64 n, u32 num_classes, u32* thresholds, double* bits) {
    u32 low = 0, high = 0;
    DISPATCH(find_range(values, n, low, high));
    return choose::SplitSearch(values, n, low, high).run(num_classes, thresholds, bits);
}

EXPORT void headrace_class_sizes(const u32* values, u64 n, const u32* thresholds, u32 num_thresholds, u64* at_least) {
    DISPATCH(count_at_least(values, n, thresholds, num_thresholds, at_least));
}

// streams: room for the values of each class and eight more, one after the other as `starts` says.
EXPORT void headrace_partition(const u32* values, u64 n, const u32* thresholds, u32 num_thresholds, u32* plane0, u32* plane1, u32* anchors, u32* streams,
                               const u64* starts) {
    u32* const parts[MAX_CLASSES] = {streams + starts[0], streams + starts[1], streams + starts[2], streams + starts[3]};
    DISPATCH(partition_values(values, n, thresholds, num_thresholds, plane0, plane1, anchors, parts));
}

// Returns the number of entries, or ~0 if there are more than `most`, for which entries and counts have room.
EXPORT u64 headrace_distinct(const void* values, u64 n, u32 item_bytes, u64 most, void* entries, u32* codes, i64* counts) {
    if (item_bytes == 2) return choose::distinct((const std::uint16_t*)values, n, most, (std::uint16_t*)entries, codes, counts);
    if (item_bytes == 4) return choose::distinct((const u32*)values, n, most, (u32*)entries, codes, counts);
    return choose::distinct((const u64*)values, n, most, (u64*)entries, codes, counts);
}

// order: the entries by class, in each by value; codes: renumbered after it, in place. Returns the number of class limits (room for three).
EXPORT u32 headrace_order_entries(const u64* keys, const i64* counts, u64 num_entries, int split, u32* order, u32* limits, const u32* codes, u64 num_codes,
                                  u32* new_codes) {
    std::vector<u32> found;
    const u32 num_limits = choose::order_entries(std::vector<u64>(keys, keys + num_entries), counts, split != 0, found, limits);
    std::copy(found.begin(), found.end(), order);
    std::vector<u32> place(num_entries);
    for (u64 k = 0; k < num_entries; ++k) place[found[k]] = (u32)k;
    for (u64 i = 0; i < num_codes; ++i) new_codes[i] = place[codes[i]];
    return num_limits;
}

EXPORT void headrace_try_scale(const void* values, u64 n, u32 item_bytes, u32 scale, i64* integers, u8* exact) {
    if (item_bytes == 4) DISPATCH(try_scale<float, u32>((const float*)values, n, scale, 2147483648.0, integers, exact));
    else DISPATCH(try_scale<double, u64>((const double*)values, n, scale, 9007199254740992.0, integers, exact));
}

EXPORT void headrace_fresh_rows(const choose::Plane* planes, u64 num_planes, const i64* offsets, u64 num_rows, u8* fresh) {
    choose::fresh_rows(planes, num_planes, offsets, num_rows, fresh);
}

EXPORT void headrace_slide_overlaps(const choose::Plane* planes, u64 num_planes, const i64* offsets, const i64* rows, u64 num_rows, i64 max_dropped,
                                    i64* overlaps) {
    choose::slide_overlaps(planes, num_planes, offsets, rows, num_rows, max_dropped, overlaps);
}

// Returns how many different rows there are; first has room for as many as rows.
EXPORT u64 headrace_distinct_rows(const choose::Plane* plane, const i64* offsets, const i64* rows, u64 num_rows, u32* codes, i64* first) {
    return choose::distinct_rows(*plane, offsets, rows, num_rows, codes, first);
}
