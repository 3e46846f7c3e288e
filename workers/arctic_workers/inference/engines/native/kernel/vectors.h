// Vectors of fp32, for what is written once for all instruction sets, and how lanes of two outputs are added up.
#pragma once

#include "numbers.h"

#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

namespace arctic {

struct Vector8 {
    using Type = __m256;
    static constexpr int SIZE = 8;
    static Type load(const float *from) { return _mm256_loadu_ps(from); }
    static void store(float *to, Type v) { _mm256_storeu_ps(to, v); }
    static Type all(float value) { return _mm256_set1_ps(value); }
    static Type repeated(__m256 lanes) { return lanes; }
    static Type add(Type a, Type b) { return _mm256_add_ps(a, b); }
    static Type sub(Type a, Type b) { return _mm256_sub_ps(a, b); }
    static Type mul(Type a, Type b) { return _mm256_mul_ps(a, b); }
    static Type div(Type a, Type b) { return _mm256_div_ps(a, b); }
    static Type fmadd(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
    static Type least(Type a, Type b) { return _mm256_min_ps(a, b); }
    static Type greatest(Type a, Type b) { return _mm256_max_ps(a, b); }
    static Type nearest(Type v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    // 2^n of whole numbers that leave it normal.
    static Type power_of_2(Type n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }

    // v where a >= b, and where either is no number; elsewhere 0.
    static Type unless_less(Type a, Type b, Type v) { return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), v); }

    template <Format F> static Type read(const uint8_t *from) { return read8<F>(from); }
};

#ifdef __AVX512F__
struct Vector16 {
    using Type = __m512;
    static constexpr int SIZE = 16;
    static Type load(const float *from) { return _mm512_loadu_ps(from); }
    static void store(float *to, Type v) { _mm512_storeu_ps(to, v); }
    static Type all(float value) { return _mm512_set1_ps(value); }
    static Type repeated(__m256 lanes) { return _mm512_broadcast_f32x8(lanes); }
    static Type add(Type a, Type b) { return _mm512_add_ps(a, b); }
    static Type sub(Type a, Type b) { return _mm512_sub_ps(a, b); }
    static Type mul(Type a, Type b) { return _mm512_mul_ps(a, b); }
    static Type div(Type a, Type b) { return _mm512_div_ps(a, b); }
    static Type fmadd(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
    static Type least(Type a, Type b) { return _mm512_min_ps(a, b); }
    static Type greatest(Type a, Type b) { return _mm512_max_ps(a, b); }
    static Type nearest(Type v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    static Type power_of_2(Type n) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
    }

    static Type unless_less(Type a, Type b, Type v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), v); }

    // 16 values of the cache, or of weights that are not in FP8, as `read8` reads 8.
    template <Format F> static Type read(const uint8_t *from) {
        if constexpr (F == FP8) {
            const __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
            const __m512i moved = _mm512_and_si512(_mm512_slli_epi32(codes, 20), _mm512_set1_epi32(static_cast<int>(0x87F00000u)));
            return mul(_mm512_castsi512_ps(moved), all(0x1p120f));
        } else if constexpr (F == BF16) {
            const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
            return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
        } else {
            return load(reinterpret_cast<const float *>(from));
        }
    }
};

using Widest = Vector16;

// Lanes i and 4 + i: the sums of the lanes of the lower and of the upper half of vector i, by the tree of `add_up4`.
inline __m256 add_up4_halves(const __m512 *v) {
    const auto pairs = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD)); };
    const __m512 quarters = pairs(pairs(v[0], v[1]), pairs(v[2], v[3]));
    const __m256 lower = _mm512_castps512_ps256(quarters), upper = _mm512_extractf32x8_ps(quarters, 1);
    return _mm256_add_ps(_mm256_permute2f128_ps(lower, upper, 0x20), _mm256_permute2f128_ps(lower, upper, 0x31));
}
#else
using Widest = Vector8;
#endif

// e^x by Cephes' expf: 2^n times a polynomial of the rest, at most 2 units in the last place off; 0 below -87.3.
template <class V> typename V::Type exp(typename V::Type x) {
    const auto low = V::all(-87.33654f), given = x;
    x = V::least(V::greatest(x, low), V::all(88.0f));
    const auto n = V::nearest(V::mul(x, V::all(1.44269504f)));
    auto r = V::fmadd(n, V::all(-0.693359375f), x);
    r = V::fmadd(n, V::all(2.12194440e-4f), r);
    auto p = V::all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = V::fmadd(p, r, V::all(c));
    p = V::add(V::fmadd(V::mul(r, r), p, r), V::all(1.0f));
    return V::unless_less(given, low, V::mul(p, V::power_of_2(n)));
}

template <class V> typename V::Type silu(typename V::Type x) { return V::div(x, V::add(V::all(1.0f), exp<V>(V::sub(V::all(0.0f), x)))); }

// Calls `use.operator()<V>(at)` for lanes at 0 to `size`, a multiple of 8, in the widest vectors V that there are.
template <class Use> void each_vector(int64_t size, Use use) {
    int64_t at = 0;
    for (; at + Widest::SIZE <= size; at += Widest::SIZE) use.template operator()<Widest>(at);
    if constexpr (Widest::SIZE != LANES)
        for (; at < size; at += LANES) use.template operator()<Vector8>(at);
}

} // namespace arctic
