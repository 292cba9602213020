// The CPU library: a C ABI over the kernels, for ctypes. native.py is its only caller and checks types, contiguity and sizes first.
// Functions return 0, or what they document; nothing throws across the boundary but std::bad_alloc's abort.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "lanes.cuh"
#include "rows.h"

// How a vector is packed: what encode.h finds and packs by.
struct VectorPlan {
    u32 base, width, num_words, num_exceptions;
};

// The kernels once for every instruction set; `using` below chooses at run time. No fused multiply-add in either: same bits.
namespace portable {
#include "assemble.cu"
#include "decode.cu"
#include "encode.h"
#include "rows_pick.h"
#include "measure.h"
#include "key_filter.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(HEADRACE_PORTABLE_ONLY)
#define HEADRACE_AVX2 1
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt,lzcnt,tune=haswell")
#define HEADRACE_AVX2_BODY 1  // g++ reads all tokens before pragmas, so __AVX2__ does not tell
namespace avx2 {
#include "assemble.cu"
#include "decode.cu"
#include "encode.h"
#include "rows_pick.h"
#include "measure.h"
#include "key_filter.h"
}  // namespace avx2
#undef HEADRACE_AVX2_BODY
#pragma GCC pop_options
#endif

#include "choose.h"
#include "crc32c.h"
#include "threads.h"
#include "verify.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const u32 ABI_VERSION = 1;
const u64 ROWS_PER_GRAB = 16384, LISTS_PER_GRAB = 4096, BYTES_PER_PIECE = 1 << 20;

bool force_portable = false;

bool use_avx2() {
#if defined(HEADRACE_AVX2)
    static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt");
    return supported && !force_portable;
#else
    return false;
#endif
}

#if defined(HEADRACE_AVX2)
#define DISPATCH(...) (use_avx2() ? avx2::__VA_ARGS__ : portable::__VA_ARGS__)
#else
#define DISPATCH(...) portable::__VA_ARGS__
#endif

// One line a record, "name:size field=offset …": the test that Python and C++ agree parses it.
#define FIELD(record, field) " " #field "=" + std::to_string(offsetof(record, field))
std::string describe_records() {
    std::string text = "VECTOR=" + std::to_string(VECTOR) + " PADDING_BYTES=" + std::to_string(PADDING_BYTES) + "\n";
    text += "VECTOR_META:" + std::to_string(sizeof(VectorMeta)) + FIELD(VectorMeta, word_offset) + FIELD(VectorMeta, base) + FIELD(VectorMeta, width) +
            FIELD(VectorMeta, reserved) + FIELD(VectorMeta, num_exceptions) + "\n";
    text += "PROGRAM_OP:" + std::to_string(sizeof(ProgramOp)) + FIELD(ProgramOp, kind) + FIELD(ProgramOp, out_kind) + FIELD(ProgramOp, scan) +
            FIELD(ProgramOp, num_sources) + FIELD(ProgramOp, level) + FIELD(ProgramOp, flags) + FIELD(ProgramOp, reserved) + FIELD(ProgramOp, count) +
            FIELD(ProgramOp, first_source) + FIELD(ProgramOp, dict_count) + FIELD(ProgramOp, num_patches) + FIELD(ProgramOp, scale) + FIELD(ProgramOp, chunk) +
            FIELD(ProgramOp, out) + FIELD(ProgramOp, dict) + FIELD(ProgramOp, anchors) + FIELD(ProgramOp, scan_anchors) + FIELD(ProgramOp, bits0) +
            FIELD(ProgramOp, bits1) + FIELD(ProgramOp, patches) + FIELD(ProgramOp, base) + FIELD(ProgramOp, view_base) + FIELD(ProgramOp, reserved1) + "\n";
    text += "PROGRAM_SOURCE:" + std::to_string(sizeof(ProgramSource)) + FIELD(ProgramSource, data) + FIELD(ProgramSource, meta) + FIELD(ProgramSource, kind) +
            FIELD(ProgramSource, value) + FIELD(ProgramSource, count) + FIELD(ProgramSource, num_words) + "\n";
    return text;
}

void lower(std::atomic<u64>& least_seen, u64 value) {
    u64 known = least_seen.load();
    while (value < known && !least_seen.compare_exchange_weak(known, value)) {}
}

template <class T, class R>
u64 gather_typed(const void* values, u64 num_values, const void* rows, u64 num_rows, void* out, u32 num_threads) {
    std::atomic<u64> bad{num_rows};
    threads::Team(num_rows <= ROWS_PER_GRAB ? 1 : num_threads).run({num_rows}, ROWS_PER_GRAB, [&](unsigned, size_t, u64 first, u64 end) {
        if (DISPATCH(gather_rows((const T*)values, num_values, (const R*)rows + first, (T*)out + first, end - first))) return;
        while ((u64)((const R*)rows)[first] < num_values) ++first;
        lower(bad, first);
    });
    return bad.load();
}

template <class R> u64 gather_sized(const void* values, u64 num_values, u32 item_bytes, const void* rows, u64 num_rows, void* out, u32 num_threads) {
    switch (item_bytes) {
        case 1: return gather_typed<u8, R>(values, num_values, rows, num_rows, out, num_threads);
        case 2: return gather_typed<u16, R>(values, num_values, rows, num_rows, out, num_threads);
        case 4: return gather_typed<u32, R>(values, num_values, rows, num_rows, out, num_threads);
        default: return gather_typed<u64, R>(values, num_values, rows, num_rows, out, num_threads);
    }
}

// Lists in `pool` of P items to `out` of T items. Split by lists; a split's place in the output is the sum of the lengths before it.
template <class P, class T> u64 gather_lists_typed(const void* pool, u64 pool_count, u64 base, const u64* views, u64 n, void* out, u64 out_count, u32 num_threads) {
    if (num_threads <= 1 || n <= LISTS_PER_GRAB) return DISPATCH(copy_lists((const P*)pool, pool_count, base, views, n, (T*)out, out_count));
    std::vector<u64> places(n / LISTS_PER_GRAB + 2, 0);
    const u64 num_parts = (n + LISTS_PER_GRAB - 1) / LISTS_PER_GRAB;
    for (u64 part = 0; part < num_parts; ++part) {
        u64 sum = 0;
        const u64 end = (part + 1) * LISTS_PER_GRAB < n ? (part + 1) * LISTS_PER_GRAB : n;
        for (u64 i = part * LISTS_PER_GRAB; i < end; ++i) sum += views[i] >> 32;
        places[part + 1] = places[part] + sum;
    }
    std::atomic<u64> bad{n};
    threads::Team(num_threads).run({num_parts}, 1, [&](unsigned, size_t, u64 part, u64) {
        const u64 first = part * LISTS_PER_GRAB, count = first + LISTS_PER_GRAB < n ? LISTS_PER_GRAB : n - first;
        const u64 place = places[part] < out_count ? places[part] : out_count, room = (places[part + 1] < out_count ? places[part + 1] : out_count) - place;
        const u64 done = DISPATCH(copy_lists((const P*)pool, pool_count, base, views + first, count, (T*)out + place, room));
        if (done < count) lower(bad, first + done);
    });
    return bad.load();
}

template <class P> u64 gather_lists_from(const void* pool, u64 pool_count, u64 base, const u64* views, u64 n, void* out, u64 out_count, u32 out_bytes, u32 num_threads) {
    switch (out_bytes) {
        case 1: return gather_lists_typed<P, u8>(pool, pool_count, base, views, n, out, out_count, num_threads);
        case 2: return gather_lists_typed<P, u16>(pool, pool_count, base, views, n, out, out_count, num_threads);
        case 4: return gather_lists_typed<P, u32>(pool, pool_count, base, views, n, out, out_count, num_threads);
        default: return gather_lists_typed<P, u64>(pool, pool_count, base, views, n, out, out_count, num_threads);
    }
}

}  // namespace

