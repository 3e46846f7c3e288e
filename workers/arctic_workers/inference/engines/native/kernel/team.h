// Threads that persist, and memory that grows.
#pragma once

#include "interface.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
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

// A team that persists, cut into tensor ranks. Who waits spins for some microseconds, then sleeps: other processes need the
// cores too. With `cpus`, one set a tensor rank, threads stay on those of their rank; the caller, for as long as it works.
class Team {
  public:
    Team(int size, int ranks, const uint8_t *cpus) : size_(size), ranks_(ranks), queues_(ranks + 1) {
        if (cpus) cpus_.resize(ranks);
        for (int rank = 0; rank < ranks; ++rank) {
            queues_[rank].threads = cut(size, rank + 1, ranks) - cut(size, rank, ranks);
            if (cpus) std::memcpy(cpus_[rank].bits, cpus + rank * CPU_BYTES, CPU_BYTES);
        }
        queues_[ranks].threads = size;
        for (int index = 1; index < size; ++index) threads_.emplace_back([this, index] { serve(index); });
    }

    ~Team() {
        stopping_ = true;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto &thread : threads_) thread.join();
    }

    // The tensor rank of a thread.
    int rank_of(int index) const {
        int rank = 0;
        while (cut(size_, rank + 1, ranks_) <= index) ++rank;
        return rank;
    }

    // Run `work(index)` on every thread; returns when all are done.
    void run(const std::function<void(int)> &work) {
        const Cpus before = cpus_.empty() ? Cpus{} : Cpus::of_this_thread();
        if (!cpus_.empty()) cpus_[0].bind_this_thread();
        work_ = &work;
        start_.fetch_add(1);
        start_.notify_all();
        work(0);
        barrier([] {});
        if (!cpus_.empty()) before.bind_this_thread();
    }

    // Wait for all; the last one to come runs `between` before any goes on.
    template <class Between> void barrier(Between between) {
        const uint32_t phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            arrived_.store(0);
            for (auto &queue : queues_) queue.next.store(0);
            between();
            phase_.fetch_add(1);
            phase_.notify_all();
        } else {
            wait_while(phase_, phase);
        }
    }

    // Some of the tasks that the threads of a tensor rank, or of ALL, share since the last barrier, side by side: many at
    // first, as memory is read best in long runs, and single ones at the end, so that nobody waits long. False when none is left.
    bool take(int rank, int64_t tasks, int64_t &begin, int64_t &end) {
        Queue &queue = queues_[rank == ALL ? ranks_ : rank];
        begin = queue.next.load(std::memory_order_relaxed);
        do {
            if (begin >= tasks) return false;
            end = begin + std::max<int64_t>(1, (tasks - begin) / (SHARES * queue.threads));
        } while (!queue.next.compare_exchange_weak(begin, end, std::memory_order_relaxed));
        return true;
    }

    static constexpr int ALL = -1;

  private:
    static constexpr int64_t SHARES = 8;

    // Tasks that some threads share; each is asked for by those alone, and so lies apart.
    struct alignas(64) Queue {
        std::atomic<int64_t> next{0};
        int64_t threads = 0;
    };

    static void wait_while(std::atomic<uint32_t> &value, uint32_t old) {
        for (int spin = 0; spin < 4000; ++spin) {
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

    const int size_, ranks_;
    std::vector<Cpus> cpus_;    // of each tensor rank; none where threads run anywhere
    std::vector<Queue> queues_; // of each tensor rank, and of all
    std::vector<std::thread> threads_;
    const std::function<void(int)> *work_ = nullptr;
    std::atomic<bool> stopping_{false};
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
