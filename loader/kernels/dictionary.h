// Dictionaries: encodings/dictionary.py in C++, decision for decision and byte for byte. Part of host.cpp, after values.h.

namespace encode {

constexpr double GATHER_NS = 0.6, CODE_EXCESS = 0.5;
constexpr u64 DICTIONARY_SAMPLE = 4096;

// dictionary.log2_fixed: log2 of a positive integer in units of 2^-16, the same on every machine.
inline i64 log2_fixed(u64 x) {
    const i64 whole = choose::bits_of(x) - 1, part = (i64)((x << 16) >> whole) - 65536;
    return (whole << 16) + part + ((part * (65536 - part) >> 16) * 22544 >> 16);
}

// What a sorted sample shows of the values.
struct SampleShape {
    u64 n, num_distinct, once, range;
    i64 entropy;  // of all sampled values together, in units of 2^-16 bits
};

template <class T> SampleShape sample_shape(Job& job, const T* values, u64 n) {
    const u64 step = std::max<u64>(n / DICTIONARY_SAMPLE, 1), sampled = std::min((n + step - 1) / step, DICTIONARY_SAMPLE);
    u64 num_slots = 64;
    while (num_slots < 2 * sampled) num_slots *= 2;
    u32* slots = job.space.take<u32>(num_slots);  // an entry's number + 1
    T* entries = job.space.take<T>(sampled);
    u32* counts = job.space.take<u32>(sampled);
    std::fill(slots, slots + num_slots, 0u);
    SampleShape shape = {sampled, 0, 0, 0, 0};
    T low = values[0], high = values[0];
    for (u64 k = 0; k < sampled; ++k) {
        const T value = values[k * step];
        low = value < low ? value : low;
        high = value > high ? value : high;
        u64 slot = (u64)value * 0x9E3779B97F4A7C15ull >> 40 & (num_slots - 1);
        while (slots[slot] && entries[slots[slot] - 1] != value) slot = (slot + 1) & (num_slots - 1);
        if (slots[slot] == 0) {
            entries[shape.num_distinct] = value;
            counts[shape.num_distinct] = 0;
            slots[slot] = (u32)++shape.num_distinct;
        }
        ++counts[slots[slot] - 1];
    }
    const i64 whole = log2_fixed(sampled);
    for (u64 k = 0; k < shape.num_distinct; ++k) {
        shape.once += counts[k] == 1;
        shape.entropy += counts[k] * (whole - log2_fixed(counts[k]));
    }
    shape.range = (u64)high - (u64)low;
    return shape;
}

// dictionary.estimate_bytes.
inline double estimate_dictionary(Job& job, const Values& values) {
    const SampleShape shape = typed(values, [&](auto* at) { return sample_shape(job, at, values.n); });
    const double n = (double)values.n, sampled = (double)shape.n, once = (double)shape.once;
    double distinct = n;
    // all values are seen and hardly any comes twice: codes take what sorted entries save
    if (once > 0.75 * sampled && values.n <= DICTIONARY_SAMPLE) return std::numeric_limits<double>::infinity();
    if (!(once > 0.75 * sampled)) distinct = (double)(shape.num_distinct - shape.once) + once * std::sqrt(n / sampled);
    distinct = std::max(distinct, 2.0);
    double entropy = (double)shape.entropy / 65536.0 / sampled;
    // what came once in the sample would come once among more values, too: its code is longer than the sample shows
    entropy += once / sampled * std::log2(std::max(n / sampled, 1.0));
    const double spread = std::max(std::log2(std::max((double)shape.range / distinct, 1.0)), 1.0);
    return n * (entropy + CODE_EXCESS) / 8 + 0.7 * distinct * spread / 8;
}

class Dictionary final : public Candidate {
  public:
    Dictionary(u32 size, u64 count, const Candidate* values, const Stream* codes) : size_(size), count_(count), values_(values), codes_(codes) {
        num_bytes = codes->num_bytes + values->num_bytes + RECORD_BYTES;
        decode_ns = codes->decode_ns + values->decode_ns + GATHER_NS * (double)codes->count;
    }

    std::string text() const override { return "dictionary[" + grouped(count_) + ": " + values_->text() + "](" + codes_->text() + ")"; }

