// What encoders look for in values: thresholds of class splits, distinct values, their order by frequency. Host only. Each does in C++
// what a NumPy function in loader/encodings does, with the same result to the last bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "lanes.cuh"

namespace choose {

constexpr u64 SAMPLE = 4096, QUANTILES = 32;

inline u32 bits_of(u64 x) { return x ? 64 - (u32)__builtin_clzll(x) : 0; }

// The order that sorts keys, equal ones by number. Eleven bits a pass; passes over bits that are all equal are left out.
inline void sort_numbers(const std::vector<u64>& keys, std::vector<u32>& order) {
    u64 all = ~0ull, some = 0;
    for (u64 key : keys) all &= key, some |= key;
    order.resize(keys.size());
    for (u32 i = 0; i < keys.size(); ++i) order[i] = i;
    std::vector<u32> next(keys.size());
    for (u32 shift = 0; shift < 64; shift += 11) {
        if (((all ^ some) >> shift & 2047) == 0) continue;
        u32 places[2049] = {};
        for (u64 key : keys) ++places[(key >> shift & 2047) + 1];
        for (u32 digit = 0; digit < 2048; ++digit) places[digit + 1] += places[digit];
        for (u32 i : order) next[places[keys[i] >> shift & 2047]++] = i;
        order.swap(next);
    }
}

// split.search: thresholds of at most `num_classes` classes, and bits a value, by dynamic programming over candidate thresholds.
class SplitSearch {
  public:
    SplitSearch(const u32* values, u64 n, u32 low, u32 high) : low_(low), high_(high) {
        if (n < SAMPLE) {
            count_powers(values, n);
        } else {
            const u64 step = n / SAMPLE;
            for (u64 i = 0; i < n && sample_.size() < SAMPLE; i += step) sample_.push_back(values[i]);
            num_sampled_ = sample_.size();
            sort(sample_);
            find_candidates();
            for (size_t j = 0; j < num_ends_; ++j) below_[j] = std::lower_bound(sample_.begin(), sample_.end(), ends_[j]) - sample_.begin();
        }
        weigh();
    }

    // Returns how many thresholds there are.
    u32 run(u32 num_classes, u32* thresholds, double* bits) const {
        const size_t count = num_ends_;
        const double infinite = std::numeric_limits<double>::infinity();
        double best[MOST_ENDS], total[MOST_ENDS];
        u32 chosen[MAX_CLASSES][MOST_ENDS];
        best[0] = infinite;
        for (size_t j = 1; j < count; ++j) best[j] = cost_[j];
        for (u32 k = 1; k < num_classes; ++k) {
            std::fill(total, total + count, infinite);
            std::fill(chosen[k], chosen[k] + count, 0u);
            for (size_t i = 0; i < count; ++i) {
                if (best[i] == infinite) continue;
                const double* row = &cost_[i * count];
                for (size_t j = i + 1; j < count; ++j)
                    if (best[i] + row[j] < total[j]) total[j] = best[i] + row[j], chosen[k][j] = (u32)i;
            }
            std::copy(total, total + count, best);
        }
        *bits = best[count - 1] / (double)num_sampled_;
        size_t at = count - 1;
        u32 num_thresholds = 0;
        for (u32 k = num_classes; k-- > 1;) {
            at = chosen[k][at];
            if (ends_[at] > low_) thresholds[num_thresholds++] = (u32)ends_[at];
        }
        std::sort(thresholds, thresholds + num_thresholds);
        return (u32)(std::unique(thresholds, thresholds + num_thresholds) - thresholds);
    }

  private:
    static constexpr size_t MOST_ENDS = 2 + 2 * QUANTILES + 2 * 32;

    // cost[i, j], j > i: the bits of the values from ends[i] up to ends[j], all of one class.
    void weigh() {
        cost_.resize(num_ends_ * num_ends_);
        for (size_t i = 0; i < num_ends_; ++i)
            for (size_t j = i + 1; j < num_ends_; ++j)
                cost_[i * num_ends_ + j] = (double)((below_[j] - below_[i]) * (i64)bits_of((u64)(ends_[j] - 1 - ends_[i])));
    }

