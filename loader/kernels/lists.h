// List views: encodings/views.py and the list part of encodings/chunk.py in C++, decision for decision and byte for byte. Part of
// host.cpp, after dictionary.h.

namespace encode {

constexpr u64 SAMPLE_ROWS = 1024, MIN_SLIDING_ITEMS = 3, STRETCH_ITEMS = 2048;

// Entries of one level: lists, whose items are `child`, or leaf values.
struct Node {
    u64 n;                    // entries
    const u8* validity;       // a byte an entry, null where nothing is null
    const i64* lengths;       // of lists; null for a leaf
    const i64* offsets;       // of lists, n + 1
    const Node* child;        // of lists
    Values values;            // of a leaf
    const u8* item_validity;  // of a leaf of fixed-size lists with null items
};

// What the leaves of a column are.
struct LeafKind {
    u32 value_type, fixed_size;
};

inline const i64* offsets_of(Job& job, const i64* lengths, u64 n) {
    i64* offsets = job.space.take<i64>(n + 1);
    offsets[0] = 0;
    for (u64 k = 0; k < n; ++k) offsets[k + 1] = offsets[k] + lengths[k];
    return offsets;
}

// Stretches of items that make a pool, in its order.
struct Parts {
    const i64 *starts, *lengths;
    u64 n;
    i64 num_items;
};

// views.Layout; `starts` null when each view starts where the one before ends, `fresh` and `codes` null where entries share nothing that way.
struct Layout {
    u64 num_views = 0;
    const i64 *lengths = nullptr, *starts = nullptr;
    const u8* fresh = nullptr;
    const u32* codes = nullptr;
    bool all_items = true;
    Parts parts = {};
    i64 num_items = 0;
    const char* text = "lists";
    std::string reason = "no repetition found";
};

inline Words narrow_words(Job& job, const i64* values, u64 n) {
    u32* words = job.space.take<u32>(n);
    for (u64 k = 0; k < n; ++k) words[k] = (u32)values[k];
    return {words, n};
}

inline Words zigzag_starts(Job& job, const i64* starts, u64 n) {
    u32* words = job.space.take<u32>(n);
    for (u64 k = 0; k < n; ++k) {
        const i64 step = starts[k] - (k ? starts[k - 1] : 0);
        words[k] = (u32)((u64)step << 1 ^ (u64)(step >> 63));
    }
    return {words, n};
}

// What must agree for items to be equal: one or two planes, none where items cannot be compared.
struct Planes {
    choose::Plane of[2];
    u64 n;
};

inline u64 distinct_rows(Job& job, const choose::Plane& items, const i64* offsets, const i64* rows, u64 n, u32* codes, i64* first) {
    (void)job;
    return choose::distinct_rows(items, offsets, rows, n, codes, first);
}

inline Planes find_planes(Job& job, const Node& child, const LeafKind& leaf) {
    Planes planes = {};
    if (child.lengths) {
        const Planes inner = find_planes(job, *child.child, leaf);
        if (inner.n != 1) return planes;
        i64 *rows = job.space.take<i64>(child.n), *first = job.space.take<i64>(child.n);
        u32* codes = job.space.take<u32>(child.n);
        for (u64 k = 0; k < child.n; ++k) rows[k] = (i64)k;
        choose::distinct_rows(inner.of[0], child.offsets, rows, child.n, codes, first);
        planes = {{{(const u8*)codes, 4}, {}}, 1};
    } else if (leaf.fixed_size) {
        return planes;
    } else {
        planes = {{{(const u8*)child.values.at, child.values.size}, {}}, 1};
    }
    if (!child.validity) return planes;
    u8* shown = job.space.take<u8>(child.n * planes.of[0].item_bytes);
    by_size(planes.of[0].items, (u32)planes.of[0].item_bytes, [&](auto* at) {
        auto* to = (decltype(at))shown;
        for (u64 k = 0; k < child.n; ++k) to[k] = child.validity[k] ? at[k] : 0;
    });
    return {{{shown, planes.of[0].item_bytes}, {child.validity, 1}}, 2};
}

// Encoded bytes of an item, estimated from a stretch of items.
inline double item_bytes(Job& job, const Node& child, const LeafKind& leaf, u32 leaf_bytes) {
    if (child.lengths) {
        const double mean_items = child.n ? (double)child.offsets[child.n] / (double)child.n : 0.0;
        return 0.5 + mean_items * item_bytes(job, *child.child, leaf, leaf_bytes);
    }
    const Values& values = child.values;
    if (leaf.value_type == TYPE_UINT8 || !values.n) return leaf_bytes;
    const u64 middle = values.n / 2, first = middle > STRETCH_ITEMS ? middle - STRETCH_ITEMS : 0, end = std::min(middle + STRETCH_ITEMS, values.n);
    const Frame parts = frame(job, {(const u8*)values.at + first * values.size, end - first, values.size, values.is_signed});
    if (!parts.narrow) return leaf_bytes;
    return std::max((double)choose_stream(job, {parts.narrow, end - first}, 1)->num_bytes / (double)(end - first), 0.05);
}

// Finds the layout whose pool and views take least: views.choose_layout.
class LayoutSearch {
  public:
    LayoutSearch(Job& job, const Node& lists, const Planes& planes, double item_bytes)
        : job_(job), n_(lists.n), lengths_(lists.lengths), offsets_(lists.offsets), planes_(planes), item_bytes_(item_bytes) {}

