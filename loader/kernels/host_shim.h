// Runs the GPU branch of the kernels on a CPU, so that a machine without a GPU can test it.
//
// Every CUDA thread is a fiber; `__syncthreads`, `__syncwarp`, shuffles and ballots switch fibers. A schedule decides who runs next:
// 0 forward, 1 reverse, 2… a shuffle of threads and blocks by that seed; plus 1,000 for *greedy*, where one warp runs as far as it
// can before the next one moves (it finds a barrier missing before shared memory is written again). Shared memory is filled with
// 0xA5 before each block. Divergent barriers and deadlocks are errors that name the line.
// It cannot show: weak memory ordering, partial shuffle masks, occupancy, two barriers on one source line.
#pragma once
#define SHIM_HOST 1

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define SHIM_SWITCH 1  // fibers by hand: swapcontext makes a system call each time. AddressSanitizer knows swapcontext only
#endif
#if !defined(SHIM_SWITCH)
#include <ucontext.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("shim_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_shim_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) char __stop_shim_shared[];

struct Index3 {
    unsigned x, y, z;
};

namespace shim {

enum class State { RUNNING, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

#if defined(SHIM_SWITCH)
// Saves what a callee must, keeps the stack pointer in *from, and goes on where `to` was saved.
extern "C" __attribute__((visibility("hidden"))) void shim_switch(void** from, void* to);
asm(".text\n.weak shim_switch\n.hidden shim_switch\n.type shim_switch,@function\nshim_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n.size shim_switch,.-shim_switch\n");

using Context = void*;

inline void go(Context& from, Context& to) { shim_switch(&from, to); }

inline void prepare(Context& context, char* stack, size_t num_bytes, void (*body)()) {
    void** top = (void**)((uintptr_t)(stack + num_bytes - 64) & ~(uintptr_t)15);
    *--top = nullptr;  // where `body` would return to: it never does
    *--top = (void*)body;
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    context = top;
}
#else
using Context = ucontext_t;

inline void go(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, char* stack, size_t num_bytes, void (*body)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = num_bytes;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
}
#endif

struct Thread {
    State state = State::RUNNING;
    const char* where = "";
    unsigned exchanges = 0;
    Context context;
};

// What the lanes of a warp exchange; two sets, used in turn, so that a fast lane cannot overwrite what a slow one still reads.
struct Exchange {
    uint64_t lane[2][32];
};

inline Index3 thread_index, block_index, block_size, grid_size;
inline std::vector<Thread> threads;
inline std::vector<Exchange> warps;
inline std::vector<char> stacks;
inline Context scheduler;
inline unsigned current = 0;
inline std::string error;
inline unsigned schedule = 0;
inline bool greedy = false;
inline void (*entry)(void*);
inline void* entry_argument;
constexpr size_t STACK_BYTES = 128 << 10;

// The order in which `count` threads or blocks get their turn.
inline std::vector<unsigned> turns(unsigned count, unsigned salt) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
    if (schedule < 2) return order;
    uint64_t state = schedule * 0x9E3779B97F4A7C15ull + salt;
    for (unsigned i = count; i > 1; --i) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(state >> 33) % i]);
    }
    return order;
}

inline void wait(State state, const char* where) {
    Thread& thread = threads[current];
    thread.state = state;
    thread.where = where;
    go(thread.context, scheduler);
}

inline void block_barrier(const char* where) { wait(State::AT_BLOCK_BARRIER, where); }
inline void warp_barrier(const char* where) { wait(State::AT_WARP_BARRIER, where); }

inline void run_thread() {
    entry(entry_argument);
    wait(State::DONE, "");
}

inline void resume(unsigned i) {
    current = i;
    thread_index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    go(scheduler, threads[i].context);
}

inline bool fail(const std::string& what) {
    error = what;
    return false;
}

