// Stores: how a row's values become items of a region, by dictionary, by out kind, and by patches. Part of decode.cu, which includes it
// once for every instruction set.

template <class T> FN void store_items(T* RESTRICT out, const T* item, u32 live) {
#if !defined(HEADRACE_GPU)
    if (live == LANES) return copy_row(item, out);
#endif
    FOR_FIRST_LANES(l, live) out[l] = item[AT(l)];
}

template <class T, bool MASKED> FN void put_items(const Task& t, u32 i, T* item, u32 present, u32 live) {
    if (MASKED) FOR_LANES(l) item[AT(l)] = present >> l & 1 ? item[AT(l)] : (T)0;
    store_items((T*)(t.arena + t.op->out) + i, item, live);
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
    put_items<T, MASKED>(t, i, item, present, live);
}

template <bool MASKED> FN void store_views(const Task& t, u32 i, const u32* start, const u32* length, u32 present, u32 live) {
    PER_LANE(u64, item);
    FOR_LANES(l) item[AT(l)] = (u64)(start[AT(l)] + t.op->view_base) | (u64)length[AT(l)] << 32;
    put_items<u64, MASKED>(t, i, item, present, live);
}

// Decimals: an integer over a power of ten, rounded once (ALP: Afroozeh, Kuffó, Boncz, SIGMOD 2024).
template <bool MASKED> FN void store_decimals32(const Task& t, u32 i, const u32* x, u32 present, u32 live) {
    PER_LANE(float, item);
    const u32 base = (u32)t.op->base;
    const float scale = (float)t.op->scale;
    FOR_LANES(l) item[AT(l)] = (float)(int)(x[AT(l)] + base);
    if (t.op->scale != 1) FOR_LANES(l) item[AT(l)] = item[AT(l)] / scale;
    put_items<float, MASKED>(t, i, item, present, live);
}

template <bool MASKED> FN void store_decimals64(const Task& t, u32 i, const u32* x, const u32* y, bool wide, u32 present, u32 live) {
    PER_LANE(double, item);
    const u64 base = (u64)t.op->base;
    const double scale = (double)t.op->scale;
    FOR_LANES(l) item[AT(l)] = (double)(i64)(base + (x[AT(l)] | (wide ? (u64)y[AT(l)] << 32 : 0)));
    if (t.op->scale != 1) FOR_LANES(l) item[AT(l)] = item[AT(l)] / scale;
    put_items<double, MASKED>(t, i, item, present, live);
}

FN u32 float_bits(float value) {
    union {
        float value;
        u32 bits;
    } both = {value};
    return both.bits;
}

FN float float_of(u32 bits) {
    union {
        u32 bits;
        float value;
    } both = {bits};
    return both.value;
}

// The float32 of a float16, exact; a NaN keeps its bits.
FN u32 widen_half(u32 half) {
    const u32 sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
    const u32 small = float_bits((float)(int)magnitude * 5.9604644775390625e-8f);  // 2^-24: a subnormal half is a normal float
    const u32 normal = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000 : 0x38000000);
    return sign | (magnitude < 0x400 ? small : normal);
}

template <bool MASKED> FN void store_halves(const Task& t, u32 i, const u32* x, bool brain, u32 present, u32 live) {
    PER_LANE(u32, item);
    const u32 base = (u32)t.op->base;
    if (brain) {
        FOR_LANES(l) item[AT(l)] = (x[AT(l)] + base) << 16;
    } else {
        FOR_LANES(l) item[AT(l)] = widen_half(x[AT(l)] + base);
    }
    put_items<u32, MASKED>(t, i, item, present, live);
}

template <bool MASKED> FN void store_scaled(const Task& t, u32 i, const u32* x, u32 present, u32 live) {
    PER_LANE(float, item);
    const u32 base = (u32)t.op->base;
    const float scale = float_of(t.op->scale);
    FOR_LANES(l) item[AT(l)] = (float)((int)((x[AT(l)] + base) << 24) >> 24) * scale;
    put_items<float, MASKED>(t, i, item, present, live);
}

