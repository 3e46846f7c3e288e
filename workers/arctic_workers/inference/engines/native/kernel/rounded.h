// Tiles of e4m3 by rows in bf16, which AVX-512 multiplies in pairs (VDPBF16PS): twice as many products at a time as in fp32, and
// half the operations to decode weights. A vector holds two lanes for each output of a panel, of two inputs each.
//
// Each row is summed by itself, in one order, whatever shares the tile. All codes are decoded as they are, subnormals too.
#pragma once

#include "numbers.h"
#include "tiles.h"

#include <immintrin.h>

#include <array>
#include <cstdint>

namespace arctic {

constexpr int STREAMED = 4; // rows at most for which memory is the limit: what is asked for twice comes later

// Of the 128 codes without their signs one byte of the value in bf16: the upper, with the sign's place, or the lower.
constexpr std::array<uint8_t, 128> bytes_of_codes(int shift) {
    std::array<uint8_t, 128> bytes{};
    for (int code = 0; code < 128; ++code) {
        int exponent = code >> 3, places = code & 7;
        if (exponent == 0 && places) // a subnormal: bf16 has an exponent for it
            for (exponent = 1; places < 8; places = places << 1) --exponent;
        const int field = code == 0 ? 0 : code == 127 ? 255 : exponent + 120;
        bytes[code] = static_cast<uint8_t>((field << 7 | (places & 7) << 4) >> shift);
    }
    return bytes;
}

// R rows over one piece of a panel, [4 pairs of outputs][2 halves][2 outputs][4 inputs] a block. Sums wait between pieces at `waiting`
// [R, 2 halves, 16 lanes]. Who reads the weights FIRST has the next come near.
template <int R, bool FIRST>
void tile_of_rounded(const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, LookAhead ahead) {
    alignas(64) static constexpr auto UPPER = bytes_of_codes(8), LOWER = bytes_of_codes(0);
    const auto half_of = [](const auto &bytes, int half) { return _mm512_loadu_si512(bytes.data() + half * 64); };
    const __m512i upper[] = {half_of(UPPER, 0), half_of(UPPER, 1)}, lower[] = {half_of(LOWER, 0), half_of(LOWER, 1)};
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80808080u));
    constexpr int SIGNED = 0xF8; // of three operands the first, or both others
    __m512 sums[R][2];
    using Inputs [[gnu::may_alias]] = int64_t; // 4 of them
    const Inputs *from[R];
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row) {
        from[row] = reinterpret_cast<const Inputs *>(x[row] + piece.inputs) + piece.first * 2;
        for (int half = 0; half < 2; ++half) sums[row][half] = piece.begins ? _mm512_setzero_ps() : _mm512_load_ps(waiting + (row * 2 + half) * 2 * LANES);
    }
    for (int64_t block = 0; block < piece.blocks; ++block, w += LANES * LANES) {
        ahead.ask<LANES * LANES>();
        if constexpr (FIRST && R > STREAMED) ask_for<_MM_HINT_T0>(w + NEAR_AHEAD, LANES * LANES);
        const __m512i codes = _mm512_loadu_si512(w);
        const __m512i uppers = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(upper[0], codes, upper[1]), codes, sign, SIGNED);
        const __m512i lowers = _mm512_permutex2var_epi8(lower[0], codes, lower[1]);
        const __m512bh first = (__m512bh)_mm512_unpacklo_epi8(lowers, uppers), second = (__m512bh)_mm512_unpackhi_epi8(lowers, uppers);
#pragma GCC unroll 12
        for (int row = 0; row < R; ++row) {
            // Of 64 bits a broadcast costs no more than a load; of 128 it would take from the products.
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], first, (__m512bh)_mm512_set1_epi64(from[row][block * 2]));
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], second, (__m512bh)_mm512_set1_epi64(from[row][block * 2 + 1]));
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < R; ++row) {
        if (piece.ends) {
            const __m512 pairs = _mm512_add_ps(sums[row][0], sums[row][1]);
            const __m512 outputs = _mm512_add_ps(pairs, _mm512_shuffle_ps(pairs, pairs, 0xB1));
            _mm256_storeu_ps(out + row * LANES, _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, outputs)));
        } else {
            for (int half = 0; half < 2; ++half) _mm512_store_ps(waiting + (row * 2 + half) * 2 * LANES, sums[row][half]);
        }
    }
}

} // namespace arctic
