// Records of a look-up of rows, and who owns the Arrow arrays that it makes.
// rows_pick.h finds items, rows_take.h lays them out. native_rows.py mirrors the records.
#pragma once
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "arrow_abi.h"
#include "lanes.cuh"
#include "verify.h"

// A region of a program, program.REGION_ITEM.
struct RowRegion {
    u32 chunk;
    u8 role, depth, item_bytes, value_type;
    i64 count, base, arena;
};

// A program and its slab. Ops are sorted by `out`, regions by chunk and arena.
struct RowProgram {
    const u8* slab;
    u64 slab_bytes;
    const u8* present;  // a byte for each page of the slab, 0 where it has not been read; null where all has been
    const ProgramOp* ops;
    u64 num_ops;
    const ProgramSource* sources;
    u64 num_sources;
    const RowRegion* regions;
    u64 num_regions;
};

// Where a column of a group lies; a group without the column has no program.
struct RowColumn {
    const RowProgram* program;
    u64 chunk;
};

// Rows of one block: row rows[i] becomes row places[i] of the result.
struct RowGroup {
    const u32* rows;
    const u32* places;
    u64 num_rows;
};

// How a column looks in Arrow: list levels from the outside in, then the leaf.
struct RowField {
    u8 depth, value_type, value_bytes, flags;
    u8 levels[8];
    u32 fixed_size;
};

enum RowFieldFlags { FIELD_BITS = 1, FIELD_BYTES = 2, FIELD_FIXED_BINARY = 4, FIELD_TEXT = 8, FIELD_INTEGER = 16, FIELD_WEIGHTS = 32 };
enum RowLevel { LEVEL_LIST = 0, LEVEL_LARGE_LIST = 1, LEVEL_LIST_VIEW = 2, LEVEL_LARGE_LIST_VIEW = 3 };
enum RowRole { ROLE_VALUES = 0, ROLE_VALIDITY = 1, ROLE_VIEWS = 2, ROLE_WEIGHTS = 4, NUM_ROLES = 7 };  // of a map's second list ROLE_WEIGHTS more
enum RowStatus { ROW_DONE = 0, ROW_CORRUPT = 1, ROW_MISSING = 2, ROW_DEEP = 3, ROW_MEMORY = 4 };
enum RowReason { ROW_ITEM = 32, ROW_SHAPE = 33, ROW_TEXT = 34, ROW_TOO_LARGE = 35 };

// Bytes of a slab that a look-up needs and that have not been read.
struct RowRange {
    const RowProgram* program;
    u64 offset, num_bytes;
};

struct RowResult {
    ArrowArray array;
    u32 status, reason, group, field;
    RowRange* missing;
    u64 num_missing;
};

static_assert(sizeof(RowRegion) == 32, "mirrors program.REGION_ITEM");
static_assert(sizeof(RowProgram) == 72, "mirrors native_rows.ROW_PROGRAM");
static_assert(sizeof(RowColumn) == 16, "mirrors native_rows.ROW_COLUMN");
static_assert(sizeof(RowGroup) == 24, "mirrors native_rows.ROW_GROUP");
static_assert(sizeof(RowField) == 16, "mirrors native_rows.ROW_FIELD");
static_assert(sizeof(RowRange) == 24, "mirrors native_rows.ROW_RANGE");
static_assert(sizeof(RowResult) == 112, "mirrors native_rows.ROW_RESULT");

namespace rows {

// Thrown and caught inside of a call.
struct Stop {
    u32 status, reason;
};

// All buffers of a result; goes when the last of its arrays is released. Small ones share blocks.
struct Memory {
    static constexpr u64 BLOCK_BYTES = 32 << 10, SMALL_BYTES = 4 << 10;

    std::atomic<u64> users{0};
    std::vector<void*> blocks;
    u8 *next = nullptr, *end = nullptr;
    u64 left;  // bytes that may still be taken

    explicit Memory(u64 most) : left(most) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
        for (void* block : blocks) std::free(block);
    }

    // Zeroed, on 64 bytes.
    template <class T> T* make(u64 count) {
        if (count > left / sizeof(T)) throw Stop{ROW_CORRUPT, ROW_TOO_LARGE};
        left -= count * sizeof(T);
        const u64 num_bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (num_bytes > SMALL_BYTES) return (T*)block(num_bytes);
        if ((u64)(end - next) < num_bytes) {
            next = (u8*)block(BLOCK_BYTES);
            end = next + BLOCK_BYTES;
        }
        next += num_bytes;
        return (T*)(next - num_bytes);
    }

  private:
    void* block(u64 num_bytes) {
        blocks.push_back(nullptr);
        blocks.back() = std::aligned_alloc(64, num_bytes);
        if (!blocks.back()) throw std::bad_alloc();
        return __builtin_memset(blocks.back(), 0, num_bytes);
    }
};

inline void release(ArrowArray* array) {
    for (i64 k = 0; k < array->num_children; ++k)
        if (array->children[k]->release) array->children[k]->release(array->children[k]);
    Memory* memory = (Memory*)array->private_data;
    array->release = nullptr;
    if (memory->users.fetch_sub(1) == 1) delete memory;
}

}  // namespace rows
