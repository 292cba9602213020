// Which encoding the values of a region get: encodings/{frame,constant,plain,compressed,decimals,target,chooser}.py in C++, decision for
// decision and byte for byte. Part of host.cpp, after cascade.h.

namespace encode {

constexpr double COPY_NS = 0.05, DIVIDE_NS = 0.3, INFLATE_NS = 0.9, MAX_PATCHES = 1.0 / 16, MAX_CHANGES = 1.0 / 40;
constexpr u64 MIN_DECIMALS = 64, DECIMAL_SAMPLE = 256, DECIMAL_PIECE = 32, MIN_COMPRESSED = 2048, COMPRESSED_SAMPLE = 1 << 16, RECORD_BYTES = 112;

// Integers of 1, 2, 4 or 8 bytes; floats come as the unsigned integers of their bits.
struct Values {
    const void* at;
    u64 n;
    u32 size;
    bool is_signed;
};

// visit(typed pointer), by size and sign.
template <class Visit> auto typed(const Values& values, Visit visit) {
    const void* at = values.at;
    switch (values.size * 2 + values.is_signed) {
        case 2: return visit((const u8*)at);
        case 3: return visit((const signed char*)at);
        case 4: return visit((const u16*)at);
        case 5: return visit((const short*)at);
        case 8: return visit((const u32*)at);
        case 9: return visit((const int*)at);
        case 16: return visit((const u64*)at);
        default: return visit((const i64*)at);
    }
}

// visit(unsigned pointer), by size: where order does not matter.
template <class Visit> auto by_size(const void* at, u32 size, Visit visit) {
    switch (size) {
        case 1: return visit((u8*)at);
        case 2: return visit((u16*)at);
        case 4: return visit((u32*)at);
        default: return visit((u64*)at);
    }
}

// The minimum split off: `narrow` where the range is below 2^32, else `wide`.
struct Frame {
    u64 base, span;
    const u32* narrow;
    const u64* wide;
};

inline void frame_range(const Values& values, u64& base, u64& span) {
    typed(values, [&](auto* at) {
        auto low = at[0], high = at[0];
        DISPATCH(value_range(at, values.n, low, high));
        base = (u64)low;
        span = (u64)high - (u64)low;
    });
}

inline Frame frame(Job& job, const Values& values) {
    Frame parts = {};
    frame_range(values, parts.base, parts.span);
    if (parts.span >> 32 == 0) {
        u32* deltas = job.space.take<u32>(values.n);
        typed(values, [&](auto* at) { DISPATCH(subtract_base(at, values.n, parts.base, deltas)); });
        parts.narrow = deltas;
    } else {
        u64* deltas = job.space.take<u64>(values.n);
        DISPATCH(subtract_wide((const u64*)values.at, values.n, parts.base, deltas));
        parts.wide = deltas;
    }
    return parts;
}

// A bitmap that is put into a chunk once, for validity, for nulls and for ranks alike; its streams are written when first asked for.
class Bitmap {
  public:
    Bitmap(Job& job, const u8* mask, u64 n) : mask(mask), n(n), num_set(DISPATCH(count_set(mask, n))) { (void)job; }

    u32 bits(Job& job) {
        if (bits_ == NO_STREAM) bits_ = stream_of_mask(job, mask, n);
        return bits_;
    }

    u32 anchors(Job& job) {
        if (anchors_ == NO_STREAM) anchors_ = Runs::put_anchors(job, mask, n);
        return anchors_;
    }

    void emit_validity(Job& job, u32 depth) { emit_bytes(job, job.builder.region(ROLE_VALIDITY, depth, 1, TYPE_BOOL, n)); }

    void emit_bytes(Job& job, u16 region) {
        SourceRecord source = {SOURCE_CONSTANT, 0, 0, NO_STREAM, NO_STREAM, 0, (u32)n, 0};
        if (num_set) source.kind = SOURCE_BITS, source.data = bits(job);
        OpRecord op = blank_op();
        op.kind = OP_DIRECT;
        op.out_kind = OUT_U8;
        op.out_region = region;
        op.count = (u32)n;
        op.first_source = job.builder.source(source);
        job.builder.op(op);
    }

    const u8* mask;
    u64 n, num_set;