    Layout run(bool slide) {
        Layout plain;
        plain.num_views = n_;
        plain.lengths = lengths_;
        plain.num_items = offsets_[n_];
        if (!planes_.n || !job_.options.list_views || n_ < 2 || !plain.num_items) return plain;
        best_cost_ = (double)plain.num_items * item_bytes_ + (double)view_bytes(plain);
        best_ = plain;
        u8* fresh = job_.space.take<u8>(n_);
        choose::fresh_rows(planes_.of, planes_.n, offsets_, n_, fresh);
        fresh_ = fresh;
        num_fresh_ = DISPATCH(count_set(fresh, n_));
        i64* rows = job_.space.take<i64>(num_fresh_ + 1);
        for (u64 k = 0, at = 0; k < n_; ++k) {
            rows[at] = (i64)k;
            at += fresh[k];
        }
        rows_ = rows;
        i64 fresh_items = plain.num_items;
        if (num_fresh_ < n_) fresh_items = show(repeats());
        const double limit = (1 - job_.options.min_pool_saving) * (double)fresh_items;
        for (int newest_first = 0; slide && newest_first < 2; ++newest_first)
            if (sliding_pays(newest_first)) show_sliding(newest_first, limit);
        if (job_.options.dictionary && planes_.n == 1) show_shared();
        if (improved_) best_.reason = "pool of " + grouped((u64)best_.num_items) + " items instead of " + grouped((u64)plain.num_items) + "; " + best_.reason;
        return best_;
    }

  private:
    i64 length(i64 row) const { return offsets_[row + 1] - offsets_[row]; }

    u64 view_bytes(const Layout& layout) const {
        u64 total = Packed(job_, narrow_words(job_, layout.lengths, layout.num_views)).num_bytes;
        if (layout.starts) total += Packed(job_, zigzag_starts(job_, layout.starts, layout.num_views)).num_bytes;
        if (layout.fresh) total += n_ / 8 + 4 * num_vectors(n_);
        return total + (layout.codes ? Packed(job_, {layout.codes, n_}).num_bytes : 0);
    }

    i64 show(Layout layout) {
        const double cost = (double)layout.num_items * item_bytes_ + (double)view_bytes(layout);
        const i64 num_items = layout.num_items;
        if (cost < 0.97 * best_cost_) best_ = std::move(layout), best_cost_ = cost, improved_ = true;
        return num_items;
    }

    Layout repeats() const {
        i64 *lengths = job_.space.take<i64>(num_fresh_), *starts = job_.space.take<i64>(num_fresh_);
        Layout layout;
        for (u64 k = 0; k < num_fresh_; ++k) starts[k] = offsets_[rows_[k]], lengths[k] = length(rows_[k]), layout.num_items += lengths[k];
        layout.num_views = num_fresh_;
        layout.lengths = lengths;
        layout.fresh = fresh_;
        layout.all_items = false;
        layout.parts = {starts, lengths, num_fresh_, layout.num_items};
        layout.text = "views";
        layout.reason = grouped(num_fresh_) + " of " + grouped(n_) + " rows differ from the row before";
        return layout;
    }

