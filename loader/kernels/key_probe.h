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
    const i64* names;  // what the caller calls each segment; null: its number in the run
};

const u64 ENTRIES_PER_THREAD = 1 << 21;
const u64 KEYS_PER_GRAB = 4096;
const u64 ENTRIES_TO_ORDER = 1 << 20;  // of a run that caches do not hold
const int LANES_IN_STEP = 16;      // searches side by side, so that their cache misses overlap
const u32 HASHES_IN_STEP = 64;     // filter blocks side by side

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

// Which of the keys in `left` pass the run's filter, to `passed`; returns how many. Filter blocks are asked for well before they are looked at.
inline u64 candidates(const Run& run, const u64* low, const u32* left, u64 n, u32* passed) {
    if (!run.bloom) {
        std::copy(left, left + n, passed);
        return n;
    }
    u64 found = 0;
    u64 hashes[HASHES_IN_STEP];
    for (u64 first = 0; first < n; first += HASHES_IN_STEP) {
        const u32 width = (u32)(n - first < HASHES_IN_STEP ? n - first : HASHES_IN_STEP);
        for (u32 k = 0; k < width; ++k) {
            const u64 hash = mix(low[left[first + k]]);
            hashes[k] = ((hash >> 32) * run.bloom_blocks >> 32) << 32 | (u32)hash;
            __builtin_prefetch(run.bloom + (hashes[k] >> 32) * (BLOCK_BYTES / 4));
        }
        found += DISPATCH(may_hold(run.bloom, hashes, left + first, width, passed + found));
    }
    return found;
}

// The first entries that are not below some keys, `width` at most LANES_IN_STEP of them, to `first`: the searches go side by side.
inline void lower_bounds(const Run& run, const u64* low, const u64* high, const u32* keys, int width, u64* first) {
    for (int lane = 0; lane < width; ++lane) first[lane] = 0;
    for (u64 length = run.count; length > 1;) {
        const u64 half = length / 2;
        for (int lane = 0; lane < width; ++lane) {
            const u32 key = keys[lane];
            __builtin_prefetch(run.low + first[lane] + half / 2);
            __builtin_prefetch(run.low + first[lane] + half + half / 2);
            first[lane] += below(run, first[lane] + half - 1, low[key], high ? high[key] : 0) ? half : 0;
        }
        length -= half;
    }
}

// Looks for the keys in `left`, at most KEYS_PER_GRAB.
inline void probe_some(const Run& run, const u64* low, const u64* high, const u32* left, u64 n, i64* segments, i64* rows) {
    u32 passed[KEYS_PER_GRAB];
    const u64 num_passed = candidates(run, low, left, n, passed);
    for (u64 done = 0; done < num_passed; done += LANES_IN_STEP) {
        const int width = (int)(num_passed - done < (u64)LANES_IN_STEP ? num_passed - done : LANES_IN_STEP);
        u64 first[LANES_IN_STEP];
        lower_bounds(run, low, high, passed + done, width, first);
        for (int lane = 0; lane < width; ++lane) __builtin_prefetch(run.places + first[lane]);
        for (int lane = 0; lane < width; ++lane) {
            const u32 key = passed[done + lane];
            for (u64 at = first[lane]; at < run.count && run.low[at] == low[key] && (!high || run.high[at] == high[key]); ++at) {
                u64 row;
                const i64 segment = accepted(run, at, &row);
                if (segment < 0) continue;
                segments[key] = run.names ? run.names[segment] : segment;
                rows[key] = (i64)row;
                break;
            }
        }
    }
}

// Keys roughly in the run's order, so that searches one after another walk the same lines of memory: by their distance from the run's least key, in as many
// steps as there are fours of keys.
inline std::vector<u32> in_order(const Run& run, const u64* low, const std::vector<u32>& keys) {
    int bits = 0, span = 0;
    while (keys.size() >> (bits + 2) && bits < 16) ++bits;
    while (span < 64 && (run.low[run.count - 1] - run.low[0]) >> span) ++span;
    const int shift = span > bits ? span - bits : 0;
    std::vector<u32> starts((1ull << bits) + 1, 0), sorted(keys.size());
    for (const u32 key : keys) ++starts[((low[key] - run.low[0]) >> shift) + 1];
    for (u64 k = 1; k < starts.size(); ++k) starts[k] += starts[k - 1];
    for (const u32 key : keys) sorted[starts[(low[key] - run.low[0]) >> shift]++] = key;
    return sorted;
}

// Which of the keys [begin, end) have no segment yet and lie in the run's range, to `left`; returns how many.
inline u64 open_keys(const Run& run, const u64* low, const i64* segments, u64 begin, u64 end, u32* left) {
    const u64 least = run.low[0], width = run.low[run.count - 1] - least;
    u64 found = 0;
    for (u64 k = begin; k < end; ++k) {
        left[found] = (u32)k;
        found += (u64)(segments[k] < 0) & (u64)(low[k] - least <= width);
    }
    return found;
}

// Looks for the keys that have no segment yet.
inline void probe(const Run& run, const u64* low, const u64* high, u64 n, i64* segments, i64* rows, unsigned num_threads) {
    if (!run.count || !n) return;
    if (n < KEYS_PER_GRAB || run.count < ENTRIES_TO_ORDER) {  // less than waking helpers for each of many such runs would take
        u32 left[KEYS_PER_GRAB];
        for (u64 begin = 0; begin < n; begin += KEYS_PER_GRAB) {
            const u64 end = n - begin < KEYS_PER_GRAB ? n : begin + KEYS_PER_GRAB;
            probe_some(run, low, high, left, open_keys(run, low, segments, begin, end, left), segments, rows);
        }
        return;
    }
    std::vector<u32> left(n);
    left.resize(open_keys(run, low, segments, 0, n, left.data()));
    left = in_order(run, low, left);
    const u64 grabs = (left.size() + KEYS_PER_GRAB - 1) / KEYS_PER_GRAB;
    threads::Team((unsigned)(grabs < num_threads ? grabs : num_threads)).run({left.size()}, KEYS_PER_GRAB, [&](unsigned, size_t, u64 begin, u64 end) {
        probe_some(run, low, high, left.data() + begin, end - begin, segments, rows);
    });
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
    return {kept.low.data(), runs[0].high ? kept.high.data() : nullptr, kept.places.data(), count, nullptr, 0, bases, &yes, alive, &no_shift, 1, nullptr};
}

inline u64 merge(const Run* runs, u64 num_runs, u64* low, u64* high, u32* places) {
    static const u64 bases[2] = {0, 1ull << 32};
    static const u8* const alive[1] = {nullptr};
    static const Run nothing = {nullptr, nullptr, nullptr, 0, nullptr, 0, bases, nullptr, alive, nullptr, 0, nullptr};
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

// For keys whose segment is negative yet: the segment, as the caller calls it, and row of an entry that counts.
EXPORT void headrace_probe_keys(const keys::Run* run, const u64* low, const u64* high, u64 n, i64* segments, i64* rows, u32 num_threads) {
    keys::probe(*run, low, high, n, segments, rows, num_threads);
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
