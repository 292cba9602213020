// The decode program of some chunks in one pass: what loader/decode/program.py does in NumPy, for requests where that takes longer than
// the decoding. It accepts what the reference accepts and makes the same records; whatever it does not accept it leaves to the reference,
// which says what is wrong. Part of host.cpp.

namespace program {

// Records of a chunk: layout.py's CHUNK_HEADER, REGION, OP and SOURCE, and program.py's REGION_ITEM.
struct ChunkHeader {
    u32 num_rows;
    u16 num_regions, num_ops, num_sources;
    u8 num_levels, flags;
    u32 num_bytes;
    u64 arena_bytes, reserved;
};

struct Region {
    u8 role, depth, item_bytes, value_type;
    u32 flags;
    u64 count;
    i64 base;
};

struct Op {
    u8 kind, out_kind, scan, num_sources, level, flags;
    u16 out_region;
    u32 count, out_offset;
    u16 first_source, dict_region;
    u32 dict_count, anchors, scan_anchors, bits0, bits1, patches, num_patches, scale, reserved;
    i64 base;
};

struct Source {
    u8 kind, reserved;
    u16 region;
    u32 data, meta, value, count, num_words;
};

struct RegionItem {
    u32 chunk;
    u8 role, depth, item_bytes, value_type;
    i64 count, base, arena;
};

static_assert(sizeof(ChunkHeader) == 32 && sizeof(Region) == 24 && sizeof(Op) == 64 && sizeof(Source) == 24 && sizeof(RegionItem) == 32, "mirror Python");

constexpr u64 ALIGNMENT = 64, MAX_BLOCK_ROWS = 65536, VECTOR_BIT_BYTES = VECTOR / 8;
constexpr u32 NO_REGION = 0xFFFF, SHARED_REGION = 0xFFFE, USES_SHARED = 1, COPY_IS_ZSTD = 1, UNUSED_LEVEL = 256;
constexpr u8 ROLE_VALUES = 0, LAST_ROLE = 6, LAST_VALUE_TYPE = 12;
enum Feature { EXCEPTIONS = 1 << 3, DELTA = 1 << 4, CLASS_SPLIT = 1 << 5, RUN_ENDS = 1 << 6, DECIMAL_FLOATS = 1 << 7, QUANTISED = 1 << 8, COMPRESSED_BYTES = 1 << 9 };

// A request, and what Python allocated for the program. `shared` may be null.
struct Request {
    const u8* slab;
    u64 slab_bytes;  // without padding
    const i64 *offsets, *sizes, *shared;
    u64 num_chunks, max_arena_bytes;
    RegionItem* regions;
    ProgramOp* ops;
    ProgramSource* sources;
    i64 *num_rows, *level_starts;
    u64 num_regions, num_ops, num_sources;       // of all chunks
    u64 arena_bytes, features, num_level_starts;  // results
};

static_assert(sizeof(Request) == 144, "mirrors native_program.REQUEST");

// A chunk of the request, its tables, and where its records begin in the program.
struct Chunk {
    u32 number;
    u64 start, size;
    const ChunkHeader* header;
    const Region* regions;
    const Op* ops;
    const Source* sources;
    u64 first_region, first_source;
};

// How the ops of a chunk use its sources and regions.
struct SourceUse {
    u32 level = UNUSED_LEVEL;  // the lowest that reads it
    u64 copy_bytes = 0;
    bool copied = false, read = false;
};

struct Written {
    u32 region;
    u64 start, end;
    bool operator<(const Written& other) const {
        return region != other.region ? region < other.region : start != other.start ? start < other.start : end < other.end;
    }
};

inline bool is_decimal(u8 out_kind) { return out_kind == OUT_F32_DECIMAL || out_kind == OUT_F64_DECIMAL; }

inline u64 item_bytes(const Op& op) { return 1ull << item_shift(op.out_kind); }

class Builder {
  public:
    explicit Builder(Request& request) : r_(request) {}

    // The records that all chunks have; false where a chunk's own tables do not lie inside of it.
    bool open() {
        r_.num_regions = r_.num_ops = r_.num_sources = 0;
        for (u64 k = 0; k < r_.num_chunks; ++k) {
            const u64 start = (u64)r_.offsets[k], size = (u64)r_.sizes[k];
            if (r_.offsets[k] < 0 || start % 8 || r_.sizes[k] < (i64)sizeof(ChunkHeader) || size > r_.slab_bytes || start > r_.slab_bytes - size) return false;
            const ChunkHeader* header = (const ChunkHeader*)(r_.slab + start);
            if (header->num_bytes != size || header->flags > USES_SHARED || header->num_rows > MAX_BLOCK_ROWS) return false;
            const Region* regions = (const Region*)(header + 1);
            const Op* ops = (const Op*)(regions + header->num_regions);
            const Source* sources = (const Source*)(ops + header->num_ops);
            if ((u64)((const u8*)(sources + header->num_sources) - (const u8*)header) > size) return false;
            chunks_.push_back({(u32)k, start, size, header, regions, ops, sources, r_.num_regions, r_.num_sources});
            r_.num_regions += header->num_regions;
            r_.num_ops += header->num_ops;
            r_.num_sources += header->num_sources;
        }
        return true;
    }