EXPORT u32 headrace_abi_version() { return ABI_VERSION; }

EXPORT const char* headrace_source_hash() { return HEADRACE_SOURCE_HASH; }

EXPORT const char* headrace_records() {
    static const std::string text = describe_records();
    return text.c_str();
}

EXPORT u64 headrace_known_features() { return KNOWN_FEATURES; }

// Tests compare the instruction sets with it. Not for use while other calls run.
EXPORT void headrace_force_portable(int on) { force_portable = on != 0; }

EXPORT int headrace_has_avx2() { return use_avx2(); }

// out[i] = values[rows[i]]; rows are u32 (row_bytes 4) or i64. Returns the first i whose row is outside, else num_rows.
EXPORT u64 headrace_gather_fixed(const void* values, u64 num_values, u32 item_bytes, const void* rows, u32 row_bytes, u64 num_rows, void* out, u32 num_threads) {
    if (row_bytes == 4) return gather_sized<u32>(values, num_values, item_bytes, rows, num_rows, out, num_threads);
    return gather_sized<i64>(values, num_values, item_bytes, rows, num_rows, out, num_threads);
}

// offsets[0 … n]: running sum of the lengths of the views.
EXPORT void headrace_list_offsets(const u64* views, u64 n, i64* offsets) {
    i64 sum = 0;
    for (u64 i = 0; i < n; ++i) {
        offsets[i] = sum;
        sum += (i64)(views[i] >> 32);
    }
    offsets[n] = sum;
}

