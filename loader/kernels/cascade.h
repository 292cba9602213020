// Which streams stand for 32-bit values: encodings/{stream,delta,runs,split,cascade}.py in C++, decision for decision and byte for byte.
// Part of host.cpp, after the instruction sets.

#include "chunk_builder.h"

namespace encode {

constexpr double UNPACK_NS = 0.25, EXCEPTION_NS = 2.0, SUM_NS = 0.35, RUN_NS = 0.5, SPLIT_NS = 0.7;
constexpr u64 MIN_SPLIT = 256, MIN_NESTED = 4096, NESTED_BYTES = 256, SMALL_BYTES = 192, STRETCH = 1024;
constexpr double MAX_RUN_SHARE = 0.4, MIN_SAVING = 0.98, RARE_CHANGES = 1.0 / 20;

inline u64 num_vectors(u64 count) { return (count + VECTOR - 1) / VECTOR; }

// zstd of Python's side: writes a frame to `out` and returns its size, ~0 if there is no room for it.
typedef u64 (*Compress)(const u8* bytes, u64 num_bytes, u8* out, u64 room);

struct Options {
    double bytes_per_ns, min_pool_saving;
    i64 max_slide_items;
    Compress compress;  // null: do not
    u8 dictionary, list_views, nested_splits, reserved[5];
};

static_assert(sizeof(Options) == 40, "mirrors native_columns.OPTIONS");

// What all encoders of a chunk share.
struct Job {
    const Options& options;
    Workspace& space;
    ChunkBuilder& builder;
};

inline double weigh(u64 num_bytes, double decode_ns, const Options& options) { return (double)num_bytes + options.bytes_per_ns * decode_ns; }

struct Words {
    const u32* at;
    u64 n;
};

// A source that is not in the chunk's table yet; `level` is the lowest of an op that may read it.
struct Source {
    SourceRecord record;
    u32 level;
};

// How an op finds its input: an OpRecord of which those fields are set.
struct Input {
    OpRecord op;
    u32 level;
};

class Stream {
  public:
    u64 count = 0, num_bytes = 0;
    double decode_ns = 0;
    bool scans = false, is_pair = false;

    virtual std::string text() const = 0;
    virtual Input place(Job& job) const = 0;
    virtual Source as_source(Job& job, bool by_rank) const = 0;

  protected:
    ~Stream() = default;
};

inline Input input_of(Job& job, const Source& source) {
    OpRecord op = blank_op();
    op.kind = OP_DIRECT;
    op.first_source = job.builder.source(source.record);
    return {op, source.level};
}

inline Source materialise(Job& job, const Stream& stream) {
    const Input placed = stream.place(job);
    const u16 region = job.builder.region(ROLE_SCRATCH, 0, 4, TYPE_UINT32, stream.count);
    OpRecord op = placed.op;
    op.out_region = region;
    op.out_kind = OUT_U32;
    op.count = (u32)stream.count;
    op.level = (u8)placed.level;
    job.builder.op(op);
    return {{SOURCE_PLAIN, 0, region, NO_STREAM, NO_STREAM, 0, (u32)stream.count, 0}, placed.level + 1};
}

inline u32 stream_of_mask(Job& job, const u8* mask, u64 n) {
    u8* at;
    const u32 handle = job.builder.stream(num_vectors(n) * (VECTOR / 8), &at);
    DISPATCH(pack_mask(mask, n, (u32*)at));
    return handle;
}

// Plans of a stream's vectors, and what they say together.
struct Packing {
    const VectorPlan* vectors;
    u64 num_words, num_exceptions;
    u32 least_width, greatest_width;
    bool constant;
};

inline Packing plan_packing(Job& job, Words values, bool with_exceptions) {
    const u64 vectors = num_vectors(values.n);
    VectorPlan* plans = job.space.take<VectorPlan>(vectors);
    Packing found = {plans, 0, 0, vectors ? ~0u : 0, 0, true};
    for (u64 k = 0; k < vectors; ++k) {
        plans[k] = plan_of(values.at, values.n, k * VECTOR, with_exceptions);
        found.num_words += plans[k].num_words;
        found.num_exceptions += plans[k].num_exceptions;
        found.least_width = std::min(found.least_width, plans[k].width);
        found.greatest_width = std::max(found.greatest_width, plans[k].width);
        found.constant = found.constant && plans[k].base == plans[0].base;
    }
    found.constant = found.constant && found.greatest_width == 0;
    return found;
}

inline std::string bits_text(const Packing& plan) {
    if (plan.least_width == plan.greatest_width) return "packed " + std::to_string(plan.greatest_width) + " bits";
    return "packed " + std::to_string(plan.least_width) + "-" + std::to_string(plan.greatest_width) + " bits";
}

// Writes records, then words; a source of that kind.
inline Source pack_source(Job& job, Words values, const Packing& plan, SourceKind kind) {
    const u64 vectors = num_vectors(values.n), total = plan.num_words + plan.num_exceptions;
    u8* at;
    const u32 meta = job.builder.stream(vectors * sizeof(VectorMeta), &at);
    VectorMeta* metas = job.space.take<VectorMeta>(vectors);
    const u32 data = job.builder.stream(total * 4, &at);
    u64 used = 0;
    for (u64 k = 0; k < vectors; ++k) pack_behind(values.at, values.n, k * VECTOR, plan.vectors[k], (u32*)at, used, metas[k]);
    if (vectors) std::memcpy(at - (data - meta), metas, vectors * sizeof(VectorMeta));
    return {{(u8)kind, 0, 0, data, meta, 0, (u32)values.n, (u32)total}, 0};
}

// A constant or packed stream.
class Packed final : public Stream {
  public:
    Packed(Job& job, Words values) : values_(values), plan_(plan_packing(job, values, false)) {
        count = values.n;
        num_bytes = plan_.constant ? 0 : plan_.num_words * 4 + num_vectors(count) * sizeof(VectorMeta);
        decode_ns = UNPACK_NS * (double)count;
    }