  private:
    u32 bits_ = NO_STREAM, anchors_ = NO_STREAM;
};

// How decimals become floats, and what no integer gives: positions among the present values, ascending.
struct Scaled {
    u32 scale, out_kind, size;
    const u64* positions;
    const void* bits;  // of all values
    u64 num_patches;

    u64 num_bytes() const { return num_patches * (size == 4 ? 8 : 16); }
};

inline OutKind out_kind_of(u32 size) { return size == 1 ? OUT_U8 : size == 2 ? OUT_U16 : size == 4 ? OUT_U32 : OUT_U64; }

// A region to be filled with `count` items; with nulls, streams hold present values only.
struct Target {
    u16 region;
    OutKind out_kind;
    u64 count;
    Bitmap* nulls;

    u32 read(Job& job, const Stream& stream, u64 base, u16 dictionary = NO_REGION, u64 dict_count = 0, u32 level = 0, const Scaled* scaled = nullptr) const {
        Input input = nulls ? spread(job, stream) : dictionary != NO_REGION && stream.scans ? input_of(job, stream.as_source(job, true)) : stream.place(job);
        OpRecord& op = input.op;
        level = std::max(level, input.level);
        op.out_region = region;
        op.out_kind = (u8)(scaled ? scaled->out_kind : out_kind);
        op.count = (u32)count;
        op.level = (u8)level;
        op.base = (i64)base;
        op.dict_region = dictionary;
        op.dict_count = (u32)dict_count;
        if (scaled) {
            op.scale = scaled->scale;
            if (scaled->num_patches) {
                op.patches = patches(job, *scaled);
                op.num_patches = (u32)scaled->num_patches;
            }
        }
        job.builder.op(op);
        return level;
    }

  private:
    Input spread(Job& job, const Stream& stream) const {
        Input input = stream.is_pair ? stream.place(job) : input_of(job, stream.as_source(job, true));
        input.op.kind = OP_NULLS;
        input.op.bits0 = nulls->bits(job);
        input.op.anchors = nulls->anchors(job);
        return input;
    }

    u32 patches(Job& job, const Scaled& scaled) const {
        const u64* positions = scaled.positions;
        if (nulls) {
            u64* items = job.space.take<u64>(scaled.num_patches);
            u64 item = 0, present = 0;
            for (u64 k = 0; k < scaled.num_patches; ++k) {
                for (;; ++item)
                    if (nulls->mask[item] && present++ == positions[k]) break;
                items[k] = item++;
            }
            positions = items;
        }
        u8* at;
        const u32 handle = job.builder.stream(scaled.num_bytes(), &at);
        for (u64 k = 0; k < scaled.num_patches; ++k) {
            u32* record = (u32*)(at + k * (scaled.size == 4 ? 8 : 16));
            record[0] = (u32)positions[k];
            if (scaled.size == 4) record[1] = ((const u32*)scaled.bits)[scaled.positions[k]];
            else std::memcpy(record + 2, (const u64*)scaled.bits + scaled.positions[k], 8);
        }
        return handle;
    }
};

// One way to store the values of a region.
class Candidate {
  public:
    u64 num_bytes = 0;
    double decode_ns = 0;

    virtual std::string text() const = 0;
    virtual u32 emit(Job& job, const Target& target) const = 0;

  protected:
    ~Candidate() = default;
};

class Constant final : public Candidate {
  public:
    explicit Constant(u64 pattern) : pattern_(pattern) {}

    std::string text() const override { return "constant"; }

    u32 emit(Job& job, const Target& target) const override {
        const u64 present = target.nulls ? target.nulls->num_set : target.count;
        u32* zeros = job.space.take<u32>(present);
        std::fill(zeros, zeros + present, 0u);
        return target.read(job, Packed(job, {zeros, present}), pattern_);
    }

  private:
    u64 pattern_;
};

class Plain final : public Candidate {
  public:
    explicit Plain(const Values& values) : values_(values) {
        num_bytes = values.n * values.size;
        decode_ns = COPY_NS * (double)num_bytes;
    }

    std::string text() const override { return "plain"; }

    u32 emit(Job& job, const Target& target) const override {
        const u32 data = job.builder.stream_of((const u8*)values_.at, num_bytes);
        return copy_op(job, target, data, 0, 0);
    }

