// Tiles of AVX-512: a vector holds the lanes of two outputs, which AVX2 has in two vectors. Every sum adds the same numbers in
// the same order, so all bits are the same.
#pragma once

#include "numbers.h"
#include "tiles.h"
#include "vectors.h"
#ifdef ARCTIC_ROUNDS
#include "rounded.h"
#endif

#include <immintrin.h>

#include <cstdint>

namespace arctic {

constexpr int MOST_ROWS = 6;  // of a tile: 24 accumulators of the 32 registers
constexpr int FEW_ROWS = 12;  // of a tile that takes half a panel at a time, for which nothing need be decoded twice
constexpr int MANY_ROWS = 13; // for which a piece is worth decoding once
constexpr int VECTORS = 4;    // of 8 outputs

// Every STEP-th of the 4 vectors of 8 outputs and 8 inputs from BEGIN on, as they take part in products. The outputs of a vector
// lie side by side in the panel, but in e4m3 at the same place of its two halves, which are decoded at once as `each_of_pair` does one.
template <Format F, int BEGIN = 0, int STEP = 1> inline void read_block(const uint8_t *from, __m512 *weights) {
    if constexpr (F == FP8) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x87F00000u));
        const __m512i codes = _mm512_loadu_si512(from);
        for (int vector = BEGIN; vector < VECTORS; vector += STEP) {
            const __m512i pair = _mm512_srai_epi16(vector % 2 ? codes : _mm512_slli_epi16(codes, 8), 4);
            const __m512i placed = vector < 2 ? _mm512_slli_epi32(pair, 16) : pair;
            weights[(vector - BEGIN) / STEP] = _mm512_castsi512_ps(_mm512_and_si512(placed, mask));
        }
    } else {
        for (int vector = BEGIN; vector < VECTORS; vector += STEP)
            weights[(vector - BEGIN) / STEP] = Vector16::read<F>(from + vector * 2 * LANES * bytes_of<F>());
    }
}

template <int COUNT> inline void raise_vectors(__m512 *weights) {
    float all[COUNT * 2 * LANES];
    for (int vector = 0; vector < COUNT; ++vector) _mm512_storeu_ps(all + vector * 2 * LANES, weights[vector]);
    raise(all, COUNT * 2 * LANES);
    for (int vector = 0; vector < COUNT; ++vector) weights[vector] = _mm512_loadu_ps(all + vector * 2 * LANES);
}

