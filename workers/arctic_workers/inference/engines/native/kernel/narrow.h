// Tiles of AVX2: a vector holds the 8 lanes of one output.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 3;          // of a tile: with 4 outputs, 12 accumulators of the 16 registers
constexpr int FEW_ROWS = MOST_ROWS;   // for which nothing is decoded twice
constexpr int MANY_ROWS = 9;          // for which a piece is worth decoding once
constexpr int HALF_OUTPUTS = 4;       // of a tile: half a panel
constexpr int HALF = HALF_OUTPUTS * LANES; // weights of a block of half a panel

// A piece of a panel, as one in fp32 lies there, without subnormals: out [blocks, 2, 4 outputs, 8 inputs].
template <Format F> void decode(const uint8_t *w, const Piece &piece, float *out) {
    constexpr int BYTES = HALF * bytes_of<F>();
    const auto keep = [&](int output, __m256 weight) { _mm256_storeu_ps(out + output * LANES, weight); };
    uint64_t subnormals = piece.subnormals;
    for (int64_t block = 0; block < piece.blocks; ++block, subnormals >>= 1)
        for (int half = 0; half < 2; ++half, w += BYTES, out += HALF) {
            ask_for<_MM_HINT_T0>(w + NEAR_AHEAD, BYTES);
            each_of_pair<F, 0>(w, keep);
            each_of_pair<F, 1>(w, keep);
            if (subnormals & 1) [[unlikely]] raise(out, HALF);
        }
}

// 1 row over one piece of a panel: one stream of weights. Sums wait between pieces at `waiting` [8 outputs, 8 lanes].
template <Format F> void one_row(const uint8_t *w, const float *x, const Piece &piece, float *out, float *waiting) {
    __m256 sums[LANES];
    for (int output = 0; output < LANES; ++output) sums[output] = piece.begins ? _mm256_setzero_ps() : _mm256_load_ps(waiting + output * LANES);
    constexpr int BYTES = HALF * bytes_of<F>();
    x += piece.first * LANES;
    for (int64_t block = 0; block < piece.blocks; ++block) {
        ask_for<_MM_HINT_T1>(w + FAR_AHEAD, 2 * BYTES);
        ask_for<_MM_HINT_T0>(w + NEAR_AHEAD, 2 * BYTES);
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
        const auto lower = [&](int output, __m256 weight) { sums[output] = _mm256_fmadd_ps(weight, input, sums[output]); };
        const auto upper = [&](int output, __m256 weight) { lower(HALF_OUTPUTS + output, weight); };
        each_of_pair<F, 0>(w, lower);
        each_of_pair<F, 1>(w, lower);
        each_of_pair<F, 0>(w + BYTES, upper);
        each_of_pair<F, 1>(w + BYTES, upper);
        w += 2 * BYTES;
    }
    if (piece.ends) {
        _mm256_storeu_ps(out, add_up8(sums));
    } else {
        for (int output = 0; output < LANES; ++output) _mm256_store_ps(waiting + output * LANES, sums[output]);
    }
}

// R rows x 4 outputs over one piece of a panel. Sums wait between pieces at `waiting` [R, 8 outputs, 8 lanes]. Something comes near
// with each block, NEAR_STEP bytes from `near` on. What `decode` has made is read if DECODED.
template <Format F, int R, int NEAR_STEP, bool DECODED>
void tile_of_half(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *near, LookAhead ahead) {
    constexpr Format READ = DECODED ? FP32 : F;
    const auto place = [&](int row, int output) { return waiting + (row * LANES + output) * LANES; };
    __m256 sums[R][HALF_OUTPUTS];
    const float *from[R];
#pragma GCC unroll 3
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int output = 0; output < HALF_OUTPUTS; ++output) sums[row][output] = piece.begins ? _mm256_setzero_ps() : _mm256_load_ps(place(row, output));
    }
    uint64_t subnormals = piece.subnormals;
    for (int64_t block = 0; block < piece.blocks; ++block, subnormals >>= 1, w += 2 * HALF * bytes_of<READ>()) {
        ahead.ask<HALF * bytes_of<F>()>();
        ask_for<_MM_HINT_T0>(near + block * NEAR_STEP, NEAR_STEP);
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(from[row] + block * LANES);
        const auto add = [&](int output, __m256 weight) {
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        };
        if constexpr (DECODED) {
            if (subnormals & 1) [[unlikely]] {
#pragma GCC unroll 3
                for (int row = 0; row < R; ++row) inputs[row] = _mm256_mul_ps(inputs[row], _mm256_set1_ps(1 / RAISED));
            }
        }
        each_of_pair<READ, 0>(w, add);
        each_of_pair<READ, 1>(w, add);
    }
#pragma GCC unroll 3
    for (int row = 0; row < R; ++row) {
        if (piece.ends) {
            _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
        } else {
#pragma GCC unroll 4
            for (int output = 0; output < HALF_OUTPUTS; ++output) _mm256_store_ps(place(row, output), sums[row][output]);
        }
    }
}

// R rows over one piece of a panel, of which who reads it FIRST has the next weights come near.
template <Format F, int R, bool FIRST, bool DECODED>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const LookAhead &ahead) {
    constexpr int BYTES = HALF * bytes_of<DECODED ? FP32 : F>(), NEAR_STEP = FIRST && !DECODED ? BYTES : 0;
    const uint8_t *near = w + NEAR_AHEAD;
    tile_of_half<F, R, NEAR_STEP, DECODED>(w, x, piece, out, waiting, near, ahead.part(0, 2, piece.blocks));
    tile_of_half<F, R, NEAR_STEP, DECODED>(w + BYTES, x, piece, out + HALF_OUTPUTS, waiting + HALF, near + piece.blocks * NEAR_STEP, ahead.part(1, 2, piece.blocks));
}

} // namespace arctic
