// Threads of one call: started for it, joined at its end, so that nothing outlives a call or a fork. Costs some 20 µs a thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace threads {

// Runs stages of work items on several threads; a stage begins when the one before has ended.
class Team {
  public:
    explicit Team(unsigned num_threads) : wanted_(num_threads < 1 ? 1 : num_threads) {}

    // work(thread, stage, first, end) handles items [first, end); it is called with at most `grain` items, in any order.
    template <class Work> void run(const std::vector<unsigned long long>& stage_items, unsigned long long grain, Work work) {
        cursors_ = std::vector<std::atomic<unsigned long long>>(stage_items.size());
        auto serve = [&](unsigned thread) {
            for (size_t stage = 0; stage < stage_items.size(); ++stage) {
                for (;;) {
                    const unsigned long long first = cursors_[stage].fetch_add(grain);
                    if (first >= stage_items[stage]) break;
                    const unsigned long long end = first + grain < stage_items[stage] ? first + grain : stage_items[stage];
                    work(thread, stage, first, end);
                }
                meet();
            }
        };
        std::vector<std::thread> others;
        try {
            for (unsigned thread = 1; thread < wanted_; ++thread)
                others.emplace_back([&, thread] {
                    wait_for_start();
                    serve(thread);
                });
        } catch (const std::system_error&) {
            // The machine has no more threads: the ones that started do the work.
        }
        start((unsigned)others.size() + 1);
        serve(0);
        for (std::thread& other : others) other.join();
    }

    unsigned size() const { return wanted_; }

  private:
    void start(unsigned num_threads) {
        std::lock_guard<std::mutex> lock(mutex_);
        num_threads_ = num_threads;
        changed_.notify_all();
    }

    void wait_for_start() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return num_threads_ > 0; });
    }

    void meet() {
        std::unique_lock<std::mutex> lock(mutex_);
        if (num_threads_ == 1) return;
        const unsigned round = round_;
        if (++arrived_ == num_threads_) {
            arrived_ = 0;
            ++round_;
            changed_.notify_all();
        } else {
            changed_.wait(lock, [&] { return round_ != round; });
        }
    }

    unsigned wanted_, num_threads_ = 0, arrived_ = 0, round_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::atomic<unsigned long long>> cursors_;
};

}  // namespace threads