    // Whether stretches of neighbouring rows slide enough to look at all rows.
    bool sliding_pays(bool newest_first) const {
        const u64 half = num_fresh_ / 2, middle = half > SAMPLE_ROWS / 4 ? half - SAMPLE_ROWS / 4 : 0;
        const u64 head = std::min(SAMPLE_ROWS / 4, num_fresh_), end = std::min(middle + SAMPLE_ROWS / 2, num_fresh_);
        i64* rows = job_.space.take<i64>(SAMPLE_ROWS);
        u64 count = 0;
        i64 total = 0;
        auto add = [&](u64 from, u64 to) {
            for (u64 k = from; k < to; ++k)
                if (length(rows_[k]) > 0) rows[count++] = rows_[k], total += length(rows_[k]);
        };
        add(0, std::min(head, middle));
        add(middle, std::max(end, head));
        if (!count || total < (i64)(MIN_SLIDING_ITEMS * count)) return false;
        if (newest_first) std::reverse(rows, rows + count);
        i64* overlaps = job_.space.take<i64>(count);
        choose::slide_overlaps(planes_.of, planes_.n, offsets_, rows, count, job_.options.max_slide_items, overlaps);
        i64 saved = 0;
        for (u64 k = 0; k < count; ++k) saved += overlaps[k];
        return (double)saved > 0.5 * job_.options.min_pool_saving * (double)total;
    }

    // Views that overlap in a pool; every view ends where the pool ended when it was added. Empty rows lie wherever the row before does.
    void show_sliding(bool newest_first, double limit) {
        const u64 count = num_fresh_;
        i64 *order = job_.space.copy(rows_, count), *full = job_.space.take<i64>(count), *found = job_.space.take<i64>(count);
        if (newest_first) std::reverse(order, order + count);
        u64 num_full = 0;
        for (u64 k = 0; k < count; ++k)
            if (length(order[k]) > 0) full[num_full++] = order[k];
        choose::slide_overlaps(planes_.of, planes_.n, offsets_, full, num_full, job_.options.max_slide_items, found);
        i64 *lengths = job_.space.take<i64>(count), *starts = job_.space.take<i64>(count);
        i64 *part_starts = job_.space.take<i64>(count), *added = job_.space.take<i64>(count);
        Layout layout;
        u64 slides = 0;
        i64 start = 0;
        for (u64 k = 0, at = 0; k < count; ++k) {
            lengths[k] = length(order[k]);
            const i64 overlap = lengths[k] ? found[at++] : 0;
            slides += overlap > 0;
            part_starts[k] = offsets_[order[k]] + overlap;
            added[k] = lengths[k] - overlap;
            layout.num_items += added[k];
            if (lengths[k]) start = layout.num_items - lengths[k];
            starts[k] = start;
        }
        if (!((double)layout.num_items < limit)) return;
        if (newest_first) std::reverse(lengths, lengths + count), std::reverse(starts, starts + count);
        layout.num_views = count;
        layout.lengths = lengths;
        layout.starts = starts;
        layout.fresh = num_fresh_ < n_ ? fresh_ : nullptr;
        layout.all_items = false;
        layout.parts = {part_starts, added, count, layout.num_items};
        layout.text = newest_first ? "sliding views, newest first" : "sliding views";
        layout.reason = grouped(slides) + " of " + grouped(count) + " distinct rows continue a neighbour";
        show(std::move(layout));
    }

    // Views by code, for items without nulls; nothing when rows are mostly distinct.
    void show_shared() {
        const u64 step = std::max<u64>(n_ / SAMPLE_ROWS, 1), sampled = std::min((n_ + step - 1) / step, SAMPLE_ROWS);
        i64 *sample = job_.space.take<i64>(sampled), *first = job_.space.take<i64>(std::max(sampled, num_fresh_));
        u32 *numbers = job_.space.take<u32>(std::max(sampled, num_fresh_)), *codes = job_.space.take<u32>(n_);
        for (u64 k = 0; k < sampled; ++k) sample[k] = (i64)(k * step);
        if ((double)choose::distinct_rows(planes_.of[0], offsets_, sample, sampled, numbers, first) > 0.7 * (double)sampled) return;
        const u64 count = choose::distinct_rows(planes_.of[0], offsets_, rows_, num_fresh_, numbers, first);
        for (u64 k = 0, at = 0; k < n_; ++k) {
            at += fresh_[k];
            codes[k] = numbers[at - 1];
        }
        Layout layout;
        i64 *lengths = job_.space.take<i64>(count), *starts = job_.space.take<i64>(count);
        for (u64 k = 0; k < count; ++k) {
            const i64 row = rows_[first[k]];
            starts[k] = offsets_[row];
            lengths[k] = length(row);
            layout.num_items += lengths[k];
        }
        layout.num_views = count;
        layout.lengths = lengths;
        layout.codes = codes;
        layout.all_items = false;
        layout.parts = {starts, lengths, count, layout.num_items};
        layout.text = "shared views";
        layout.reason = grouped(count) + " distinct of " + grouped(n_) + " rows";
        show(std::move(layout));
    }

