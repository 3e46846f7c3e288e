// How fast this machine's cores read memory together: a sum over a buffer larger than all caches, the best of some rounds.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// One core's part; the pages of the next are fetched as a product's loop has it done by the hardware.
float sum(const float *from, int64_t count) {
    __m256 sums[8];
    for (auto &one : sums) one = _mm256_setzero_ps();
    for (int64_t at = 0; at + 64 <= count; at += 64)
        for (int lane = 0; lane < 8; ++lane) sums[lane] = _mm256_add_ps(sums[lane], _mm256_load_ps(from + at + 8 * lane));
    for (auto &one : sums) sums[0] = _mm256_add_ps(sums[0], one);
    return _mm256_cvtss_f32(sums[0]);
}

} // namespace

// Bytes a second.
extern "C" double read_ceiling(const float *buffer, int64_t floats, int threads, int rounds) {
    double best = 0;
    const int64_t part = floats / threads / 64 * 64;
    std::vector<float> kept(threads);
    for (int round = 0; round < rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> team;
        for (int index = 0; index < threads; ++index) team.emplace_back([&, index] { kept[index] = sum(buffer + index * part, part); });
        for (auto &thread : team) thread.join();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, static_cast<double>(part) * threads * sizeof(float) / seconds);
    }
    return best;
}
