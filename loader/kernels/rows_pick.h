// Items of a decode program by number, each in a bounded number of vectors however large the block is: ops are followed backwards, a
// code is read before its dictionary entry, a rank before its value. loader/decode/lookup.py is the reference. Part of host.cpp, which
// includes it once for every instruction set, behind decode.cu.
//
// Trusts nothing: every position, offset, level and alignment is checked before it is used, so no program and no bytes make it read out
// of bounds, and the levels of what reads what fall, so that it ends. Where the slab has been read in parts, what is missing is noted.

class RowPicker {
  public:
    RowPicker(const RowProgram& program, std::vector<RowRange>& missing) : p_(program), missing_(missing) {}

    // Items at[0 … n) of a region as unsigned integers of their size, n at most VECTOR.
    void items(u64 region, const u32* at, u32 n, u64* out) { items_below(region, 256, 0, at, n, out); }

    bool is_partial() const { return p_.present != nullptr; }

  private:
    static constexpr u32 MAX_DEPTH = 8, PAGE_SHIFT = 12;
    static constexpr u64 MAX_HELD = 4096, MOST_OFFSET = 1ull << 40;
    static constexpr u32 MANY = 48;

    struct Sums {
        u32 of[VECTOR];
    };

    [[noreturn]] static void corrupt(u32 reason) { throw rows::Stop{ROW_CORRUPT, reason}; }

    // Bytes of the slab; throws where they lie outside of it, are not aligned, or have not been read.
    const u8* bytes(u64 offset, u64 num_bytes, u64 alignment) {
        if (offset > p_.slab_bytes || num_bytes > p_.slab_bytes - offset || offset % alignment) corrupt(ERROR_OP_SLAB);
        if (p_.present && num_bytes) {
            for (u64 page = offset >> PAGE_SHIFT; page <= (offset + num_bytes - 1) >> PAGE_SHIFT; ++page) {
                if (p_.present[page]) continue;
                missing_.push_back({&p_, offset, num_bytes});
                throw rows::Stop{ROW_MISSING, 0};
            }
        }
        return p_.slab + offset;
    }

    const u32* words(u64 offset, u64 index, u64 count) {
        if (offset > p_.slab_bytes) corrupt(ERROR_OP_SLAB);
        return (const u32*)bytes(offset + index * 4, count * 4, 4);
    }

    // The region that holds an arena offset; of several that begin there the last, as the others are empty.
    u64 region_at(u64 offset) const {
        u64 first = 0, end = p_.num_regions;
        while (first < end) {
            const u64 middle = (first + end) / 2;
            if ((u64)p_.regions[middle].arena <= offset) first = middle + 1;
            else end = middle;
        }
        if (first == 0) corrupt(ERROR_OP_ARENA);
        return first - 1;
    }

    // The op that writes an arena offset.
    const ProgramOp& writer_of(u64 offset) const {
        u64 first = 0, end = p_.num_ops;
        while (first < end) {
            const u64 middle = (first + end) / 2;
            if (p_.ops[middle].out <= offset) first = middle + 1;
            else end = middle;
        }
        // ops without items begin where the one behind them does
        while (first && p_.ops[first - 1].count == 0) --first;
        if (first == 0) corrupt(ERROR_OP_ARENA);
        return p_.ops[first - 1];
    }

