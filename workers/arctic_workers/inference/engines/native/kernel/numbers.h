// Formats of weights and of the cache, and arithmetic on 8 lanes.
//
// e4m3 is decoded exactly: its 7 low bits, moved into the exponent and mantissa of an fp32, are the value x 2^-120, so every
// input of a product carries 2^64 and every output is multiplied by what is left. Subnormal codes become subnormal fp32s.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace arctic {

constexpr int LANES = 8;
constexpr float INPUT = 0x1p64f;        // of every input of a product
constexpr float FROM_FP8 = 0x1p56f;     // 2^120 / INPUT
constexpr float FROM_OTHERS = 0x1p-64f; // 1 / INPUT
constexpr float GREATEST = 448.0f;      // of e4m3

// Of weights, and all but the last of the cache: it is e4m3 as rows in bf16 are multiplied with it (rounded.h).
enum Format : int32_t { FP8 = 0, BF16 = 1, FP32 = 2, FP8_BY_BF16 = 3 };

inline int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

template <Format F> constexpr int bytes_of() { return F == FP8 || F == FP8_BY_BF16 ? 1 : F == BF16 ? 2 : 4; }

// 8 values of the cache, or of weights that are not in FP8, which lie side by side.
template <Format F> inline __m256 read8(const uint8_t *from) {
    if constexpr (F == FP8) {
        const __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
        const __m256i moved = _mm256_and_si256(_mm256_slli_epi32(codes, 20), _mm256_set1_epi32(static_cast<int>(0x87F00000u)));
        return _mm256_mul_ps(_mm256_castsi256_ps(moved), _mm256_set1_ps(0x1p120f));
    } else if constexpr (F == BF16) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    } else {
        return _mm256_loadu_ps(reinterpret_cast<const float *>(from));
    }
}

// The e4m3 code nearest to a value of at most GREATEST, ties to even, as torch rounds.
inline uint8_t to_e4m3(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80u, size = bits & 0x7FFFFFFFu;
    float moved;
    std::memcpy(&moved, &size, sizeof moved);
    // A subnormal's last place is 2^-9: beside 2^14 that is the last place of an fp32.
    moved += 0x1p14f;
    uint32_t subnormal;
    std::memcpy(&subnormal, &moved, sizeof subnormal);
    const uint32_t normal = (size + 0x7FFFFu + (size >> 20 & 1u)) >> 20;
    return static_cast<uint8_t>(sign | (size < 0x3C800000u ? subnormal - 0x46800000u : normal - (120u << 3)));
}

// 8 values rounded to bf16, ties to even, as torch rounds; what is no number stays none.
inline __m128i to_bf16(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values), even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF)));
    const __m256 none = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
    const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(_mm256_or_ps(_mm256_castsi256_ps(nearest), none)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}

// As many values as there are.
inline void to_bf16(const float *from, int64_t count, uint16_t *to) {
    for (; count >= LANES; count -= LANES, from += LANES, to += LANES)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to), to_bf16(_mm256_loadu_ps(from)));
    if (count == 0) return;
    float rest[LANES] = {};
    std::copy(from, from + count, rest);
    const __m128i last = to_bf16(_mm256_loadu_ps(rest));
    std::memcpy(to, &last, count * sizeof *to);
}

// Round inputs `begin` to `end` of a row of `inputs`, a multiple of 8, to the bf16 that follow it.
inline void round_inputs(float *row, int64_t inputs, int64_t begin, int64_t end) {
    to_bf16(row + begin, end - begin, reinterpret_cast<uint16_t *>(row + inputs) + begin);
}

// Decoded weights in e4m3, a multiple of 8 of them, times RAISED, which leaves no subnormals. A processor takes a hundred cycles
// for an operation on one, so products have these instead, with inputs by 1 / RAISED: the same numbers, as all are powers of two.
constexpr float RAISED = 0x1p32f;

[[gnu::noinline, gnu::cold]] inline void raise(float *weights, int count) {
    const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));
    for (float *at = weights; at < weights + count; at += LANES) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
        const __m256i size = _mm256_andnot_si256(sign, bits);
        const __m256i normal = _mm256_add_epi32(bits, _mm256_set1_epi32(32 << 23)); // RAISED, on the exponent
        const __m256 places = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(size, 20)), _mm256_set1_ps(0x1p-129f * RAISED));
        const __m256i subnormal = _mm256_or_si256(_mm256_castps_si256(places), _mm256_and_si256(sign, bits));
        const __m256i is_normal = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x007FFFFF));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), _mm256_blendv_epi8(subnormal, normal, is_normal));
    }
}

// Of the weights of 4 outputs and 8 inputs, those of outputs PAIR and PAIR + 2, as they take part in products: calls
// `use(output, values)` for both.
//
// In e4m3 the 4 codes of an input are one 32-bit integer. Its halves of 16 bits are moved so that a code is the upper half of
// an fp32: for a pair 4 or 5 operations, which the additions of some rows hide.
template <Format F, int PAIR, class Use> inline void each_of_pair(const uint8_t *from, Use use) {
    if constexpr (F == FP8) {
        const __m256i mask = _mm256_set1_epi32(static_cast<int>(0x87F00000u));
        __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
        if constexpr (PAIR == 0) codes = _mm256_slli_epi16(codes, 8);
        codes = _mm256_srai_epi16(codes, 4);
        use(PAIR + 2, _mm256_castsi256_ps(_mm256_and_si256(codes, mask)));
        use(PAIR, _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(codes, 16), mask)));
    } else {
        for (int output : {PAIR, PAIR + 2}) use(output, read8<F>(from + output * LANES * bytes_of<F>()));
    }
}

// Lane i: the sum of the lanes of vector i. One tree for all paths.
inline __m128 add_up4(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

inline __m256 add_up8(const __m256 *v) {
    return _mm256_set_m128(add_up4(v[4], v[5], v[6], v[7]), add_up4(v[0], v[1], v[2], v[3]));
}

inline float add_up(__m256 v) { return _mm_cvtss_f32(add_up4(v, v, v, v)); }

inline float greatest(__m256 v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

} // namespace arctic
