// Tiles of AVX2: a vector holds the 8 lanes of one output.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 3;          // of a tile: with 4 outputs, 12 accumulators of the 16 registers
constexpr int MANY_ROWS = 9;          // for which a piece is worth decoding once
constexpr int HALF_OUTPUTS = 4;       // of a tile: half a panel
constexpr int HALF = HALF_OUTPUTS * LANES; // weights of a block of half a panel

// A piece of a panel, as one in fp32 lies there, without subnormals: out [blocks, 2, 4 outputs, 8 inputs].
template <Format F> void decode(const uint8_t *w, const Piece &piece, float *out) {
    constexpr int BYTES = HALF * bytes_of<F>();
    const auto keep = [&](int output, __m256 weight) { _mm256_storeu_ps(out + output * LANES, weight); };
    for (int64_t half = 0; half < 2 * piece.blocks; ++half, w += BYTES, out += HALF) {
        ask_for<BYTES, _MM_HINT_T0>(w + AHEAD);
        each_of_pair<F, 0>(w, keep);
        each_of_pair<F, 1>(w, keep);
        if (piece.has_subnormals(half / 2)) [[unlikely]] raise(out, HALF);
    }
}

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, const Piece &piece, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int BYTES = HALF * bytes_of<F>();
    x += piece.first * LANES;
    for (int64_t block = 0; block < piece.blocks; ++block) {
        look_ahead<2 * BYTES>(w);
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
        const auto lower = [&](int output, __m256 weight) { sums[output] = _mm256_fmadd_ps(weight, input, sums[output]); };
        const auto upper = [&](int output, __m256 weight) { lower(HALF_OUTPUTS + output, weight); };
        each_of_pair<F, 0>(w, lower);
        each_of_pair<F, 1>(w, lower);
        each_of_pair<F, 0>(w + BYTES, upper);
        each_of_pair<F, 1>(w + BYTES, upper);
        w += 2 * BYTES;
    }
    _mm256_storeu_ps(out, add_up8(sums));
}

// R rows x 4 outputs over one piece of a panel. Sums wait between pieces at `waiting` [R, 8 outputs, 8 lanes]. With each block
// goes a look AHEAD of AHEAD_STEP bytes from `ahead` on: who reads a piece first shares it out over its tiles, so that memory
// never waits for arithmetic. What `decode` has made is read if DECODED.
template <Format F, int R, int AHEAD_STEP, bool DECODED>
void tile_of_half(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *ahead) {
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
    for (int64_t block = 0; block < piece.blocks; ++block, w += 2 * HALF * bytes_of<READ>()) {
        if constexpr (AHEAD_STEP != 0 && DECODED) ask_for<AHEAD_STEP, _MM_HINT_T1>(ahead + block * AHEAD_STEP);
        else if constexpr (AHEAD_STEP != 0) look_ahead<AHEAD_STEP>(ahead + block * AHEAD_STEP);
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(from[row] + block * LANES);
        const auto add = [&](int output, __m256 weight) {
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        };
        if constexpr (DECODED) {
            if (piece.has_subnormals(block)) [[unlikely]] {
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

// R rows over one piece of a panel. Memory is looked for ahead if LOOKS_AHEAD, of what is decoded in the `next` piece.
template <Format F, int R, bool LOOKS_AHEAD, bool DECODED>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *next) {
    constexpr int BYTES = HALF * bytes_of<DECODED ? FP32 : F>(), STEP = LOOKS_AHEAD ? HALF * bytes_of<F>() : 0;
    const uint8_t *ahead = DECODED ? next : w;
    tile_of_half<F, R, STEP, DECODED>(w, x, piece, out, waiting, ahead);
    tile_of_half<F, R, STEP, DECODED>(w + BYTES, x, piece, out + HALF_OUTPUTS, waiting + HALF, ahead + piece.blocks * STEP);
}

} // namespace arctic
