// Threads that persist, and memory that grows.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <new>
#include <thread>
#include <vector>

namespace arctic {

// A team that persists. Who waits spins for some microseconds, then sleeps: other processes need the cores too.
class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int index = 1; index < size; ++index) threads_.emplace_back([this, index] { serve(index); });
    }

    ~Team() {
        stopping_ = true;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto &thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // Run `work(index)` on every thread; returns when all are done.
    void run(const std::function<void(int)> &work) {
        work_ = &work;
        start_.fetch_add(1);
        start_.notify_all();
        work(0);
        barrier([] {});
    }

    // Wait for all; the last one to come runs `between` before any goes on.
    template <class Between> void barrier(Between between) {
        const uint32_t phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            arrived_.store(0);
            next_.store(0);
            between();
            phase_.fetch_add(1);
            phase_.notify_all();
        } else {
            wait_while(phase_, phase);
        }
    }

    // Some of the tasks that all threads share since the last barrier, side by side: many at first, as memory is read best in
    // long runs, and single ones at the end, so that nobody waits long. False when none is left.
    bool take(int64_t tasks, int64_t &begin, int64_t &end) {
        begin = next_.load(std::memory_order_relaxed);
        do {
            if (begin >= tasks) return false;
            end = begin + std::max<int64_t>(1, (tasks - begin) / (SHARES * size_));
        } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
        return true;
    }

  private:
    static constexpr int64_t SHARES = 8;

    static void wait_while(std::atomic<uint32_t> &value, uint32_t old) {
        for (int spin = 0; spin < 4000; ++spin) {
            if (value.load(std::memory_order_acquire) != old) return;
            _mm_pause();
        }
        while (value.load(std::memory_order_acquire) == old) value.wait(old);
    }

    void serve(int index) {
        uint32_t seen = 0;
        while (true) {
            wait_while(start_, seen);
            ++seen;
            if (stopping_) return;
            (*work_)(index);
            barrier([] {});
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    const std::function<void(int)> *work_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int64_t> next_{0};
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