// Lists end to end into out, base added modulo the out item. Returns the first list that does not fit pool or out, else n.
EXPORT u64 headrace_gather_lists(const void* pool, u64 pool_count, u32 pool_item_bytes, u64 base, const u64* views, u64 n, void* out, u64 out_count,
                                 u32 out_item_bytes, u32 num_threads) {
    switch (pool_item_bytes) {
        case 1: return gather_lists_from<u8>(pool, pool_count, base, views, n, out, out_count, out_item_bytes, num_threads);
        case 2: return gather_lists_from<u16>(pool, pool_count, base, views, n, out, out_count, out_item_bytes, num_threads);
        case 4: return gather_lists_from<u32>(pool, pool_count, base, views, n, out, out_count, out_item_bytes, num_threads);
        default: return gather_lists_from<u64>(pool, pool_count, base, views, n, out, out_count, out_item_bytes, num_threads);
    }
}

EXPORT u32 headrace_crc32c(const u8* data, u64 num_bytes, u32 seed) { return crc32c::checksum(data, num_bytes, seed, force_portable); }

// The first of n ranges of data whose sum is another than it should be, else n. Ranges lie inside of data.
EXPORT u64 headrace_first_mismatch(const u8* data, const i64* starts, const i64* sizes, const u32* sums, u64 n, u32 num_threads) {
    std::atomic<u64> bad{n};
    u64 num_bytes = 0;
    for (u64 i = 0; i < n; ++i) num_bytes += (u64)sizes[i];
    threads::Team(num_bytes < 4 * BYTES_PER_PIECE ? 1 : num_threads).run({n}, 1, [&](unsigned, size_t, u64 i, u64) {
        if (crc32c::checksum(data + starts[i], (u64)sizes[i], 0, force_portable) != sums[i]) lower(bad, i);
    });
    return bad.load();
}

// Positions starts[i], starts[i] + 1 … of every range, end to end. Returns the first range that does not fit into `out`, else n.
EXPORT u64 headrace_ranges(const i64* starts, const i64* lengths, u64 n, i64* out, u64 out_count) {
    u64 at = 0;
    for (u64 i = 0; i < n; ++i) {
        const u64 length = (u64)lengths[i];
        if (length > out_count - at) return i;
        for (u64 j = 0; j < length; ++j) out[at + j] = starts[i] + (i64)j;
        at += length;
    }
    return n;
}

#include "columns.h"
#include "executor.h"
#include "program.h"
#include "encoder.h"
#include "rows_take.h"
#include "encoders.h"
#include "key_probe.h"
#include "page_reads.h"
