// Products of some rows with a weight, exact to the same bits whichever path computes them: each output is one accumulator of
// 8 lanes that takes k = 0..7, 8..15, ... in order and is added up by one tree. Where blocks of inputs have scales, that is so for
// each block, and what comes out is added up by its scale, in order.
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
constexpr int64_t PIECE = 64;              // blocks of 8 inputs that tiles take at once: those of 6 rows, and weights, stay in the first cache
constexpr int AHEAD = 4096;                // bytes: the processor's own look-ahead ends with a page, and so with half a panel

// Ask for some bytes of weights that come AHEAD of these, which are the next panel's at a panel's end.
template <int BYTES> inline void look_ahead(const uint8_t *w) {
    for (int at = 0; at < BYTES; at += 64) _mm_prefetch(reinterpret_cast<const char *>(w) + AHEAD + at, _MM_HINT_T0);
}

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, int64_t blocks, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int HALF = 4 * LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        look_ahead<LANES * LANES * bytes_of<F>()>(w);
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
        const auto lower = [&](int output, __m256 weight) { sums[output] = _mm256_fmadd_ps(weight, input, sums[output]); };
        const auto upper = [&](int output, __m256 weight) { lower(4 + output, weight); };
        each_of_pair<F, 0>(w, lower);
        each_of_pair<F, 1>(w, lower);
        each_of_pair<F, 0>(w + HALF, upper);
        each_of_pair<F, 1>(w + HALF, upper);
        w += 2 * HALF;
    }
    _mm256_storeu_ps(out, add_up8(sums));
}

// A piece of the inputs: its first block, how many there are, and whether the sums begin and end with it.
struct Piece {
    int64_t first, blocks;
    bool begins, ends;
};

constexpr int BOTH = -1;

// R rows x 4 outputs (BOTH pairs), 2 or 3 rows, or x one PAIR of them, 4 to 6 rows: at most 12 accumulators, so that what is
// decoded, once for all rows, finds room in the 16 registers. Sums wait between pieces at `waiting` [R, 8 outputs, 8 lanes].
// With each block goes a look AHEAD of AHEAD_STEP bytes from `ahead` on: who reads a piece first shares it out over its tiles, so that
// memory never waits for arithmetic.
template <Format F, int R, int PAIR, int AHEAD_STEP>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *ahead) {
    constexpr int OUTPUTS = PAIR == BOTH ? 4 : 2, FIRST = PAIR == BOTH ? 0 : PAIR, STEP = PAIR == BOTH ? 1 : 2;
    const auto place = [&](int row, int index) { return waiting + (row * LANES + FIRST + index * STEP) * LANES; };
    __m256 sums[R][OUTPUTS];
    const float *from[R];
#pragma GCC unroll 6
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int index = 0; index < OUTPUTS; ++index) sums[row][index] = piece.begins ? _mm256_setzero_ps() : _mm256_load_ps(place(row, index));
    }
    for (int64_t block = 0; block < piece.blocks; ++block) {
        if constexpr (AHEAD_STEP != 0) look_ahead<AHEAD_STEP>(ahead + block * AHEAD_STEP);
        if constexpr (PAIR == BOTH) {
            __m256 inputs[R];
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(from[row] + block * LANES);
            const auto add = [&](int output, __m256 weight) {
#pragma GCC unroll 3
                for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
            };
            each_of_pair<F, 0>(w, add);
            each_of_pair<F, 1>(w, add);
        } else {
            __m256 weights[2];
            each_of_pair<F, PAIR>(w, [&](int output, __m256 weight) { weights[output / 2] = weight; });
#pragma GCC unroll 6
            for (int row = 0; row < R; ++row) {
                const __m256 input = _mm256_loadu_ps(from[row] + block * LANES);
                sums[row][0] = _mm256_fmadd_ps(weights[0], input, sums[row][0]);
                sums[row][1] = _mm256_fmadd_ps(weights[1], input, sums[row][1]);
            }
        }
        w += LANES * LANES * bytes_of<F>();
    }
#pragma GCC unroll 6
    for (int row = 0; row < R; ++row) {
        if (!piece.ends) {
#pragma GCC unroll 4
            for (int index = 0; index < OUTPUTS; ++index) _mm256_store_ps(place(row, index), sums[row][index]);
        } else if constexpr (PAIR == BOTH) {
            _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
        } else {
            const __m128 both = add_up4(sums[row][0], sums[row][1], sums[row][0], sums[row][1]);
            out[row * LANES + PAIR] = _mm_cvtss_f32(both);
            out[row * LANES + PAIR + 2] = _mm_cvtss_f32(_mm_movehdup_ps(both));
        }
    }
}

// R rows over one piece of a panel; LOOKS_AHEAD if they are the first to read it.
template <Format F, int R, bool LOOKS_AHEAD> void rows_of_tiles(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting) {
    constexpr int BLOCK = LANES * LANES * bytes_of<F>(), HALF = BLOCK / 2, TILES = R <= 3 ? 2 : 4, STEP = LOOKS_AHEAD ? BLOCK / TILES : 0;
    const auto ahead = [&](int tile) { return w + tile * piece.blocks * STEP; };
    if constexpr (R <= 3) {
        tile<F, R, BOTH, STEP>(w, x, piece, out, waiting, ahead(0));
        tile<F, R, BOTH, STEP>(w + HALF, x, piece, out + 4, waiting + 4 * LANES, ahead(1));
    } else {
        tile<F, R, 0, STEP>(w, x, piece, out, waiting, ahead(0));
        tile<F, R, 1, STEP>(w, x, piece, out, waiting, ahead(1));
        tile<F, R, 0, STEP>(w + HALF, x, piece, out + 4, waiting + 4 * LANES, ahead(2));
        tile<F, R, 1, STEP>(w + HALF, x, piece, out + 4, waiting + 4 * LANES, ahead(3));
    }
}

