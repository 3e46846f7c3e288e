// What low-rank adapters add to products: W x becomes W x + up (down x), for the rows of whoever asked for an adapter.
//
// Both products are summed for each row by itself, in one order: a row's bits depend on no neighbour, and a row without an
// adapter keeps those that it has without any.
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace arctic {

// Which matrix of a layer: as `LayerAdditions` has them.
enum Target { Q, K, V, O, W1, W3, W2 };

class Additions {
  public:
    // Of `count` adapters, [count, layers], which must outlive this.
    void set(const LayerAdditions *additions, int64_t count, int64_t layers) {
        additions_ = additions;
        layers_ = layers;
        most_ = 1;
        for (int64_t layer = 0; layer < count * layers; ++layer)
            for (const Addition &addition : additions[layer].of) most_ = std::max<int64_t>(most_, addition.rank);
    }

    // Begin a step: whose adapter each row has.
    void begin(const Step &step) {
        adapters_.clear();
        used_ = false;
        for (int64_t span = 0; span < step.count; ++span) {
            adapters_.insert(adapters_.end(), step.spans[span].rows, step.spans[span].adapter);
            used_ = used_ || step.spans[span].adapter >= 0;
        }
        if (used_) low_ = low_buffer_.get(step.rows * AT_ONCE * most_);
    }

    // Whether any row of the step has an adapter.
    bool used() const { return used_; }

    // down x of one row, for matrices that have the same inputs, at most AT_ONCE of them; x carries INPUT.
    void shrink(int64_t layer, int64_t row, std::initializer_list<Target> targets, const float *x) {
        for (const Target target : targets)
            if (const Addition *addition = find(layer, row, target))
                for (int64_t at = 0; at < addition->rank; ++at) low(row, target)[at] = dot(addition->down + at * padded(addition->inputs), x, padded(addition->inputs));
    }

    // A product's outputs `at` to `at` + 7 of a row, with what its adapter adds.
    __m256 added(int64_t layer, int64_t row, Target target, int64_t at, __m256 value) {
        const Addition *addition = used_ ? find(layer, row, target) : nullptr;
        if (!addition) return value;
        const float *up = addition->up + at * addition->rank, *from = low(row, target);
        __m256 sum = _mm256_setzero_ps();
        for (int64_t of = 0; of < addition->rank; ++of) sum = _mm256_fmadd_ps(_mm256_set1_ps(from[of]), _mm256_loadu_ps(up + of * LANES), sum);
        return _mm256_add_ps(value, sum);
    }

  private:
    static constexpr int64_t AT_ONCE = 3;

    const Addition *find(int64_t layer, int64_t row, Target target) const {
        const int64_t adapter = adapters_[row];
        if (adapter < 0) return nullptr;
        const Addition &addition = additions_[adapter * layers_ + layer].of[target];
        return addition.rank ? &addition : nullptr;
    }

    // Matrices that are shrunk together have places of their own: q, k, v; w1, w3.
    float *low(int64_t row, Target target) { return low_ + (row * AT_ONCE + target % 4 % AT_ONCE) * most_; }

    static float dot(const float *a, const float *x, int64_t size) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t at = 0; at < size; at += LANES) sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + at), _mm256_loadu_ps(x + at), sum);
        return add_up(sum) * FROM_OTHERS;
    }

    const LayerAdditions *additions_ = nullptr;
    int64_t layers_ = 0, most_ = 1;
    bool used_ = false;
    std::vector<int64_t> adapters_;
    Buffer low_buffer_;
    float *low_ = nullptr; // down x of the step under way: [rows, AT_ONCE, most_]
};

} // namespace arctic