// Lets the threads in [first, end) go on if all of them that live wait at one barrier of this state. False is an error.
inline bool release(State state, unsigned first, unsigned end, bool& freed) {
    unsigned waiting = 0, live = 0;
    const char* where = nullptr;
    bool same = true;
    for (unsigned i = first; i < end; ++i) {
        live += threads[i].state != State::DONE;
        if (threads[i].state != state) continue;
        ++waiting;
        same = same && (!where || where == threads[i].where || !strcmp(where, threads[i].where));
        where = threads[i].where;
    }
    if (!waiting || waiting != live) return true;
    if (!same) return fail(std::string("threads wait at different barriers, one at ") + where);
    if (state == State::AT_BLOCK_BARRIER && live != end - first) return fail(std::string("__syncthreads not reached by every thread of the block: ") + where);
    for (unsigned i = first; i < end; ++i)
        if (threads[i].state == state) threads[i].state = State::RUNNING;
    freed = true;
    return true;
}

// Gives every thread that can run a turn. Returns how many ran.
inline unsigned run_turns(const std::vector<unsigned>& order, unsigned only_warp) {
    unsigned ran = 0;
    for (unsigned i : order) {
        if (threads[i].state != State::RUNNING || (only_warp != ~0u && i / 32 != only_warp)) continue;
        resume(i);
        ++ran;
    }
    return ran;
}

inline bool release_warp(unsigned warp, bool& freed) {
    const unsigned count = (unsigned)threads.size(), end = warp * 32 + 32 < count ? warp * 32 + 32 : count;
    return release(State::AT_WARP_BARRIER, warp * 32, end, freed);
}

inline bool run_block() {
    const unsigned count = (unsigned)threads.size(), num_warps = (count + 31) / 32;
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = threads[i];
        thread.state = State::RUNNING;
        thread.exchanges = 0;
        prepare(thread.context, &stacks[i * STACK_BYTES], STACK_BYTES, run_thread);
    }
    const std::vector<unsigned> order = turns(count, block_index.x), warp_order = turns(num_warps, block_index.x + 1);
    for (;;) {
        unsigned ran = 0;
        bool freed = false;
        if (greedy) {
            for (unsigned warp : warp_order) {
                bool again = true;
                while (again) {
                    again = false;
                    ran += run_turns(order, warp);
                    if (!release_warp(warp, again)) return false;
                    freed = freed || again;
                }
            }
        } else {
            ran = run_turns(order, ~0u);
            for (unsigned warp = 0; warp < num_warps; ++warp)
                if (!release_warp(warp, freed)) return false;
        }
        if (!release(State::AT_BLOCK_BARRIER, 0, count, freed)) return false;
        if (ran || freed) continue;
        unsigned done = 0;
        for (const Thread& thread : threads) done += thread.state == State::DONE;
        if (done == count) return true;
        return fail("deadlock: some threads wait at a barrier that the others never reach");
    }
}

template <class T, class Source> inline T shuffle(T value, const char* where, Source source) {
    const unsigned me = current, lane = me & 31, set = threads[me].exchanges++ & 1;
    uint64_t raw = 0;
    memcpy(&raw, &value, sizeof(T));
    warps[me / 32].lane[set][lane] = raw;
    warp_barrier(where);
    raw = warps[me / 32].lane[set][source((int)lane) & 31];
    T result;
    memcpy(&result, &raw, sizeof(T));
    return result;
}

// Bit l: whether lane l's value is not zero.
inline unsigned ballot(bool value, const char* where) {
    const unsigned me = current, set = threads[me].exchanges++ & 1, first = me & ~31u, count = (unsigned)threads.size();
    Exchange& warp = warps[me / 32];
    warp.lane[set][me & 31] = value;
    warp_barrier(where);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < count; ++lane) bits |= (unsigned)(warp.lane[set][lane] != 0) << lane;
    return bits;
}

template <class F> inline void call(void* argument) { (*(F*)argument)(); }

