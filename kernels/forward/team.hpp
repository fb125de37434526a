// Threads that share out the steps of a forward pass, each of which takes microseconds.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bitconv {

/// So many threads or as many as the system gives, the caller's among them. A step's tasks go to whichever thread is
/// free, and the step ends with the last task: a thread that sleeps, or that the system has given no core, is not
/// waited for.
class Team {
public:
    explicit Team(size_t threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    size_t threads() const { return workers_.size() + 1; }

    /// Calls task(i, thread) for every i below count, the last of them first; `thread` is a number below threads() that
    /// no other task has at the same time. A task that throws ends nothing else, and its exception comes out of here.
    template <class Task>
    void run(size_t count, Task&& task) {
        using Plain = std::remove_reference_t<Task>;
        const auto call = [](void* context, size_t i, size_t thread) { (*static_cast<Plain*>(context))(i, thread); };
        run(count, call, const_cast<std::remove_const_t<Plain>*>(&task));
    }

private:
    using Call = void (*)(void* context, size_t i, size_t thread);

    void run(size_t count, Call call, void* context);
    bool run_one(size_t thread);
    bool has_tasks() const;
    void work(size_t thread);

    // A number of the step, and how many of its tasks nobody has taken: steps << 32 | tasks. What it calls is written
    // before it, and read before a task is taken by a compare and exchange, which fails where another step has begun.
    std::atomic<uint64_t> step_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<size_t> done_{0};

    std::atomic<bool> stop_{false};
    std::atomic<size_t> asleep_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::exception_ptr failure_;
    std::vector<std::thread> workers_;
};

}  // namespace bitconv
