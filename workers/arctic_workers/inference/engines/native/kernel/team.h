// Threads that persist, and memory that grows.
#pragma once

#include "interface.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

namespace arctic {

// Which CPUs a thread may run on.
struct Cpus {
    uint8_t bits[CPU_BYTES];

    static Cpus of_this_thread() {
        Cpus cpus{};
        sched_getaffinity(0, sizeof cpus.bits, reinterpret_cast<cpu_set_t *>(cpus.bits));
        return cpus;
    }

    // A wish: a thread that may not run there computes the same elsewhere.
    void bind_this_thread() const { sched_setaffinity(0, sizeof bits, reinterpret_cast<const cpu_set_t *>(bits)); }
};

// The first of the things that a part gets when so many are cut into parts; those of the next part end it.
inline int64_t cut(int64_t things, int64_t part, int64_t parts) { return things * part / parts; }

// Things from one to another.
struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// A part of things that are cut into parts.
inline Range part_of(int64_t things, int64_t part, int64_t parts) { return {cut(things, part, parts), cut(things, part + 1, parts)}; }

// Which of its run of tasks a thread has not begun.
class alignas(64) Remaining {
  public:
    // The run is again whatever it is said to be.
    void forget() { left_.store(UNKNOWN, std::memory_order_relaxed); }

    // The first task that is left of a run; an empty range if none is.
    Range take_first(const Range &run) {
        return take(run, [](const Range &left) { return Range{left.begin, left.begin + 1}; });
    }

    // Some of the last that are left, for another thread.
    Range take_last(const Range &run) {
        return take(run, [](const Range &left) { return Range{left.end - (left.size() + STOLEN - 1) / STOLEN, left.end}; });
    }

  private:
    static constexpr uint64_t UNKNOWN = ~uint64_t{0};
    static constexpr int64_t STOLEN = 4;

    static uint64_t packed(int64_t begin, int64_t end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end); }

    template <class Choose> Range take(const Range &run, Choose choose) {
        uint64_t seen = left_.load(std::memory_order_relaxed);
        while (true) {
            const Range left = seen == UNKNOWN ? run : Range{static_cast<int64_t>(seen >> 32), static_cast<int64_t>(seen & 0xFFFFFFFFu)};
            if (left.size() <= 0) return {0, 0};
            const Range taken = choose(left);
            const uint64_t rest = taken.begin == left.begin ? packed(taken.end, left.end) : packed(left.begin, taken.begin);
            if (left_.compare_exchange_weak(seen, rest, std::memory_order_relaxed)) return taken;
        }
    }

    std::atomic<uint64_t> left_{UNKNOWN};
};