    static void sort(std::vector<i64>& values) {
        std::vector<i64> next(values.size());
        for (u32 shift = 0; shift < 32; shift += 11) {
            u32 places[2049] = {};
            for (i64 value : values) ++places[(value >> shift & 2047) + 1];
            for (u32 digit = 0; digit < 2048; ++digit) places[digit + 1] += places[digit];
            for (i64 value : values) next[places[value >> shift & 2047]++] = value;
            values.swap(next);
        }
    }

    // Powers of two above the smallest value: how many values lie below each is their bit lengths counted.
    void count_powers(const u32* values, u64 n) {
        i64 counts[33] = {}, sum = 0;
        for (u64 i = 0; i < n; ++i) ++counts[bits_of(values[i] - (u32)low_)];
        num_sampled_ = n;
        add_end(low_, 0);
        for (u32 k = 0; k < 32 && low_ + (1ll << k) <= high_; ++k) add_end(low_ + (1ll << k), sum += counts[k]);
        add_end(high_ + 1, (i64)n);
    }

    void add_end(i64 end, i64 below) {
        ends_[num_ends_] = end;
        below_[num_ends_++] = below;
    }

    void find_candidates() {
        i64 found[MOST_ENDS];
        size_t count = 0;
        auto add = [&](i64 value) {
            if (value >= low_ && value <= high_) found[count++] = value;
        };
        add(low_);
        const double step = (double)(sample_.size() - 1) / (double)(QUANTILES - 1);
        for (u64 k = 0; k < QUANTILES; ++k) {
            const i64 value = sample_[k + 1 == QUANTILES ? sample_.size() - 1 : (size_t)((double)k * step)];
            add(value);
            add(value + 1);
        }
        const u32 num_powers = std::max(bits_of((u64)(high_ - low_)), 1u);
        for (u32 k = 0; k < num_powers; ++k) {
            add(low_ + (1ll << k));
            add(high_ + 1 - (1ll << k));
        }
        std::sort(found, found + count);
        num_ends_ = (size_t)(std::unique(found, found + count) - found);
        std::copy(found, found + num_ends_, ends_);
        ends_[num_ends_++] = high_ + 1;
    }

