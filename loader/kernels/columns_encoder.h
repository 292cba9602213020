// Chunks of many columns in one call, on threads: the C ABI of the whole-column encoder. native_columns.py is its only caller. Part of
// host.cpp, after shred.h.

namespace encode {

// One chunk to make: some rows of a column of a record batch.
struct Task {
    const ArrowArray* batch;
    const ArrowSchema* schema;
    u64 column, first_row, num_rows;
};

struct StatsRecord {
    u64 min, max, num_values;
    u32 null_count, flags;
};

// What was made; `failed` where only Python can say why.
struct Made {
    u64 num_bytes, arena_bytes, features;
    u32 checksum, failed;
    StatsRecord stats;
};

static_assert(sizeof(Task) == 40 && sizeof(StatsRecord) == 32 && sizeof(Made) == 64, "mirrors native_columns");

inline double half_value(u16 bits) {
    const u32 exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent ? std::ldexp(1.0 + fraction / 1024.0, (int)exponent - 15) : std::ldexp(fraction / 1024.0, -14);
    return (exponent == 31 ? std::numeric_limits<double>::infinity() : size) * (bits >> 15 ? -1 : 1);
}

inline u64 double_bits(double value) {
    value += 0.0;  // zero has one pattern
    u64 bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}

// The smallest and largest number as patterns of 64 bits; false where there is none.
inline bool stats_range(const Values& values, u32 value_type, u64& low, u64& high) {
    if (!values.n) return false;
    if (value_type == TYPE_FLOAT16) {
        short a = 0, b = 0;
        if (!DISPATCH(number_range((const short*)values.at, values.n, (short)0x7C00, a, b))) return false;
        low = double_bits(half_value((u16)a)), high = double_bits(half_value((u16)b));
    } else if (value_type == TYPE_FLOAT32) {
        int a = 0, b = 0;
        float first, last;
        if (!DISPATCH(number_range((const int*)values.at, values.n, 0x7F800000, a, b))) return false;
        std::memcpy(&first, &a, 4), std::memcpy(&last, &b, 4);
        low = double_bits(first), high = double_bits(last);
    } else if (value_type == TYPE_FLOAT64) {
        i64 a = 0, b = 0;
        double first, last;
        if (!DISPATCH(number_range((const i64*)values.at, values.n, (i64)0x7FF0000000000000ll, a, b))) return false;
        std::memcpy(&first, &a, 8), std::memcpy(&last, &b, 8);
        low = double_bits(first), high = double_bits(last);
    } else {
        u64 span;
        frame_range(values, low, span);
        high = low + span;
    }
    return true;
}

// segment/stats.py's measure.
inline StatsRecord measure(Job& job, const Node& node, const ColumnType& type) {
    StatsRecord stats = {};
    if (node.validity) stats.null_count = (u32)(node.n - DISPATCH(count_set(node.validity, node.n)));
    const Node* deepest = &node;
    while (deepest->lengths) deepest = deepest->child;
    const u64 each = type.leaf.fixed_size ? type.leaf.fixed_size : 1;
    const u8* mask = deepest->item_validity;
    if (deepest->validity) {
        u8* shown = job.space.take<u8>(deepest->values.n);
        for (u64 k = 0; k < deepest->values.n; ++k) shown[k] = deepest->validity[k / each] & (mask ? mask[k] : 1);
        mask = shown;
    }
    Values present = deepest->values;
    if (mask) {
        const Bitmap bitmap(job, mask, present.n);
        present = present_values(job, present, &bitmap);
    }
    stats.num_values = present.n;
    if (type.has_range) stats.flags = stats_range(present, type.leaf.value_type, stats.min, stats.max);
    return stats;
}

struct Chunk {
    std::unique_ptr<u8[]> data;
    std::string note;  // JSON: tree and reason
};

// What one call made; Python holds it until the bytes are where they belong.
struct Encoded {
    std::vector<Chunk> chunks;
};

struct Worker {
    Workspace space;
    ChunkBuilder builder;