// The sums of the lanes of a panel's outputs [4 vectors].
template <Format F> inline __m256 add_up_panel(const __m512 *sums) {
    const __m256 outputs = add_up4_halves(sums);
    if constexpr (F == FP8) return outputs;
    return _mm256_permutevar8x32_ps(outputs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// A piece of a panel as `read_block` gives it, without subnormals: out [blocks, 4 vectors, 16 lanes].
template <Format F> void decode(const uint8_t *w, const Piece &piece, float *out) {
    constexpr int BLOCK = LANES * LANES * bytes_of<F>();
    uint64_t subnormals = piece.subnormals;
    for (int64_t block = 0; block < piece.blocks; ++block, subnormals >>= 1, w += BLOCK, out += LANES * LANES) {
        ask_for<_MM_HINT_T0>(w + NEAR_AHEAD, BLOCK);
        __m512 weights[VECTORS];
        read_block<F>(w, weights);
        if (subnormals & 1) [[unlikely]] raise_vectors<VECTORS>(weights);
        for (int vector = 0; vector < VECTORS; ++vector) _mm512_storeu_ps(out + vector * 2 * LANES, weights[vector]);
    }
}

// R rows over every STEP-th vector from BEGIN on of one piece of a panel, whose sums are, and wait for the next, at `waiting` [R, 4
// vectors, 16 lanes]. What `decode` has made is read if DECODED; who reads the others FIRST has them come near.
template <Format F, int R, int BEGIN, int STEP, bool FIRST, bool DECODED>
void tile_of_vectors(const uint8_t *w, const float *const *x, const Piece &piece, float *waiting, LookAhead ahead) {
    constexpr Format READ = DECODED ? FP32 : F;
    constexpr int BLOCK = LANES * LANES * bytes_of<READ>(), COUNT = VECTORS / STEP;
    const auto place = [&](int row, int vector) { return waiting + (row * VECTORS + BEGIN + vector * STEP) * 2 * LANES; };
    __m512 sums[R][COUNT];
    const float *from[R];
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row) {
        from[row] = x[row] + piece.first * LANES;
#pragma GCC unroll 4
        for (int vector = 0; vector < COUNT; ++vector) sums[row][vector] = piece.begins ? _mm512_setzero_ps() : _mm512_load_ps(place(row, vector));
    }
    const auto input_of = [&](int row, int64_t block) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(from[row] + block * LANES)); };
    const auto add = [&](const __m512 *weights, int row, __m512 input) {
#pragma GCC unroll 4
        for (int vector = 0; vector < COUNT; ++vector) sums[row][vector] = _mm512_fmadd_ps(weights[vector], input, sums[row][vector]);
    };
    uint64_t subnormals = piece.subnormals;
    for (int64_t block = 0; block < piece.blocks; ++block, subnormals >>= 1) {
        ahead.ask<LANES * LANES * bytes_of<F>()>();
        if constexpr (FIRST && !DECODED) ask_for<_MM_HINT_T0>(w + NEAR_AHEAD, BLOCK);
        __m512 weights[COUNT];
        read_block<READ, BEGIN, STEP>(w, weights);
        w += BLOCK;
        if constexpr (F == FP8) {
            if (subnormals & 1) [[unlikely]] {
                if constexpr (!DECODED) raise_vectors<COUNT>(weights);
#pragma GCC unroll 12
                for (int row = 0; row < R; ++row) add(weights, row, _mm512_mul_ps(input_of(row, block), _mm512_set1_ps(1 / RAISED)));
                continue;
            }
        }
#pragma GCC unroll 12
        for (int row = 0; row < R; ++row) add(weights, row, input_of(row, block));
    }
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row)
#pragma GCC unroll 4
        for (int vector = 0; vector < COUNT; ++vector) _mm512_store_ps(place(row, vector), sums[row][vector]);
}

// R rows over one piece of a panel, as `tile_of_vectors`.
template <Format F, int R, bool FIRST, bool DECODED>
void tile(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const LookAhead &ahead) {
#ifdef ARCTIC_ROUNDS
    if constexpr (F == FP8_BY_BF16) return tile_of_rounded<R, FIRST>(w, x, piece, out, waiting, ahead);
#endif
    if constexpr (R <= MOST_ROWS) {
        tile_of_vectors<F, R, 0, 1, FIRST, DECODED>(w, x, piece, waiting, ahead);
    } else {
        tile_of_vectors<F, R, 0, 2, FIRST, DECODED>(w, x, piece, waiting, ahead.part(0, 2, piece.blocks));
        tile_of_vectors<F, R, 1, 2, false, DECODED>(w, x, piece, waiting, ahead.part(1, 2, piece.blocks));
    }
    if (!piece.ends) return;
    for (int row = 0; row < R; ++row, waiting += VECTORS * 2 * LANES, out += LANES) {
        __m512 sums[VECTORS];
        for (int vector = 0; vector < VECTORS; ++vector) sums[vector] = _mm512_load_ps(waiting + vector * 2 * LANES);
        _mm256_storeu_ps(out, add_up_panel<F>(sums));
    }
}

// 1 row over one piece of a panel: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, const Piece &piece, float *out, float *waiting) {
    tile<F, 1, true, false>(w, &x, piece, out, waiting, {w + FAR_AHEAD, LANES * LANES * bytes_of<F>()});
}

} // namespace arctic
