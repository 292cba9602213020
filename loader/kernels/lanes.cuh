// Lanes: how one kernel body is a warp on a GPU and SIMD loops on a CPU; and the records of layout.py and program.py, mirrored.
//
// A body works on rows of 32 values. `PER_LANE(u32, x)` declares a value for each lane, `FOR_LANES(l) x[AT(l)] = …` computes it:
// on a GPU the calling thread is one lane and x is a register, on a CPU the loop runs over all 32 and g++ vectorises it.
// Three compilers read this file, so it includes no standard header: NVRTC or nvcc, g++ (the CPU library), and g++ with
// HEADRACE_SHIM, which runs the GPU branch on the CPU (host_shim.h).
#pragma once

#if defined(HEADRACE_SHIM)
#include "host_shim.h"
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(HEADRACE_SHIM)
#define HEADRACE_GPU 1
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 VECTOR = 1024, LANES = 32, ROWS = VECTOR / LANES, PADDING_BYTES = 8192, WARPS_PER_BLOCK = 8, THREADS_PER_BLOCK = 256;
constexpr u32 MAX_CLASSES = 4;
enum OpKind { OP_COPY = 0, OP_DIRECT = 1, OP_NULLS = 2, OP_RANK = 3, OP_SPLIT = 4, OP_RUNS = 5 };
enum SourceKind { SOURCE_CONSTANT = 0, SOURCE_PACKED = 1, SOURCE_PLAIN = 2, SOURCE_BITS = 3, SOURCE_PACKED_EXCEPTIONS = 4 };
enum ScanKind { SCAN_NONE = 0, SCAN_ZIGZAG_SUM = 1, SCAN_SUM = 2, SCAN_EXCLUSIVE_SUM = 3 };
enum OutKind {
    OUT_U8 = 0,
    OUT_U16 = 1,
    OUT_U32 = 2,
    OUT_U64 = 3,
    OUT_VIEW = 4,
    OUT_F32_DECIMAL = 5,
    OUT_F64_DECIMAL = 6,
    OUT_F32_FROM_F16 = 7,
    OUT_F32_FROM_BF16 = 8,
    OUT_F32_SCALED_I8 = 9,
};

// What can be wrong with the bytes. The first group is met while decoding a vector, the second before anything is decoded.
enum ErrorCode {
    ERROR_VECTOR_META = 1,   // a vector header points outside of its stream, or is wider than 32 bits
    ERROR_DICTIONARY = 2,    // a code is not below the number of dictionary entries
    ERROR_RANK = 3,          // anchors do not count the set bits, or the stream holds another number of values
    ERROR_ROW = 4,           // a gathered row is outside of the column
    ERROR_VIEW = 5,          // a view reaches outside of its pool
    ERROR_CAPACITY = 6,      // the lists do not fit into the output
    ERROR_EXCEPTION = 7,     // a vector's exceptions do not ascend inside of it
    ERROR_PATCH = 8,         // an op's patches do not ascend inside of it
    ERROR_NULL_ITEM = 9,     // a list that is there holds a null
    ERROR_OP_KIND = 16,      // an op, scan, source or store of a kind that this version does not know
    ERROR_OP_SOURCES = 17,   // the op's sources are missing or too short
    ERROR_OP_SLAB = 18,      // a stream reaches outside of the slab, or is not aligned
    ERROR_OP_ARENA = 19,     // a region reaches outside of the arena, or is not aligned
    ERROR_OP_LEVEL = 20,     // ops are not sorted by level
};

// FORMAT.md's features that a program may use here: nulls, list views, dictionary, exceptions, delta, class split, run ends, decimals,
// quantised. Compressed bytes and shared dictionaries are gone before a program runs.
constexpr u64 KNOWN_FEATURES = 0x1ff;
constexpr u64 NO_OFFSET = ~0ull;
constexpr u64 NO_ERROR = ~0ull;
constexpr u32 NO_INDEX = ~0u;

struct VectorMeta {
    u32 word_offset, base;
    u8 width, reserved;
    u16 num_exceptions;
};

struct ProgramOp {
    u8 kind, out_kind, scan, num_sources, level, flags;
    u16 reserved;
    u32 count, first_source, dict_count, num_patches, scale, chunk;
    u64 out, dict, anchors, scan_anchors, bits0, bits1, patches;
    i64 base;
    u32 view_base, reserved1;
};

struct ProgramSource {
    u64 data, meta;
    u32 kind, value, count, num_words;
};

static_assert(sizeof(VectorMeta) == 12, "mirrors layout.VECTOR_META");
static_assert(sizeof(ProgramOp) == 104, "mirrors program.PROGRAM_OP");
static_assert(sizeof(ProgramSource) == 32, "mirrors program.PROGRAM_SOURCE");

#if defined(HEADRACE_GPU)

#define FN __device__ __forceinline__
#define FN_RARE __device__ __forceinline__
#define RESTRICT __restrict__
#define PER_LANE(type, name) type name[1]
#define AT(lane) 0
#define FOR_LANES(l) for ([[maybe_unused]] u32 l = lane_id(), once_##l = 1; once_##l; once_##l = 0)
#define FOR_FIRST_LANES(l, live) for ([[maybe_unused]] u32 l = lane_id(), once_##l = l < (live); once_##l; once_##l = 0)
#define FOR_LANE(l, lane) for ([[maybe_unused]] u32 l = lane_id(), once_##l = l == (lane); once_##l; once_##l = 0)
#define IS_FULL_ROW(live) false
#define LOAD(address) __ldg(address)

FN u32 lane_id() { return threadIdx.x & 31; }

FN u32 warp_inclusive_sum(u32 x) {
    for (u32 step = 1; step < 32; step <<= 1) {
        const u32 below = __shfl_up_sync(0xffffffffu, x, step);
        if (lane_id() >= step) x += below;
    }
    return x;
}

#else

#define FN static inline __attribute__((always_inline))
#define FN_RARE static __attribute__((noinline))  // once in the code, not at every call
#define RESTRICT __restrict
#define PER_LANE(type, name) type name[LANES]
#define AT(lane) (lane)
#define FOR_LANES(l) for (u32 l = 0; l < LANES; ++l)
#define FOR_FIRST_LANES(l, live) for (u32 l = 0; l < (live); ++l)
#define FOR_LANE(l, lane) for ([[maybe_unused]] u32 l = (lane), once_##l = 1; once_##l; once_##l = 0)
#define IS_FULL_ROW(live) ((live) == LANES)
#define LOAD(address) (*(address))

#endif

// One u64 names the first error in program order: op, vector, code. Launches start it at NO_ERROR; the least key wins, so the
// report does not depend on the schedule. On the CPU every thread has a word of its own.
FN void report(u64* error, u32 op, u32 vector, u32 code) {
    const u64 key = (u64)op << 32 | (u64)vector << 8 | code;
#if defined(HEADRACE_GPU)
    atomicMin(error, key);
#else
    if (key < *error) *error = key;
#endif
}

FN u32 least(u32 a, u32 b) { return a < b ? a : b; }

FN u32 item_shift(u32 out_kind) { return (u32)(0x2223233210ull >> (4 * out_kind)) & 15; }  // log2 of the bytes of an item
