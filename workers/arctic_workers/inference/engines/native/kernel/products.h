// Products of some rows with a weight, exact to the same bits whichever path computes them: each output is one accumulator of
// 8 lanes that takes k = 0..7, 8..15, ... in order and is added up by one tree. Where blocks of inputs have scales, that is so for
// each block, and what comes out is added up by its scale, in order.
//
// Weights lie in panels of 8 outputs, padded with zeros, so that one row reads memory as one stream: [outputs / 8][inputs / 8]
// [2][4 outputs][8 inputs], in e4m3 [outputs / 8][inputs / 8][2][8 inputs][4 outputs], and in e4m3 for rows in bf16, which
// have an order of their own (rounded.h), [outputs / 8][inputs / 8][4][2][2 outputs][4 inputs].
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"
#include "tiles.h"

#ifdef __AVX512F__
#include "wide.h"
#else
#include "narrow.h"
#endif

#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace arctic {

// At least 2 rows, at most R, over one piece of a panel.
template <Format F, bool FIRST, bool DECODED, int R = MOST_ROWS>
void some_rows(int64_t rows, const uint8_t *w, const float *const *x, const Piece &piece, float *out, float *waiting, const LookAhead &ahead) {
    if constexpr (R > 2)
        if (rows < R) return some_rows<F, FIRST, DECODED, R - 1>(rows, w, x, piece, out, waiting, ahead);
    tile<F, R, FIRST, DECODED>(w, x, piece, out, waiting, ahead);
}

// All rows over one piece of a panel, in groups of rows that differ by at most one. At `decoded` there is place for the piece.
template <Format F>
void piece_of_panel(const uint8_t *w, const float *const *x, int64_t rows, const Piece &piece, float *out, float *waiting, float *decoded) {
    constexpr int BLOCK = LANES * LANES * bytes_of<F>();
    const uint8_t *from = w + piece.first * BLOCK;
    if (rows == 1) return one_row<F>(from, *x, piece, out, waiting);
    LookAhead ahead{from + FAR_AHEAD, BLOCK};
    int64_t most = MOST_ROWS;
    auto *first = some_rows<F, true, false>, *others = some_rows<F, false, false>;
    if constexpr (F == FP8) {
        if (rows >= MANY_ROWS && decoding_costs()) {
            decode<F>(from, piece, decoded);
            ahead.from = from + piece.blocks * BLOCK; // the next piece
            from = reinterpret_cast<const uint8_t *>(decoded);
            first = some_rows<F, true, true>, others = some_rows<F, false, true>;
        } else if (rows <= FEW_ROWS && decoding_costs()) {
            most = FEW_ROWS, first = some_rows<F, true, false, FEW_ROWS>;
        }
    }
    if constexpr (F == FP8_BY_BF16) most = ROUNDED_ROWS, first = some_rows<F, true, false, ROUNDED_ROWS>, others = some_rows<F, false, false, ROUNDED_ROWS>;
    const int64_t groups = (rows + most - 1) / most;
    for (int64_t group = 0, row = 0; group < groups; ++group) {
        const int64_t taken = (rows - row) / (groups - group);
        const auto run = group == 0 ? first : others;
        run(taken, from, x + row, piece, out + row * LANES, waiting + row * LANES * LANES, ahead.part(group, groups, piece.blocks));
        row += taken;
    }
}

// Of a panel, in `Matrix::subnormals`.
inline int64_t words_of_marks(int64_t blocks) { return (blocks + 63) / 64; }

// Of a panel's marks those of 64 blocks, or of what is left of `blocks`, from one on.
inline uint64_t marks_from(const uint64_t *subnormals, int64_t first, int64_t blocks) {
    const int64_t word = first / 64, place = first % 64;
    const uint64_t marks = subnormals[word] >> place;
    return place && word + 1 < words_of_marks(blocks) ? marks | subnormals[word + 1] << (64 - place) : marks;
}

// All rows over a range of a panel's blocks, piece by piece; who has no marks has no subnormals.
template <Format F>
void range_of_panel(const uint8_t *w, const uint64_t *subnormals, const float *const *x, int64_t rows, int64_t blocks, const Range &range, float *out, float *scratch) {
    float *decoded = scratch, *waiting = decoded + PIECE * LANES * LANES;
    for (int64_t first = range.begin; first < range.end; first += PIECE) {
        const uint64_t marks = subnormals ? marks_from(subnormals, first, blocks) : 0;
        piece_of_panel<F>(w, x, rows, {first, std::min(PIECE, range.end - first), first == range.begin, first + PIECE >= range.end, marks, blocks * LANES}, out, waiting, decoded);
    }
}

// Floats that `range_of_panel` needs as scratch.
inline int64_t scratch_of(int64_t rows) { return (PIECE + rows) * LANES * LANES; }

// All rows over one panel.
template <Format F>
void panel(const uint8_t *w, const uint64_t *subnormals, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &sums) {
    range_of_panel<F>(w, subnormals, x, rows, blocks, {0, blocks}, out, sums.get(scratch_of(rows)));
}

