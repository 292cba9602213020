// Arrow arrays taken apart into lengths, validity and leaf values: encodings/shred.py in C++, over the Arrow C data interface. Part of
// host.cpp, after lists.h.

#include "arrow_abi.h"

namespace encode {

constexpr u32 MAX_DEPTH = 8;

// Physical type of a column: encodings/leaf.py, for the types that this encoder knows.
struct ColumnType {
    LeafKind leaf;
    u32 size, depth;
    bool is_signed, has_range;
};

inline bool starts_with(const char* text, const char* start) { return std::strncmp(text, start, std::strlen(start)) == 0; }

// Numbers and times by their Arrow format; false for anything else.
inline bool number_type(const char* format, ColumnType& type) {
    static const struct {
        const char* format;
        u32 value_type, size;
        bool is_signed;
    } KNOWN[] = {
        {"b", 0, 1, false}, {"c", 1, 1, true}, {"s", 2, 2, true}, {"i", 3, 4, true}, {"l", 4, 8, true}, {"C", 5, 1, false}, {"S", 6, 2, false},
        {"I", 7, 4, false}, {"L", 8, 8, false}, {"e", 9, 2, false}, {"f", 10, 4, false}, {"g", 11, 8, false}, {"tdD", 3, 4, true}, {"tdm", 4, 8, true},
        {"tts", 3, 4, true}, {"ttm", 3, 4, true}, {"ttu", 4, 8, true}, {"ttn", 4, 8, true},
    };
    for (const auto& known : KNOWN)
        if (std::strcmp(known.format, format) == 0) {
            type = {{known.value_type, 0}, known.size, type.depth, known.is_signed, true};
            return true;
        }
    if (!starts_with(format, "ts") && !starts_with(format, "tD")) return false;
    type = {{TYPE_INT64, 0}, 8, type.depth, true, true};
    return true;
}

inline bool is_bytes(const char* format) { return format[0] && std::strchr("uUzZ", format[0]) && !format[1]; }

inline bool is_list(const char* format) { return starts_with(format, "+l") || starts_with(format, "+L") || starts_with(format, "+vl") || starts_with(format, "+vL"); }

// False for what only Python shreds.
inline bool column_type(const ArrowSchema& schema, ColumnType& type) {
    type = {};
    const ArrowSchema* at = &schema;
    for (; is_list(at->format); at = at->children[0])
        if (++type.depth > MAX_DEPTH || at->num_children != 1) return false;
    if (at->dictionary) return false;
    const char* format = at->format;
    if (is_bytes(format)) {
        type = {{TYPE_UINT8, 0}, 1, type.depth + 1, false, false};
        return type.depth <= MAX_DEPTH;
    }
    if (starts_with(format, "w:")) {
        type = {{TYPE_UINT8, (u32)std::atoi(format + 2)}, 1, type.depth, false, false};
        return type.leaf.fixed_size > 0;
    }
    if (starts_with(format, "+w:")) {
        if (at->children[0]->dictionary || !number_type(at->children[0]->format, type)) return false;
        type.leaf.fixed_size = (u32)std::atoi(format + 3);
        return type.leaf.fixed_size > 0;
    }
    return number_type(format, type);
}

// Bytes 0 and 1 of entries first … first + n, null where all are present.
inline const u8* shred_validity(Job& job, const ArrowArray& array, u64 first, u64 n) {
    if (array.null_count == 0 || !array.buffers[0] || !n) return nullptr;
    u8* mask = job.space.take<u8>(n);
    DISPATCH(unpack_mask((const u8*)array.buffers[0], (u64)array.offset + first, n, mask));
    return DISPATCH(count_set(mask, n)) == n ? nullptr : mask;
}

inline Values shred_numbers(Job& job, const ArrowArray& array, u64 first, u64 n, const ColumnType& type) {
    const u8* buffer = (const u8*)array.buffers[1];
    first += (u64)array.offset;
    Values values = {nullptr, n, type.size, type.is_signed};
    if (buffer == nullptr || n == 0) {
        u8* zeros = job.space.take<u8>(n * type.size);
        std::memset(zeros, 0, n * type.size);
        values.at = zeros;
    } else if (type.leaf.value_type == TYPE_BOOL) {
        u8* made = job.space.take<u8>(n);
        DISPATCH(unpack_mask(buffer, first, n, made));
        values.at = made;
    } else {
        values.at = buffer + first * type.size;
        if ((u64)values.at % type.size) values.at = job.space.copy((const u8*)values.at, n * type.size);
    }
    return values;
}

inline Node* shred_fixed_size(Job& job, const ArrowArray& array, u64 first, u64 n, const ColumnType& type) {
    const u64 each = type.leaf.fixed_size, count = n * each;
    Node* node = job.space.make<Node>(Node{});
    node->n = n;
    node->validity = shred_validity(job, array, first, n);
    const u64 start = ((u64)array.offset + first) * each;
    if (array.num_children) {
        node->values = shred_numbers(job, *array.children[0], start, count, type);
        node->item_validity = shred_validity(job, *array.children[0], start, count);
    } else {
        node->values = {count ? (const u8*)array.buffers[1] + start : job.space.take<u8>(0), count, 1, false};
    }
    if (!node->validity) return node;
    u8* shown = job.space.copy((const u8*)node->values.at, count * type.size);
    u8* items = node->item_validity ? job.space.copy(node->item_validity, count) : nullptr;
    for (u64 k = 0; k < n; ++k) {
        if (node->validity[k]) continue;
        std::memset(shown + k * each * type.size, 0, each * type.size);
        if (items) std::memset(items + k * each, 1, each);
    }
    node->values.at = shown;
    node->item_validity = items;
    return node;
}

// Drops masks of which nothing is null: after entries were left out.
inline void drop_full_masks(Node* node) {
    for (; node; node = const_cast<Node*>(node->child)) {
        if (node->validity && DISPATCH(count_set(node->validity, node->n)) == node->n) node->validity = nullptr;
        if (node->item_validity && DISPATCH(count_set(node->item_validity, node->values.n)) == node->values.n) node->item_validity = nullptr;
    }
}

inline Node* shred(Job& job, const ArrowArray& array, const ArrowSchema& schema, u64 first, u64 n, const ColumnType& type);

// Starts and lengths of lists in their child, lengths 0 under nulls.
template <class T> void list_ranges(const ArrowArray& array, bool is_view, u64 first, u64 n, const u8* validity, i64* starts, i64* lengths) {
    const T* offsets = (const T*)array.buffers[1] + array.offset + first;
    const T* sizes = is_view ? (const T*)array.buffers[2] + array.offset + first : nullptr;
    for (u64 k = 0; k < n; ++k) {
        T start, end;
        std::memcpy(&start, offsets + k, sizeof(T));
        std::memcpy(&end, is_view ? sizes + k : offsets + k + 1, sizeof(T));
        starts[k] = start;
        lengths[k] = validity && !validity[k] ? 0 : is_view ? (i64)end : (i64)end - start;
    }
}

inline Node* shred_lists(Job& job, const ArrowArray& array, const ArrowSchema& schema, u64 first, u64 n, const ColumnType& type) {
    const char* format = schema.format;
    const bool is_view = format[0] == '+' && format[1] == 'v', wide = std::strchr("UZL", format[is_view ? 2 : format[0] == '+' ? 1 : 0]) != nullptr;
    Node* node = job.space.make<Node>(Node{});
    node->n = n;
    node->validity = shred_validity(job, array, first, n);
    i64 *starts = job.space.take<i64>(n), *lengths = job.space.take<i64>(n);
    if (n && wide) list_ranges<i64>(array, is_view, first, n, node->validity, starts, lengths);
    if (n && !wide) list_ranges<int>(array, is_view, first, n, node->validity, starts, lengths);
    node->lengths = lengths;
    node->offsets = offsets_of(job, lengths, n);
    // the items that any list shows, and whether they lie end to end as they are
    i64 low = 0, high = 0;
    bool end_to_end = true, any = false;
    for (u64 k = 0; k < n; ++k) {
        if (!lengths[k]) continue;
        end_to_end = end_to_end && (!any || starts[k] == high);
        low = any ? std::min(low, starts[k]) : starts[k];
        high = any ? std::max(high, starts[k] + lengths[k]) : starts[k] + lengths[k];
        any = true;
    }
    Node* child;
    if (format[0] == '+') {
        ColumnType inner = type;
        --inner.depth;
        child = shred(job, *array.children[0], *schema.children[0], (u64)low, (u64)(high - low), inner);
    } else {
        child = job.space.make<Node>(Node{});
        child->n = (u64)(high - low);
        child->values = {any ? (const u8*)array.buffers[2] + low : job.space.take<u8>(0), child->n, 1, false};
    }
    if (!end_to_end) {
        for (u64 k = 0; k < n; ++k) starts[k] -= lengths[k] ? low : starts[k];
        child = take_parts(job, *child, {starts, lengths, n, node->offsets[n]});
        drop_full_masks(child);
    }
    node->child = child;
    return node;
}

inline Node* shred(Job& job, const ArrowArray& array, const ArrowSchema& schema, u64 first, u64 n, const ColumnType& type) {
    if (is_list(schema.format) || is_bytes(schema.format)) return shred_lists(job, array, schema, first, n, type);
    if (type.leaf.fixed_size) return shred_fixed_size(job, array, first, n, type);
    Node* node = job.space.make<Node>(Node{});
    node->n = n;
    node->validity = shred_validity(job, array, first, n);
    node->values = shred_numbers(job, array, first, n, type);
    return node;
}

}  // namespace encode