    // Fills the program. False where something does not hold.
    bool build() {
        if (!place_regions()) return false;
        written_at_.assign(r_.num_regions, 0);
        for (const Chunk& chunk : chunks_)
            if (!note_levels(chunk)) return false;
        sort_ops();
        for (const Chunk& chunk : chunks_)
            if (!add_chunk(chunk)) return false;
        return true;
    }

  private:
    bool place_regions() {
        u64 total = 0;
        for (const Chunk& chunk : chunks_) {
            const u64 before = total;
            for (u32 k = 0; k < chunk.header->num_regions; ++k) {
                const Region& region = chunk.regions[k];
                const u8 size = region.item_bytes;
                if ((size != 1 && size != 2 && size != 4 && size != 8) || region.role > LAST_ROLE || region.value_type > LAST_VALUE_TYPE) return false;
                if (region.count > r_.max_arena_bytes) return false;
                r_.regions[chunk.first_region + k] = {chunk.number, region.role, region.depth, size, region.value_type, (i64)region.count, region.base, (i64)total};
                total += (region.count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
                if (total > r_.max_arena_bytes) return false;
            }
            if (chunk.header->arena_bytes != total - before) return false;
            r_.num_rows[chunk.number] = chunk.header->num_rows;
        }
        r_.arena_bytes = total;
        return true;
    }

    u64 region_bytes(u64 region) const { return (u64)r_.regions[region].count * r_.regions[region].item_bytes; }

    // Sums the ops of each level, and finds the last level that writes each region.
    bool note_levels(const Chunk& chunk) {
        for (u32 k = 0; k < chunk.header->num_ops; ++k) {
            const Op& op = chunk.ops[k];
            if (op.level >= chunk.header->num_levels || op.out_region >= chunk.header->num_regions) return false;
            u32& level = written_at_[chunk.first_region + op.out_region];
            level = std::max<u32>(level, op.level);
            ++ops_of_level_[op.level];
        }
        return true;
    }

    // Levels in their order, the chunks' order inside of one.
    void sort_ops() {
        u64 at = 0, levels = 0;
        for (u32 level = 0; level < 256; ++level)
            if (ops_of_level_[level]) levels = level + 1;
        for (u32 level = 0; level < levels; ++level) {
            r_.level_starts[level] = (i64)at;
            next_of_level_[level] = at;
            at += ops_of_level_[level];
        }
        r_.level_starts[levels] = (i64)at;
        r_.num_level_starts = levels + 1;
        r_.features = 0;
    }

    bool add_chunk(const Chunk& chunk) {
        uses_.assign(chunk.header->num_sources, {});
        written_.clear();
        i64 shared_region = -1;
        if (chunk.header->flags & USES_SHARED && !find_shared(chunk, shared_region)) return false;
        for (u32 k = 0; k < chunk.header->num_ops; ++k)
            if (!add_op(chunk, chunk.ops[k], shared_region)) return false;
        for (u32 k = 0; k < chunk.header->num_sources; ++k)
            if (!add_source(chunk, chunk.sources[k], uses_[k], r_.sources[chunk.first_source + k])) return false;
        return is_tiled(chunk);
    }

    bool find_shared(const Chunk& chunk, i64& region) const {
        const i64 holder = r_.shared ? r_.shared[chunk.number] : -1;
        if (holder < 0 || (u64)holder >= r_.num_chunks) return false;
        const Chunk& other = chunks_[(size_t)holder];
        if (other.header->flags || other.header->num_rows || !other.header->num_regions) return false;
        region = (i64)other.first_region;
        return other.regions->role == ROLE_VALUES && other.regions->depth == 0;
    }

    // Kinds that exist and go together: program.py's _check_ops.
    static bool is_known(const Op& op) {
        const bool has_dictionary = op.dict_region != NO_REGION, is_copy = op.kind == OP_COPY, decimal = is_decimal(op.out_kind);
        const bool quantised = op.out_kind >= OUT_F32_FROM_F16, zstd = is_copy && op.flags == COPY_IS_ZSTD, is_view = op.out_kind == OUT_VIEW;
        if (op.kind > OP_RUNS || op.out_kind > OUT_F32_SCALED_I8 || op.scan > SCAN_EXCLUSIVE_SUM || (op.flags && !zstd) || (zstd && op.level)) return false;
        if (quantised && (has_dictionary || is_copy || op.scan != SCAN_NONE)) return false;
        if (op.out_kind == OUT_F32_SCALED_I8 && (op.scale >> 23 & 255) == 255) return false;
        if (decimal && (has_dictionary || is_copy || op.scale == 0)) return false;
        if (op.num_patches && (!decimal || op.num_patches > op.count)) return false;
        if (op.scan != SCAN_NONE && (op.kind != OP_DIRECT || has_dictionary)) return false;
        if (is_view && !is_copy && !has_dictionary && op.scan == SCAN_NONE) return false;
        if (has_dictionary && (is_copy || (op.dict_region == SHARED_REGION && is_view))) return false;
        if (op.kind == OP_SPLIT) return op.num_sources >= 2 && op.num_sources <= MAX_CLASSES;
        const bool ranged_views = is_view && (op.scan == SCAN_SUM || op.scan == SCAN_ZIGZAG_SUM);
        const u32 wanted = op.kind == OP_RANK ? 0 : ranged_views ? 2 : 1;
        const bool halves = wanted == 1 && op.num_sources == 2 && !is_copy && op.scan == SCAN_NONE && !has_dictionary && op.out_kind != OUT_F32_DECIMAL && !quantised;
        return op.num_sources == wanted || halves;
    }

    bool add_op(const Chunk& chunk, const Op& op, i64 shared_region) {
        if (!is_known(op) || (u32)op.first_source + op.num_sources > chunk.header->num_sources) return false;
        const u64 size = item_bytes(op), out = chunk.first_region + op.out_region, end = op.out_offset + op.count * size;
        if (r_.regions[out].item_bytes != size || op.out_offset % size || end > region_bytes(out)) return false;
        ProgramOp& made = r_.ops[next_of_level_[op.level]++];
        made = {op.kind, op.out_kind, op.scan, op.num_sources, op.level, op.flags, 0, op.count, (u32)(chunk.first_source + op.first_source), op.dict_count,
                op.num_patches, op.scale, chunk.number, (u64)r_.regions[out].arena + op.out_offset, NO_OFFSET, NO_OFFSET, NO_OFFSET, NO_OFFSET, NO_OFFSET,
                NO_OFFSET, op.base, 0, 0};
        if (op.dict_region != NO_REGION) {
            if (op.dict_region == SHARED_REGION ? shared_region < 0 : op.dict_region >= chunk.header->num_regions) return false;
            const u64 region = op.dict_region == SHARED_REGION ? (u64)shared_region : chunk.first_region + op.dict_region;
            if (op.dict_count * size > region_bytes(region) || r_.regions[region].item_bytes != size || written_at_[region] >= op.level) return false;
            made.dict = (u64)r_.regions[region].arena;
        }
        written_.push_back({op.out_region, op.out_offset, end});
        note_features(op);
        return add_streams(chunk, op, made) && note_sources(chunk, op);
    }

    static bool inside(const Chunk& chunk, u64 start, u64 num_bytes) {
        return start >= sizeof(ChunkHeader) && start % 4 == 0 && start + num_bytes <= chunk.size;
    }

    static bool relocate(const Chunk& chunk, u64 start, u64 num_bytes, bool used, u64& made) {
        if (used) made = chunk.start + start;
        return !used || inside(chunk, start, num_bytes);
    }

    static bool add_streams(const Chunk& chunk, const Op& op, ProgramOp& made) {
        const u64 vectors = verify::num_vectors(op.count), patch_bytes = op.out_kind == OUT_F64_DECIMAL ? 16 : 8;
        const bool uses_bits = op.kind >= OP_NULLS && op.count, split = op.kind == OP_SPLIT && op.count, patched = op.num_patches > 0;
        if (patched && op.out_kind == OUT_F64_DECIMAL && op.patches % 8) return false;
        return relocate(chunk, op.bits0, vectors * VECTOR_BIT_BYTES, uses_bits, made.bits0) &&
               relocate(chunk, op.bits1, vectors * VECTOR_BIT_BYTES, split && op.num_sources > 2, made.bits1) &&
               relocate(chunk, op.anchors, vectors * (split ? 4 * (op.num_sources - 1u) : 4), uses_bits, made.anchors) &&
               relocate(chunk, op.scan_anchors, vectors * 4, op.scan != SCAN_NONE && op.count, made.scan_anchors) &&
               relocate(chunk, op.patches, op.num_patches * patch_bytes, patched, made.patches);
    }

    void note_features(const Op& op) {
        u64 used = is_decimal(op.out_kind) ? DECIMAL_FLOATS : 0;
        if (op.kind == OP_SPLIT) used |= CLASS_SPLIT;
        if (op.kind == OP_RUNS) used |= RUN_ENDS;
        if (op.out_kind >= OUT_F32_FROM_F16) used |= QUANTISED;
        if (op.kind == OP_COPY && op.flags) used |= COMPRESSED_BYTES;
        if (op.scan != SCAN_NONE && op.out_kind != OUT_VIEW) used |= DELTA;
        r_.features |= used;
    }

    // Counts and kinds of an op's sources: program.py's _source_users.
    bool note_sources(const Chunk& chunk, const Op& op) {
        const bool split = op.kind == OP_SPLIT, by_rank = split || op.kind == OP_NULLS || op.kind == OP_RUNS;
        const bool alone = op.kind == OP_DIRECT && op.num_sources == 1 && op.dict_region == NO_REGION;
        u64 classes = 0;
        for (u32 k = 0; k < op.num_sources; ++k) {
            const Source& source = chunk.sources[op.first_source + k];
            if (by_rank ? source.count > op.count : source.count != op.count) return false;
            if ((split || op.kind == OP_RUNS) && source.kind == SOURCE_BITS) return false;
            if (source.kind == SOURCE_PACKED_EXCEPTIONS && !alone) return false;
            SourceUse& use = uses_[op.first_source + k];
            use.level = std::min<u32>(use.level, op.level);
            classes += source.count;
            if (op.kind != OP_COPY) {
                use.read = true;
                continue;
            }
            use.copied = true;
            use.copy_bytes = std::max<u64>(use.copy_bytes, op.flags ? source.num_words : op.count * item_bytes(op));
        }
        return !split || classes == op.count;
    }

    bool add_source(const Chunk& chunk, const Source& source, const SourceUse& use, ProgramSource& made) {
        const u64 vectors = verify::num_vectors(source.count);
        made = {0, 0, source.kind, source.value, source.count, source.num_words};
        if (source.kind > SOURCE_PACKED_EXCEPTIONS || (use.copied && (use.read || source.kind != SOURCE_PLAIN))) return false;
        if (source.kind == SOURCE_PACKED_EXCEPTIONS) r_.features |= EXCEPTIONS;
        if (!source.count || source.kind == SOURCE_CONSTANT) return true;
        if (source.kind == SOURCE_PLAIN && !use.copied) {
            const u64 region = chunk.first_region + source.region;
            if (source.region >= chunk.header->num_regions || source.count * 4ull > region_bytes(region) || written_at_[region] >= use.level) return false;
            made.data = (u64)r_.regions[region].arena;
            return true;
        }
        made.data = chunk.start + source.data;
        if (source.kind == SOURCE_BITS) return inside(chunk, source.data, vectors * VECTOR_BIT_BYTES);
        if (source.kind == SOURCE_PLAIN) return inside(chunk, source.data, use.copy_bytes);
        made.meta = chunk.start + source.meta;
        return inside(chunk, source.meta, vectors * sizeof(VectorMeta)) && (!source.num_words || inside(chunk, source.data, source.num_words * 4ull));
    }

    // Every region is written once, from its first byte to its last.
    bool is_tiled(const Chunk& chunk) {
        std::sort(written_.begin(), written_.end());
        size_t next = 0;
        for (u32 region = 0; region < chunk.header->num_regions; ++region) {
            u64 at = 0;
            for (; next < written_.size() && written_[next].region == region; at = written_[next++].end)
                if (written_[next].start != at) return false;
            if (at != region_bytes(chunk.first_region + region)) return false;
        }
        return true;
    }

    Request& r_;
    std::vector<Chunk> chunks_;
    std::vector<u32> written_at_;  // by region of the program, the last level that writes it
    std::vector<SourceUse> uses_;  // of the chunk at hand
    std::vector<Written> written_;
    u64 ops_of_level_[256] = {}, next_of_level_[256] = {};
};

}  // namespace program

// Counts the records of a program into the request: num_regions, num_ops, num_sources. 1 where the reference must say what is wrong.
EXPORT int headrace_program_open(program::Request* request) { return program::Builder(*request).open() ? 0 : 1; }

// Fills what was allocated by those counts. 1 where the reference must say what is wrong; nothing else of the request is valid then.
EXPORT int headrace_program_build(program::Request* request) {
    const u64 num_regions = request->num_regions, num_ops = request->num_ops, num_sources = request->num_sources;
    program::Builder builder(*request);
    if (!builder.open() || num_regions != request->num_regions || num_ops != request->num_ops || num_sources != request->num_sources) return 1;
    return builder.build() ? 0 : 1;
}
