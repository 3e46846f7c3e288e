// Tiles of AVX2: a vector holds the 8 lanes of one output.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 6; // of a tile

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

} // namespace arctic