    void run(const Task& task, const Options& options, bool with_note, Chunk& chunk, Made& made) {
        space.reset();
        builder.reset();
        Job job = {options, space, builder};
        const ArrowArray& array = *task.batch->children[task.column];
        const ArrowSchema& schema = *task.schema->children[task.column];
        ColumnType type;
        made = {};
        made.failed = !column_type(schema, type);
        if (made.failed) return;
        const Node* node = shred(job, array, schema, (u64)task.batch->offset + task.first_row, task.num_rows, type);
        made.stats = measure(job, *node, type);
        const Decision decision = encode_node(job, *node, type.leaf, type.size);
        made.num_bytes = builder.num_bytes();
        made.failed = made.num_bytes >= MAX_CHUNK_BYTES;
        if (made.failed) return;
        made.arena_bytes = builder.arena_bytes();
        made.features = builder.features();
        chunk.data.reset(new u8[made.num_bytes]);
        builder.finish(task.num_rows, chunk.data.get());
        made.checksum = crc32c::checksum(chunk.data.get(), made.num_bytes, 0, force_portable);
        if (with_note) chunk.note = "{\"tree\":\"" + decision.tree + "\",\"reason\":\"" + decision.reason + "\"}";
    }
};

// segment/blocks.py's bytes of n entries, at most: views of lists count by their lengths, lists by what lies between their ends.
inline u64 most_bytes(const ArrowArray& array, const ArrowSchema& schema, u64 n, const ColumnType& type) {
    if (type.depth == 0) return n * type.size * std::max(type.leaf.fixed_size, 1u);
    const char* format = schema.format;
    const bool is_view = format[0] == '+' && format[1] == 'v', wide = std::strchr("UZL", format[is_view ? 2 : format[0] == '+' ? 1 : 0]) != nullptr;
    u64 items = 0;
    auto count = [&](auto* at) {
        at += array.offset;
        for (u64 k = 0; is_view && k < n; ++k) items += (u64)at[k];
        if (!is_view) items = (u64)(at[n] - at[0]);
    };
    if (n && wide) count((const i64*)array.buffers[is_view ? 2 : 1]);
    if (n && !wide) count((const int*)array.buffers[is_view ? 2 : 1]);
    if (format[0] != '+') return 8 * n + items;
    ColumnType inner = type;
    --inner.depth;
    const ArrowArray& child = *array.children[0];
    const u64 each = inner.depth ? most_bytes(child, *schema.children[0], (u64)child.length, inner) : items * type.size * std::max(type.leaf.fixed_size, 1u);
    // views may show an inner list any number of times
    return 8 * n + (inner.depth && is_view ? 1ull << 50 : each);
}

}  // namespace encode

// supported[k]: whether column k of the schema is of a type that headrace_encode_columns knows.
EXPORT void headrace_encodable_columns(const ArrowSchema* schema, u8* supported) {
    for (i64 k = 0; k < schema->num_children; ++k) {
        encode::ColumnType type;
        supported[k] = encode::column_type(*schema->children[k], type);
    }
}

// Makes the chunk of every task; `noted[k]` asks for what was chosen and why. The result is freed by headrace_encoded_free.
EXPORT encode::Encoded* headrace_encode_columns(const encode::Task* tasks, const u8* noted, u64 num_tasks, const encode::Options* options, u32 num_threads,
                                                encode::Made* made) {
    encode::Encoded* encoded = new encode::Encoded;
    encoded->chunks.resize(num_tasks);
    threads::Team team((unsigned)std::min<u64>(num_threads, num_tasks));
    std::vector<encode::Worker> workers(team.size());
    team.run({num_tasks}, 1, [&](unsigned thread, size_t, u64 k, u64) { workers[thread].run(tasks[k], *options, noted[k], encoded->chunks[k], made[k]); });
    return encoded;
}

// Where the bytes of each chunk are until the result is freed.
EXPORT void headrace_encoded_pointers(const encode::Encoded* encoded, u64* pointers) {
    for (size_t k = 0; k < encoded->chunks.size(); ++k) pointers[k] = (u64)encoded->chunks[k].data.get();
}

// Bytes of each column of a batch as Arrow arrays, at most; ~0 where the type is not known.
EXPORT void headrace_decoded_bytes(const ArrowArray* batch, const ArrowSchema* schema, u64* num_bytes) {
    for (i64 k = 0; k < schema->num_children; ++k) {
        encode::ColumnType type;
        const bool known = encode::column_type(*schema->children[k], type);
        num_bytes[k] = known ? encode::most_bytes(*batch->children[k], *schema->children[k], (u64)batch->length, type) : ~0ull;
    }
}

// Notes end to end, `ends[k]` behind that of task k; with `out` null only the ends.
EXPORT void headrace_encoded_notes(const encode::Encoded* encoded, u64* ends, char* out) {
    u64 at = 0;
    for (size_t k = 0; k < encoded->chunks.size(); ++k) {
        const std::string& note = encoded->chunks[k].note;
        if (out && !note.empty()) std::memcpy(out + at, note.data(), note.size());
        ends[k] = at += note.size();
    }
}

EXPORT void headrace_encoded_free(encode::Encoded* encoded) { delete encoded; }
