// Tiles of AVX2: a vector holds the 8 lanes of one output.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 3; // of a tile: with 4 outputs, 12 accumulators of the 16 registers

constexpr bool DECODES_ONCE = false; // other parts of the processor decode, while these add

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, const Piece &piece, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int HALF = 4 * LANES * bytes_of<F>();
    x += piece.first * LANES;
    for (int64_t block = 0; block < piece.blocks; ++block) {
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

// R rows x 4 outputs over one piece of a panel. Sums wait between pieces at `waiting` [R, 8 outputs, 8 lanes]. With each block
// goes a look AHEAD of AHEAD_STEP bytes from `ahead` on: who reads a piece first shares it out over its tiles, so that memory
// never waits for arithmetic.
template <Format F, int R, int AHEAD_STEP>
void tile_of_half(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *ahead) {
    constexpr int OUTPUTS = 4;
    const auto place = [&](int row, int output) { return waiting + (row * LANES + output) * LANES; };
    __m256 sums[R][OUTPUTS];
    const float *from[R];
#pragma GCC unroll 3
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int output = 0; output < OUTPUTS; ++output) sums[row][output] = piece.begins ? _mm256_setzero_ps() : _mm256_load_ps(place(row, output));
    }
    for (int64_t block = 0; block < piece.blocks; ++block, w += LANES * LANES * bytes_of<F>()) {
        if constexpr (AHEAD_STEP != 0) look_ahead<AHEAD_STEP>(ahead + block * AHEAD_STEP);
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(from[row] + block * LANES);
        const auto add = [&](int output, __m256 weight) {
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        };
        each_of_pair<F, 0>(w, add);
        each_of_pair<F, 1>(w, add);
    }
#pragma GCC unroll 3
    for (int row = 0; row < R; ++row) {
        if (piece.ends) {
            _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
        } else {
#pragma GCC unroll 4
            for (int output = 0; output < OUTPUTS; ++output) _mm256_store_ps(place(row, output), sums[row][output]);
        }
    }
}

// R rows over one piece of a panel; LOOKS_AHEAD if they are the first to read it.
template <Format F, int R, bool LOOKS_AHEAD, bool> void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting) {
    constexpr int HALF = 4 * LANES * bytes_of<F>(), STEP = LOOKS_AHEAD ? HALF : 0;
    tile_of_half<F, R, STEP>(w, x, piece, out, waiting, w);
    tile_of_half<F, R, STEP>(w + HALF, x, piece, out + 4, waiting + 4 * LANES, w + piece.blocks * STEP);
}

} // namespace arctic
