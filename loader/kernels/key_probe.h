// Sorted key runs: finding keys in one, merging several. The references are in segment/key_run.py. Part of host.cpp, after key_index.h.

namespace keys {

// Mirrors native_keys.KEY_RUN. A place is a row counted through the run's segments: rows of segment k have places from bases[k] on.
struct Run {
    const u64 *low, *high;  // sorted by (low, high); high null for keys of one word
    const u32* places;
    u64 count;
    const u32* bloom;  // null: none
    u64 bloom_blocks;
    const u64* bases;       // num_segments + 1
    const u8* accept;       // 0: entries of this segment do not count
    const u8* const* dead;  // a flag for each row of a segment, or null
    const u64* shifts;      // added to a place when runs are merged
    u64 num_segments;
};

const u64 ENTRIES_PER_THREAD = 1 << 21;
const int LANES_IN_STEP = 16;  // searches side by side, so that their cache misses overlap

inline u64 segment_of(const Run& run, u32 place) {
    u64 first = 0, length = run.num_segments;
    while (length > 1) {
        const u64 half = length / 2;
        first += run.bases[first + half] <= place ? half : 0;
        length -= half;
    }
    return first;
}

// The segment of an entry that counts, or -1.
inline i64 accepted(const Run& run, u64 entry, u64* row) {
    const u64 segment = segment_of(run, run.places[entry]);
    *row = run.places[entry] - run.bases[segment];
    return run.accept[segment] && !(run.dead[segment] && run.dead[segment][*row]) ? (i64)segment : -1;
}

inline bool below(const Run& run, u64 entry, u64 low, u64 high) {
    return run.low[entry] < low || (run.high && run.low[entry] == low && run.high[entry] < high);
}

inline bool may_hold(const u32* block, u32 hash) {
    u32 bits = 1;
    for (int word = 0; word < 8; ++word) bits &= block[word] >> (hash * SALT[word] >> 27);
    return bits & 1;
}

// Which keys that are not found yet pass the run's range and filter; returns how many.
inline u64 candidates(const Run& run, const u64* low, u64 n, const i64* segments, u32* passed) {
    const u64 least = run.low[0], most = run.low[run.count - 1];
    u64 found = 0;
    for (u64 first = 0; first < n; first += LANES_IN_STEP) {
        const u64 end = first + LANES_IN_STEP < n ? first + LANES_IN_STEP : n;
        const u32* blocks[LANES_IN_STEP];
        u32 hashes[LANES_IN_STEP];
        for (u64 k = first; run.bloom && k < end; ++k) {
            const u64 hash = mix(low[k]);
            blocks[k - first] = run.bloom + ((hash >> 32) * run.bloom_blocks >> 32) * (BLOCK_BYTES / 4);
            hashes[k - first] = (u32)hash;
            __builtin_prefetch(blocks[k - first]);
        }
        for (u64 k = first; k < end; ++k) {
            if (segments[k] >= 0 || low[k] < least || low[k] > most) continue;
            passed[found] = (u32)k;
            found += !run.bloom || may_hold(blocks[k - first], hashes[k - first]);
        }
    }
    return found;
}

inline void probe(const Run& run, const u64* low, const u64* high, u64 n, i64* segments, i64* rows) {
    if (!run.count || !n) return;
    std::vector<u32> passed(n);
    const u64 num_passed = candidates(run, low, n, segments, passed.data());
    for (u64 done = 0; done < num_passed; done += LANES_IN_STEP) {
        const int width = (int)(num_passed - done < (u64)LANES_IN_STEP ? num_passed - done : LANES_IN_STEP);
        u64 first[LANES_IN_STEP] = {0};
        for (u64 length = run.count; length > 1;) {
            const u64 half = length / 2;
            for (int lane = 0; lane < width; ++lane) {
                const u32 key = passed[done + lane];
                __builtin_prefetch(run.low + first[lane] + half / 2);
                __builtin_prefetch(run.low + first[lane] + half + half / 2);
                first[lane] += below(run, first[lane] + half - 1, low[key], high ? high[key] : 0) ? half : 0;
            }
            length -= half;
        }
        for (int lane = 0; lane < width; ++lane) {
            const u32 key = passed[done + lane];
            for (u64 at = first[lane]; at < run.count && run.low[at] == low[key] && (!high || run.high[at] == high[key]); ++at) {
                u64 row;
                const i64 segment = accepted(run, at, &row);
                if (segment < 0) continue;
                segments[key] = segment;
                rows[key] = (i64)row;
                break;
            }
        }
    }
}

struct Merged {
    std::vector<u64> low, high;
    std::vector<u32> places;
};

// Entries of a run that count, with their new places.
class Cursor {
  public:
    explicit Cursor(const Run& run) : run_(run), at_(0) { settle(); }
    bool ended() const { return at_ == run_.count; }
    u64 low() const { return run_.low[at_]; }
    u64 high() const { return run_.high ? run_.high[at_] : 0; }
    u32 place() const { return place_; }
    void next() {
        ++at_;
        settle();
    }

