// Pages of local files read side by side, their checksums compared: segment/pages.py's loads in one call. Part of host.cpp.
#include <cerrno>
#include <unistd.h>

namespace pages {

// Mirrors native_pages.PAGE_READ.
struct Read {
    i64 offset;
    u64 target, num_bytes;
    int file;
    u32 checksum;
};

enum Outcome : u64 { DONE = 0, CUT_OFF = 1, CHANGED = 2, FAILED = 3 };

inline Outcome read_page(const Read& read, bool portable) {
    u8* const target = (u8*)read.target;
    for (u64 done = 0; done < read.num_bytes;) {
        const ssize_t count = pread(read.file, target + done, read.num_bytes - done, (off_t)(read.offset + (i64)done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return FAILED;
        if (count == 0) return CUT_OFF;
        done += (u64)count;
    }
    return crc32c::checksum(target, read.num_bytes, 0, portable) == read.checksum ? DONE : CHANGED;
}

}  // namespace pages

// Returns 0, or of the first page that could not be read (its number << 2 | what was wrong) + 1.
EXPORT u64 headrace_read_pages(const pages::Read* reads, u64 n, u32 num_threads) {
    const u64 none = ~0ull;
    std::atomic<u64> bad{none};
    threads::Team(n < 2 ? 1 : num_threads).run({n}, 1, [&](unsigned, size_t, u64 k, u64) {
        const pages::Outcome outcome = pages::read_page(reads[k], force_portable);
        if (outcome != pages::DONE) lower(bad, k << 2 | outcome);
    });
    return bad.load() == none ? 0 : bad.load() + 1;
}