    Job& job_;
    u64 n_;
    const i64 *lengths_, *offsets_;
    const Planes& planes_;
    double item_bytes_;
    const u8* fresh_ = nullptr;
    const i64* rows_ = nullptr;  // the fresh ones
    u64 num_fresh_ = 0;
    Layout best_;
    double best_cost_ = 0;
    bool improved_ = false;
};

// The op that turns lengths, and starts where windows slide, into views; adds its description, returns its level.
inline u32 emit_ranges(Job& job, const Layout& layout, u16 region, std::string& text) {
    const u64 count = layout.num_views, vectors = num_vectors(count);
    const Words lengths = narrow_words(job, layout.lengths, count);
    u32* anchors = job.space.take<u32>(vectors);
    Source placed[2];
    u32 num_sources = 1;
    OpRecord op = blank_op();
    if (!layout.starts) {
        i64 sum = 0;
        for (u64 k = 0; k < count; sum += layout.lengths[k++])
            if (k % VECTOR == 0) anchors[k / VECTOR] = (u32)sum;
        const Stream* stream = choose_stream(job, lengths, 2, true);
        placed[0] = stream->as_source(job, false);
        op.scan = SCAN_EXCLUSIVE_SUM;
        text = "lengths=" + stream->text();
    } else {
        for (u64 k = 0; k < vectors; ++k) anchors[k] = k ? (u32)layout.starts[k * VECTOR - 1] : 0;
        const Stream* steps = choose_stream(job, zigzag_starts(job, layout.starts, count));
        const Stream* stream = choose_stream(job, lengths);
        placed[0] = steps->as_source(job, true);
        placed[1] = stream->as_source(job, true);
        num_sources = 2;
        op.scan = SCAN_ZIGZAG_SUM;
        text = "starts=" + steps->text() + ", lengths=" + stream->text();
    }
    u32 level = 0;
    for (u32 k = 0; k < num_sources; ++k) {
        const u16 number = job.builder.source(placed[k].record);
        if (k == 0) op.first_source = number;
        level = std::max(level, placed[k].level);
    }
    op.kind = OP_DIRECT;
    op.out_kind = OUT_VIEW;
    op.out_region = region;
    op.count = (u32)count;
    op.level = (u8)level;
    op.num_sources = (u8)num_sources;
    op.scan_anchors = job.builder.stream_of(anchors, vectors);
    job.builder.op(op);
    return level;
}

// Writes the VIEWS region of `count` entries; its description.
inline std::string emit_views(Job& job, const Layout& layout, u32 depth, u64 count) {
    const u16 region = job.builder.region(ROLE_VIEWS, depth, 8, TYPE_UINT64, count);
    const bool shared = layout.fresh || layout.codes;
    const u64 num_views = layout.num_views;
    const u16 views = shared ? job.builder.region(ROLE_SCRATCH, depth, 8, TYPE_UINT64, num_views) : region;
    std::string text;
    const u32 level = emit_ranges(job, layout, views, text);
    const Stream* codes = layout.codes ? choose_stream(job, {layout.codes, count}) : nullptr;
    if (layout.fresh && (double)num_views < MAX_CHANGES * (double)count) {
        // few views, many rows each: numbers that rise now and then take less than a bit a row
        u32* numbers = job.space.take<u32>(count);
        u32 number = ~0u;
        for (u64 k = 0; k < count; ++k) numbers[k] = number += layout.fresh[k];
        codes = choose_stream(job, {numbers, count});
        if (codes->num_bytes >= count / 8) codes = nullptr;
    }
    if (!shared) return text;
    Input input;
    if (codes) {
        input = codes->scans ? input_of(job, codes->as_source(job, true)) : codes->place(job);
        text += ", rows=codes[" + grouped(num_views) + "](" + codes->text() + ")";
    } else {
        Bitmap bitmap(job, layout.fresh, count);
        input = {blank_op(), 0};
        input.op.kind = OP_RANK;
        input.op.num_sources = 0;
        input.op.bits0 = bitmap.bits(job);
        input.op.anchors = bitmap.anchors(job);
        text += ", rows=fresh[" + grouped(num_views) + " of " + grouped(count) + "]";
    }
    OpRecord& op = input.op;
    op.out_kind = OUT_VIEW;
    op.out_region = region;
    op.count = (u32)count;
    op.level = (u8)std::max(level + 1, input.level);
    op.dict_region = views;
    op.dict_count = (u32)num_views;
    job.builder.op(op);
    return text;
}

// The entries of the stretches, end to end.
inline Node* take_parts(Job& job, const Node& child, const Parts& parts) {
    Node* taken = job.space.make<Node>(child);
    taken->n = (u64)parts.num_items;
    auto gather = [&](const void* from, u64 size) {
        u8* made = job.space.take<u8>(taken->n * size);
        u8* at = made;
        for (u64 k = 0; k < parts.n; ++k) {
            const u64 num_bytes = (u64)parts.lengths[k] * size;
            if (num_bytes) std::memcpy(at, (const u8*)from + (u64)parts.starts[k] * size, num_bytes);
            at += num_bytes;
        }
        return made;
    };
    if (child.validity) taken->validity = gather(child.validity, 1);
    if (!child.lengths) {
        const u64 each = child.n ? child.values.n / child.n : 0;  // values of an entry
        taken->values.at = gather(child.values.at, each * child.values.size);
        taken->values.n = taken->n * each;
        if (child.item_validity) taken->item_validity = gather(child.item_validity, each);
        return taken;
    }
    taken->lengths = (const i64*)gather(child.lengths, 8);
    const i64* starts = (const i64*)gather(child.offsets, 8);
    taken->offsets = offsets_of(job, taken->lengths, taken->n);
    taken->child = take_parts(job, *child.child, {starts, taken->lengths, taken->n, taken->offsets[taken->n]});
    return taken;
}

inline Decision encode_leaf(Job& job, const Node& node, const LeafKind& leaf, u32 depth) {
    Bitmap* nulls = nullptr;
    if (node.validity) {
        nulls = job.space.make<Bitmap>(job, node.validity, node.n);
        nulls->emit_validity(job, depth);
    }
    if (leaf.fixed_size) {
        // the entries' nulls are zeros already; what the op spreads are null items
        nulls = nullptr;
        if (node.item_validity) {
            nulls = job.space.make<Bitmap>(job, node.item_validity, node.values.n);
            nulls->emit_validity(job, depth + 1);
        }
    }
    Values values = node.values;
    const u64 count = values.n;
    u64 base = 0, span = ~0ull;
    if (depth && !nulls && (leaf.value_type == TYPE_INT64 || leaf.value_type == TYPE_UINT64) && count) {
        frame_range(values, base, span);
        if (span >> 32) {
            base = 0;
        } else {
            u32* deltas = job.space.take<u32>(count);
            typed(values, [&](auto* at) { DISPATCH(subtract_base(at, count, base, deltas)); });
            values = {deltas, count, 4, false};
        }
    }
    const u16 region = job.builder.region(ROLE_VALUES, depth, values.size, leaf.value_type, count, (i64)base);
    const Target target = {region, out_kind_of(values.size), count, nulls};
    if (leaf.value_type == TYPE_BOOL && count) {
        const u8* mask = (const u8*)values.at;
        if (nulls) {
            u8* shown = job.space.take<u8>(count);
            for (u64 k = 0; k < count; ++k) shown[k] = mask[k] & nulls->mask[k];
            mask = shown;
        }
        return encode_mask(job, {region, target.out_kind, count, nullptr}, mask);
    }
    const bool stands = leaf.value_type >= TYPE_FLOAT16 || (depth && leaf.value_type == TYPE_UINT8);
    return encode_values(job, target, values, stands ? (int)leaf.value_type : -1);
}

// chunk._encode_node: validity, views level by level, and the leaf's values.
inline Decision encode_node(Job& job, const Node& node, const LeafKind& leaf, u32 leaf_bytes, u32 depth = 0) {
    if (!node.lengths) return encode_leaf(job, node, leaf, depth);
    if (node.validity) {
        const u16 region = job.builder.region(ROLE_VALIDITY, depth, 1, TYPE_BOOL, node.n);
        encode_mask(job, {region, OUT_U8, node.n, nullptr}, node.validity);
    }
    const bool slide = leaf.value_type != TYPE_UINT8 || node.child->lengths;
    const Planes planes = job.options.list_views ? find_planes(job, *node.child, leaf) : Planes{};
    Layout layout = LayoutSearch(job, node, planes, item_bytes(job, *node.child, leaf, leaf_bytes)).run(slide);
    const std::string views = emit_views(job, layout, depth, node.n);
    const Node* pool = layout.all_items ? node.child : take_parts(job, *node.child, layout.parts);
    const Decision items = encode_node(job, *pool, leaf, leaf_bytes, depth + 1);
    return {std::string(layout.text) + "(pool=" + items.tree + ", " + views + ")", layout.reason + "; pool " + items.reason};
}

}  // namespace encode