template <class... A, size_t... I> inline int launch_blocks(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    auto body = [&] { kernel(*(A*)arguments[I]...); };
    entry = call<decltype(body)>;
    entry_argument = &body;
    for (unsigned b : turns(grid_size.x * grid_size.y * grid_size.z, 7)) {
        block_index = {b % grid_size.x, b / grid_size.x % grid_size.y, b / (grid_size.x * grid_size.y)};
        if (__start_shim_shared) memset(__start_shim_shared, 0xA5, (size_t)(__stop_shim_shared - __start_shim_shared));
        if (!run_block()) return 1;
    }
    return 0;
}

// grid_and_block: three sizes of the grid, three of the block. Returns 1 with `error` set if the kernel misuses a barrier.
template <class... A> inline int launch(void (*kernel)(A...), const unsigned* grid_and_block, void** arguments) {
    const unsigned* g = grid_and_block;
    grid_size = {g[0], g[1], g[2]};
    block_size = {g[3], g[4], g[5]};
    const unsigned count = g[3] * g[4] * g[5];
    error.clear();
    threads = std::vector<Thread>(count);
    warps.assign(count / 32 + 1, Exchange());
    if (stacks.size() < count * STACK_BYTES) stacks.resize(count * STACK_BYTES);
    return launch_blocks(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace shim

#define SHIM_TEXT_(x) #x
#define SHIM_TEXT(x) SHIM_TEXT_(x)
#define SHIM_WHERE __FILE__ ":" SHIM_TEXT(__LINE__)
#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size
#define __syncthreads() shim::block_barrier(SHIM_WHERE)
#define __syncwarp(...) shim::warp_barrier(SHIM_WHERE)
#define __shfl_sync(mask, value, from) shim::shuffle(value, SHIM_WHERE, [&](int) { return (int)(from); })
#define __shfl_up_sync(mask, value, by) shim::shuffle(value, SHIM_WHERE, [&](int lane) { return lane < (int)(by) ? lane : lane - (int)(by); })
#define __shfl_down_sync(mask, value, by) shim::shuffle(value, SHIM_WHERE, [&](int lane) { return lane + (int)(by) > 31 ? lane : lane + (int)(by); })
#define __shfl_xor_sync(mask, value, with) shim::shuffle(value, SHIM_WHERE, [&](int lane) { return lane ^ (int)(with); })
#define __ballot_sync(mask, value) shim::ballot(value, SHIM_WHERE)
#define __any_sync(mask, value) (shim::ballot(value, SHIM_WHERE) != 0)
#define __all_sync(mask, value) (shim::ballot(!(value), SHIM_WHERE) == 0)

template <class T> inline T __ldg(const T* address) { return *address; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    shift &= 31;
    return shift ? low >> shift | high << (32 - shift) : low;
}
// One thread runs at a time, and none is stopped between a read and a write.
template <class T, class F> inline T shim_atomic(T* address, F change) {
    const T old = *address;
    *address = change(old);
    return old;
}
template <class T> inline T atomicMin(T* address, T value) { return shim_atomic(address, [&](T old) { return value < old ? value : old; }); }
template <class T> inline T atomicMax(T* address, T value) { return shim_atomic(address, [&](T old) { return value > old ? value : old; }); }
template <class T> inline T atomicAdd(T* address, T value) { return shim_atomic(address, [&](T old) { return (T)(old + value); }); }
template <class T> inline T atomicOr(T* address, T value) { return shim_atomic(address, [&](T old) { return (T)(old | value); }); }
template <class T> inline T atomicExch(T* address, T value) { return shim_atomic(address, [&](T) { return value; }); }
template <class T> inline T atomicCAS(T* address, T expected, T value) { return shim_atomic(address, [&](T old) { return old == expected ? value : old; }); }

#define SHIM_EXPORT extern "C" __attribute__((used, visibility("default")))
#define SHIM_KERNEL(kernel) \
    SHIM_EXPORT int shim_##kernel(const unsigned* grid_and_block, void** arguments) { return shim::launch(kernel, grid_and_block, arguments); }
SHIM_EXPORT inline const char* shim_error() { return shim::error.c_str(); }
SHIM_EXPORT inline void shim_schedule(unsigned schedule) {
    shim::greedy = schedule >= 1000;
    shim::schedule = schedule % 1000;
}