    void items_below(u64 number, u32 level, u32 depth, const u32* at, u32 n, u64* out) {
        if (number >= p_.num_regions) corrupt(ERROR_OP_ARENA);
        if (depth > MAX_DEPTH) throw rows::Stop{ROW_DEEP, 0};
        const RowRegion& region = p_.regions[number];
        const u32 size = region.item_bytes;
        for (u32 i = 0; i < n;) {
            if ((i64)at[i] >= region.count) corrupt(ROW_ITEM);
            const u64 offset = (u64)region.arena + (u64)at[i] * size;
            const ProgramOp& op = writer_of(offset);
            if (op.out_kind > OUT_F32_SCALED_I8 || 1u << item_shift(op.out_kind) != size || op.out < (u64)region.arena || (op.out - (u64)region.arena) % size)
                corrupt(ERROR_OP_ARENA);
            if (op.level >= level) corrupt(ERROR_OP_LEVEL);
            const u64 first = (op.out - (u64)region.arena) / size, count = op.count;
            u32 local[VECTOR], m = 0;
            for (; i + m < n && (u64)at[i + m] - first < count; ++m) local[m] = (u32)(at[i + m] - first);
            if (m == 0) corrupt(ERROR_OP_ARENA);
            if (op.kind == OP_COPY) run(op, depth, local, m, out + i);
            else dense(op, depth, local, m, out + i);
            i += m;
        }
    }

    // Items of one op. Where many of a vector are wanted, the decoder gives all of it sooner than they are picked.
    void dense(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* out) {
        for (u32 first = 0, end; first < n; first = end) {
            const u32 vector = at[first] / VECTOR;
            for (end = first + 1; end < n && at[end] / VECTOR == vector; ++end) {}
            if (end - first >= MANY && decode_few(op, depth, vector, at + first, end - first, out + first)) continue;
            // up to the next vector of which many are wanted
            u32 begin = end;
            for (; end < n && end - begin < MANY; ++end)
                if (at[end] / VECTOR != at[begin] / VECTOR) begin = end;
            if (end - begin >= MANY) end = begin;
            run(op, depth, at + first, end - first, out + first);
        }
    }

    bool decode_few(const ProgramOp& op, u32 depth, u32 vector, const u32* at, u32 n, u64* out) {
        u64 items[VECTOR];
        ProgramOp codes = op;
        const bool has_dictionary = op.dict != NO_OFFSET;
        if (has_dictionary) {
            codes.dict = NO_OFFSET;
            codes.out_kind = OUT_U32;
            codes.base = 0;
        }
        codes.out = 0;
        const u32 shift = item_shift(codes.out_kind);
        if (op.kind == OP_COPY || (op.kind == OP_NULLS && has_dictionary) || !decode_alone(codes, vector, (u8*)items)) return false;
        for (u32 i = 0; i < n; ++i) {
            const u8* item = (const u8*)items + ((u64)(at[i] % VECTOR) << shift);
            out[i] = 0;
            __builtin_memcpy(out + i, item, 1u << shift);
        }
        if (has_dictionary) look_up_codes(op, depth, n, out);
        return true;
    }

    // A vector of an op that reads no other op's items, by the decoder: the items go to `to`. False where the op is not so.
    bool decode_alone(const ProgramOp& op, u32 vector, u8* to) {
        if (p_.present || op.scan != SCAN_NONE || op.dict != NO_OFFSET || op.out_kind > OUT_F32_SCALED_I8 || op.out_kind == OUT_VIEW) return false;
        const u64 before = ((u64)vector * VECTOR) << item_shift(op.out_kind);
        if (op.out >= MOST_OFFSET || verify::check_op(op, p_.sources, p_.num_sources, {p_.slab_bytes, 2 * MOST_OFFSET})) return false;
        for (u32 k = 0; k < op.num_sources; ++k)
            if (op.kind != OP_COPY && p_.sources[op.first_source + k].kind == SOURCE_PLAIN) return false;
        if (!near_) {
            near_.reset(new Near[MAX_CLASSES]);
            for (u32 k = 0; k < MAX_CLASSES; ++k) near_[k].held = 0;
        }
        u64 error = NO_ERROR;
        // an arena in which the vector lies at `to`: the decoder touches nothing else of it
        u8* arena = (u8*)((size_t)to - (size_t)(op.out + before));
        decode_vector({p_.slab, arena, &op, p_.sources, 0, vector, &error, near_.get()});
        if (error != NO_ERROR) corrupt((u32)(error & 0xff));
        return true;
    }