    std::string text() const override { return plan_.constant ? "constant" : bits_text(plan_); }

    Source as_source(Job& job, bool) const override {
        if (plan_.constant) return {{SOURCE_CONSTANT, 0, 0, NO_STREAM, NO_STREAM, count ? plan_.vectors[0].base : 0, (u32)count, 0}, 0};
        return pack_source(job, values_, plan_, SOURCE_PACKED);
    }

    Input place(Job& job) const override { return input_of(job, as_source(job, true)); }

  private:
    Words values_;
    Packing plan_;
};

class Excepted final : public Stream {
  public:
    Excepted(Job& job, Words values) : values_(values), plan_(plan_packing(job, values, true)) {
        count = values.n;
        num_bytes = (plan_.num_words + plan_.num_exceptions) * 4 + num_vectors(count) * sizeof(VectorMeta);
        decode_ns = UNPACK_NS * (double)count + EXCEPTION_NS * (double)plan_.num_exceptions;
    }

    std::string text() const override { return bits_text(plan_) + " and " + grouped(plan_.num_exceptions) + " exceptions"; }

    Source as_source(Job& job, bool by_rank) const override {
        return by_rank ? materialise(job, *this) : pack_source(job, values_, plan_, SOURCE_PACKED_EXCEPTIONS);
    }

    Input place(Job& job) const override { return input_of(job, as_source(job, false)); }

  private:
    Words values_;
    Packing plan_;
};

// Two streams, the low and the high halves of 64-bit values.
class Pair final : public Stream {
  public:
    Pair(const Stream* low, const Stream* high) : low_(low), high_(high) {
        is_pair = true;
        count = low->count;
        num_bytes = low->num_bytes + high->num_bytes;
        decode_ns = low->decode_ns + high->decode_ns;
    }

    std::string text() const override { return "halves(low=" + low_->text() + ", high=" + high_->text() + ")"; }

    Input place(Job& job) const override {
        const Source low = low_->as_source(job, true), high = high_->as_source(job, true);
        Input input = input_of(job, low);
        job.builder.source(high.record);
        input.op.num_sources = 2;
        input.level = std::max(low.level, high.level);
        return input;
    }

    Source as_source(Job&, bool) const override { std::abort(); }  // 64-bit values are no 32-bit source

