#include "team.hpp"

#include <system_error>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bitconv {

namespace {

constexpr uint64_t task_bits = 32, task_mask = (uint64_t{1} << task_bits) - 1;
// Looks at memory, some 50 microseconds of them: the next step nearly always comes sooner, and to wake takes as long.
constexpr int patience = 2000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

Team::Team(size_t threads) {
    workers_.reserve(threads);
    try {
        for (size_t thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    } catch (const std::system_error&) {
        // The system gives no more: fewer do.
    }
}

Team::~Team() {
    stop_ = true;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Team::run(size_t count, Call call, void* context) {
    if (workers_.empty() || count < 2) {
        while (count > 0) call(context, --count, 0);
        return;
    }
    call_.store(call, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    step_ = ((step_ >> task_bits) + 1) << task_bits | count;
    if (asleep_ > 0) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
    }
    while (run_one(0)) {}
    for (int looks = 0; done_.load(std::memory_order_acquire) < count; ++looks) {
        if (looks < patience) pause();
        else std::this_thread::yield();
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

/// Runs a task; false where there is none.
bool Team::run_one(size_t thread) {
    uint64_t step = step_;
    while ((step & task_mask) > 0) {
        const Call call = call_.load(std::memory_order_relaxed);
        void* context = context_.load(std::memory_order_relaxed);
        if (!step_.compare_exchange_weak(step, step - 1)) continue;
        try {
            call(context, (step & task_mask) - 1, thread);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            failure_ = std::current_exception();
        }
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }
    return false;
}

bool Team::has_tasks() const { return (step_ & task_mask) > 0; }

void Team::work(size_t thread) {
    for (;;) {
        while (run_one(thread)) {}
        for (int looks = 0; looks < patience && !stop_ && !has_tasks(); ++looks) pause();
        if (has_tasks()) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        ++asleep_;
        wake_.wait(lock, [this] { return stop_ || has_tasks(); });
        --asleep_;
        if (stop_) return;
    }
}

}  // namespace bitconv