    void run(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* out) {
        if (op.kind > OP_RUNS || op.flags || op.scan > SCAN_EXCLUSIVE_SUM) corrupt(ERROR_OP_KIND);
        if (op.kind == OP_COPY) return copy(op, at, n, out);
        if (op.kind == OP_SPLIT) {
            split(op, depth, at, n, out);
            finish(op, depth, at, n, out);
        } else if (op.kind == OP_DIRECT) {
            wide(op, depth, at, n, out);
            finish(op, depth, at, n, out);
        } else if (op.kind == OP_NULLS) {
            nulls(op, depth, at, n, out);
        } else {
            u32 ranks[VECTOR];
            const u32* bits = 0;
            Cursor cursor;
            for (u32 i = 0; i < n; ++i) {
                const u32 rank = rank_of(op, at[i], cursor, bits) + (bits[at[i] % VECTOR / LANES] >> at[i] % LANES & 1);
                if (rank == 0) corrupt(ERROR_RANK);
                ranks[i] = rank - 1;
            }
            if (op.kind == OP_RUNS) wide(op, depth, ranks, n, out);
            else for (u32 i = 0; i < n; ++i) out[i] = ranks[i];
            finish(op, depth, at, n, out);
        }
        if (op.num_patches) patch(op, at, n, out);
    }

    void copy(const ProgramOp& op, const u32* at, u32 n, u64* out) {
        const u32 size = 1u << item_shift(op.out_kind);
        const u64 data = source(op.first_source).data;
        if (data > p_.slab_bytes) corrupt(ERROR_OP_SLAB);
        for (u32 i = 0; i < n; ++i) {
            out[i] = 0;
            __builtin_memcpy(out + i, bytes(data + (u64)at[i] * size, size, 1), size);
        }
    }

    void nulls(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* out) {
        u32 ranks[VECTOR], own[VECTOR], m = 0;
        u16 place[VECTOR];
        u64 x[VECTOR];
        const u32* bits = 0;
        Cursor cursor;
        for (u32 i = 0; i < n; ++i) {
            const u32 rank = rank_of(op, at[i], cursor, bits);
            out[i] = 0;
            if (!(bits[at[i] % VECTOR / LANES] >> at[i] % LANES & 1)) continue;
            ranks[m] = rank;
            own[m] = at[i];
            place[m++] = (u16)i;
        }
        wide(op, depth, ranks, m, x);
        finish(op, depth, own, m, x);
        for (u32 k = 0; k < m; ++k) out[place[k]] = x[k];
    }

    // How many set bits lie before a row of 32 bits: goes on from the last one asked for.
    struct Cursor {
        u64 vector = ~0ull;
        const u32 *bits0 = 0, *bits1 = 0;
        u32 row = 0;
        u32 sums[MAX_CLASSES] = {}, anchors[MAX_CLASSES] = {};
    };

    u32 rank_of(const ProgramOp& op, u32 at, Cursor& c, const u32*& bits) {
        const u32 vector = at / VECTOR, row = at % VECTOR / LANES;
        if (c.vector != vector) {
            c.bits0 = words(op.bits0, (u64)vector * ROWS, ROWS);
            c.anchors[0] = *words(op.anchors, vector, 1);
            c.vector = vector;
            c.row = c.sums[0] = 0;
        } else if (row < c.row) {
            c.row = c.sums[0] = 0;
        }
        for (; c.row < row; ++c.row) c.sums[0] += count_bits(c.bits0[c.row]);
        bits = c.bits0;
        return c.anchors[0] + c.sums[0] + count_bits(c.bits0[row] & ((1u << at % LANES) - 1u));
    }

    static u32 in_class(u32 number, u32 low, u32 high) { return (number & 1 ? low : ~low) & (number & 2 ? high : ~high); }

