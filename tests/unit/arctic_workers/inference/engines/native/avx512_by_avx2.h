// What the kernel uses of AVX-512, by AVX2. Included before kernel.cpp (-include), it makes of it the code of a processor with
// AVX-512 that runs on any with AVX2, and gives the same results: each operation is the one that Intel describes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512BF16__ 1
#define __AVX512VBMI__ 1
#define __builtin_cpu_supports(feature) true
#define __builtin_cpu_is(vendor) true

namespace emulated {

struct Floats {
    __m256 lower, upper;
};

struct Integers {
    __m256i lower, upper;
};

inline Floats setzero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats broadcast(__m256 half) { return {half, half}; }
inline Floats fmadd(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.lower, b.lower, c.lower), _mm256_fmadd_ps(a.upper, b.upper, c.upper)}; }
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.lower, b.lower), _mm256_add_ps(a.upper, b.upper)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.lower, b.lower), _mm256_sub_ps(a.upper, b.upper)}; }
inline Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.lower, b.lower), _mm256_div_ps(a.upper, b.upper)}; }
inline Floats least(Floats a, Floats b) { return {_mm256_min_ps(a.lower, b.lower), _mm256_min_ps(a.upper, b.upper)}; }
inline Floats greatest(Floats a, Floats b) { return {_mm256_max_ps(a.lower, b.lower), _mm256_max_ps(a.upper, b.upper)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.lower, b.lower), _mm256_mul_ps(a.upper, b.upper)}; }
inline Floats set1(float value) { return broadcast(_mm256_set1_ps(value)); }
// A mask is all bits of a lane here, or none.
inline Floats where(Floats mask, Floats v) { return {_mm256_and_ps(mask.lower, v.lower), _mm256_and_ps(mask.upper, v.upper)}; }
inline __m256 extract(Floats v, int half) { return half ? v.upper : v.lower; }

inline Floats load(const void *from) {
    const auto *floats = static_cast<const float *>(from);
    return {_mm256_loadu_ps(floats), _mm256_loadu_ps(floats + 8)};
}

inline void store(float *to, Floats v) {
    _mm256_storeu_ps(to, v.lower);
    _mm256_storeu_ps(to + 8, v.upper);
}

inline Floats as_floats(Integers v) { return {_mm256_castsi256_ps(v.lower), _mm256_castsi256_ps(v.upper)}; }

inline Integers load_integers(const void *from) {
    const Floats v = load(from);
    return {_mm256_castps_si256(v.lower), _mm256_castps_si256(v.upper)};
}

inline Integers set1(int value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Integers as_integers(Floats v) { return {_mm256_cvtps_epi32(v.lower), _mm256_cvtps_epi32(v.upper)}; }
inline Integers add(Integers a, Integers b) { return {_mm256_add_epi32(a.lower, b.lower), _mm256_add_epi32(a.upper, b.upper)}; }
inline Integers both(Integers a, Integers b) { return {_mm256_and_si256(a.lower, b.lower), _mm256_and_si256(a.upper, b.upper)}; }
inline Integers slli16(Integers v, int by) { return {_mm256_slli_epi16(v.lower, by), _mm256_slli_epi16(v.upper, by)}; }
inline Integers srai16(Integers v, int by) { return {_mm256_srai_epi16(v.lower, by), _mm256_srai_epi16(v.upper, by)}; }
inline Integers slli32(Integers v, int by) { return {_mm256_slli_epi32(v.lower, by), _mm256_slli_epi32(v.upper, by)}; }

inline Integers widen16(__m256i v) {
    return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))};
}

inline Integers widen8(__m128i v) { return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))}; }

inline Integers set1_64(int64_t value) { return {_mm256_set1_epi64x(value), _mm256_set1_epi64x(value)}; }
inline Integers unpack_lower(Integers a, Integers b) { return {_mm256_unpacklo_epi8(a.lower, b.lower), _mm256_unpacklo_epi8(a.upper, b.upper)}; }
inline Integers unpack_upper(Integers a, Integers b) { return {_mm256_unpackhi_epi8(a.lower, b.lower), _mm256_unpackhi_epi8(a.upper, b.upper)}; }