// A team that persists, cut into tensor ranks. Who waits spins for some microseconds, then sleeps: other processes need the
// cores too. With `cpus`, one set a tensor rank, threads stay on those of their rank; the caller, for as long as it works.
//
// A thread for which there is no memory comes to the barriers all the same, as the others would wait for it for ever: what it
// leaves undone is skipped by all, and told by `run`.
class Team {
  public:
    Team(int size, int ranks, const uint8_t *cpus) : size_(size), ranks_(ranks), of_all_(size), of_rank_(size) {
        if (cpus) {
            cpus_.resize(ranks);
            std::memcpy(cpus_.data(), cpus, ranks * sizeof(Cpus));
        }
        try {
            for (int index = 1; index < size; ++index) threads_.emplace_back([this, index] { serve(index); });
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Team() { stop(); }

    // The tensor rank of a thread.
    int rank_of(int index) const {
        int rank = 0;
        while (cut(size_, rank + 1, ranks_) <= index) ++rank;
        return rank;
    }

    // Run `work(index)` on every thread; returns when all are done. Throws std::bad_alloc where any had no memory.
    void run(const std::function<void(int)> &work) {
        const Cpus before = cpus_.empty() ? Cpus{} : Cpus::of_this_thread();
        if (!cpus_.empty()) cpus_[0].bind_this_thread();
        work_ = &work;
        start_.fetch_add(1);
        start_.notify_all();
        work(0);
        barrier([] {});
        if (!cpus_.empty()) before.bind_this_thread();
        if (no_memory_.exchange(false)) throw std::bad_alloc();
    }

    // Wait for all; the last one to come runs `between` before any goes on.
    template <class Between> void barrier(Between between) {
        const uint32_t phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            arrived_.store(0);
            for (auto *runs : {&of_all_, &of_rank_})
                for (auto &remaining : *runs) remaining.forget();
            try {
                between();
            } catch (const std::bad_alloc &) {
                no_memory_ = true;
            }
            phase_.fetch_add(1);
            phase_.notify_all();
        } else {
            wait_while(phase_, phase);
        }
    }

    // Do a thread's part of the tasks that all threads share since the last barrier, side by side. Each has a run of them, as memory
    // is read best in long runs; who has done its own takes from the ends of others', so that nobody waits long.
    template <class Task> void share(int thread, int64_t tasks, Task task) { share_among(of_all_, {0, size_}, thread, tasks, task); }

    // The same for tasks that the threads of a tensor rank share.
    template <class Task> void share_in_rank(int thread, int64_t tasks, Task task) {
        share_among(of_rank_, part_of(size_, rank_of(thread), ranks_), thread, tasks, task);
    }

  private:
    template <class Task> void share_among(std::vector<Remaining> &runs, const Range &threads, int thread, int64_t tasks, Task task) {
        const auto run_of = [&](int64_t other) { return part_of(tasks, other - threads.begin, threads.size()); };
        const auto all_of = [&](const Range &range) {
            for (int64_t index = range.begin; index < range.end; ++index) task(index);
            return range.size() > 0;
        };
        if (no_memory_) return;
        try {
            while (all_of(runs[thread].take_first(run_of(thread)))) {}
            for (int64_t step = 1; step < threads.size(); ++step) {
                const int64_t other = threads.begin + (thread - threads.begin + step) % threads.size();
                while (all_of(runs[other].take_last(run_of(other)))) {}
            }
        } catch (const std::bad_alloc &) {
            no_memory_ = true;
        }
    }

    // Who sleeps is woken late: by a tenth of a millisecond where processors are virtual. A step of one sequence follows the one
    // before sooner than that.
    static constexpr std::chrono::microseconds SPIN{500};

    static void wait_while(std::atomic<uint32_t> &value, uint32_t old) {
        for (const auto end = std::chrono::steady_clock::now() + SPIN; std::chrono::steady_clock::now() < end;)
            for (int pause = 0; pause < 64; ++pause) {
                if (value.load(std::memory_order_acquire) != old) return;
                _mm_pause();
            }
        while (value.load(std::memory_order_acquire) == old) value.wait(old);
    }

    void serve(int index) {
        if (!cpus_.empty()) cpus_[rank_of(index)].bind_this_thread();
        uint32_t seen = 0;
        while (true) {
            wait_while(start_, seen);
            ++seen;
            if (stopping_) return;
            (*work_)(index);
            barrier([] {});
        }
    }

    void stop() {
        stopping_ = true;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto &thread : threads_) thread.join();
    }

    const int size_, ranks_;
    std::vector<Cpus> cpus_; // of each tensor rank; none where threads run anywhere
    std::vector<Remaining> of_all_, of_rank_; // of each thread: its part of what all share, and of what its tensor rank does
    std::vector<std::thread> threads_;
    const std::function<void(int)> *work_ = nullptr;
    std::atomic<bool> stopping_{false}, no_memory_{false};
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> arrived_{0};
};

// Floats that grow and keep no content when they do; aligned to a cache line.
class Buffer {
  public:
    ~Buffer() { std::free(data_); }
    float *get(int64_t count) {
        if (count > count_) {
            std::free(data_);
            count_ = 0;
            const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
            data_ = static_cast<float *>(std::aligned_alloc(64, bytes));
            if (data_ == nullptr) throw std::bad_alloc();
            count_ = count;
        }
        return data_;
    }

  private:
    float *data_ = nullptr;
    int64_t count_ = 0;
};

} // namespace arctic