template <Format F, bool LOOKS_AHEAD> void some_rows(int64_t rows, const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting) {
    switch (rows) {
    case 2: return rows_of_tiles<F, 2, LOOKS_AHEAD>(w, x, piece, out, waiting);
    case 3: return rows_of_tiles<F, 3, LOOKS_AHEAD>(w, x, piece, out, waiting);
    case 4: return rows_of_tiles<F, 4, LOOKS_AHEAD>(w, x, piece, out, waiting);
    case 5: return rows_of_tiles<F, 5, LOOKS_AHEAD>(w, x, piece, out, waiting);
    default: return rows_of_tiles<F, 6, LOOKS_AHEAD>(w, x, piece, out, waiting);
    }
}

// All rows over one piece of a panel, in groups of rows that differ by at most one.
template <Format F> void groups_of_rows(const uint8_t *w, const float *const *x, int64_t rows, const Piece &piece, float *out, float *waiting) {
    const uint8_t *from = w + piece.first * LANES * LANES * bytes_of<F>();
    const int64_t groups = (rows + 5) / 6;
    for (int64_t group = 0, row = 0; group < groups; ++group) {
        const int64_t taken = (rows - row) / (groups - group);
        const auto run = group == 0 ? some_rows<F, true> : some_rows<F, false>;
        run(taken, from, x + row, piece, out + row * LANES, waiting + row * LANES * LANES);
        row += taken;
    }
}

// All rows over one panel, piece by piece of the inputs.
template <Format F> void panel(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &sums) {
    if (rows == 1) return one_row<F>(w, x[0], blocks, out);
    float *waiting = sums.get(rows * LANES * LANES);
    for (int64_t first = 0; first < blocks; first += PIECE)
        groups_of_rows<F>(w, x, rows, {first, std::min(PIECE, blocks - first), first == 0, first + PIECE >= blocks}, out, waiting);
}

// All rows over one panel in FP8 of which each `size` blocks of 8 inputs have a scale.
[[gnu::noinline]] inline void panel_of_blocks(const uint8_t *w, const float *scales, int64_t size, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &sums) {
    float *part = sums.get(rows * LANES);
    std::fill(out, out + rows * LANES, 0.0f);
    for (int64_t first = 0; first < blocks; first += size, ++scales) {
        const Piece piece{first, std::min(size, blocks - first), true, true};
        if (rows == 1) one_row<FP8>(w + first * LANES * LANES, x[0] + first * LANES, piece.blocks, part);
        else groups_of_rows<FP8>(w, x, rows, piece, part, nullptr);
        const __m256 scale = _mm256_set1_ps(*scales);
        for (float *of = part, *to = out; to < out + rows * LANES; of += LANES, to += LANES)
            _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_loadu_ps(of), scale, _mm256_loadu_ps(to)));
    }
}

// Outputs 8 p to 8 p + 7 of a range, of each row of `x` (which carries INPUT): out [R, 8].
inline void multiply(const Matrix &matrix, int64_t p, const float *const *x, int64_t rows, float *out, Buffer &sums) {
    const int64_t blocks = padded(matrix.inputs) / LANES;
    const int64_t size = blocks * LANES * LANES;
    switch (matrix.format) {
    case FP8:
        if (matrix.block) {
            const int64_t scales = (matrix.inputs + matrix.block - 1) / matrix.block;
            panel_of_blocks(matrix.data + p * size, matrix.scale + p * scales, matrix.block / LANES, x, rows, blocks, out, sums);
        } else {
            panel<FP8>(matrix.data + p * size, x, rows, blocks, out, sums);
        }
        break;
    case BF16: panel<BF16>(matrix.data + p * size * 2, x, rows, blocks, out, sums); break;
    default: panel<FP32>(matrix.data + p * size * 4, x, rows, blocks, out, sums);
    }
    __m256 factor = _mm256_set1_ps(matrix.format == FP8 ? FROM_FP8 : FROM_OTHERS);
    for (int64_t row = 0; row < rows; ++row) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(out + row * LANES), factor);
        if (matrix.scale && !matrix.block) value = _mm256_mul_ps(value, _mm256_loadu_ps(matrix.scale + p * LANES));
        _mm256_storeu_ps(out + row * LANES, value);
    }
}

// Floats from one row of inputs to the next: rows that lie powers of two apart would contend for the same places of the caches.
inline int64_t row_stride(int64_t size) { return padded(size) + (padded(size) % 128 ? 0 : 16); }

inline int64_t panels_of(const Matrix &matrix) { return padded(matrix.outputs) / LANES; }

// Which output of the whole weight a panel of a tensor rank's range begins with.
inline int64_t output_of(const Matrix &matrix, int64_t p) { return (matrix.first + p) * LANES; }

// Rows that are computed together, so that their inputs stay near.
inline int64_t block_rows(int64_t inputs) { return std::max<int64_t>(12, BLOCK_BYTES / (padded(inputs) * 4) / 12 * 12); }

} // namespace arctic