    void open_classes(const ProgramOp& op, u32 vector, Cursor& c) {
        const u32 others = op.num_sources - 1u;
        c.bits0 = words(op.bits0, (u64)vector * ROWS, ROWS);
        c.bits1 = others > 1 ? words(op.bits1, (u64)vector * ROWS, ROWS) : 0;
        const u32* anchors = words(op.anchors, (u64)vector * others, others);
        c.anchors[0] = vector * VECTOR;
        for (u32 k = 1; k <= others; ++k) {
            c.anchors[k] = anchors[k - 1];
            c.anchors[0] -= anchors[k - 1];
        }
        c.vector = vector;
    }

    void split(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* out) {
        if (op.num_sources < 2 || op.num_sources > MAX_CLASSES) corrupt(ERROR_OP_SOURCES);
        u32 ranks[VECTOR];
        u8 classes[VECTOR];
        Cursor c;
        for (u32 i = 0; i < n; ++i) {
            const u32 vector = at[i] / VECTOR, row = at[i] % VECTOR / LANES, below = (1u << at[i] % LANES) - 1u;
            const bool opened = c.vector != vector;
            if (opened) open_classes(op, vector, c);
            if (opened || row < c.row) c.row = c.sums[0] = c.sums[1] = c.sums[2] = c.sums[3] = 0;
            for (; c.row < row; ++c.row)
                for (u32 k = 0; k < op.num_sources; ++k) c.sums[k] += count_bits(in_class(k, c.bits0[c.row], c.bits1 ? c.bits1[c.row] : 0));
            const u32 low = c.bits0[row], high = c.bits1 ? c.bits1[row] : 0, own = (low >> at[i] % LANES & 1) | (high >> at[i] % LANES & 1) << 1;
            if (own >= op.num_sources) corrupt(ERROR_RANK);
            classes[i] = (u8)own;
            ranks[i] = c.anchors[own] + c.sums[own] + count_bits(in_class(own, low, high) & below);
        }
        u32 chosen[VECTOR], x[VECTOR];
        u16 place[VECTOR];
        for (u32 k = 0; k < op.num_sources; ++k) {
            u32 m = 0;
            for (u32 i = 0; i < n; ++i) {
                if (classes[i] != k) continue;
                chosen[m] = ranks[i];
                place[m++] = (u16)i;
            }
            if (m == 0) continue;
            values(op.first_source + k, op.level, depth, chosen, m, x);
            for (u32 j = 0; j < m; ++j) out[place[j]] = x[j];
        }
    }

    // x(i) of one source, or of two halves.
    void wide(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* out) {
        u32 x[VECTOR];
        if (op.num_sources == 0) corrupt(ERROR_OP_SOURCES);
        values(op.first_source, op.level, depth, at, n, x);
        for (u32 i = 0; i < n; ++i) out[i] = x[i];
        if (op.num_sources < 2 || op.scan != SCAN_NONE) return;
        values((u64)op.first_source + 1, op.level, depth, at, n, x);
        for (u32 i = 0; i < n; ++i) out[i] |= (u64)x[i] << 32;
    }

    // FORMAT.md's dictionary, scan and store: x becomes the item. `at` are the positions in the op.
    void finish(const ProgramOp& op, u32 depth, const u32* at, u32 n, u64* x) {
        if (op.dict != NO_OFFSET) return look_up_codes(op, depth, n, x);
        if (op.scan != SCAN_NONE) {
            if (op.kind != OP_DIRECT) corrupt(ERROR_OP_KIND);
            u32 sums[VECTOR], lengths[VECTOR];
            scan(op, depth, at, n, sums);
            if (op.out_kind == OUT_VIEW) {
                if (op.scan == SCAN_EXCLUSIVE_SUM)
                    for (u32 i = 0; i < n; ++i) lengths[i] = (u32)x[i];
                else if (op.num_sources < 2) corrupt(ERROR_OP_SOURCES);
                else values((u64)op.first_source + 1, op.level, depth, at, n, lengths);
                for (u32 i = 0; i < n; ++i) x[i] = sums[i] | (u64)lengths[i] << 32;
                return;
            }
            for (u32 i = 0; i < n; ++i) x[i] = sums[i];
        }
        store(op, n, x);
    }

