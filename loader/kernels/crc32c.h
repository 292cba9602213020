// CRC32C (Castagnoli). With SSE4.2, three streams run side by side, because the instruction takes three cycles and starts every cycle;
// their sums are joined by a table that appends zero bytes (after Mark Adler's crc32c.c). Elsewhere: eight tables, eight bytes a step.
#pragma once
#include <cstring>

namespace crc32c {

constexpr u32 POLYNOMIAL = 0x82F63B78u;  // reflected
constexpr size_t LONG_BYTES = 4096, SHORT_BYTES = 256;

// zeros[k][b]: what byte k = b of a sum becomes after `num_bytes` zero bytes.
struct ShiftTable {
    u32 zeros[4][256];

    u32 apply(u32 crc) const { return zeros[0][crc & 255] ^ zeros[1][crc >> 8 & 255] ^ zeros[2][crc >> 16 & 255] ^ zeros[3][crc >> 24]; }
};

struct Tables {
    u32 bytes[8][256];  // bytes[k][b]: the sum of byte b and k zero bytes
    ShiftTable after_long, after_short;

    Tables() {
        for (u32 b = 0; b < 256; ++b) {
            u32 crc = b;
            for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (POLYNOMIAL & (0u - (crc & 1)));
            bytes[0][b] = crc;
        }
        for (u32 b = 0; b < 256; ++b)
            for (int k = 1; k < 8; ++k) bytes[k][b] = bytes[k - 1][b] >> 8 ^ bytes[0][bytes[k - 1][b] & 255];
        fill(after_long, LONG_BYTES);
        fill(after_short, SHORT_BYTES);
    }

    // A sum is linear in its bits: shift the 32 single bits, then combine them for every byte.
    void fill(ShiftTable& table, size_t num_bytes) const {
        u32 bit[32];
        for (int k = 0; k < 32; ++k) {
            bit[k] = 1u << k;
            for (size_t i = 0; i < num_bytes; ++i) bit[k] = bit[k] >> 8 ^ bytes[0][bit[k] & 255];
        }
        for (int k = 0; k < 4; ++k)
            for (u32 b = 0; b < 256; ++b) {
                u32 crc = 0;
                for (int i = 0; i < 8; ++i) crc ^= b >> i & 1 ? bit[8 * k + i] : 0;
                table.zeros[k][b] = crc;
            }
    }
};

inline const Tables& tables() {
    static const Tables made;
    return made;
}

inline u64 load64(const u8* at) {
    u64 x;
    memcpy(&x, at, 8);
    return x;
}

inline u32 by_tables(u32 crc, const u8* at, size_t num_bytes) {
    const Tables& t = tables();
    for (; num_bytes >= 8; at += 8, num_bytes -= 8) {
        const u64 x = load64(at) ^ crc;
        crc = t.bytes[7][x & 255] ^ t.bytes[6][x >> 8 & 255] ^ t.bytes[5][x >> 16 & 255] ^ t.bytes[4][x >> 24 & 255] ^ t.bytes[3][x >> 32 & 255] ^
              t.bytes[2][x >> 40 & 255] ^ t.bytes[1][x >> 48 & 255] ^ t.bytes[0][x >> 56];
    }
    for (; num_bytes; ++at, --num_bytes) crc = crc >> 8 ^ t.bytes[0][(crc ^ *at) & 255];
    return crc;
}

#if defined(__x86_64__)

#define HEADRACE_SSE42 __attribute__((target("sse4.2")))

template <size_t STREAM_BYTES> HEADRACE_SSE42 inline u32 three_streams(u32 crc, const u8*& at, size_t& num_bytes, const ShiftTable& shift) {
    for (; num_bytes >= 3 * STREAM_BYTES; at += 3 * STREAM_BYTES, num_bytes -= 3 * STREAM_BYTES) {
        u64 a = crc, b = 0, c = 0;
        for (const u8* p = at; p < at + STREAM_BYTES; p += 8) {
            a = __builtin_ia32_crc32di(a, load64(p));
            b = __builtin_ia32_crc32di(b, load64(p + STREAM_BYTES));
            c = __builtin_ia32_crc32di(c, load64(p + 2 * STREAM_BYTES));
        }
        crc = shift.apply(shift.apply((u32)a) ^ (u32)b) ^ (u32)c;
    }
    return crc;
}

HEADRACE_SSE42 inline u32 by_instruction(u32 crc, const u8* at, size_t num_bytes) {
    const Tables& t = tables();
    crc = three_streams<LONG_BYTES>(crc, at, num_bytes, t.after_long);
    crc = three_streams<SHORT_BYTES>(crc, at, num_bytes, t.after_short);
    u64 wide = crc;
    for (; num_bytes >= 8; at += 8, num_bytes -= 8) wide = __builtin_ia32_crc32di(wide, load64(at));
    crc = (u32)wide;
    for (; num_bytes; ++at, --num_bytes) crc = __builtin_ia32_crc32qi(crc, *at);
    return crc;
}

#endif

// The sum of `seed`'s bytes followed by these; 0 starts. `portable` forces the tables.
inline u32 checksum(const u8* at, size_t num_bytes, u32 seed, bool portable) {
#if defined(__x86_64__)
    if (!portable && __builtin_cpu_supports("sse4.2")) return ~by_instruction(~seed, at, num_bytes);
#endif
    return ~by_tables(~seed, at, num_bytes);
}

}  // namespace crc32c