template <bool MASKED> FN void store_kind(const Task& t, u32 out_kind, u32 i, const u32* x, const u32* y, bool wide, u32 present, u32 live) {
    switch (out_kind) {
        case OUT_U8: return store_values<u8, MASKED>(t, i, x, y, false, present, live);
        case OUT_U16: return store_values<u16, MASKED>(t, i, x, y, false, present, live);
        case OUT_U32: return store_values<u32, MASKED>(t, i, x, y, false, present, live);
        case OUT_U64: return store_values<u64, MASKED>(t, i, x, y, wide, present, live);
        case OUT_VIEW: return store_views<MASKED>(t, i, x, y, present, live);
        case OUT_F32_DECIMAL: return store_decimals32<MASKED>(t, i, x, present, live);
        case OUT_F64_DECIMAL: return store_decimals64<MASKED>(t, i, x, y, wide, present, live);
        case OUT_F32_SCALED_I8: return store_scaled<MASKED>(t, i, x, present, live);
        default: return store_halves<MASKED>(t, i, x, out_kind == OUT_F32_FROM_BF16, present, live);
    }
}

template <bool MASKED> FN_RARE void store_any(const Task& t, u32 i, const u32* x, const u32* y, bool wide, u32 present, u32 live) {
    store_kind<MASKED>(t, t.op->out_kind, i, x, y, wide, present, live);
}

template <int OUT, bool MASKED> FN void store_row(const Task& t, u32 i, const u32* x, const u32* y, bool wide, u32 present, u32 live) {
    if (OUT == ANY) store_any<MASKED>(t, i, x, y, wide, present, live);
    else store_kind<MASKED>(t, (u32)OUT, i, x, y, wide, present, live);
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
    put_items<T, MASKED>(t, i, item, present, live);
}

template <bool MASKED> FN void look_up_kind(const Task& t, u32 out_kind, u32 i, u32* x, u32 present, u32 live) {
    switch (item_shift(out_kind)) {
        case 0: return look_up<u8, MASKED>(t, i, x, present, live, 0);
        case 1: return look_up<u16, MASKED>(t, i, x, present, live, 0);
        case 2: return look_up<u32, MASKED>(t, i, x, present, live, 0);
        default: return look_up<u64, MASKED>(t, i, x, present, live, out_kind == OUT_VIEW ? t.op->view_base : 0);
    }
}

template <bool MASKED> FN_RARE void look_up_any(const Task& t, u32 i, u32* x, u32 present, u32 live) {
    look_up_kind<MASKED>(t, t.op->out_kind, i, x, present, live);
}

template <int OUT, bool MASKED> FN void look_up_row(const Task& t, u32 i, u32* x, u32 present, u32 live) {
    if (OUT == ANY) look_up_any<MASKED>(t, i, x, present, live);
    else look_up_kind<MASKED>(t, (u32)OUT, i, x, present, live);
}

// The first patch at or after an item. Records are (position, bits) of 4 bytes, or (position, 0, bits) with bits of 8.
FN u32 find_patch(const u32* patches, u32 num_words, u32 num_patches, u32 position) {
    u32 first = 0, end = num_patches;
    while (first < end) {
        const u32 middle = first + (end - first) / 2;
        if (LOAD(patches + (u64)middle * num_words) < position) first = middle + 1;
        else end = middle;
    }
    return first;
}

// Items that decimals cannot express, after the vector's own. Unordered patches leave the vectors' ranges of them out of order, too.
FN_RARE void apply_patches(const Task& t, u32 first, u32 end) {
    const ProgramOp& op = *t.op;
    const u32* patches = (const u32*)(t.slab + op.patches);
    const u32 num_words = op.out_kind == OUT_F64_DECIMAL ? 4 : 2;
    const u32 from = find_patch(patches, num_words, op.num_patches, first), to = find_patch(patches, num_words, op.num_patches, end);
    bool good = from <= to && (end < op.count || to == op.num_patches);
#if defined(HEADRACE_GPU)
    __syncwarp();
    for (u32 k = from + lane_id(); k < to; k += LANES) {
#else
    for (u32 k = from; k < to; ++k) {
#endif
        const u32* patch = patches + (u64)k * num_words;
        const u32 position = LOAD(patch);
        if (position < first || position >= end || (k > from && position <= LOAD(patch - num_words))) {
            good = false;
        } else if (num_words == 2) {
            ((u32*)(t.arena + op.out))[position] = LOAD(patch + 1);
        } else {
            ((u64*)(t.arena + op.out))[position] = LOAD((const u64*)(patch + 2));
        }
    }
    if (!good) report(t.error, t.id, t.vector, ERROR_PATCH);
}
