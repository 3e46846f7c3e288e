// Tiles of AVX-512: a vector holds the lanes of two outputs, which AVX2 has in two vectors. Every sum adds the same numbers in
// the same order, so all bits are the same.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 6; // of a tile: 24 accumulators of the 32 registers
constexpr int MANY_ROWS = 7; // for which a piece is worth decoding once
constexpr int VECTORS = 4;   // of 8 outputs

// Of a panel's 8 outputs the one in the lower (0) or upper (1) half of a vector: those of a vector lie at the same place of
// the panel's two halves in e4m3, and side by side in the other formats.
template <Format F> constexpr int output_of(int vector, int half) { return F == FP8 ? vector + 4 * half : 2 * vector + half; }

// The weights of 8 outputs and 8 inputs, as they take part in products; in e4m3 both halves of a panel are decoded at once as
// `each_of_pair` does one.
template <Format F> inline void read_block(const uint8_t *from, __m512 *weights) {
    if constexpr (F == FP8) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x87F00000u));
        const __m512i codes = _mm512_loadu_si512(from);
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 4), odd = _mm512_srai_epi16(codes, 4);
        weights[0] = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(even, 16), mask));
        weights[1] = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(odd, 16), mask));
        weights[2] = _mm512_castsi512_ps(_mm512_and_si512(even, mask));
        weights[3] = _mm512_castsi512_ps(_mm512_and_si512(odd, mask));
    } else {
        for (int vector = 0; vector < VECTORS; ++vector) {
            const uint8_t *at = from + vector * 2 * LANES * bytes_of<F>();
            if constexpr (F == FP32) {
                weights[vector] = _mm512_loadu_ps(at);
            } else {
                const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
                weights[vector] = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
            }
        }
    }
}

inline void raise_block(__m512 *weights) {
    float all[VECTORS * 2 * LANES];
    for (int vector = 0; vector < VECTORS; ++vector) _mm512_storeu_ps(all + vector * 2 * LANES, weights[vector]);
    raise(all, VECTORS * 2 * LANES);
    for (int vector = 0; vector < VECTORS; ++vector) weights[vector] = _mm512_loadu_ps(all + vector * 2 * LANES);
}

// A piece of a panel as `read_block` gives it, without subnormals: out [blocks, 4 vectors, 16 lanes].
template <Format F> void decode(const uint8_t *w, const Piece &piece, float *out) {
    constexpr int BLOCK = LANES * LANES * bytes_of<F>();
    for (int64_t block = 0; block < piece.blocks; ++block, w += BLOCK, out += LANES * LANES) {
        ask_for<BLOCK, _MM_HINT_T0>(w + AHEAD);
        __m512 weights[VECTORS];
        read_block<F>(w, weights);
        if (piece.has_subnormals(block)) [[unlikely]] raise_block(weights);
        for (int vector = 0; vector < VECTORS; ++vector) _mm512_storeu_ps(out + vector * 2 * LANES, weights[vector]);
    }
}

// R rows over one piece of a panel. Sums wait between pieces at `waiting` [R, 4 vectors, 16 lanes]. What `decode` has made is read
// if DECODED. Memory is looked for ahead if LOOKS_AHEAD, of what is decoded in the `next` piece.
template <Format F, int R, bool LOOKS_AHEAD, bool DECODED>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const uint8_t *next) {
    constexpr Format READ = DECODED ? FP32 : F;
    constexpr int BLOCK = LANES * LANES * bytes_of<READ>(), NEXT = LANES * LANES * bytes_of<F>();
    const auto place = [&](int row, int vector) { return waiting + (row * VECTORS + vector) * 2 * LANES; };
    __m512 sums[R][VECTORS];
    const float *from[R];
#pragma GCC unroll 6
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = piece.begins ? _mm512_setzero_ps() : _mm512_loadu_ps(place(row, vector));
    }
    const auto input_of = [&](int row, int64_t block) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(from[row] + block * LANES)); };
    const auto add = [&](const __m512 *weights, int row, __m512 input) {
#pragma GCC unroll 4
        for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = _mm512_fmadd_ps(weights[vector], input, sums[row][vector]);
    };
    for (int64_t block = 0; block < piece.blocks; ++block, w += BLOCK) {
        if constexpr (LOOKS_AHEAD && DECODED) ask_for<NEXT, _MM_HINT_T1>(next + block * NEXT);
        else if constexpr (LOOKS_AHEAD) look_ahead<BLOCK>(w);
        __m512 weights[VECTORS];
        read_block<READ>(w, weights);
        if constexpr (F == FP8) {
            if (piece.has_subnormals(block)) [[unlikely]] {
                if constexpr (!DECODED) raise_block(weights);
#pragma GCC unroll 6
                for (int row = 0; row < R; ++row) add(weights, row, _mm512_mul_ps(input_of(row, block), _mm512_set1_ps(1 / RAISED)));
                continue;
            }
        }
#pragma GCC unroll 6
        for (int row = 0; row < R; ++row) add(weights, row, input_of(row, block));
    }
#pragma GCC unroll 6
    for (int row = 0; row < R; ++row) {
        if (!piece.ends) {
#pragma GCC unroll 4
            for (int vector = 0; vector < VECTORS; ++vector) _mm512_storeu_ps(place(row, vector), sums[row][vector]);
            continue;
        }
#pragma GCC unroll 2
        for (int vector = 0; vector < VECTORS; vector += 2) {
            const __m512 first = sums[row][vector], second = sums[row][vector + 1];
            alignas(16) float both[4];
            _mm_store_ps(both, add_up4(_mm512_castps512_ps256(first), _mm512_extractf32x8_ps(first, 1),
                                       _mm512_castps512_ps256(second), _mm512_extractf32x8_ps(second, 1)));
            for (int at = 0; at < 4; ++at) out[row * LANES + output_of<F>(vector + at / 2, at % 2)] = both[at];
        }
    }
}

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, const Piece &piece, float *out) {
    tile<F, 1, true, false>(w, &x, piece, out, nullptr, nullptr);
}

} // namespace arctic
