// Threads that share the work of a call. They are kept between calls, asleep: to start and join one takes longer than its share of a
// batch. A child of fork() has none of its parent's and starts its own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#include <signal.h>

namespace threads {

const unsigned MOST_THREADS = 256;
const unsigned SPINS = 2'000;  // looks at what is about to change, some 30 µs, before a thread sleeps: to be woken takes as long

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// What helpers do in a call. The fields are the pool's.
class Call {
  public:
    virtual void serve(unsigned thread) = 0;

  protected:
    ~Call() = default;

  private:
    friend class Pool;
    unsigned wanted_ = 0, next_thread_ = 1;
    std::atomic<unsigned> inside_{0};
};

class Pool {
  public:
    // Lives as long as the process: its threads sleep in it while that ends.
    static Pool& instance() {
        Pool* pool = current().load(std::memory_order_acquire);
        if (pool) return *pool;
        Pool* made = new Pool;
        if (current().compare_exchange_strong(pool, made)) return *made;
        delete made;
        return *pool;
    }

    // Lets helpers into a call, as many as come before it is finished.
    void post(Call& call, unsigned num_helpers) {
        if (!num_helpers) return;
        call.wanted_ = num_helpers;
        std::lock_guard<std::mutex> lock(mutex_);
        open_.push_back(&call);
        num_wanted_ += num_helpers;
        while (num_wanted_ > num_idle_ && num_threads_ < MOST_THREADS && start()) {}
        num_helpers == 1 ? wanted_.notify_one() : wanted_.notify_all();
    }

    // Serves a call as its thread 0; nobody is in it any longer at the end.
    void finish(Call& call) {
        call.serve(0);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (call.wanted_) close(call);
        }
        for (unsigned spin = 0; spin < SPINS && call.inside_.load(std::memory_order_acquire); ++spin) relax();
        std::unique_lock<std::mutex> lock(mutex_);
        left_.wait(lock, [&] { return call.inside_ == 0; });
    }

  private:
    Pool() = default;

    static std::atomic<Pool*>& current() {
        static std::atomic<Pool*> pool{nullptr};
        static const int registered = pthread_atfork(nullptr, nullptr, [] { current() = nullptr; });  // its mutex may be held for ever, its threads are gone
        (void)registered;
        return pool;
    }

    // Signals are for the threads that Python knows.
    bool start() {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        bool started = true;
        try {
            std::thread([this] { work(); }).detach();
            ++num_threads_;
            ++num_idle_;
        } catch (const std::system_error&) {
            started = false;  // the machine has no more threads: those that there are do the work
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return started;
    }

    void close(Call& call) {
        num_wanted_ -= call.wanted_;
        call.wanted_ = 0;
        for (size_t k = 0; k < open_.size(); ++k)
            if (open_[k] == &call) {
                open_[k] = open_.back();
                open_.pop_back();
                return;
            }
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wanted_.wait(lock, [&] { return !open_.empty(); });
            Call& call = *open_.back();
            const unsigned thread = call.next_thread_++;
            --num_idle_;
            --num_wanted_;
            if (--call.wanted_ == 0) open_.pop_back();
            ++call.inside_;
            lock.unlock();
            call.serve(thread);
            lock.lock();
            ++num_idle_;
            if (--call.inside_ == 0) left_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wanted_, left_;
    std::vector<Call*> open_;  // calls that want more helpers
    unsigned num_wanted_ = 0, num_idle_ = 0, num_threads_ = 0;
};

// Work items in stages, on several threads; a stage begins when the one before has ended. `work(thread, stage, first, end)` handles items [first, end);
// it is called with at most `grain` items, in any order, from the start on until `finish` returns.
template <class Work> class Stages final : public Call {
  public:
    Stages(std::vector<unsigned long long> items, unsigned long long grain, Work work, unsigned num_threads)
        : items_(std::move(items)), grain_(grain), work_(std::move(work)), taken_(items_.size()), done_(items_.size()) {
        if (num_threads > 1) Pool::instance().post(*this, num_threads - 1);
        alone_ = num_threads <= 1;
    }

    void finish() {
        if (alone_) serve(0);
        else Pool::instance().finish(*this);
    }

    void serve(unsigned thread) override {
        for (size_t stage = 0; stage < items_.size(); ++stage) {
            for (;;) {
                const unsigned long long first = taken_[stage].fetch_add(grain_);
                if (first >= items_[stage]) break;
                const unsigned long long end = first + grain_ < items_[stage] ? first + grain_ : items_[stage];
                work_(thread, stage, first, end);
                if (done_[stage].fetch_add(end - first) + (end - first) == items_[stage]) {
                    std::lock_guard<std::mutex> lock(mutex_);
                    ended_.notify_all();
                }
            }
            if (stage + 1 < items_.size()) wait_for(stage);
        }
    }

  private:
    void wait_for(size_t stage) {
        for (unsigned spin = 0; spin < SPINS; ++spin) {
            if (done_[stage] == items_[stage]) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        ended_.wait(lock, [&] { return done_[stage] == items_[stage]; });
    }

    const std::vector<unsigned long long> items_;
    const unsigned long long grain_;
    Work work_;
    std::vector<std::atomic<unsigned long long>> taken_, done_;
    std::mutex mutex_;
    std::condition_variable ended_;
    bool alone_ = true;
};

// Runs stages to their end.
class Team {
  public:
    explicit Team(unsigned num_threads) : wanted_(num_threads < 1 ? 1 : num_threads) {}

    template <class Work> void run(const std::vector<unsigned long long>& stage_items, unsigned long long grain, Work work) {
        Stages<Work>(stage_items, grain, std::move(work), wanted_).finish();
    }

    unsigned size() const { return wanted_; }

  private:
    unsigned wanted_;
};

}  // namespace threads
