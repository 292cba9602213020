// Key index sections, several in one call: segment/key_index.py's `build` in C++, byte for byte. Part of host.cpp.

namespace keys {

constexpr u64 ALIGNMENT = 64, BLOCK_BYTES = 32;
constexpr u32 KEY_INDEX_VERSION = 1;
constexpr u32 SALT[8] = {0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31};

struct Header {
    u32 version, key_bytes;
    u64 num_keys, bloom_blocks, min_key, max_key;
    u8 reserved[24];
};

static_assert(sizeof(Header) == 64, "mirrors key_index.HEADER");

inline u64 mix(u64 x) {
    const u64 odd = 0xD6E8FEB86659FD93ull;
    x = (x ^ x >> 32) * odd;
    x = (x ^ x >> 32) * odd;
    return x ^ x >> 32;
}

struct Entry {
    u64 low, high;
    u32 row;
};

inline u64 padded(u64 num_bytes) { return (num_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// One section of n keys to `out`, which is zeroed; `high` null for keys of one word.
inline void build(const u64* low, const u64* high, u64 n, u64 blocks, std::vector<Entry>& entries, u8* out) {
    entries.resize(n);
    for (u64 k = 0; k < n; ++k) entries[k] = {low[k], high ? high[k] : 0, (u32)k};
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return a.low != b.low ? a.low < b.low : a.high != b.high ? a.high < b.high : a.row < b.row;
    });
    const Header header = {KEY_INDEX_VERSION, high ? 16u : 8u, n, blocks, n ? entries[0].low : 0, n ? entries[n - 1].low : 0, {}};
    std::memcpy(out, &header, sizeof header);
    u64* lows = (u64*)(out + sizeof header);
    u64* highs = (u64*)((u8*)lows + padded(8 * n));
    u32* rows = (u32*)(high ? (u8*)highs + padded(8 * n) : (u8*)highs);
    u32* bloom = (u32*)((u8*)rows + padded(4 * n));
    for (u64 k = 0; k < n; ++k) {
        lows[k] = entries[k].low;
        if (high) highs[k] = entries[k].high;
        rows[k] = entries[k].row;
        const u64 hash = mix(entries[k].low);
        u32* block = bloom + ((hash >> 32) * blocks >> 32) * (BLOCK_BYTES / 4);
        for (u32 word = 0; word < 8; ++word) block[word] |= 1u << ((u32)hash * SALT[word] >> 27);
    }
}

}  // namespace keys

// Section k holds the keys from bounds[k] to bounds[k + 1] and goes to out + offsets[k].
EXPORT void headrace_build_key_indexes(const u64* low, const u64* high, const u64* bounds, const u64* blocks, u64 num_sections, const u64* offsets, u8* out) {
    std::vector<keys::Entry> entries;
    for (u64 k = 0; k < num_sections; ++k)
        keys::build(low + bounds[k], high ? high + bounds[k] : nullptr, bounds[k + 1] - bounds[k], blocks[k], entries, out + offsets[k]);
}