// The first, or both others: what 0xF8 says.
inline Integers first_or_both(Integers a, Integers b, Integers c, int) {
    const Integers others = both(b, c);
    return {_mm256_or_si256(a.lower, others.lower), _mm256_or_si256(a.upper, others.upper)};
}

// Bytes of a table of 128, by the lower seven bits of each index.
inline Integers look_up(Integers first, Integers index, Integers second) {
    uint8_t table[128], bytes[64];
    std::memcpy(table, &first, 64);
    std::memcpy(table + 64, &second, 64);
    std::memcpy(bytes, &index, 64);
    for (uint8_t &byte : bytes) byte = table[byte & 127];
    return load_integers(bytes);
}

// The products of the upper ones of each pair of bf16 first, then those of the lower.
inline Floats add_pairs(Floats sum, Integers a, Integers b) {
    const auto upper = [](Integers v) {
        const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
        return as_floats({_mm256_and_si256(v.lower, mask), _mm256_and_si256(v.upper, mask)});
    };
    const auto lower = [](Integers v) { return as_floats(slli32(v, 16)); };
    return fmadd(lower(a), lower(b), fmadd(upper(a), upper(b), sum));
}

// The lanes of even places, as 0x5555 says.
inline Floats even_lanes(int, Floats v) {
    float all[16];
    store(all, v);
    for (int lane = 0; lane < 8; ++lane) all[lane] = all[2 * lane];
    return load(all);
}

} // namespace emulated

#define __m512 emulated::Floats
#define __m512i emulated::Integers
#define __m512bh emulated::Integers
#define _mm512_add_epi32 emulated::add
#define _mm512_add_ps emulated::add
#define _mm512_and_si512 emulated::both
#define _mm512_broadcast_f32x8 emulated::broadcast
#define _mm512_castps512_ps256(v) emulated::extract(v, 0)
#define _mm512_castsi512_ps emulated::as_floats
#define _mm512_cmp_ps_mask(a, b, how) emulated::Floats{_mm256_cmp_ps((a).lower, (b).lower, how), _mm256_cmp_ps((a).upper, (b).upper, how)}
#define _mm512_cvtepi8_epi32 emulated::widen8
#define _mm512_cvtepu16_epi32 emulated::widen16
#define _mm512_cvtps_epi32 emulated::as_integers
#define _mm512_div_ps emulated::div
#define _mm512_dpbf16_ps emulated::add_pairs
#define _mm512_extractf32x8_ps emulated::extract
#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_load_ps emulated::load
#define _mm512_loadu_ps emulated::load
#define _mm512_loadu_si512 emulated::load_integers
#define _mm512_maskz_compress_ps emulated::even_lanes
#define _mm512_maskz_mov_ps emulated::where
#define _mm512_max_ps emulated::greatest
#define _mm512_min_ps emulated::least
#define _mm512_mul_ps emulated::mul
#define _mm512_permutex2var_epi8 emulated::look_up
#define _mm512_roundscale_ps(v, how) emulated::Floats{_mm256_round_ps((v).lower, how), _mm256_round_ps((v).upper, how)}
#define _mm512_set1_epi32 emulated::set1
#define _mm512_set1_epi64 emulated::set1_64
#define _mm512_set1_ps emulated::set1
#define _mm512_setzero_ps emulated::setzero
#define _mm512_shuffle_ps(a, b, order) emulated::Floats{_mm256_shuffle_ps((a).lower, (b).lower, order), _mm256_shuffle_ps((a).upper, (b).upper, order)}
#define _mm512_slli_epi16 emulated::slli16
#define _mm512_slli_epi32 emulated::slli32
#define _mm512_srai_epi16 emulated::srai16
#define _mm512_sub_ps emulated::sub
#define _mm512_store_ps emulated::store
#define _mm512_storeu_ps emulated::store
#define _mm512_ternarylogic_epi32 emulated::first_or_both
#define _mm512_unpackhi_epi8 emulated::unpack_upper
#define _mm512_unpacklo_epi8 emulated::unpack_lower