    static u32 copy_op(Job& job, const Target& target, u32 data, u32 num_words, u8 flags) {
        OpRecord op = blank_op();
        op.kind = OP_COPY;
        op.out_kind = (u8)target.out_kind;
        op.out_region = target.region;
        op.count = (u32)target.count;
        op.flags = flags;
        op.first_source = job.builder.source({SOURCE_PLAIN, 0, 0, data, NO_STREAM, 0, (u32)target.count, num_words});
        job.builder.op(op);
        return 0;
    }

  private:
    Values values_;
};

// One zstd frame of bytes, where that makes them smaller.
class Compressed final : public Candidate {
  public:
    Compressed(const u8* made, u64 made_bytes, u64 bytes) : made_(made) {
        num_bytes = made_bytes;
        decode_ns = INFLATE_NS * (double)bytes;
    }

    std::string text() const override { return "zstd"; }

    u32 emit(Job& job, const Target& target) const override {
        return Plain::copy_op(job, target, job.builder.stream_of(made_, num_bytes), (u32)num_bytes, COPY_IS_ZSTD);
    }

    // compressed.worth_trying, then the frame; null where it does not pay.
    static const Compressed* of(Job& job, const u8* bytes, u64 n) {
        if (n < MIN_COMPRESSED) return nullptr;
        const u64 middle = n / 2 > COMPRESSED_SAMPLE / 2 ? n / 2 - COMPRESSED_SAMPLE / 2 : 0, stretch = std::min(COMPRESSED_SAMPLE, n - middle);
        const u64 room = n + (n >> 7) + 512;
        u8* made = job.space.take<u8>(room);
        u64 made_bytes = job.options.compress(bytes + middle, stretch, made, room);
        if (made_bytes == ~0ull || !((double)made_bytes < 0.9 * (double)stretch)) return nullptr;
        if (stretch < n) made_bytes = job.options.compress(bytes, n, made, room);
        return made_bytes == ~0ull ? nullptr : job.space.make<Compressed>(made, made_bytes, n);
    }

  private:
    const u8* made_;
};

// A stream (or a pair of halves) above a base; for decimals, divided afterwards.
class Framed final : public Candidate {
  public:
    Framed(u64 base, const Stream* stream, const Scaled* scaled = nullptr) : base_(base), stream_(stream), scaled_(scaled) {
        num_bytes = stream->num_bytes;
        decode_ns = stream->decode_ns;
        if (scaled) {
            num_bytes += scaled->num_bytes();
            decode_ns += DIVIDE_NS * (double)stream->count;
        }
    }

    std::string text() const override {
        if (!scaled_) return stream_->text();
        const std::string patched = scaled_->num_patches ? ", " + grouped(scaled_->num_patches) + " patches" : "";
        return "decimals[1/" + grouped(scaled_->scale) + patched + "](" + stream_->text() + ")";
    }

    u32 emit(Job& job, const Target& target) const override { return target.read(job, *stream_, base_, NO_REGION, 0, 0, scaled_); }

