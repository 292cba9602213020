// Rows of many columns as one Arrow struct array: what RowPicker finds, laid out level by level. Part of host.cpp.

namespace rows {

const u64 MOST_ITEMS = (1ull << 31) - 1;

// Entries of a level that one group contributes: entry at[k] of the program's regions becomes entry to[k] of the level.
struct Entries {
    std::vector<u32> at, to;
};

// Where a column's regions are in one group's program, or -1.
struct Regions {
    i64 of[NUM_ROLES][10];

    Regions(const RowProgram& p, u64 chunk) {
        for (auto& role : of)
            for (i64& number : role) number = -1;
        u64 first = 0, end = p.num_regions;
        while (first < end) {
            const u64 middle = (first + end) / 2;
            if (p.regions[middle].chunk < chunk) first = middle + 1;
            else end = middle;
        }
        for (u64 k = first; k < p.num_regions && p.regions[k].chunk == chunk; ++k)
            if (p.regions[k].role < NUM_ROLES && p.regions[k].depth < 10 && of[p.regions[k].role][p.regions[k].depth] < 0) of[p.regions[k].role][p.regions[k].depth] = (i64)k;
    }
};

inline bool is_text(const u8* s, u64 n) {
    for (u64 i = 0; i < n;) {
        u64 eight;
        if (i + 8 <= n && (__builtin_memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080ull))) {
            i += 8;
            continue;
        }
        const u32 lead = s[i];
        if (lead < 0x80) {
            ++i;
            continue;
        }
        const u32 more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || n - i <= more) return false;
        for (u32 k = 1; k <= more; ++k)
            if ((s[i + k] & 0xc0) != 0x80) return false;
        // overlong forms, surrogates, and what lies past U+10FFFF
        const u32 second = s[i + 1];
        if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) return false;
        i += more + 1;
    }
    return true;
}