    i64 low_, high_, ends_[MOST_ENDS], below_[MOST_ENDS];
    size_t num_ends_ = 0;
    u64 num_sampled_ = 0;
    std::vector<i64> sample_;
    std::vector<double> cost_;
};

// dictionary.distinct: entries in the order of their first occurrence, codes, counts. Returns how many, or ~0 past `most`.
template <class T> u64 distinct(const T* values, u64 n, u64 most, T* entries, u32* codes, i64* counts) {
    u64 num_slots = 1024, num_entries = 0;
    std::vector<u32> slots(num_slots, 0);  // an entry's number + 1
    auto slot_of = [&](T value) { return ((u64)value * 0x9E3779B97F4A7C15ull) >> 20 & (num_slots - 1); };
    auto grow = [&] {
        num_slots *= 4;
        slots.assign(num_slots, 0);
        for (u64 k = 0; k < num_entries; ++k) {
            u64 slot = slot_of(entries[k]);
            while (slots[slot]) slot = (slot + 1) & (num_slots - 1);
            slots[slot] = (u32)k + 1;
        }
    };
    for (u64 i = 0; i < n; ++i) {
        u64 slot = slot_of(values[i]);
        while (slots[slot] && entries[slots[slot] - 1] != values[i]) slot = (slot + 1) & (num_slots - 1);
        if (slots[slot] == 0) {
            if (num_entries == most) return ~0ull;
            entries[num_entries] = values[i];
            counts[num_entries] = 0;
            slots[slot] = (u32)++num_entries;
            codes[i] = (u32)num_entries - 1;
            if (num_entries * 2 > num_slots) grow();
        } else {
            codes[i] = slots[slot] - 1;
        }
        ++counts[codes[i]];
    }
    return num_entries;
}

// dictionary.class_limits: the first codes of the classes that give the shortest codes; `counts` fall. Returns how many limits.
inline u32 class_limits(const std::vector<i64>& counts, u32* limits) {
    const i64 num_entries = (i64)counts.size();
    std::vector<i64> below(counts.size() + 1, 0);
    for (size_t k = 0; k < counts.size(); ++k) below[k + 1] = below[k] + counts[k];
    const i64 total = below.back();
    const int bits = std::max((int)bits_of((u64)(num_entries - 1)), 1);
    double best = (double)(total * (i64)bits_of((u64)(num_entries - 1)));
    u32 num_limits = 0;
    auto weigh = [&](const int* widths, u32 n, double overhead, double& least, i64* ends_out) {
        i64 end = 0, cost = 0, ends[3];
        for (u32 k = 0; k < n; ++k) {
            const i64 start = end;
            end += 1ll << widths[k];
            if (end >= num_entries) return;
            ends[k] = end;
            cost += (below[(size_t)end] - below[(size_t)start]) * widths[k];
        }
        cost += (total - below[(size_t)end]) * (i64)bits_of((u64)(num_entries - end - 1));
        const double sum = (double)cost + overhead * (double)total;
        if (sum < least) least = sum, std::copy(ends, ends + n, ends_out);
    };
    auto keep = [&](double least, const i64* ends, u32 n) {
        if (!(least + 2000 < best)) return;
        best = least;
        num_limits = n;
        for (u32 k = 0; k < n; ++k) limits[k] = (u32)ends[k];
    };
    double least = std::numeric_limits<double>::infinity();
    i64 ends[3] = {};
    for (int a = 0; a < bits; ++a) weigh(&a, 1, 1 + 0.06 + 0.19, least, ends);
    keep(least, ends, 1);
    least = std::numeric_limits<double>::infinity();
    for (int a = 0; a < bits; ++a)
        for (int b = a; b < bits; ++b)
            for (int c = b; c < bits; ++c) {
                const int widths[3] = {a, b, c};
                weigh(widths, 3, 2 + 0.12 + 0.38, least, ends);
            }
    keep(least, ends, 3);
    return num_limits;
}

// The order of entries by class of frequency and, in each class, by value. Returns the number of class limits, 0 for one class.
inline u32 order_by_class(const std::vector<u32>& by_value, const i64* counts, std::vector<u32>& order, u32* limits) {
    const size_t n = by_value.size();
    std::vector<u64> rarity(n);
    const i64 most = *std::max_element(counts, counts + n);
    for (size_t k = 0; k < n; ++k) rarity[k] = (u64)(most - counts[by_value[k]]);
    std::vector<u32> frequent;
    sort_numbers(rarity, frequent);
    std::vector<i64> falling(n);
    for (size_t k = 0; k < n; ++k) falling[k] = counts[by_value[frequent[k]]];
    const u32 num_limits = class_limits(falling, limits);
    if (num_limits == 0) return 0;
    // `frequent` holds ranks by value: sorted within each class they are in the order of values again
    for (u32 k = 0; k <= num_limits; ++k) {
        const size_t first = k ? limits[k - 1] : 0, end = k < num_limits ? limits[k] : n;
        std::sort(frequent.begin() + (i64)first, frequent.begin() + (i64)end);
    }
    order.resize(n);
    for (size_t k = 0; k < n; ++k) order[k] = by_value[frequent[k]];
    return num_limits;
}

// dictionary.by_frequency: `order` numbers the entries by class and value; `keys` are the values as unsigned numbers in their order.
inline u32 order_entries(const std::vector<u64>& keys, const i64* counts, bool split, std::vector<u32>& order, u32* limits) {
    sort_numbers(keys, order);
    if (!split) return 0;
    std::vector<u32> by_class;
    const u32 num_limits = order_by_class(order, counts, by_class, limits);
    if (num_limits) order.swap(by_class);
    return num_limits;
}

// One array that says when items are equal.
struct Plane {
    const u8* items;
    u64 item_bytes;
};

inline bool equal_items(const Plane* planes, u64 num_planes, u64 first, u64 second, u64 count) {
    for (u64 k = 0; k < num_planes; ++k)
        if (std::memcmp(planes[k].items + first * planes[k].item_bytes, planes[k].items + second * planes[k].item_bytes, count * planes[k].item_bytes)) return false;
    return true;
}

inline u64 hash_bytes(const u8* bytes, u64 num_bytes) {
    u64 hash = num_bytes * 0x9E3779B97F4A7C15ull;
    auto mix = [&](u64 word) {
        const unsigned __int128 product = (unsigned __int128)(hash ^ word) * 0xD6E8FEB86659FD93ull;
        hash = (u64)product ^ (u64)(product >> 64);
    };
    u64 i = 0, word = 0;
    for (; i + 8 <= num_bytes; i += 8) {
        std::memcpy(&word, bytes + i, 8);
        mix(word);
    }
    word = 0;
    std::memcpy(&word, bytes + i, num_bytes - i);
    mix(word);
    return hash;
}

// Numbers of equal rows, in the order of their first occurrence among `rows`; first[k] is the place of number k in `rows`. Returns how many.
inline u64 distinct_rows(const Plane& plane, const i64* offsets, const i64* rows, u64 num_rows, u32* codes, i64* first) {
    u64 num_slots = 1024, num_found = 0;
    while (num_slots < 2 * num_rows) num_slots *= 2;
    std::vector<u32> slots(num_slots, 0);  // a row's number + 1
    std::vector<u64> hashes(num_rows);
    auto length = [&](i64 row) { return offsets[row + 1] - offsets[row]; };
    for (u64 i = 0; i < num_rows; ++i) {
        const i64 row = rows[i];
        const u64 hash = hash_bytes(plane.items + (u64)offsets[row] * plane.item_bytes, (u64)length(row) * plane.item_bytes);
        u64 slot = hash & (num_slots - 1);
        for (; slots[slot]; slot = (slot + 1) & (num_slots - 1)) {
            const u32 number = slots[slot] - 1;
            const i64 other = rows[first[number]];
            if (hashes[number] == hash && length(other) == length(row) && equal_items(&plane, 1, (u64)offsets[row], (u64)offsets[other], (u64)length(row))) break;
        }
        if (slots[slot] == 0) {
            hashes[num_found] = hash;
            first[num_found] = (i64)i;
            slots[slot] = (u32)++num_found;
        }
        codes[i] = slots[slot] - 1;
    }
    return num_found;
}

// overlap.fresh_rows.
inline void fresh_rows(const Plane* planes, u64 num_planes, const i64* offsets, u64 num_rows, u8* fresh) {
    for (u64 row = 0; row < num_rows; ++row) {
        const i64 length = offsets[row + 1] - offsets[row];
        fresh[row] = row == 0 || length != offsets[row] - offsets[row - 1] || !equal_items(planes, num_planes, (u64)offsets[row], (u64)offsets[row - 1], (u64)length);
    }
}

// overlap.slide_overlaps, of the rows that `rows` names: each against the one named before.
inline void slide_overlaps(const Plane* planes, u64 num_planes, const i64* offsets, const i64* rows, u64 num_rows, i64 max_dropped, i64* overlaps) {
    for (u64 k = 0; k < num_rows; ++k) {
        overlaps[k] = 0;
        if (k == 0) continue;
        const i64 mine = offsets[rows[k]], length = offsets[rows[k] + 1] - mine, end = offsets[rows[k - 1] + 1], before = end - offsets[rows[k - 1]];
        for (i64 dropped = 0; dropped <= max_dropped && before - dropped > 0; ++dropped) {
            const i64 shared = before - dropped;
            if (shared > length || 2 * shared < length) continue;
            if (!equal_items(planes, num_planes, (u64)mine, (u64)(end - shared), (u64)shared)) continue;
            overlaps[k] = shared;
            break;
        }
    }
}

}  // namespace choose
