// Products of some rows with a weight, exact to the same bits whichever path computes them: each output is one accumulator of
// 8 lanes that takes k = 0..7, 8..15, ... in order and is added up by one tree.
//
// Weights lie in panels of 8 outputs, padded with zeros, so that one row reads memory as one stream: [outputs / 8][inputs / 8]
// [2][4 outputs][8 inputs], and in e4m3 [outputs / 8][inputs / 8][2][8 inputs][4 outputs].
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace arctic {

constexpr int64_t BLOCK_BYTES = 256 << 10; // inputs of a block of rows, which stay in the second cache
constexpr int64_t PIECE = 128;             // blocks of 8 inputs that a tile takes at once: they and the weights (half as many, decoded) stay in the first cache
constexpr int64_t MANY = 16;               // rows for which decoding a piece first costs less than it saves
constexpr int AHEAD = 4096;                // bytes: the processor's own look-ahead ends with a page, and so with half a panel

// Ask for the weights that come AHEAD of these 64, which are the next panel's at a panel's end.
template <Format F> inline void look_ahead(const uint8_t *w) {
    for (int line = 0; line < bytes_of<F>(); ++line) _mm_prefetch(reinterpret_cast<const char *>(w) + AHEAD + 64 * line, _MM_HINT_T0);
}

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, int64_t blocks, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int HALF = 4 * LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        look_ahead<F>(w);
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
        each_of_4<F>(w, [&](int output, __m256 weight) { sums[output] = _mm256_fmadd_ps(weight, input, sums[output]); });
        each_of_4<F>(w + HALF, [&](int output, __m256 weight) { sums[4 + output] = _mm256_fmadd_ps(weight, input, sums[4 + output]); });
        w += 2 * HALF;
    }
    _mm256_storeu_ps(out, add_up8(sums));
}

// A piece of the inputs: its first block, how many there are, and whether the sums begin and end with it.
struct Piece {
    int64_t first, blocks;
    bool begins, ends;
};

// 4 outputs x R rows, 2 or 3: 12 accumulators and 3 inputs leave one register to decode a weight once for all rows. Sums wait
// between pieces at `waiting` [R, 8 outputs, 8 lanes]. The FIRST to read a panel looks ahead.
template <Format F, int R, bool FIRST> void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting) {
    __m256 sums[R][4];
    for (int row = 0; row < R; ++row)
        for (int output = 0; output < 4; ++output)
            sums[row][output] = piece.begins ? _mm256_setzero_ps() : _mm256_load_ps(waiting + (row * LANES + output) * LANES);
    const float *from[R];
    for (int row = 0; row < R; ++row) from[row] = x[row] + piece.first * LANES;
    for (int64_t block = 0; block < piece.blocks; ++block) {
        if (FIRST) look_ahead<F>(w);
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(from[row] + block * LANES);
        each_of_4<F>(w, [&](int output, __m256 weight) {
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        });
        w += LANES * LANES * bytes_of<F>();
    }
    for (int row = 0; row < R; ++row) {
        if (piece.ends) _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
        else
            for (int output = 0; output < 4; ++output) _mm256_store_ps(waiting + (row * LANES + output) * LANES, sums[row][output]);
    }
}

// All rows over one piece of a panel.
template <Format F> void tiles(const uint8_t *w, const float *const *x, int64_t rows, const Piece &piece, float *out, float *waiting) {
    for (int64_t row = 0; row < rows;) {
        const int64_t left = rows - row;
        const bool two = left == 2 || left == 4; // a tile of one row would wait for its own sums
        for (int half = 0; half < 2; ++half) {
            const uint8_t *from = w + half * 4 * LANES * bytes_of<F>();
            float *to = out + row * LANES + half * 4, *sums = waiting + (row * LANES + half * 4) * LANES;
            if (row + half == 0) two ? tile<F, 2, true>(from, x, piece, to, sums) : tile<F, 3, true>(from, x, piece, to, sums);
            else two ? tile<F, 2, false>(from, x + row, piece, to, sums) : tile<F, 3, false>(from, x + row, piece, to, sums);
        }
        row += two ? 2 : 3;
    }
}

template <Format F> void decode(const uint8_t *w, int64_t blocks, float *out) {
    for (int64_t half = 0; half < 2 * blocks; ++half, w += 4 * LANES * bytes_of<F>(), out += 4 * LANES) {
        if (half % 2 == 0) look_ahead<F>(w);
        each_of_4<F>(w, [&](int output, __m256 weight) { _mm256_store_ps(out + output * LANES, weight); });
    }
}

// All rows over one panel, piece by piece of the inputs.
template <Format F> void panel(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &wide) {
    if (rows == 1) return one_row<F>(w, x[0], blocks, out);
    const bool decodes = F != FP32 && rows >= MANY;
    const int64_t size = decodes ? PIECE / 2 : PIECE;
    float *decoded = wide.get((size + rows) * LANES * LANES), *waiting = decoded + size * LANES * LANES;
    for (int64_t first = 0; first < blocks; first += size) {
        const Piece piece{first, std::min(size, blocks - first), first == 0, first + size >= blocks};
        const uint8_t *from = w + first * LANES * LANES * bytes_of<F>();
        if (!decodes) {
            tiles<F>(from, x, rows, piece, out, waiting);
            continue;
        }
        decode<F>(from, piece.blocks, decoded);
        tiles<FP32>(reinterpret_cast<const uint8_t *>(decoded), x, rows, piece, out, waiting);
    }
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

// Floats from one row of inputs to the next: rows that lie powers of two apart would contend for the same places of the caches.
inline int64_t row_stride(int64_t size) { return padded(size) + (padded(size) % 128 ? 0 : 16); }

inline int64_t panels_of(const Matrix &matrix) { return padded(matrix.outputs) / LANES; }

// Rows that are computed together, so that their inputs stay near.
inline int64_t block_rows(int64_t inputs) { return std::max<int64_t>(12, BLOCK_BYTES / (padded(inputs) * 4) / 12 * 12); }

} // namespace arctic