template <class Picker> class Taker {
  public:
    Taker(const RowColumn* columns, const RowGroup* groups, u64 num_groups, const RowField* fields, u64 num_fields, u64 num_rows, u64 max_bytes)
        : columns_(columns), groups_(groups), num_groups_(num_groups), fields_(fields), num_fields_(num_fields), num_rows_(num_rows), memory_(new Memory(max_bytes)) {}

    // Fills result->array unless something stands against it.
    void take(RowResult* result) {
        ArrowArray made = {};
        try {
            made = node(num_rows_, 1, num_fields_);
            for (field_ = 0; field_ < num_fields_; ++field_) column(*made.children[field_]);
        } catch (const Stop& stop) {
            note(stop);
        } catch (const std::bad_alloc&) {
            note({ROW_MEMORY, 0});
        }
        result->status = status_ == ROW_DONE && !missing_.empty() ? (u32)ROW_MISSING : status_;
        result->reason = reason_;
        result->group = (u32)std::min(bad_group_, num_groups_ ? num_groups_ - 1 : 0);
        result->field = (u32)bad_field_;
        if (result->status == ROW_DONE) {
            for (ArrowArray* array : nodes_) array->release = release;
            made.release = release;
            memory_.release()->users = nodes_.size() + 1;
            result->array = made;
        } else if (result->status == ROW_MISSING) {
            hand_over(result);
        }
    }

  private:
    void note(const Stop& stop) {
        if (stop.status == ROW_MISSING) return;
        status_ = stop.status;
        reason_ = stop.reason;
        bad_group_ = group_;
        bad_field_ = field_;
    }

    void hand_over(RowResult* result) {
        result->missing = (RowRange*)std::malloc(missing_.size() * sizeof(RowRange));
        if (!result->missing) {
            result->status = ROW_MEMORY;
            return;
        }
        __builtin_memcpy((void*)result->missing, missing_.data(), missing_.size() * sizeof(RowRange));
        result->num_missing = missing_.size();
    }

    [[noreturn]] static void corrupt(u32 reason) { throw Stop{ROW_CORRUPT, reason}; }

    ArrowArray node(u64 length, u64 num_buffers, u64 num_children) {
        ArrowArray made = {};
        made.length = (i64)length;
        made.num_buffers = (i64)num_buffers;
        made.num_children = (i64)num_children;
        made.buffers = memory_->template make<const void*>(num_buffers);
        made.private_data = memory_.get();
        if (num_children == 0) return made;
        made.children = memory_->template make<ArrowArray*>(num_children);
        ArrowArray* children = memory_->template make<ArrowArray>(num_children);
        for (u64 k = 0; k < num_children; ++k) {
            made.children[k] = children + k;
            nodes_.push_back(children + k);
        }
        return made;
    }

    Picker& picker(u64 group) {
        const RowProgram* program = program_of(group);
        if (!last_ || last_program_ != program) {
            std::unique_ptr<Picker>& known = pickers_[program];
            if (!known) known.reset(new Picker(*program, missing_));
            last_ = known.get();
            last_program_ = program;
        }
        return *last_;
    }

    const RowProgram* program_of(u64 group) const { return columns_[group * num_fields_ + field_].program; }

    void column(ArrowArray& out) {
        regions_.clear();
        std::vector<Entries> entries(num_groups_);
        for (group_ = 0; group_ < num_groups_; ++group_) {
            const RowColumn& column = columns_[group_ * num_fields_ + field_];
            regions_.emplace_back(column.program ? Regions(*column.program, column.chunk) : Regions({}, 0));
            if (!column.program) continue;
            const RowGroup& group = groups_[group_];
            entries[group_].at.assign(group.rows, group.rows + group.num_rows);
            entries[group_].to.assign(group.places, group.places + group.num_rows);
            for (u32 place : entries[group_].to)
                if (place >= num_rows_) corrupt(ROW_ITEM);
        }
        level(0, num_rows_, entries, out);
    }

    // Of a level: its entries take memory beside the result's.
    u64 most_items() const { return std::min(MOST_ITEMS, memory_->left / 16); }

    i64 region_of(u64 group, u32 role, u32 depth) const {
        if (depth >= 10) return -1;
        const auto& of = regions_[group].of;
        if (!(fields_[field_].flags & FIELD_WEIGHTS)) return of[role][depth];
        // weights whose lists are as long as the keys' and lie as theirs have their views
        const i64 own = of[role + ROLE_WEIGHTS][depth];
        return own < 0 && role == ROLE_VIEWS && depth == 0 ? of[role][depth] : own;
    }

    const RowRegion& region(u64 group, i64 number) const { return program_of(group)->regions[number]; }

    // Positions have 32 bits here: larger regions are left to the full decoder.
    u64 num_items(u64 group, i64 number) const {
        const u64 count = (u64)region(group, number).count;
        if (count > ~0u) throw Stop{ROW_DEEP, 0};
        return count;
    }

    // Items of a region for each of a group's entries, tile by tile; where the slab is read in parts, one by one, so that what is there is
    // followed as far as it goes. `put` gets (first entry, count, items).
    template <class Put> void pick(u64 group, i64 number, const std::vector<u32>& at, Put put) {
        u64 items[VECTOR];
        const u32 tile = picker(group).is_partial() ? 1 : VECTOR;
        for (u64 first = 0; first < at.size(); first += tile) {
            const u32 count = (u32)std::min<u64>(tile, at.size() - first);
            try {
                picker(group).items((u64)number, at.data() + first, count, items);
            } catch (const Stop& stop) {
                if (stop.status != ROW_MISSING) throw;
                continue;
            }
            put(first, count, items);
        }
    }

    // Which entries are there, as bits; null where all are. Those that no group has are not.
    void validity(u32 depth, u64 num_entries, const std::vector<Entries>& entries, ArrowArray& out) {
        u8* present = memory_->template make<u8>(num_entries);
        for (group_ = 0; group_ < num_groups_; ++group_) {
            const std::vector<u32>& to = entries[group_].to;
            const i64 number = region_of(group_, ROLE_VALIDITY, depth);
            if (number < 0) {
                for (u32 place : to) present[place] = 1;
                continue;
            }
            if (region(group_, number).item_bytes != 1) corrupt(ROW_SHAPE);
            pick(group_, number, entries[group_].at, [&](u64 first, u32 count, const u64* items) {
                for (u32 k = 0; k < count; ++k) present[to[first + k]] = items[k] != 0;
            });
        }
        out.buffers[0] = bits(present, num_entries, out.null_count);
        if (out.null_count == 0) out.buffers[0] = nullptr;
    }

    u8* bits(const u8* bytes, u64 count, i64& num_zero) {
        u8* made = memory_->template make<u8>((count + 7) / 8);
        u64 set = 0;
        for (u64 k = 0; k < count; ++k) {
            made[k / 8] |= (u8)((bytes[k] != 0) << k % 8);
            set += bytes[k] != 0;
        }
        num_zero = (i64)(count - set);
        return made;
    }

    void level(u32 depth, u64 num_entries, const std::vector<Entries>& entries, ArrowArray& out) {
        const RowField& field = fields_[field_];
        if (depth == field.depth) return leaf(depth, num_entries, entries, out);
        const bool is_bytes = depth + 1 == field.depth && field.flags & FIELD_BYTES;
        const u32 kind = field.levels[depth % 8];
        const bool by_view = kind == LEVEL_LIST_VIEW || kind == LEVEL_LARGE_LIST_VIEW, is_large = kind == LEVEL_LARGE_LIST || kind == LEVEL_LARGE_LIST_VIEW;
        out = node(num_entries, is_bytes || by_view ? 3 : 2, is_bytes ? 0 : 1);
        validity(depth, num_entries, entries, out);
        u64* views = memory_->template make<u64>(num_entries);
        for (group_ = 0; group_ < num_groups_; ++group_) group_views(depth, entries[group_], views);
        std::vector<u64> starts(num_entries + 1, 0);
        for (u64 k = 0; k < num_entries; ++k) {
            starts[k + 1] = starts[k] + (views[k] >> 32);
            if (starts[k + 1] > MOST_ITEMS) corrupt(ROW_TOO_LARGE);
        }
        out.buffers[1] = is_large ? (void*)offsets<i64>(starts) : (void*)offsets<int>(starts);
        if (by_view) out.buffers[2] = is_large ? (void*)lengths<i64>(views, num_entries) : (void*)lengths<int>(views, num_entries);
        const std::vector<Entries> inner = items_of(entries, views, starts);
        if (!is_bytes) return level(depth + 1, starts[num_entries], inner, *out.children[0]);
        u8* data = memory_->template make<u8>(starts[num_entries]);
        for (group_ = 0; group_ < num_groups_; ++group_) values(depth + 1, inner[group_], data);
        out.buffers[2] = data;
        if (!(field.flags & FIELD_TEXT) || !missing_.empty()) return;
        for (u64 k = 0; k < num_entries; ++k)
            if (!is_text(data + starts[k], starts[k + 1] - starts[k])) corrupt(ROW_TEXT);
    }

    void group_views(u32 depth, const Entries& entries, u64* views) {
        if (entries.at.empty()) return;
        const i64 number = region_of(group_, ROLE_VIEWS, depth);
        const bool is_last = depth + 1 == fields_[field_].depth;
        const i64 pool = region_of(group_, is_last ? ROLE_VALUES : ROLE_VIEWS, depth + 1);
        if (number < 0 || pool < 0 || region(group_, number).item_bytes != 8) corrupt(ROW_SHAPE);
        const u64 per_entry = is_last && fields_[field_].fixed_size ? fields_[field_].fixed_size : 1;
        const u64 count = num_items(group_, pool) / per_entry;
        pick(group_, number, entries.at, [&](u64 first, u32 num, const u64* items) {
            for (u32 k = 0; k < num; ++k) {
                if (items[k] >> 32 && (items[k] & ~0u) + (items[k] >> 32) > count) corrupt(ERROR_VIEW);
                views[entries.to[first + k]] = items[k];
            }
        });
    }

    template <class T> T* offsets(const std::vector<u64>& starts) {
        T* made = memory_->template make<T>(starts.size());
        for (u64 k = 0; k < starts.size(); ++k) made[k] = (T)starts[k];
        return made;
    }

    template <class T> T* lengths(const u64* views, u64 count) {
        T* made = memory_->template make<T>(count);
        for (u64 k = 0; k < count; ++k) made[k] = (T)(views[k] >> 32);
        return made;
    }

    std::vector<Entries> items_of(const std::vector<Entries>& entries, const u64* views, const std::vector<u64>& starts) {
        std::vector<Entries> inner(num_groups_);
        for (u64 group = 0; group < num_groups_; ++group) {
            u64 total = 0;
            for (u32 place : entries[group].to) total += views[place] >> 32;
            if (total > most_items()) corrupt(ROW_TOO_LARGE);
            std::vector<u32>&at = inner[group].at, &to = inner[group].to;
            at.resize(total);
            to.resize(total);
            u64 next = 0;
            for (u32 place : entries[group].to) {
                const u32 start = (u32)views[place], length = (u32)(views[place] >> 32), target = (u32)starts[place];
                for (u32 k = 0; k < length; ++k, ++next) {
                    at[next] = start + k;
                    to[next] = target + k;
                }
            }
        }
        return inner;
    }

    void leaf(u32 depth, u64 num_entries, const std::vector<Entries>& entries, ArrowArray& out) {
        const RowField& field = fields_[field_];
        if (field.fixed_size && !(field.flags & FIELD_FIXED_BINARY)) {
            out = node(num_entries, 1, 1);
            validity(depth, num_entries, entries, out);
            const u64 count = num_entries * field.fixed_size;
            const std::vector<Entries> items = fixed_items(entries);
            *out.children[0] = node(count, 2, 0);
            validity(depth + 1, count, items, *out.children[0]);
            return flat(depth, count, items, *out.children[0]);
        }
        out = node(num_entries, 2, 0);
        validity(depth, num_entries, entries, out);
        if (field.fixed_size) flat(depth, num_entries * field.fixed_size, fixed_items(entries), out);
        else flat(depth, num_entries, entries, out);
    }

    std::vector<Entries> fixed_items(const std::vector<Entries>& entries) {
        std::vector<Entries> items(num_groups_);
        const u64 size = fields_[field_].fixed_size;
        for (u64 group = 0; group < num_groups_; ++group) {
            const Entries& from = entries[group];
            if (from.at.size() * size > most_items()) corrupt(ROW_TOO_LARGE);
            for (u64 k = 0; k < from.at.size(); ++k) {
                if ((from.at[k] + 1ull) * size > ~0u) throw Stop{ROW_DEEP, 0};
                for (u32 item = 0; item < size; ++item) {
                    items[group].at.push_back((u32)(from.at[k] * size + item));
                    items[group].to.push_back((u32)(from.to[k] * size + item));
                }
            }
        }
        return items;
    }

    // The values buffer of a leaf.
    void flat(u32 depth, u64 count, const std::vector<Entries>& entries, ArrowArray& out) {
        const RowField& field = fields_[field_];
        u8* data = memory_->template make<u8>(count * field.value_bytes);
        for (group_ = 0; group_ < num_groups_; ++group_) values(depth, entries[group_], data);
        i64 ignored = 0;
        out.buffers[1] = field.flags & FIELD_BITS ? bits(data, count, ignored) : data;
    }

    template <class T> static void put_items(T* out, const u32* to, u32 count, const u64* items, u64 base) {
        for (u32 k = 0; k < count; ++k) out[to[k]] = (T)(items[k] + base);
    }

    void values(u32 depth, const Entries& entries, u8* data) {
        if (entries.at.empty()) return;
        const RowField& field = fields_[field_];
        const i64 number = region_of(group_, ROLE_VALUES, depth);
        if (number < 0) corrupt(ROW_SHAPE);
        const RowRegion& found = region(group_, number);
        num_items(group_, number);
        const bool is_narrow = found.item_bytes < field.value_bytes;
        if (found.value_type != field.value_type || found.item_bytes > field.value_bytes || (is_narrow && !(field.flags & FIELD_INTEGER))) corrupt(ROW_SHAPE);
        const u64 base = is_narrow ? (u64)found.base : 0;
        pick(group_, number, entries.at, [&](u64 first, u32 count, const u64* items) {
            const u32* to = entries.to.data() + first;
            switch (field.value_bytes) {
                case 1: return put_items((u8*)data, to, count, items, base);
                case 2: return put_items((u16*)data, to, count, items, base);
                case 4: return put_items((u32*)data, to, count, items, base);
                default: return put_items((u64*)data, to, count, items, base);
            }
        });
    }

    const RowColumn* columns_;
    const RowGroup* groups_;
    u64 num_groups_;
    const RowField* fields_;
    u64 num_fields_, num_rows_;
    std::unique_ptr<Memory> memory_;
    std::vector<RowRange> missing_;
    std::vector<ArrowArray*> nodes_;
    std::vector<Regions> regions_;
    std::unordered_map<const RowProgram*, std::unique_ptr<Picker>> pickers_;
    Picker* last_ = nullptr;
    const RowProgram* last_program_ = nullptr;
    u64 group_ = 0, field_ = 0, bad_group_ = 0, bad_field_ = 0;
    u32 status_ = ROW_DONE, reason_ = 0;
};

}  // namespace rows

// Rows of columns `[group][field]` as the children of one struct array in `result`, or what stands against it: a reason with its group and
// field, or the bytes that have not been read, which the caller frees by headrace_free_ranges. Groups name each of the result's rows at most
// once; rows that no group names are null.
EXPORT void headrace_take_rows(const RowColumn* columns, const RowGroup* groups, u64 num_groups, const RowField* fields, u64 num_fields, u64 num_rows, u64 max_bytes,
                               RowResult* result) {
    *result = {};
    try {
#if defined(HEADRACE_AVX2)
        if (use_avx2()) return rows::Taker<avx2::RowPicker>(columns, groups, num_groups, fields, num_fields, num_rows, max_bytes).take(result);
#endif
        rows::Taker<portable::RowPicker>(columns, groups, num_groups, fields, num_fields, num_rows, max_bytes).take(result);
    } catch (const std::bad_alloc&) {
        result->status = ROW_MEMORY;
    }
}

EXPORT void headrace_free_ranges(RowRange* ranges) { std::free(ranges); }

// For the owner of a result that nobody imported.
EXPORT void headrace_release_rows(RowResult* result) {
    if (result->array.release) result->array.release(&result->array);
}
