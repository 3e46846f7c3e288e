// Products of some rows with a weight, exact to the same bits whichever path computes them: each output is one accumulator of
// 8 lanes that takes k = 0..7, 8..15, ... in order and is added up by one tree.
//
// Weights lie in panels of 8 outputs: [outputs / 8][inputs / 8][8 outputs][8 inputs], padded with zeros, so that one row
// reads memory as one stream.
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace arctic {

constexpr int TILE_ROWS = 3;               // 4 outputs x 3 rows: 12 accumulators, 3 inputs and a weight fill the 16 registers
constexpr int64_t BLOCK_BYTES = 256 << 10; // inputs of a block of rows, which stay in the second cache

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, int64_t blocks, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int STEP = LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
#pragma GCC unroll 8
        for (int output = 0; output < LANES; ++output) sums[output] = _mm256_fmadd_ps(read8<F>(w + output * STEP), input, sums[output]);
        w += LANES * STEP;
    }
    _mm256_storeu_ps(out, add_up8(sums));
}

// 4 outputs x R rows, R at most 3: each weight is decoded once.
template <Format F, int R>
void tile(const uint8_t *w, const float *const *x, int64_t blocks, float *out) {
    __m256 sums[R][4];
    for (auto &row : sums)
        for (auto &sum : row) sum = _mm256_setzero_ps();
    constexpr int STEP = LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(x[row] + block * LANES);
#pragma GCC unroll 4
        for (int output = 0; output < 4; ++output) {
            const __m256 weight = read8<F>(w + output * STEP);
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        }
        w += LANES * STEP;
    }
    for (int row = 0; row < R; ++row)
        _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
}

// All rows over one panel that is read as it is.
template <Format F> void tiles(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *from = w + half * 4 * LANES * bytes_of<F>();
        int64_t row = 0;
        for (; row + TILE_ROWS <= rows; row += TILE_ROWS) tile<F, 3>(from, x + row, blocks, out + row * LANES + half * 4);
        if (rows - row == 2) tile<F, 2>(from, x + row, blocks, out + row * LANES + half * 4);
        if (rows - row == 1) tile<F, 1>(from, x + row, blocks, out + row * LANES + half * 4);
    }
}

template <Format F> void panel(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &wide) {
    if (rows == 1) return one_row<F>(w, x[0], blocks, out);
    if (F == FP32 || rows <= TILE_ROWS) return tiles<F>(w, x, rows, blocks, out);
    // Many rows: decode the panel once.
    float *decoded = wide.get(blocks * LANES * LANES);
    for (int64_t index = 0; index < blocks * LANES; ++index)
        _mm256_store_ps(decoded + index * LANES, read8<F>(w + index * LANES * bytes_of<F>()));
    tiles<FP32>(reinterpret_cast<const uint8_t *>(decoded), x, rows, blocks, out);
}

// Outputs 8 p to 8 p + 7 of each row of `x` (which carries INPUT): out [R, 8].
inline void multiply(const Matrix &matrix, int64_t p, const float *const *x, int64_t rows, float *out, Buffer &wide) {
    const int64_t blocks = padded(matrix.inputs) / LANES;
    const int64_t size = blocks * LANES * LANES;
    switch (matrix.format) {
    case FP8: panel<FP8>(matrix.data + p * size, x, rows, blocks, out, wide); break;
    case BF16: panel<BF16>(matrix.data + p * size * 2, x, rows, blocks, out, wide); break;
    default: panel<FP32>(matrix.data + p * size * 4, x, rows, blocks, out, wide);
    }
    __m256 factor = _mm256_set1_ps(matrix.format == FP8 ? FROM_FP8 : FROM_OTHERS);
    for (int64_t row = 0; row < rows; ++row) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(out + row * LANES), factor);
        if (matrix.scale) value = _mm256_mul_ps(value, _mm256_loadu_ps(matrix.scale + p * LANES));
        _mm256_storeu_ps(out + row * LANES, value);
    }
}

inline int64_t panels_of(const Matrix &matrix) { return padded(matrix.outputs) / LANES; }

// Rows that are computed together, so that their inputs stay near.
inline int64_t block_rows(int64_t inputs) { return std::max<int64_t>(12, BLOCK_BYTES / (padded(inputs) * 4) / 12 * 12); }

} // namespace arctic
