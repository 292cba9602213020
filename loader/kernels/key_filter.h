// Filters of key runs: which keys may be in one. Part of host.cpp, which includes it once for every instruction set, before key_probe.h.
//
// A split block Bloom filter: a key has one block of eight words, and a bit in each.

// Keys [0 … width) whose bits are all set go to `passed`, in their order; returns how many. A hash is a block's number above the 32 bits that choose bits in it.
inline u64 may_hold(const u32* bloom, const u64* hashes, const u32* keys, u32 width, u32* passed) {
    u64 found = 0;
#if defined(HEADRACE_AVX2_BODY)
    const __m256i salt = _mm256_setr_epi32(0x47B6137B, 0x44974D91, (int)0x8824AD5B, (int)0xA2B7289D, 0x705495C7, 0x2DF1424B, (int)0x9EFC4947, 0x5C6BFB31);
    const __m256i one = _mm256_set1_epi32(1);
    for (u32 k = 0; k < width; ++k) {
        const __m256i bits = _mm256_sllv_epi32(one, _mm256_srli_epi32(_mm256_mullo_epi32(_mm256_set1_epi32((int)hashes[k]), salt), 27));
        const __m256i block = _mm256_loadu_si256((const __m256i*)(bloom + (hashes[k] >> 32) * 8));
        passed[found] = keys[k];
        found += (u64)_mm256_testc_si256(block, bits);
    }
#else
    constexpr u32 salt[8] = {0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31};
    for (u32 k = 0; k < width; ++k) {
        const u32* block = bloom + (hashes[k] >> 32) * 8;
        u32 bits = 1;
        for (u32 word = 0; word < 8; ++word) bits &= block[word] >> ((u32)hashes[k] * salt[word] >> 27);
        passed[found] = keys[k];
        found += bits & 1;
    }
#endif
    return found;
}