  private:
    u64 base_;
    const Stream* stream_;
    const Scaled* scaled_;
};

typedef std::vector<const Candidate*> Candidates;

inline const Candidate* cheapest(const Candidates& candidates, const Options& options) {
    const Candidate* best = candidates[0];
    double least = weigh(best->num_bytes, best->decode_ns, options);
    for (const Candidate* candidate : candidates) {
        const double cost = weigh(candidate->num_bytes, candidate->decode_ns, options);
        if (cost < least) best = candidate, least = cost;
    }
    return best;
}

inline const Stream* halves(Job& job, const u64* values, u64 n) {
    u32 *low = job.space.take<u32>(n), *high = job.space.take<u32>(n);
    DISPATCH(take_halves(values, n, low, high));
    return job.space.make<Pair>(job.space.make<Packed>(job, Words{low, n}), job.space.make<Packed>(job, Words{high, n}));
}

inline void add_wide(Job& job, const Frame& parts, u64 n, bool spread, Candidates& found) {
    found.push_back(job.space.make<Framed>(parts.base, halves(job, parts.wide, n)));
    if (spread) return;
    const u64 num_runs = DISPATCH(count_starts(parts.wide, n));
    if (!((double)num_runs < MAX_RUN_SHARE * (double)n)) return;
    u8* mask = job.space.take<u8>(n);
    u64* kept = job.space.take<u64>(num_runs + 1);
    DISPATCH(find_starts(parts.wide, n, mask));
    DISPATCH(keep_set(parts.wide, mask, n, kept));
    found.push_back(job.space.make<Framed>(parts.base, job.space.make<Runs>(mask, n, halves(job, kept, num_runs))));
}

// Values as integers over a power of ten.
struct Decimals {
    i64* integers;
    const u64* patches;
    u64 num_patches;
    u32 scale;
};

inline void try_scale(const Values& values, u64 n, u32 scale, i64* integers, u8* exact) {
    headrace_try_scale(values.at, n, values.size, scale, integers, exact);
}

// decimals.find: the smallest scale that gives all but a few of the values.
inline bool find_decimals(Job& job, const Values& values, Decimals& found) {
    const u64 step = std::max<u64>(values.n / DECIMAL_SAMPLE, 1), sampled = std::min((values.n + step - 1) / step, DECIMAL_SAMPLE);
    u64* sample = job.space.take<u64>(sampled);
    by_size(values.at, values.size, [&](auto* at) {
        auto* to = (decltype(at))sample;
        for (u64 k = 0; k < sampled; ++k) to[k] = at[k * step];
    });
    i64* integers = job.space.take<i64>(values.n);
    u8* exact = job.space.take<u8>(values.n);
    u32 scale = 1;
    for (u32 exponent = 0; exponent < 8; ++exponent, scale *= 10) {
        // most scales fail within the first values
        u64 num_inexact = 0;
        for (u64 first = 0; first < sampled; first += DECIMAL_PIECE) {
            const u64 count = std::min(DECIMAL_PIECE, sampled - first);
            try_scale({(const u8*)sample + first * values.size, count, values.size, false}, count, scale, integers, exact);
            num_inexact += count - DISPATCH(count_set(exact, count));
            if ((double)(sampled - num_inexact) < (1 - MAX_PATCHES) * (double)sampled) break;
        }
        if ((double)(sampled - num_inexact) < (1 - MAX_PATCHES) * (double)sampled) continue;
        try_scale(values, values.n, scale, integers, exact);
        const u64 num_patches = values.n - DISPATCH(count_set(exact, values.n));
        if ((double)num_patches > MAX_PATCHES * (double)values.n) continue;
        u64* patches = job.space.take<u64>(num_patches);
        i64 fill = 0;
        for (u64 i = 0; i < values.n; ++i)
            if (exact[i]) {
                fill = integers[i];
                break;
            }
        for (u64 i = 0, k = 0; k < num_patches; ++i)
            if (!exact[i]) patches[k++] = i, integers[i] = fill;
        found = {integers, patches, num_patches, scale};
        return true;
    }
    return false;
}

// Whether decimals stand for the values: then nothing else is worth a look, their bits are never as narrow.
inline bool add_decimals(Job& job, const Values& values, int budget, Candidates& found) {
    Decimals decimals;
    if (!find_decimals(job, values, decimals)) return false;
    const Frame parts = frame(job, {decimals.integers, values.n, 8, true});
    if (!parts.narrow && values.size == 4) return false;
    const u32 out_kind = values.size == 4 ? OUT_F32_DECIMAL : OUT_F64_DECIMAL;
    const Scaled* scaled = job.space.make<Scaled>(Scaled{decimals.scale, out_kind, values.size, decimals.patches, values.at, decimals.num_patches});
    const Stream* stream = parts.narrow ? choose_stream(job, {parts.narrow, values.n}, budget, true) : halves(job, parts.wide, values.n);
    found.push_back(job.space.make<Framed>(parts.base, stream, scaled));
    return true;
}

// chooser._flat: candidates without a dictionary of their own, for at least one value; `stands_for` is the type of floats and of bytes of
// strings, else −1.
inline void add_flat(Job& job, const Values& values, int stands_for, bool spread, int budget, Candidates& found) {
    const bool decimal_type = stands_for == TYPE_FLOAT32 || stands_for == TYPE_FLOAT64;
    if (decimal_type && values.n >= MIN_DECIMALS && add_decimals(job, values, budget, found)) return;
    const Frame parts = frame(job, values);
    if (parts.narrow) found.push_back(job.space.make<Framed>(parts.base, choose_stream(job, {parts.narrow, values.n}, budget, true)));
    else add_wide(job, parts, values.n, spread, found);
    if (!spread) found.push_back(job.space.make<Plain>(values));
}

// What was chosen, and why.
struct Decision {
    std::string tree, reason;
};

inline const Candidate* best_dictionary(Job& job, const Values& values, int stands_for);
inline double estimate_dictionary(Job& job, const Values& values);

// The name of an encoding, without what is in it.
inline std::string short_name(const std::string& text) { return text.substr(0, std::min(text.find('['), text.find('('))); }

// chooser.choose, for at least one value.
inline const Candidate* choose_values(Job& job, const Values& values, int stands_for, bool spread, std::string& reason) {
    u64 base, span;
    frame_range(values, base, span);
    if (span == 0) {
        reason = grouped(values.n) + " equal values";
        return job.space.make<Constant>(base);
    }
    Candidates candidates;
    add_flat(job, values, stands_for, spread, 2, candidates);
    u64 least = candidates[0]->num_bytes;
    for (const Candidate* candidate : candidates) least = std::min(least, candidate->num_bytes);
    if (stands_for == TYPE_UINT8 && !spread && job.options.compress)
        if (const Candidate* made = Compressed::of(job, (const u8*)values.at, values.n)) candidates.push_back(made);
    if (job.options.dictionary && values.size > 1 && least > SMALL_BYTES && estimate_dictionary(job, values) + (double)RECORD_BYTES < 0.9 * (double)least)
        candidates.push_back(best_dictionary(job, values, stands_for));
    const Candidate* best = cheapest(candidates, job.options);
    reason = grouped(best->num_bytes) + " B";
    for (const Candidate* candidate : candidates)
        if (candidate != best) reason += "; " + short_name(candidate->text()) + " " + grouped(candidate->num_bytes) + " B";
    return best;
}

// The values that are not under a null.
inline Values present_values(Job& job, const Values& values, const Bitmap* nulls) {
    if (!nulls) return values;
    Values present = {job.space.take<u8>((nulls->num_set + 1) * values.size), nulls->num_set, values.size, values.is_signed};
    by_size(values.at, values.size, [&](auto* at) { DISPATCH(keep_set(at, nulls->mask, values.n, (decltype(at))present.at)); });
    return present;
}

inline Decision encode_values(Job& job, const Target& target, const Values& values, int stands_for) {
    const Values present = present_values(job, values, target.nulls);
    if (present.n == 0) {
        Constant(0).emit(job, {target.region, target.out_kind, target.count, nullptr});
        return {target.nulls ? "nulls" : "empty", "nothing present"};
    }
    Decision decision;
    const Candidate* best = choose_values(job, present, stands_for, target.nulls != nullptr, decision.reason);
    best->emit(job, target);
    decision.tree = best->text();
    if (target.nulls) decision.tree = "nulls[" + grouped(target.nulls->n - target.nulls->num_set) + "](" + decision.tree + ")";
    return decision;
}

// Bytes 0 and 1 that no other op reads as bits: one bit a value, or where values rarely change, their changes.
inline Decision encode_mask(Job& job, const Target& target, const u8* mask) {
    const u64 n = target.count;
    Bitmap bitmap(job, mask, n);
    if (bitmap.num_set == 0 || bitmap.num_set == n) {
        Constant(bitmap.num_set > 0).emit(job, target);
        return {"constant", grouped(n) + " equal values"};
    }
    const u64 changes = DISPATCH(count_starts(mask, n)) - 1;
    if ((double)changes < MAX_CHANGES * (double)n) {
        u32* wide = job.space.take<u32>(n);
        DISPATCH(subtract_base(mask, n, 0, wide));
        const Stream* stream = choose_stream(job, {wide, n}, 2, true);
        if (weigh(stream->num_bytes, stream->decode_ns, job.options) < (double)n / 8) {
            target.read(job, *stream, 0);
            return {stream->text(), grouped(stream->num_bytes) + " B; bits " + grouped(n / 8) + " B"};
        }
    }
    bitmap.emit_bytes(job, target.region);
    return {"bits", "a bit a value"};
}

}  // namespace encode