    void look_up_codes(const ProgramOp& op, u32 depth, u32 n, u64* x) {
        const u64 region = region_at(op.dict);
        if ((u64)p_.regions[region].arena != op.dict || p_.regions[region].item_bytes != 1u << item_shift(op.out_kind)) corrupt(ERROR_OP_ARENA);
        u32 codes[VECTOR];
        for (u32 i = 0; i < n; ++i) {
            if (x[i] >= op.dict_count) corrupt(ERROR_DICTIONARY);
            codes[i] = (u32)x[i];
        }
        items_below(region, op.level, depth + 1, codes, n, x);
    }

    void store(const ProgramOp& op, u32 n, u64* x) {
        const u64 base = (u64)op.base;
        const float scale = (float)op.scale;
        switch (op.out_kind) {
            case OUT_U8: for (u32 i = 0; i < n; ++i) x[i] = (u8)(x[i] + base); return;
            case OUT_U16: for (u32 i = 0; i < n; ++i) x[i] = (u16)(x[i] + base); return;
            case OUT_U32: for (u32 i = 0; i < n; ++i) x[i] = (u32)(x[i] + base); return;
            case OUT_U64: for (u32 i = 0; i < n; ++i) x[i] += base; return;
            case OUT_F32_FROM_F16: for (u32 i = 0; i < n; ++i) x[i] = widen_half((u32)(x[i] + base) & 0xffff); return;
            case OUT_F32_FROM_BF16: for (u32 i = 0; i < n; ++i) x[i] = (u32)(x[i] + base) << 16; return;
            case OUT_F32_SCALED_I8:
                for (u32 i = 0; i < n; ++i) x[i] = float_bits((float)((int)((u32)(x[i] + base) << 24) >> 24) * float_of(op.scale));
                return;
            case OUT_F32_DECIMAL:
                if (op.scale == 0) corrupt(ERROR_OP_KIND);
                for (u32 i = 0; i < n; ++i) x[i] = float_bits((float)(int)(u32)(x[i] + base) / scale);
                return;
            case OUT_F64_DECIMAL:
                if (op.scale == 0) corrupt(ERROR_OP_KIND);
                for (u32 i = 0; i < n; ++i) {
                    const double item = (double)(i64)(x[i] + base) / (double)op.scale;
                    __builtin_memcpy(x + i, &item, 8);
                }
                return;
            default: corrupt(ERROR_OP_KIND);
        }
    }

    // The running sum at some positions. A vector is summed once a call, as long as there is room.
    void scan(const ProgramOp& op, u32 depth, const u32* at, u32 n, u32* out) {
        const Sums* sums = 0;
        for (u32 i = 0, held = 0; i < n; ++i) {
            const u32 vector = at[i] / VECTOR;
            if (!sums || held != vector) sums = &sums_of(op, depth, vector);
            held = vector;
            out[i] = sums->of[at[i] % VECTOR];
        }
    }

    const Sums& sums_of(const ProgramOp& op, u32 depth, u32 vector) {
        const u64 key = (u64)(&op - p_.ops) << 32 | vector;
        const auto found = sums_.find(key);
        if (found != sums_.end()) return *found->second;
        if (sums_.size() >= MAX_HELD) sums_.clear();
        std::unique_ptr<Sums> made(new Sums);
        u32* const x = made.get()->of;  // g++ does not inline the library into code for another instruction set
        const u32 num_values = least(op.count - vector * VECTOR, VECTOR);
        vector_of(op.first_source, op.level, depth, vector, num_values, x);
        u32 carry = *words(op.scan_anchors, vector, 1);
        for (u32 row = 0; row * LANES < num_values; ++row) {
            u32* const own = x + row * LANES;
            if (op.scan == SCAN_ZIGZAG_SUM) FOR_LANES(l) own[l] = own[l] >> 1 ^ (0u - (own[l] & 1));
            scan_row(own, carry, op.scan == SCAN_EXCLUSIVE_SUM);
        }
        return *(sums_[key] = std::move(made));
    }

