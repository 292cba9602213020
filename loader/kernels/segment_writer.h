// Segments from their chunks: header, chunks in file order, footer. What segment/{writer,footer}.py lay out, byte for byte. Part of
// host.cpp, after columns_encoder.h.

namespace encode {

constexpr u64 SEGMENT_ALIGNMENT = 64, HEADER_BYTES = 64, TAIL_BYTES = 64, CHECKED_TAIL_BYTES = 52, PAGE_BYTES = 4096;
constexpr u32 FORMAT_VERSION = 1;
constexpr char MAGIC[] = "HEADRACE";
enum SectionKind { SECTION_BLOCKS = 4, SECTION_CHUNKS = 5, SECTION_STATS = 6, SECTION_KEY_INDEX = 8, SECTION_PROPERTIES = 9 };

struct DirectoryEntry {
    u32 kind, record_bytes;
    u64 offset, num_bytes, count, checksums_offset, reserved;
};

struct Tail {
    u64 directory_offset;
    u32 num_sections, reserved;
    u64 segment_bytes, features, num_rows;
    u32 num_columns, num_blocks, version, checksum;
    char magic[8];
};

struct BlockRecord {
    u64 row_start;
    u32 num_rows, flags;
};

struct ChunkRecord {
    u64 offset;
    u32 num_bytes, checksum;
    u64 arena_bytes;
};

static_assert(sizeof(DirectoryEntry) == 48 && sizeof(Tail) == TAIL_BYTES && sizeof(BlockRecord) == 16 && sizeof(ChunkRecord) == 24, "mirrors layout.py");

// A section whose bytes are known; record_bytes 1 where it has no records.
struct Section {
    u32 kind, record_bytes;
    u64 count;
    const u8* bytes;
    u64 num_bytes;
};

// What all segments of one schema share; arrays of chunks are [columns][blocks], columns by id.
struct SegmentPlan {
    const Section* sections;  // those that depend on the schema alone
    u64 num_sections;
    const u32 *column_ids, *file_order;
    u64 num_columns, num_blocks;  // blocks of all segments
    const char* properties;       // JSON up to the encodings
    u64 properties_bytes, features;
    const u64* pointers;  // of the chunks' bytes
    const Made* made;
    const char* notes;
    const u64* note_ends;
    const u32* block_rows;
    u64 reserved;
};

// One segment: a range of the blocks. `offset` and `num_bytes` are where it goes.
struct SegmentPart {
    u64 first_block, num_blocks;
    const u8* key_index;
    u64 key_index_bytes, offset, num_bytes;
    u8 segment_id[16];
};

static_assert(sizeof(Section) == 32 && sizeof(SegmentPlan) == 120 && sizeof(SegmentPart) == 64, "mirrors native_segments.py");

class SegmentWriter {
  public:
    SegmentWriter(const SegmentPlan& plan, const SegmentPart& part) : plan_(plan), part_(part) {
        u64 position = HEADER_BYTES;
        chunks_.resize(plan.num_columns * part.num_blocks);
        features_ = plan.features;
        for (u64 block = 0; block < part.num_blocks; ++block)
            for (u64 place = 0; place < plan.num_columns; ++place) {
                const u64 column = plan.file_order[place];
                const Made& made = made_of(column, block);
                chunks_[column * part.num_blocks + block] = {position, (u32)made.num_bytes, made.checksum, made.arena_bytes};
                features_ |= made.features | (made.stats.null_count ? FEATURE_NULLS : 0);
                position = round_up(position + made.num_bytes, SEGMENT_ALIGNMENT);
            }
        footer_offset_ = position;
        describe();
        for (const Section& section : sections_) position += round_up(section.num_bytes, SEGMENT_ALIGNMENT) + round_up(4 * pages(section), SEGMENT_ALIGNMENT);
        num_bytes_ = position + round_up(sections_.size() * sizeof(DirectoryEntry), SEGMENT_ALIGNMENT) + TAIL_BYTES;
    }

    u64 num_bytes() const { return num_bytes_; }

    // `out` has num_bytes and is zeroed.
    void write(u8* out) const {
        write_header(out);
        for (u64 column = 0; column < plan_.num_columns; ++column)
            for (u64 block = 0; block < part_.num_blocks; ++block) {
                const ChunkRecord& chunk = chunks_[column * part_.num_blocks + block];
                std::memcpy(out + chunk.offset, (const u8*)plan_.pointers[column * plan_.num_blocks + part_.first_block + block], chunk.num_bytes);
            }
        std::vector<DirectoryEntry> directory;
        u64 position = footer_offset_;
        for (const Section& section : sections_) {
            const u64 checksums = position + round_up(section.num_bytes, SEGMENT_ALIGNMENT);
            directory.push_back({section.kind, section.record_bytes, position, section.num_bytes, section.count, checksums, 0});
            if (section.num_bytes) std::memcpy(out + position, section.bytes, section.num_bytes);
            for (u64 page = 0; page < pages(section); ++page) {
                const u64 first = page * PAGE_BYTES;
                const u32 sum = checksum(section.bytes + first, std::min(PAGE_BYTES, section.num_bytes - first), 0);
                std::memcpy(out + checksums + 4 * page, &sum, 4);
            }
            position = checksums + round_up(4 * pages(section), SEGMENT_ALIGNMENT);
        }
        const u64 directory_bytes = directory.size() * sizeof(DirectoryEntry);
        std::memcpy(out + position, directory.data(), directory_bytes);
        u64 num_rows = 0;
        for (const BlockRecord& block : blocks_) num_rows += block.num_rows;
        Tail tail = {position, (u32)directory.size(), 0, num_bytes_, features_, num_rows, (u32)plan_.num_columns, (u32)part_.num_blocks, FORMAT_VERSION, 0, {}};
        std::memcpy(tail.magic, MAGIC, 8);
        tail.checksum = checksum((const u8*)&tail, CHECKED_TAIL_BYTES, checksum(out + position, directory_bytes, 0));
        std::memcpy(out + num_bytes_ - TAIL_BYTES, &tail, TAIL_BYTES);
    }