    u32 emit(Job& job, const Target& target) const override {
        const u16 scratch = job.builder.region(ROLE_SCRATCH, 0, size_, TYPE_UINT8, count_);
        const u32 level = values_->emit(job, {scratch, out_kind_of(size_), count_, nullptr});
        return target.read(job, *codes_, 0, scratch, count_, level + 1);
    }

  private:
    u32 size_;
    u64 count_;
    const Candidate* values_;
    const Stream* codes_;
};

// Entries in an order, their best encoding, and the codes after it.
template <class T> struct OrderedEntries {
    const Candidate* values;
    Words codes;
};

template <class T>
OrderedEntries<T> order_dictionary(Job& job, const T* entries, u64 num_entries, const std::vector<u32>& order, Words codes, bool is_signed, int stands_for) {
    T* ordered = job.space.take<T>(num_entries);
    u32* place = job.space.take<u32>(num_entries);
    u32* renumbered = job.space.take<u32>(codes.n);
    for (u64 k = 0; k < num_entries; ++k) ordered[k] = entries[order[k]], place[order[k]] = (u32)k;
    for (u64 i = 0; i < codes.n; ++i) renumbered[i] = place[codes.at[i]];
    Candidates found;
    add_flat(job, {ordered, num_entries, sizeof(T), is_signed}, stands_for, false, 1, found);
    return {cheapest(found, job.options), {renumbered, codes.n}};
}

template <class T> const Candidate* best_dictionary_of(Job& job, const T* values, u64 n, bool is_signed, int stands_for) {
    T* entries = job.space.take<T>(n);
    u32* codes = job.space.take<u32>(n);
    i64* counts = job.space.take<i64>(n);
    const u64 num_entries = choose::distinct(values, n, n, entries, codes, counts);
    // keys are the entries as unsigned numbers in their order
    const T flip = is_signed ? (T)((T)1 << (8 * sizeof(T) - 1)) : (T)0;
    T low = (T)(entries[0] ^ flip);
    for (u64 k = 1; k < num_entries; ++k) low = std::min(low, (T)(entries[k] ^ flip));
    std::vector<u64> keys(num_entries);
    for (u64 k = 0; k < num_entries; ++k) keys[k] = (T)((T)(entries[k] ^ flip) - low);
    std::vector<u32> by_value, by_class;
    u32 limits[3];
    choose::sort_numbers(keys, by_value);
    const u32 num_limits = choose::order_by_class(by_value, counts, by_class, limits);
    const OrderedEntries<T> sorted = order_dictionary(job, entries, num_entries, by_value, {codes, n}, is_signed, stands_for);
    // thresholds on codes by value are searched only where frequency gives none
    const bool scattered = (double)DISPATCH(count_starts(sorted.codes.at, n)) > MAX_RUN_SHARE * (double)n;
    const Stream* stream = num_limits && scattered ? job.space.make<Packed>(job, sorted.codes) : choose_stream(job, sorted.codes);
    const Candidate* best = job.space.make<Dictionary>((u32)sizeof(T), num_entries, sorted.values, stream);
    if (!num_limits) return best;
    const OrderedEntries<T> frequent = order_dictionary(job, entries, num_entries, by_class, {codes, n}, is_signed, stands_for);
    const Stream* split = job.space.make<Split>(job, frequent.codes, limits, num_limits, false);
    const Candidate* other = job.space.make<Dictionary>((u32)sizeof(T), num_entries, frequent.values, split);
    return weigh(other->num_bytes, other->decode_ns, job.options) < weigh(best->num_bytes, best->decode_ns, job.options) ? other : best;
}

// The cheaper of entries by value and entries by frequency, for values of 2, 4 or 8 bytes.
inline const Candidate* best_dictionary(Job& job, const Values& values, int stands_for) {
    switch (values.size) {
        case 2: return best_dictionary_of(job, (const u16*)values.at, values.n, values.is_signed, stands_for);
        case 4: return best_dictionary_of(job, (const u32*)values.at, values.n, values.is_signed, stands_for);
        default: return best_dictionary_of(job, (const u64*)values.at, values.n, values.is_signed, stands_for);
    }
}

}  // namespace encode