    const ProgramSource& source(u64 number) const {
        if (number >= p_.num_sources) corrupt(ERROR_OP_SOURCES);
        return p_.sources[number];
    }

    // A vector of a packed stream, its header checked.
    Stream packed(const ProgramSource& s, u32 vector, u32 num_values) {
        VectorMeta meta;
        if (s.meta > p_.slab_bytes || s.data > p_.slab_bytes) corrupt(ERROR_OP_SLAB);
        __builtin_memcpy(&meta, bytes(s.meta + (u64)vector * sizeof(VectorMeta), sizeof(VectorMeta), 4), sizeof(VectorMeta));
        const u32 most = s.kind == SOURCE_PACKED_EXCEPTIONS && meta.width < 32 ? num_values : 0;
        if (meta.width > 32 || meta.num_exceptions > most) corrupt(ERROR_VECTOR_META);
        const u64 num_words = (u64)words_of(meta.width, num_values) + meta.num_exceptions;
        if (meta.word_offset + num_words > s.num_words) corrupt(ERROR_VECTOR_META);
        return {words(s.data, meta.word_offset, num_words), meta.base, meta.width, meta.num_exceptions};
    }

    static u32 picked(const Stream& s, u32 i, u32 num_values) {
        u32 x = 0;
        if (s.width) {
            const u32 bit = i / LANES * s.width, shift = bit & 31;
            const u32* word = s.words + (bit & ~31u) + i % LANES;
            x = word[0] >> shift;
            if (shift + s.width > 32) x |= word[LANES] << (32 - shift);
            x &= bits_mask(s.width);
        }
        if (s.num_exceptions) {
            const u32* records = s.words + words_of(s.width, num_values);
            u32 first = 0, end = s.num_exceptions;
            while (first < end) {
                const u32 middle = (first + end) / 2;
                if ((records[middle] & (VECTOR - 1)) < i) first = middle + 1;
                else end = middle;
            }
            if (first < s.num_exceptions && (records[first] & (VECTOR - 1)) == i) x += records[first] >> 10 << s.width;
        }
        return x + s.base;
    }

    // Values at[0 … n) of a stream.
    void values(u64 number, u32 level, u32 depth, const u32* at, u32 n, u32* out) {
        const ProgramSource& s = source(number);
        for (u32 i = 0; i < n; ++i)
            if (at[i] >= s.count) corrupt(ERROR_OP_SOURCES);
        switch (s.kind) {
            case SOURCE_CONSTANT:
                for (u32 i = 0; i < n; ++i) out[i] = s.value;
                return;
            case SOURCE_BITS:
                for (u32 i = 0; i < n; ++i) out[i] = *words(s.data, at[i] / 32, 1) >> at[i] % 32 & 1;
                return;
            case SOURCE_PLAIN: return plain(s, level, depth, at, n, out);
            case SOURCE_PACKED:
            case SOURCE_PACKED_EXCEPTIONS: break;
            default: corrupt(ERROR_OP_KIND);
        }
        Stream stream = {};
        for (u32 i = 0, held = ~0u, num_values = 0; i < n; ++i) {
            const u32 vector = at[i] / VECTOR;
            if (vector != held) {
                num_values = least(s.count - vector * VECTOR, VECTOR);
                stream = packed(s, vector, num_values);
                held = vector;
            }
            out[i] = picked(stream, at[i] % VECTOR, num_values);
        }
    }

