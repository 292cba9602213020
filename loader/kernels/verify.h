// Checks an op table against the sizes of slab and arena before anything is decoded, once an op. With it and decode.cu's checks
// once a vector, no bytes of slab, ops or sources can make a decoder read or write out of bounds.
#pragma once
#include "lanes.cuh"

namespace verify {

// What may be touched: sizes without padding.
struct Bounds {
    u64 slab_bytes, arena_bytes;
};

inline bool inside(u64 offset, u64 num_bytes, u64 limit, u64 alignment) { return offset <= limit && num_bytes <= limit - offset && offset % alignment == 0; }

inline u64 num_vectors(u32 count) { return ((u64)count + VECTOR - 1) / VECTOR; }

inline u64 bit_bytes(u32 count) { return ((u64)count + 31) / 32 * 4; }

inline u32 check_source(const ProgramSource& s, const Bounds& bounds) {
    switch (s.kind) {
        case SOURCE_CONSTANT: return 0;
        case SOURCE_PLAIN: return inside(s.data, (u64)s.count * 4, bounds.arena_bytes, 4) ? 0 : ERROR_OP_ARENA;
        case SOURCE_BITS: return inside(s.data, bit_bytes(s.count), bounds.slab_bytes, 4) ? 0 : ERROR_OP_SLAB;
        case SOURCE_PACKED:
        case SOURCE_PACKED_EXCEPTIONS: {
            const bool meta = inside(s.meta, num_vectors(s.count) * sizeof(VectorMeta), bounds.slab_bytes, 4);
            return meta && inside(s.data, (u64)s.num_words * 4, bounds.slab_bytes, 4) ? 0 : ERROR_OP_SLAB;
        }
        default: return ERROR_OP_KIND;
    }
}

// How many sources the op reads at least: views whose starts are not the sum of their lengths need the lengths as a second one.
inline u32 needed_sources(const ProgramOp& op) {
    if (op.kind == OP_COPY) return 1;
    if (op.kind == OP_SPLIT) return 2;
    const bool lengths = op.out_kind == OUT_VIEW && op.dict == NO_OFFSET && op.scan != SCAN_EXCLUSIVE_SUM;
    if (op.kind == OP_RANK) return lengths ? ~0u : 0;
    return lengths ? 2 : 1;
}

// Kinds that exist and go together.
inline bool is_known(const ProgramOp& op) {
    if (op.kind > OP_RUNS || op.out_kind > OUT_F32_SCALED_I8 || op.scan > SCAN_EXCLUSIVE_SUM || op.flags) return false;
    const bool is_decimal = op.out_kind == OUT_F32_DECIMAL || op.out_kind == OUT_F64_DECIMAL, has_dictionary = op.dict != NO_OFFSET;
    if (op.num_patches && (!is_decimal || has_dictionary || op.kind == OP_COPY)) return false;
    if (is_decimal && op.scale == 0) return false;
    if (op.out_kind == OUT_F32_SCALED_I8 && (op.scale >> 23 & 255) == 255) return false;  // infinite or no number
    if (op.kind == OP_SPLIT && op.out_kind == OUT_VIEW && !has_dictionary) return false;
    return has_dictionary || op.scan == SCAN_NONE || (op.kind != OP_SPLIT && op.kind != OP_RUNS);
}

inline u32 check_sources(const ProgramOp& op, const ProgramSource* source, const Bounds& bounds) {
    u64 sum = 0;
    for (u32 k = 0; k < op.num_sources; ++k) {
        const u32 code = check_source(source[k], bounds);
        if (code) return code;
        if (source[k].kind == SOURCE_PACKED_EXCEPTIONS && op.kind != OP_DIRECT) return ERROR_OP_KIND;
        if (op.kind == OP_DIRECT && source[k].count < op.count) return ERROR_OP_SOURCES;
        if (op.kind != OP_DIRECT && op.kind != OP_SPLIT && source[k].count != source[0].count) return ERROR_OP_SOURCES;
        sum += source[k].count;
    }
    return op.kind == OP_SPLIT && sum != op.count ? ERROR_OP_SOURCES : 0;
}

// Bitmaps, anchors and patches: whatever the op has in the slab beside its sources.
inline u32 check_streams(const ProgramOp& op, const Bounds& bounds) {
    const u64 vectors = num_vectors(op.count), patch_bytes = op.out_kind == OUT_F64_DECIMAL ? 16 : 8;
    if (op.kind != OP_DIRECT) {
        const u64 num_anchors = op.kind == OP_SPLIT ? op.num_sources - 1 : 1;
        const bool bits = inside(op.bits0, vectors * (VECTOR / 8), bounds.slab_bytes, 4);
        if (!bits || !inside(op.anchors, vectors * num_anchors * 4, bounds.slab_bytes, 4)) return ERROR_OP_SLAB;
        if (num_anchors > 1 && !inside(op.bits1, vectors * (VECTOR / 8), bounds.slab_bytes, 4)) return ERROR_OP_SLAB;
    }
    if (op.num_patches && !inside(op.patches, op.num_patches * patch_bytes, bounds.slab_bytes, patch_bytes == 16 ? 8 : 4)) return ERROR_OP_SLAB;
    if (op.scan != SCAN_NONE && op.dict == NO_OFFSET && !inside(op.scan_anchors, vectors * 4, bounds.slab_bytes, 4)) return ERROR_OP_SLAB;
    return 0;
}

inline u32 check_op(const ProgramOp& op, const ProgramSource* sources, u64 num_sources, const Bounds& bounds) {
    if (!is_known(op)) return ERROR_OP_KIND;
    if (op.count == 0) return 0;
    const u64 item_bytes = 1ull << item_shift(op.out_kind);
    if (!inside(op.out, op.count * item_bytes, bounds.arena_bytes, item_bytes)) return ERROR_OP_ARENA;
    const u32 most = op.kind == OP_SPLIT ? MAX_CLASSES : 2;
    if (op.num_sources > most || (u64)op.first_source + op.num_sources > num_sources || op.num_sources < needed_sources(op)) return ERROR_OP_SOURCES;
    const ProgramSource* source = sources + op.first_source;
    if (op.kind == OP_COPY) return inside(source->data, op.count * item_bytes, bounds.slab_bytes, item_bytes) ? 0 : ERROR_OP_SLAB;
    u32 code = op.kind == OP_RANK ? 0 : check_sources(op, source, bounds);
    if (code == 0) code = check_streams(op, bounds);
    if (code) return code;
    if (op.dict != NO_OFFSET) return inside(op.dict, op.dict_count * item_bytes, bounds.arena_bytes, item_bytes) ? 0 : ERROR_OP_ARENA;
    return 0;
}

// The error word of the first bad op, or NO_ERROR. Levels must not fall from one op to the next.
inline u64 check_program(const ProgramOp* ops, u64 num_ops, const ProgramSource* sources, u64 num_sources, const Bounds& bounds) {
    u64 error = NO_ERROR;
    for (u64 k = 0; k < num_ops && error == NO_ERROR; ++k) {
        const u32 code = k && ops[k].level < ops[k - 1].level ? (u32)ERROR_OP_LEVEL : check_op(ops[k], sources, num_sources, bounds);
        if (code) report(&error, (u32)k, 0, code);
    }
    return error;
}

}  // namespace verify
