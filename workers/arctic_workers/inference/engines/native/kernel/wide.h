// Tiles of AVX-512: a vector holds the lanes of two outputs, which AVX2 has in two vectors. Every sum adds the same numbers in
// the same order, so all bits are the same.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 12; // of a tile

// Of a panel's 8 outputs the one in the lower (0) or upper (1) half of a vector: those of a vector lie at the same place of
// the panel's two halves in e4m3, and side by side in the other formats.
template <Format F> constexpr int output_of(int vector, int half) { return F == FP8 ? vector + 4 * half : 2 * vector + half; }

// Of the weights of 8 outputs and 8 inputs, those of vectors PAIR and PAIR + 2, as they take part in products; in e4m3 both
// halves of a panel are decoded at once as `each_of_pair` does one.
template <Format F, int PAIR> inline void read_pair(const uint8_t *from, __m512 &first, __m512 &second) {
    if constexpr (F == FP8) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x87F00000u));
        __m512i codes = _mm512_loadu_si512(from);
        if constexpr (PAIR == 0) codes = _mm512_slli_epi16(codes, 8);
        codes = _mm512_srai_epi16(codes, 4);
        first = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(codes, 16), mask));
        second = _mm512_castsi512_ps(_mm512_and_si512(codes, mask));
    } else {
        const auto read = [&](int vector) {
            const uint8_t *at = from + vector * 2 * LANES * bytes_of<F>();
            if constexpr (F == FP32) return _mm512_loadu_ps(at);
            const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
            return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
        };
        first = read(PAIR);
        second = read(PAIR + 2);
    }
}

// R rows x 8 outputs (BOTH pairs of vectors), up to 6 rows, or x one PAIR of vectors, up to 12 rows: at most 24 accumulators
// of the 32 registers. Sums wait between pieces at `waiting` [R, 4 vectors, 16 lanes]; AHEAD_STEP is as in narrow.h.
template <Format F, int R, int PAIR, int AHEAD_STEP>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *ahead) {
    constexpr int VECTORS = PAIR == BOTH ? 4 : 2;
    // Pair by pair: a vector and the one 2 after it.
    constexpr auto vector = [](int index) { return (PAIR == BOTH ? index / 2 : PAIR) + index % 2 * 2; };
    const auto place = [&](int row, int index) { return waiting + (row * 4 + vector(index)) * 2 * LANES; };
    __m512 sums[R][VECTORS];
    const float *from[R];
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int index = 0; index < VECTORS; ++index) sums[row][index] = piece.begins ? _mm512_setzero_ps() : _mm512_loadu_ps(place(row, index));
    }
    for (int64_t block = 0; block < piece.blocks; ++block) {
        if constexpr (AHEAD_STEP != 0) look_ahead<AHEAD_STEP>(ahead + block * AHEAD_STEP);
        __m512 weights[VECTORS];
        read_pair<F, PAIR == BOTH ? 0 : PAIR>(w, weights[0], weights[1]);
        if constexpr (PAIR == BOTH) read_pair<F, 1>(w, weights[2], weights[3]);
#pragma GCC unroll 12
        for (int row = 0; row < R; ++row) {
            const __m512 input = _mm512_broadcast_f32x8(_mm256_loadu_ps(from[row] + block * LANES));
#pragma GCC unroll 4
            for (int index = 0; index < VECTORS; ++index) sums[row][index] = _mm512_fmadd_ps(weights[index], input, sums[row][index]);
        }
        w += LANES * LANES * bytes_of<F>();
    }
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row) {
        if (!piece.ends) {
#pragma GCC unroll 4
            for (int index = 0; index < VECTORS; ++index) _mm512_storeu_ps(place(row, index), sums[row][index]);
            continue;
        }
#pragma GCC unroll 2
        for (int index = 0; index < VECTORS; index += 2) {
            const __m512 first = sums[row][index], second = sums[row][index + 1];
            alignas(16) float both[4];
            _mm_store_ps(both, add_up4(_mm512_castps512_ps256(first), _mm512_extractf32x8_ps(first, 1),
                                       _mm512_castps512_ps256(second), _mm512_extractf32x8_ps(second, 1)));
            for (int at = 0; at < 4; ++at) out[row * LANES + output_of<F>(vector(index + at / 2), at % 2)] = both[at];
        }
    }
}

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, int64_t blocks, float *out) {
    tile<F, 1, BOTH, LANES * LANES * bytes_of<F>()>(w, &x, Piece{0, blocks, true, true}, out, nullptr, w);
}

// R rows over one piece of a panel; LOOKS_AHEAD if they are the first to read it.
template <Format F, int R, bool LOOKS_AHEAD> void rows_of_tiles(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting) {
    constexpr int STEP = LOOKS_AHEAD ? LANES * LANES * bytes_of<F>() : 0;
    if constexpr (R <= 6) {
        tile<F, R, BOTH, STEP>(w, x, piece, out, waiting, w);
    } else {
        tile<F, R, 0, STEP / 2>(w, x, piece, out, waiting, w);
        tile<F, R, 1, STEP / 2>(w, x, piece, out, waiting, w + piece.blocks * STEP / 2);
    }
}

} // namespace arctic