    // Values of a region that another op writes, as a stream of 32 bits.
    void plain(const ProgramSource& s, u32 level, u32 depth, const u32* at, u32 n, u32* out) {
        const u64 region = region_at(s.data), before = s.data - (u64)p_.regions[region].arena;
        u32 moved[VECTOR];
        u64 x[VECTOR];
        if (p_.regions[region].item_bytes != 4 || before % 4 || before / 4 + s.count > ~0u) corrupt(ERROR_OP_ARENA);
        for (u32 i = 0; i < n; ++i) moved[i] = at[i] + (u32)(before / 4);
        items_below(region, level, depth + 1, moved, n, x);
        for (u32 i = 0; i < n; ++i) out[i] = (u32)x[i];
    }

    // The first values of a vector, whole rows of it: `out` has room for VECTOR.
    void vector_of(u64 number, u32 level, u32 depth, u32 vector, u32 num_values, u32* out) {
        const ProgramSource& s = source(number);
        const u64 first = (u64)vector * VECTOR;
        if (first + num_values > s.count) corrupt(ERROR_OP_SOURCES);
        if (s.kind == SOURCE_PACKED || s.kind == SOURCE_PACKED_EXCEPTIONS) {
            const u32 num_packed = least(s.count - (u32)first, VECTOR);
            const Stream stream = packed(s, vector, num_packed);
            for (u32 row = 0; row * LANES < num_values; ++row) stream_row<u32>(stream, row, 0, out + row * LANES);
            const u32* records = stream.words + words_of(stream.width, num_packed);
            for (u32 k = 0; k < stream.num_exceptions; ++k) out[records[k] & (VECTOR - 1)] += records[k] >> 10 << stream.width;
        } else if (s.kind == SOURCE_BITS) {
            const Stream stream = {words(s.data, first / 32, (num_values + 31) / 32), 0, BIT_WIDTH, 0};
            for (u32 row = 0; row * LANES < num_values; ++row) stream_row<u32>(stream, row, 0, out + row * LANES);
        } else if (s.kind != SOURCE_PLAIN || !decode_plain_vector(s, level, vector, num_values, out)) {
            u32 at[VECTOR];
            for (u32 k = 0; k < num_values; ++k) at[k] = (u32)first + k;
            values(number, level, depth, at, num_values, out);
        }
    }

    // The same of a region that one op writes without reading others: with the decoder, which is a hundred times as fast.
    bool decode_plain_vector(const ProgramSource& s, u32 level, u32 vector, u32 num_values, u32* out) {
        const u64 from = s.data + (u64)vector * VECTOR * sizeof(u32);
        const ProgramOp& op = writer_of(from);
        const u64 items = (from - op.out) / sizeof(u32);
        if (op.out_kind != OUT_U32 || op.level >= level || from < op.out || (from - op.out) % (VECTOR * sizeof(u32)) || items + num_values > op.count) return false;
        return decode_alone(op, (u32)(items / VECTOR), (u8*)out);
    }

    // Items that decimals cannot express.
    void patch(const ProgramOp& op, const u32* at, u32 n, u64* out) {
        if (op.out_kind != OUT_F32_DECIMAL && op.out_kind != OUT_F64_DECIMAL) corrupt(ERROR_OP_KIND);
        const u32 num_words = op.out_kind == OUT_F64_DECIMAL ? 4 : 2;
        const u32* patches = words(op.patches, 0, (u64)op.num_patches * num_words);
        for (u32 i = 0; i < n; ++i) {
            const u32 found = find_patch(patches, num_words, op.num_patches, at[i]);
            if (found == op.num_patches || patches[(u64)found * num_words] != at[i]) continue;
            const u32* bits = patches + (u64)found * num_words;
            out[i] = num_words == 2 ? bits[1] : bits[2] | (u64)bits[3] << 32;
        }
    }

    const RowProgram& p_;
    std::vector<RowRange>& missing_;
    std::unordered_map<u64, std::unique_ptr<Sums>> sums_;
    std::unique_ptr<Near[]> near_;
};
