// The CPU executor of a decode program: which vectors run when, and on which thread. Part of host.cpp.

namespace {

const u64 VECTORS_PER_GRAB = 32, VECTORS_PER_THREAD = 128;

// Bytes [first, end) of the arena.
struct Span {
    u64 first = ~0ull, end = 0;

    void add(u64 offset, u64 num_bytes) {
        if (!num_bytes) return;
        first = std::min(first, offset);
        end = std::max(end, offset + num_bytes);
    }

    bool has(u64 offset, u64 num_bytes) const { return !num_bytes || (offset >= first && offset + num_bytes <= end); }
};

// The ops of a chunk in the order of their levels: they may run without a look at other chunks, and find what they read in the cache.
struct ChunkOps {
    std::vector<u32> ops;
    u64 num_vectors = 0;
    Span written;
};

struct Decoder {
    const u8* slab;
    u8* arena;
    const ProgramOp* ops;
    const ProgramSource* sources;
    u64 num_ops;
    std::vector<u64> errors = {};  // one word a thread

    // Level after level, vectors of all ops of a level shared by threads.
    u64 by_level(u32 num_threads) {
        std::vector<u64> first_item(num_ops + 1), stage_first;  // vectors before each op and each level, over the whole program
        std::vector<unsigned long long> stage_items;
        for (u64 k = 0; k < num_ops; ++k) {
            if (k == 0 || ops[k].level != ops[k - 1].level) {
                stage_first.push_back(first_item[k]);
                stage_items.push_back(0);
            }
            const u64 vectors = verify::num_vectors(ops[k].count);
            first_item[k + 1] = first_item[k] + vectors;
            stage_items.back() += vectors;
        }
        return run(stage_items, VECTORS_PER_GRAB, num_threads, [&](size_t stage, u64 first, u64 end, u64* error) {
            const u64 item = stage_first[stage] + first, stop = stage_first[stage] + end;
            const u64 op = (u64)(std::upper_bound(first_item.begin(), first_item.end(), item) - first_item.begin()) - 1;
            DISPATCH(decode_items(slab, arena, ops, sources, first_item.data(), op, item, stop, error));
        });
    }

    // Chunk after chunk, the largest first, shared by threads that never wait for each other.
    u64 by_chunk(const std::vector<ChunkOps>& chunks, u32 num_threads) {
        return run({chunks.size()}, 1, num_threads, [&](size_t, u64 number, u64, u64* error) {
            for (const u32 op : chunks[number].ops) DISPATCH(decode_op(slab, arena, ops, sources, op, error));
        });
    }

    // The chunks of the program; none where one reads what another writes, as a dictionary that they share.
    std::vector<ChunkOps> independent_chunks() const {
        std::map<u32, ChunkOps> found;
        for (u64 k = 0; k < num_ops; ++k) {
            ChunkOps& chunk = found[ops[k].chunk];
            chunk.ops.push_back((u32)k);
            chunk.num_vectors += verify::num_vectors(ops[k].count);
            chunk.written.add(ops[k].out, (u64)ops[k].count << item_shift(ops[k].out_kind));
        }
        std::vector<ChunkOps> chunks;
        for (auto& [number, chunk] : found) {
            if (!reads_own(chunk)) return {};
            chunks.push_back(std::move(chunk));
        }
        std::sort(chunks.begin(), chunks.end(), [](const ChunkOps& a, const ChunkOps& b) { return a.written.first < b.written.first; });
        u64 end = 0;
        for (const ChunkOps& chunk : chunks) {
            if (chunk.written.first < end) return {};
            end = std::max(end, chunk.written.end);
        }
        std::stable_sort(chunks.begin(), chunks.end(), [](const ChunkOps& a, const ChunkOps& b) { return a.num_vectors > b.num_vectors; });
        return chunks;
    }

  private:
    bool reads_own(const ChunkOps& chunk) const {
        for (const u32 k : chunk.ops) {
            const ProgramOp& op = ops[k];
            if (op.count && op.dict != NO_OFFSET && !chunk.written.has(op.dict, (u64)op.dict_count << item_shift(op.out_kind))) return false;
            const u32 num_sources = op.count && op.kind != OP_COPY && op.kind != OP_RANK ? op.num_sources : 0;
            for (u32 i = 0; i < num_sources; ++i) {
                const ProgramSource& source = sources[op.first_source + i];
                if (source.kind == SOURCE_PLAIN && !chunk.written.has(source.data, source.count * 4ull)) return false;
            }
        }
        return true;
    }

    // work(stage, first, end, error word)
    template <class Work> u64 run(const std::vector<unsigned long long>& stage_items, u64 grain, u32 num_threads, Work work) {
        threads::Team team(num_threads);
        errors.assign(team.size(), NO_ERROR);
        team.run(stage_items, grain, [&](unsigned thread, size_t stage, u64 first, u64 end) { work(stage, first, end, &errors[thread]); });
        return *std::min_element(errors.begin(), errors.end());
    }
};

}  // namespace

// Sizes are without padding; both buffers are readable for PADDING_BYTES more. Returns NO_ERROR or the first error's word.
EXPORT u64 headrace_decode(const u8* slab, u64 slab_bytes, u8* arena, u64 arena_bytes, const ProgramOp* ops, u64 num_ops, const ProgramSource* sources,
                           u64 num_sources, u32 num_threads) {
    const u64 error = verify::check_program(ops, num_ops, sources, num_sources, {slab_bytes, arena_bytes});
    if (error != NO_ERROR || num_ops == 0) return error;
    Decoder decoder = {slab, arena, ops, sources, num_ops};
    u64 num_vectors = 0;
    for (u64 k = 0; k < num_ops; ++k) num_vectors += verify::num_vectors(ops[k].count);
    const u32 num_threads_used = (u32)std::min<u64>(num_threads, num_vectors / VECTORS_PER_THREAD + 1);
    const std::vector<ChunkOps> chunks = decoder.independent_chunks();
    // a chunk is one thread's: where one of them is much of the program, threads share the vectors of a level instead
    if (chunks.empty() || chunks.front().num_vectors * num_threads_used > num_vectors) return decoder.by_level(num_threads_used);
    return decoder.by_chunk(chunks, num_threads_used);
}

// What headrace_decode checks before it starts, for executors of other devices.
EXPORT u64 headrace_check_program(const ProgramOp* ops, u64 num_ops, const ProgramSource* sources, u64 num_sources, u64 slab_bytes, u64 arena_bytes) {
    return verify::check_program(ops, num_ops, sources, num_sources, {slab_bytes, arena_bytes});
}