  private:
    void settle() {
        for (u64 row; at_ < run_.count; ++at_) {
            const i64 segment = accepted(run_, at_, &row);
            if (segment < 0) continue;
            place_ = (u32)(run_.places[at_] + run_.shifts[segment]);
            return;
        }
    }

    const Run& run_;
    u64 at_;
    u32 place_ = 0;
};

// All entries that count, in order; of equal keys those of earlier runs first. To the three arrays; returns how many.
inline u64 merge(const Run* runs, u64 num_runs, u64* low, u64* high, u32* places);

inline u64 merge_two(const Run& left, const Run& right, u64* low, u64* high, u32* places) {
    Cursor a(left), b(right);
    u64 count = 0;
    const auto take = [&](Cursor& from) {
        low[count] = from.low();
        if (high) high[count] = from.high();
        places[count++] = from.place();
        from.next();
    };
    while (!a.ended() && !b.ended()) take(b.low() < a.low() || (b.low() == a.low() && b.high() < a.high()) ? b : a);
    while (!a.ended()) take(a);
    while (!b.ended()) take(b);
    return count;
}

// One half of the runs as a run of its own, of a single segment that counts.
inline Run half(const Run* runs, u64 num_runs, Merged& kept, const u64* bases, const u8* const* alive) {
    static const u8 yes = 1;
    static const u64 no_shift = 0;
    u64 most = 0;
    for (u64 k = 0; k < num_runs; ++k) most += runs[k].count;
    kept.low.resize(most);
    kept.high.resize(runs[0].high ? most : 0);
    kept.places.resize(most);
    const u64 count = merge(runs, num_runs, kept.low.data(), runs[0].high ? kept.high.data() : nullptr, kept.places.data());
    return {kept.low.data(), runs[0].high ? kept.high.data() : nullptr, kept.places.data(), count, nullptr, 0, bases, &yes, alive, &no_shift, 1};
}

inline u64 merge(const Run* runs, u64 num_runs, u64* low, u64* high, u32* places) {
    static const u64 bases[2] = {0, 1ull << 32};
    static const u8* const alive[1] = {nullptr};
    static const Run nothing = {nullptr, nullptr, nullptr, 0, nullptr, 0, bases, nullptr, alive, nullptr, 0};
    if (num_runs < 3) return merge_two(num_runs ? runs[0] : nothing, num_runs > 1 ? runs[1] : nothing, low, high, places);
    Merged left, right;
    u64 total = 0;
    for (u64 k = 0; k < num_runs; ++k) total += runs[k].count;
    Run halves[2];
    threads::Team(total < ENTRIES_PER_THREAD ? 1 : 2).run({2}, 1, [&](unsigned, size_t, u64 which, u64) {
        const u64 cut = num_runs / 2;
        halves[which] = which ? half(runs + cut, num_runs - cut, right, bases, alive) : half(runs, cut, left, bases, alive);
    });
    return merge_two(halves[0], halves[1], low, high, places);
}

}  // namespace keys

// For keys whose segment is -1 yet: the segment (counted in the run) and row of an entry that counts.
EXPORT void headrace_probe_keys(const keys::Run* run, const u64* low, const u64* high, u64 n, i64* segments, i64* rows) {
    keys::probe(*run, low, high, n, segments, rows);
}

EXPORT u64 headrace_merge_keys(const keys::Run* runs, u64 num_runs, u64* low, u64* high, u32* places) { return keys::merge(runs, num_runs, low, high, places); }

// A filter for sorted or unsorted low words; `bloom` is zeroed.
EXPORT void headrace_key_bloom(const u64* low, u64 n, u32* bloom, u64 blocks) {
    u64 hashes[keys::LANES_IN_STEP];
    for (u64 first = 0; first < n; first += keys::LANES_IN_STEP) {
        const int width = (int)(n - first < (u64)keys::LANES_IN_STEP ? n - first : keys::LANES_IN_STEP);
        const auto block = [&](int lane) { return bloom + ((hashes[lane] >> 32) * blocks >> 32) * (keys::BLOCK_BYTES / 4); };
        for (int lane = 0; lane < width; ++lane) {
            hashes[lane] = keys::mix(low[first + lane]);
            __builtin_prefetch(block(lane), 1);
        }
        for (int lane = 0; lane < width; ++lane)
            for (u32 word = 0; word < 8; ++word) block(lane)[word] |= 1u << ((u32)hashes[lane] * keys::SALT[word] >> 27);
    }
}
