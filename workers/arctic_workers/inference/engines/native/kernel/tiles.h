// What the tiles of all instruction sets have in common: narrow.h has those of AVX2, wide.h those of AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace arctic {

// Bytes: the processor's own look-ahead ends with a page. The second cache may wait for more of memory at a time than the first.
constexpr int FAR_AHEAD = 6144, AHEAD = 1024;

// Ask for some bytes of weights into the first cache, or into the second.
template <int BYTES, _mm_hint CACHE> inline void ask_for(const uint8_t *w) {
    for (int at = 0; at < BYTES; at += 64) _mm_prefetch(reinterpret_cast<const char *>(w) + at, CACHE);
}

// Ask for some bytes of weights that come after these, which are the next panel's at a panel's end.
template <int BYTES> inline void look_ahead(const uint8_t *w) {
    ask_for<BYTES, _MM_HINT_T1>(w + FAR_AHEAD);
    ask_for<BYTES, _MM_HINT_T0>(w + AHEAD);
}

// Whether decoding takes time from additions: Intel's processors do both in the same units, AMD's have some that only decode.
inline bool decoding_costs() {
    static const bool intel = __builtin_cpu_is("intel");
    return intel;
}

// A piece of the inputs: its first block, how many there are, whether the sums begin and end with it, and, in e4m3, the panel's
// part of `Matrix::subnormals`.
struct Piece {
    int64_t first, blocks;
    bool begins, ends;
    const uint64_t *subnormals;

    bool has_subnormals(int64_t block) const {
        const uint64_t at = static_cast<uint64_t>(first + block);
        return subnormals[at / 64] >> (at % 64) & 1;
    }
};

} // namespace arctic