  private:
    const Stream *low_, *high_;
};

// Equal neighbours once, spread by a bitmap; the values may be a pair.
class Runs final : public Stream {
  public:
    Runs(const u8* mask, u64 n, const Stream* values) : mask_(mask), values_(values) {
        count = n;
        num_bytes = num_vectors(n) * (VECTOR / 8 + 4) + values->num_bytes;
        decode_ns = RUN_NS * (double)n + values->decode_ns;
    }

    std::string text() const override { return "runs[" + grouped(values_->count) + "](" + values_->text() + ")"; }

    Input place(Job& job) const override {
        Input input = values_->is_pair ? values_->place(job) : input_of(job, values_->as_source(job, true));
        input.op.kind = OP_RUNS;
        input.op.bits0 = stream_of_mask(job, mask_, count);
        input.op.anchors = put_anchors(job, mask_, count);
        return input;
    }

    Source as_source(Job& job, bool) const override { return materialise(job, *this); }

    // Set bits before each vector, as a stream.
    static u32 put_anchors(Job& job, const u8* mask, u64 n) {
        u32* anchors = job.space.take<u32>(num_vectors(n));
        u32 sum = 0;
        for (u64 k = 0; k < num_vectors(n); ++k) {
            anchors[k] = sum;
            sum += (u32)DISPATCH(count_set(mask + k * VECTOR, std::min<u64>(VECTOR, n - k * VECTOR)));
        }
        return job.builder.stream_of(anchors, num_vectors(n));
    }

  private:
    const u8* mask_;
    const Stream* values_;
};

// Sums of a stream of differences.
class Delta final : public Stream {
  public:
    Delta(const u32* anchors, const Stream* steps, ScanKind scan) : anchors_(anchors), steps_(steps), scan_(scan) {
        scans = true;
        count = steps->count;
        num_bytes = steps->num_bytes + num_vectors(count) * 4;
        decode_ns = steps->decode_ns + SUM_NS * (double)count;
    }

    std::string text() const override { return "delta(" + steps_->text() + ")"; }

    Input place(Job& job) const override {
        Input input = input_of(job, steps_->as_source(job, false));
        input.op.scan = (u8)scan_;
        input.op.scan_anchors = job.builder.stream_of(anchors_, num_vectors(count));
        return input;
    }

    Source as_source(Job& job, bool) const override { return materialise(job, *this); }

  private:
    const u32* anchors_;
    const Stream* steps_;
    ScanKind scan_;
};

inline const Stream* best_split(Job& job, Words values, double below_bytes, bool nested);

// Values split by thresholds; a class that is skewed in itself may be split again.
class Split final : public Stream {
  public:
    Split(Job& job, Words values, const u32* thresholds, u32 num_thresholds, bool nested) : num_classes_(num_thresholds + 1) {
        count = values.n;
        const u64 vectors = num_vectors(count);
        u64 at_least[3] = {};
        headrace_class_sizes(values.at, count, thresholds, num_thresholds, at_least);
        u32* parts[MAX_CLASSES] = {};
        u64 sizes[MAX_CLASSES] = {};
        for (u32 k = 0; k < num_classes_; ++k) {
            sizes[k] = (k ? at_least[k - 1] : count) - (k < num_thresholds ? at_least[k] : 0);
            parts[k] = job.space.take<u32>(sizes[k] + 8);
        }
        planes_[0] = job.space.take<u32>(vectors * ROWS);
        planes_[1] = job.space.take<u32>(num_thresholds > 1 ? vectors * ROWS : 0);
        anchors_ = job.space.take<u32>(vectors * num_thresholds);
        DISPATCH(partition_values(values.at, count, thresholds, num_thresholds, planes_[0], planes_[1], anchors_, parts));
        double classes_ns = 0;
        num_bytes = vectors * (num_thresholds > 1 ? 2 : 1) * (VECTOR / 8) + vectors * num_thresholds * 4 + 24 * num_classes_;
        for (u32 k = 0; k < num_classes_; ++k) {
            classes_[k] = class_stream(job, {parts[k], sizes[k]}, nested);
            num_bytes += classes_[k]->num_bytes;
            classes_ns += classes_[k]->decode_ns;
        }
        decode_ns = SPLIT_NS * (double)count + classes_ns;
    }