// All rows over one panel of e4m3 of which each `size` blocks of 8 inputs have a scale.
template <Format F>
[[gnu::noinline]] void panel_of_blocks(const uint8_t *w, const uint64_t *subnormals, const float *scales, int64_t size, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &sums) {
    float *scratch = sums.get(scratch_of(rows) + rows * LANES), *part = scratch + scratch_of(rows);
    std::fill(out, out + rows * LANES, 0.0f);
    for (int64_t first = 0; first < blocks; first += size, ++scales) {
        range_of_panel<F>(w, subnormals, x, rows, blocks, {first, std::min(first + size, blocks)}, part, scratch);
        const __m256 scale = _mm256_set1_ps(*scales);
        for (float *of = part, *to = out; to < out + rows * LANES; of += LANES, to += LANES)
            _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_loadu_ps(of), scale, _mm256_loadu_ps(to)));
    }
}

// Mark the blocks of some panels in e4m3 that have subnormals: marks [panels, words], zeros before.
inline void mark_subnormals(const uint8_t *w, int64_t panels, int64_t blocks, uint64_t *marks) {
    const __m256i zero = _mm256_setzero_si256(), exponent = _mm256_set1_epi8(0x78), places = _mm256_set1_epi8(0x07);
    const auto has = [&](const uint8_t *from) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
        const __m256i small = _mm256_cmpeq_epi8(_mm256_and_si256(codes, exponent), zero);
        const __m256i none = _mm256_cmpeq_epi8(_mm256_and_si256(codes, places), zero);
        return _mm256_movemask_epi8(_mm256_andnot_si256(none, small)) != 0;
    };
    for (int64_t panel = 0; panel < panels; ++panel, marks += words_of_marks(blocks))
        for (int64_t block = 0; block < blocks; ++block, w += LANES * LANES)
            marks[block / 64] |= static_cast<uint64_t>(has(w) || has(w + LANES * LANES / 2)) << (block % 64);
}

// Outputs 8 p to 8 p + 7 of a range in e4m3, without the scales of outputs.
template <Format F>
void multiply_e4m3(const Matrix &matrix, int64_t p, const uint64_t *subnormals, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &sums) {
    const uint8_t *w = matrix.data + p * blocks * LANES * LANES;
    if (matrix.block) {
        const int64_t scales = (matrix.inputs + matrix.block - 1) / matrix.block;
        panel_of_blocks<F>(w, subnormals, matrix.scale + p * scales, matrix.block / LANES, x, rows, blocks, out, sums);
    } else {
        panel<F>(w, subnormals, x, rows, blocks, out, sums);
    }
}

// Outputs 8 p to 8 p + 7 of a range, of each row of `x` (which carries INPUT, and is followed by itself in bf16 where weights are
// multiplied so): out [R, 8].
inline void multiply(const Matrix &matrix, int64_t p, const float *const *x, int64_t rows, float *out, Buffer &sums) {
    const int64_t blocks = padded(matrix.inputs) / LANES;
    const int64_t size = blocks * LANES * LANES;
    switch (matrix.format) {
    case FP8: multiply_e4m3<FP8>(matrix, p, matrix.subnormals + p * words_of_marks(blocks), x, rows, blocks, out, sums); break;
#ifdef ARCTIC_ROUNDS
    case FP8_BY_BF16: multiply_e4m3<FP8_BY_BF16>(matrix, p, nullptr, x, rows, blocks, out, sums); break;
#endif
    case BF16: panel<BF16>(matrix.data + p * size * 2, nullptr, x, rows, blocks, out, sums); break;
    default: panel<FP32>(matrix.data + p * size * 4, nullptr, x, rows, blocks, out, sums);
    }
    __m256 factor = _mm256_set1_ps(matrix.format == FP8 ? FROM_FP8 : FROM_OTHERS);
    for (int64_t row = 0; row < rows; ++row) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(out + row * LANES), factor);
        if (matrix.scale && !matrix.block) value = _mm256_mul_ps(value, _mm256_loadu_ps(matrix.scale + p * LANES));
        _mm256_storeu_ps(out + row * LANES, value);
    }
}

// Floats from one row of inputs to the next: rows that lie powers of two apart would contend for the same places of the caches.
inline int64_t row_stride(int64_t size) { return padded(size) + (padded(size) % 128 ? 0 : 16); }

inline int64_t panels_of(const Matrix &matrix) { return padded(matrix.outputs) / LANES; }

// Which output of the whole weight a panel of a tensor rank's range begins with.
inline int64_t output_of(const Matrix &matrix, int64_t p) { return (matrix.first + p) * LANES; }

// Bytes of inputs that stay in the second cache while weights go through it: half of it.
inline int64_t near_bytes() {
    static const int64_t cache = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
        return static_cast<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
        return int64_t{0};
#endif
    }();
    return (cache > 0 ? cache : 512 << 10) / 2;
}

// How many of some rows are computed together, so that their inputs stay near: for those of each other block all weights are read
// once more. What is over is shared out, as a row that is left alone costs as much as many.
inline int64_t block_rows(int64_t inputs, int64_t rows) {
    const int64_t most = std::max<int64_t>(12, near_bytes() / (padded(inputs) * 4)), blocks = (rows + most - 1) / most;
    return blocks ? (rows + blocks - 1) / blocks : most;
}

} // namespace arctic
