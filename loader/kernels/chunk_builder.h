// The byte layout of one chunk while it is being encoded: encodings/builder.py in C++, byte for byte. Host only.
#pragma once
#include <cstddef>
#include <cstring>
#include <vector>

#include "workspace.h"

namespace encode {

enum Role { ROLE_VALUES = 0, ROLE_VALIDITY = 1, ROLE_VIEWS = 2, ROLE_SCRATCH = 3 };
enum ValueType { TYPE_BOOL = 0, TYPE_INT64 = 4, TYPE_UINT8 = 5, TYPE_UINT32 = 7, TYPE_UINT64 = 8, TYPE_FLOAT16 = 9, TYPE_FLOAT32 = 10, TYPE_FLOAT64 = 11 };
enum Feature {
    FEATURE_NULLS = 1 << 0, FEATURE_LIST_VIEWS = 1 << 1, FEATURE_DICTIONARY = 1 << 2, FEATURE_EXCEPTIONS = 1 << 3, FEATURE_DELTA = 1 << 4,
    FEATURE_CLASS_SPLIT = 1 << 5, FEATURE_RUN_ENDS = 1 << 6, FEATURE_DECIMAL_FLOATS = 1 << 7, FEATURE_COMPRESSED_BYTES = 1 << 9,
};

constexpr u32 NO_STREAM = ~0u;
constexpr u16 NO_REGION = 0xFFFF;
constexpr u8 COPY_IS_ZSTD = 1;
constexpr u64 REGION_ALIGNMENT = 64, STREAM_ALIGNMENT = 8, MAX_CHUNK_BYTES = 1ull << 32;

inline u64 round_up(u64 value, u64 multiple) { return (value + multiple - 1) / multiple * multiple; }

struct ChunkHeader {
    u32 num_rows;
    u16 num_regions, num_ops, num_sources;
    u8 num_levels, flags;
    u32 num_bytes;
    u64 arena_bytes, reserved;
};

struct RegionRecord {
    u8 role, depth, item_bytes, value_type;
    u32 flags;
    u64 count;
    i64 base;
};

// While it is built, streams are offsets into the data or NO_STREAM.
struct OpRecord {
    u8 kind, out_kind, scan, num_sources, level, flags;
    u16 out_region;
    u32 count, out_offset;
    u16 first_source, dict_region;
    u32 dict_count, anchors, scan_anchors, bits0, bits1, patches, num_patches, scale, reserved;
    i64 base;
};

struct SourceRecord {
    u8 kind, reserved;
    u16 region;
    u32 data, meta, value, count, num_words;
};

static_assert(sizeof(ChunkHeader) == 32 && sizeof(RegionRecord) == 24 && sizeof(OpRecord) == 64 && sizeof(SourceRecord) == 24, "mirrors layout.py");

inline OpRecord blank_op() {
    OpRecord op = {};
    op.dict_region = NO_REGION;
    op.num_sources = 1;
    op.anchors = op.scan_anchors = op.bits0 = op.bits1 = op.patches = NO_STREAM;
    return op;
}

class ChunkBuilder {
  public:
    void reset() {
        regions_.clear();
        ops_.clear();
        sources_.clear();
        data_.clear();
        arena_bytes_ = 0;
    }

    // Room for a stream, zeroed; `at` is good until the next one. Returns its handle.
    u32 stream(u64 num_bytes, u8** at) {
        const u64 offset = round_up(data_.size(), STREAM_ALIGNMENT);
        data_.resize(offset + num_bytes);
        *at = data_.data() + offset;
        return (u32)offset;
    }

    template <class T> u32 stream_of(const T* values, u64 n) {
        u8* at;
        const u32 handle = stream(n * sizeof(T), &at);
        if (n) std::memcpy(at, values, n * sizeof(T));
        return handle;
    }

    u16 region(Role role, u32 depth, u32 item_bytes, u32 value_type, u64 count, i64 base = 0) {
        regions_.push_back({(u8)role, (u8)depth, (u8)item_bytes, (u8)value_type, 0, count, base});
        arena_bytes_ += round_up(count * item_bytes, REGION_ALIGNMENT);
        return (u16)(regions_.size() - 1);
    }

    u16 source(const SourceRecord& record) {
        sources_.push_back(record);
        return (u16)(sources_.size() - 1);
    }

    void op(const OpRecord& record) { ops_.push_back(record); }

    u64 features() const {
        u64 used = 0;
        for (const OpRecord& op : ops_) {
            used |= op.kind == OP_SPLIT ? FEATURE_CLASS_SPLIT : op.kind == OP_RUNS ? FEATURE_RUN_ENDS : op.kind == OP_NULLS ? FEATURE_NULLS : 0;
            if (op.dict_region != NO_REGION) used |= FEATURE_DICTIONARY;
            if (op.out_kind >= OUT_F32_DECIMAL) used |= FEATURE_DECIMAL_FLOATS;
            if (op.kind == OP_COPY && op.flags) used |= FEATURE_COMPRESSED_BYTES;
            if (op.scan != SCAN_NONE && op.out_kind != OUT_VIEW) used |= FEATURE_DELTA;
        }
        for (const SourceRecord& source : sources_)
            if (source.kind == SOURCE_PACKED_EXCEPTIONS) used |= FEATURE_EXCEPTIONS;
        return used;
    }

    u64 arena_bytes() const { return arena_bytes_; }

    u64 num_bytes() const { return data_start() + data_.size(); }

    // The chunk's bytes to `out`, which has room for num_bytes.
    void finish(u64 num_rows, u8* out) {
        const u32 start = (u32)data_start();
        u32 num_levels = 1;
        for (OpRecord& op : ops_) {
            num_levels = op.level + 1u > num_levels ? op.level + 1u : num_levels;
            for (u32* handle : {&op.anchors, &op.scan_anchors, &op.bits0, &op.bits1, &op.patches}) *handle = *handle == NO_STREAM ? 0 : *handle + start;
        }
        for (SourceRecord& source : sources_)
            for (u32* handle : {&source.data, &source.meta}) *handle = *handle == NO_STREAM ? 0 : *handle + start;
        const ChunkHeader header = {(u32)num_rows, (u16)regions_.size(), (u16)ops_.size(), (u16)sources_.size(), (u8)num_levels, 0, (u32)num_bytes(), arena_bytes_, 0};
        u8* at = put(out, &header, 1);
        at = put(at, regions_.data(), regions_.size());
        at = put(at, ops_.data(), ops_.size());
        at = put(at, sources_.data(), sources_.size());
        std::memset(at, 0, (size_t)(out + start - at));
        put(out + start, data_.data(), data_.size());
    }

  private:
    template <class T> static u8* put(u8* at, const T* records, u64 n) {
        if (n) std::memcpy(at, records, n * sizeof(T));
        return at + n * sizeof(T);
    }

    u64 data_start() const {
        return round_up(sizeof(ChunkHeader) + regions_.size() * sizeof(RegionRecord) + ops_.size() * sizeof(OpRecord) + sources_.size() * sizeof(SourceRecord), STREAM_ALIGNMENT);
    }

    std::vector<RegionRecord> regions_;
    std::vector<OpRecord> ops_;
    std::vector<SourceRecord> sources_;
    std::vector<u8> data_;
    u64 arena_bytes_ = 0;
};

}  // namespace encode