    std::string text() const override {
        std::string made = "split(";
        for (u32 k = 0; k < num_classes_; ++k) made += (k ? ", " : "") + grouped(classes_[k]->count) + ": " + classes_[k]->text();
        return made + ")";
    }

    Input place(Job& job) const override {
        Source sources[MAX_CLASSES];
        for (u32 k = 0; k < num_classes_; ++k) sources[k] = classes_[k]->as_source(job, true);
        Input input = input_of(job, sources[0]);
        for (u32 k = 1; k < num_classes_; ++k) {
            job.builder.source(sources[k].record);
            input.level = std::max(input.level, sources[k].level);
        }
        input.op.kind = OP_SPLIT;
        input.op.num_sources = (u8)num_classes_;
        input.op.bits0 = job.builder.stream_of(planes_[0], num_vectors(count) * ROWS);
        if (num_classes_ > 2) input.op.bits1 = job.builder.stream_of(planes_[1], num_vectors(count) * ROWS);
        input.op.anchors = job.builder.stream_of(anchors_, num_vectors(count) * (num_classes_ - 1));
        return input;
    }

    Source as_source(Job& job, bool) const override { return materialise(job, *this); }

  private:
    static const Stream* class_stream(Job& job, Words values, bool nested) {
        const Stream* packed = job.space.make<Packed>(job, values);
        if (!nested || values.n < MIN_NESTED) return packed;
        const Stream* split = best_split(job, values, (double)packed->num_bytes - (double)NESTED_BYTES, false);
        return split ? split : packed;
    }

    u32 num_classes_;
    u32 *planes_[2], *anchors_;
    const Stream* classes_[MAX_CLASSES];
};

inline double estimate_split(u64 count, double bits, u32 num_classes) {
    const double planes = num_classes == 2 ? 1 : 2;
    const double each = bits + planes + 32.0 * (num_classes - 1) / VECTOR + 8.0 * sizeof(VectorMeta) / VECTOR;
    return (double)count * each / 8 + 24.0 * num_classes;
}

// The best split whose estimate lies below some bytes, or null.
inline const Stream* best_split(Job& job, Words values, double below_bytes, bool nested) {
    u32 low = 0, high = 0, thresholds[3], two[3];
    DISPATCH(find_range(values.at, values.n, low, high));
    const choose::SplitSearch search(values.at, values.n, low, high);
    double bits = 0;
    u32 num_thresholds = search.run(MAX_CLASSES, thresholds, &bits);
    const double size = estimate_split(values.n, bits, MAX_CLASSES);
    bool found = num_thresholds && size < below_bytes;
    below_bytes = std::min(size, below_bytes);
    // two classes never take fewer bits than four, only a plane less; infinite means that there are no four
    if (estimate_split(values.n, std::isfinite(bits) ? bits : 0.0, 2) < below_bytes) {
        const u32 num_two = search.run(2, two, &bits);
        if (num_two && estimate_split(values.n, bits, 2) < below_bytes) {
            found = true;
            num_thresholds = num_two;
            std::copy(two, two + num_two, thresholds);
        }
    }
    return found ? job.space.make<Split>(job, values, thresholds, num_thresholds, nested) : nullptr;
}

// Whether a stretch from the middle takes fewer bits as differences than above its minimum, or rarely changes.
inline bool steps_are_small(Words values) {
    const u64 middle = values.n / 2, first = middle > STRETCH / 2 ? middle - STRETCH / 2 : 0, end = std::min(middle + STRETCH / 2, values.n);
    if (end - first < 2) return false;
    u32 low = 0, high = 0;
    DISPATCH(find_range(values.at + first, end - first, low, high));
    u64 changes = 0, step_bits = 0, value_bits = 0;
    for (u64 i = first; i < end; ++i) value_bits += choose::bits_of(values.at[i] - low);
    for (u64 i = first + 1; i < end; ++i) {
        const u32 before = values.at[i - 1], here = values.at[i], step = here > before ? here - before : before - here;
        changes += step != 0;
        step_bits += choose::bits_of(step);
    }
    const double num_steps = (double)(end - first - 1);
    if ((double)changes < num_steps * RARE_CHANGES) return true;
    return (double)step_bits / num_steps + 1 < 0.95 * ((double)value_bits / (double)(end - first)) + 0.5;
}

// Keeps the cheapest of what it is shown, the first of equals.
class Cheapest {
  public:
    explicit Cheapest(const Options& options) : options_(options) {}