  private:
    const Made& made_of(u64 column, u64 block) const { return plan_.made[column * plan_.num_blocks + part_.first_block + block]; }

    static u32 checksum(const u8* bytes, u64 num_bytes, u32 seed) { return crc32c::checksum(bytes, num_bytes, seed, force_portable); }

    static u64 pages(const Section& section) { return (section.num_bytes + PAGE_BYTES - 1) / PAGE_BYTES; }

    // The sections of this segment, in the order of their kinds.
    void describe() {
        u64 row = 0;
        for (u64 block = 0; block < part_.num_blocks; ++block) {
            const u32 rows = plan_.block_rows[part_.first_block + block];
            blocks_.push_back({row, rows, 0});
            row += rows;
        }
        for (u64 column = 0; column < plan_.num_columns; ++column)
            for (u64 block = 0; block < part_.num_blocks; ++block) stats_.push_back(made_of(column, block).stats);
        describe_encodings();
        sections_.assign(plan_.sections, plan_.sections + plan_.num_sections);
        sections_.push_back({SECTION_BLOCKS, sizeof(BlockRecord), blocks_.size(), (const u8*)blocks_.data(), blocks_.size() * sizeof(BlockRecord)});
        sections_.push_back({SECTION_CHUNKS, sizeof(ChunkRecord), chunks_.size(), (const u8*)chunks_.data(), chunks_.size() * sizeof(ChunkRecord)});
        sections_.push_back({SECTION_STATS, sizeof(StatsRecord), stats_.size(), (const u8*)stats_.data(), stats_.size() * sizeof(StatsRecord)});
        sections_.push_back({SECTION_PROPERTIES, 1, 1, (const u8*)properties_.data(), properties_.size()});
        if (part_.key_index) sections_.push_back({SECTION_KEY_INDEX, 1, 1, part_.key_index, part_.key_index_bytes});
        std::sort(sections_.begin(), sections_.end(), [](const Section& a, const Section& b) { return a.kind < b.kind; });
    }

    void describe_encodings() {
        properties_.assign(plan_.properties, plan_.properties_bytes);
        properties_ += ",\"encodings\":{";
        for (u64 column = 0; part_.num_blocks && column < plan_.num_columns; ++column) {
            const u64 place = column * plan_.num_blocks + part_.first_block, start = place ? plan_.note_ends[place - 1] : 0;
            properties_ += (column ? ",\"" : "\"") + std::to_string(plan_.column_ids[column]) + "\":";
            properties_.append(plan_.notes + start, plan_.note_ends[place] - start);
        }
        properties_ += "}}";
    }

    void write_header(u8* out) const {
        const u32 fixed[2] = {FORMAT_VERSION, (u32)HEADER_BYTES};
        std::memcpy(out, MAGIC, 8);
        std::memcpy(out + 8, fixed, 8);
        std::memcpy(out + 16, &features_, 8);
        std::memcpy(out + 24, part_.segment_id, 16);
        const u32 sum = checksum(out, HEADER_BYTES - 4, 0);
        std::memcpy(out + HEADER_BYTES - 4, &sum, 4);
    }

    const SegmentPlan& plan_;
    const SegmentPart& part_;
    std::vector<BlockRecord> blocks_;
    std::vector<ChunkRecord> chunks_;
    std::vector<StatsRecord> stats_;
    std::vector<Section> sections_;
    std::string properties_;
    u64 features_ = 0, footer_offset_ = 0, num_bytes_ = 0;
};

}  // namespace encode

// Lays out segments one after the other, each on 64 bytes; sets offset and num_bytes of the parts and returns a handle with all of them.
EXPORT std::vector<encode::SegmentWriter>* headrace_lay_segments(const encode::SegmentPlan* plan, encode::SegmentPart* parts, u64 num_parts) {
    std::vector<encode::SegmentWriter>* writers = new std::vector<encode::SegmentWriter>;
    writers->reserve(num_parts);
    u64 offset = 0;
    for (u64 k = 0; k < num_parts; ++k) {
        writers->emplace_back(*plan, parts[k]);
        parts[k].offset = offset;
        parts[k].num_bytes = writers->back().num_bytes();
        offset = encode::round_up(offset + parts[k].num_bytes, encode::SEGMENT_ALIGNMENT);
    }
    return writers;
}

// Writes them to `out`, which is zeroed, and frees the handle; plan and parts are those of the call before, unmoved.
EXPORT void headrace_write_segments(std::vector<encode::SegmentWriter>* writers, const encode::SegmentPart* parts, u8* out) {
    for (size_t k = 0; k < writers->size(); ++k) (*writers)[k].write(out + parts[k].offset);
    delete writers;
}
