// What the tiles of all instruction sets have in common: narrow.h has those of AVX2, wide.h those of AVX-512, and
// rounded.h those of AVX-512 for rows in bf16.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace arctic {

// Bytes: the processor's own look-ahead ends with a page. The second cache may wait for more of memory at a time than the first.
constexpr int FAR_AHEAD = 8192, NEAR_AHEAD = 1024;

// Ask for some bytes of weights into a cache.
template <_mm_hint CACHE> inline void ask_for(const uint8_t *w, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(reinterpret_cast<const char *>(w) + at, CACHE);
}

// What to ask memory for while a tile works: some bytes with each of its blocks. The tiles that read a piece share it out, so that
// memory never waits for arithmetic, nor arithmetic for what all was asked for at once.
struct LookAhead {
    const uint8_t *from;
    int64_t step;

    // Where blocks have so many BYTES.
    template <int BYTES> void ask() {
        ask_for<_MM_HINT_T1>(from, BYTES);
        from += step;
    }

    // The part of one of some tiles over so many blocks.
    LookAhead part(int64_t tile, int64_t tiles, int64_t blocks) const { return {from + blocks * step * tile / tiles, (step + tiles - 1) / tiles}; }
};

// Whether decoding takes time from additions: Intel's processors do both in the same units, AMD's have some that only decode.
inline bool decoding_costs() {
    static const bool intel = __builtin_cpu_is("intel");
    return intel;
}

constexpr int64_t PIECE = 64; // blocks of 8 inputs that tiles take at once: those of a tile, and weights, stay in the first cache

// At most PIECE blocks of the inputs: the first, how many, whether sums begin and end with them, which have subnormals, the first
// lowest, and how many inputs there are in all, padded.
struct Piece {
    int64_t first, blocks;
    bool begins, ends;
    uint64_t subnormals;
    int64_t inputs;
};

constexpr int ROUNDED_ROWS = 12; // of a tile of rows in bf16: 24 accumulators of the 32 registers

// Whether rows in bf16 are multiplied here.
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define ARCTIC_ROUNDS
#endif

} // namespace arctic