    // Whether it is the cheapest so far.
    bool show(const Stream* stream) {
        const double cost = weigh(stream->num_bytes, stream->decode_ns, options_);
        if (best != nullptr && !(cost < cost_)) return false;
        best = stream;
        cost_ = cost;
        return true;
    }

    const Stream* best = nullptr;

  private:
    const Options& options_;
    double cost_ = 0;
};

// Returns whether one of them is the cheapest so far.
inline bool show_deltas(Job& job, Words values, u64 packed_bytes, int budget, Cheapest& cheapest) {
    const u64 vectors = num_vectors(values.n);
    u32 *steps = job.space.take<u32>(values.n), *zigzag = job.space.take<u32>(values.n), *anchors = job.space.take<u32>(vectors);
    DISPATCH(find_differences(values.at, values.n, false, steps, anchors));
    for (u64 i = 0; i < values.n; ++i) zigzag[i] = steps[i] << 1 ^ (0u - (steps[i] >> 31));
    const Words coded[2] = {{steps, values.n}, {zigzag, values.n}};
    const ScanKind scans[2] = {SCAN_SUM, SCAN_ZIGZAG_SUM};
    const Stream* found[4];
    u32 least = 0;
    for (u32 k = 0; k < 4; ++k) {
        found[k] = k % 2 ? (const Stream*)job.space.make<Excepted>(job, coded[k / 2]) : (const Stream*)job.space.make<Packed>(job, coded[k / 2]);
        if (found[k]->num_bytes < found[least]->num_bytes) least = k;
    }
    if (budget > 1 && values.n >= MIN_SPLIT && SMALL_BYTES < found[least]->num_bytes && found[least]->num_bytes < packed_bytes) {
        const Stream* split = best_split(job, coded[least / 2], MIN_SAVING * (double)found[least]->num_bytes, false);
        if (split) {
            const bool plain = cheapest.show(job.space.make<Delta>(anchors, found[least], scans[least / 2]));
            return cheapest.show(job.space.make<Delta>(anchors, split, scans[least / 2])) || plain;
        }
    }
    bool kept = false;
    for (u32 k = 0; k < 4; ++k) kept = cheapest.show(job.space.make<Delta>(anchors, found[k], scans[k / 2])) || kept;
    return kept;
}

// cascade.choose_stream.
inline const Stream* choose_stream(Job& job, Words values, int budget = 2, bool direct = false) {
    const Stream* packed = job.space.make<Packed>(job, values);
    if (packed->num_bytes <= SMALL_BYTES || budget <= 0) return packed;
    Cheapest cheapest(job.options);
    cheapest.show(packed);
    auto keep_if = [&](bool better, const Workspace::Mark& before) {
        if (!better) job.space.release(before);
    };
    Workspace::Mark before = job.space.mark();
    const u64 num_runs = DISPATCH(count_starts(values.at, values.n));
    if ((double)num_runs < MAX_RUN_SHARE * (double)values.n) {
        u8* mask = job.space.take<u8>(values.n);
        u32* kept = job.space.take<u32>(num_runs + 1);
        DISPATCH(find_starts(values.at, values.n, mask));
        DISPATCH(keep_set(values.at, mask, values.n, kept));
        keep_if(cheapest.show(job.space.make<Runs>(mask, values.n, choose_stream(job, {kept, num_runs}, budget - 1))), before);
    }
    before = job.space.mark();
    if (steps_are_small(values)) keep_if(show_deltas(job, values, packed->num_bytes, budget, cheapest), before);
    before = job.space.mark();
    if (direct) keep_if(cheapest.show(job.space.make<Excepted>(job, values)), before);
    before = job.space.mark();
    if (values.n >= MIN_SPLIT) {
        const Stream* split = best_split(job, values, MIN_SAVING * (double)cheapest.best->num_bytes, job.options.nested_splits && budget > 1);
        keep_if(split && cheapest.show(split), before);
    }
    return cheapest.best;
}

}  // namespace encode
