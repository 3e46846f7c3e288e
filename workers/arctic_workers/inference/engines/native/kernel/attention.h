// Attention over paged keys and values in FP8, bf16 or fp32: [G, slots, H] a layer. A row sees the latest tokens of a window, or
// all, and sinks before them; these it meets with queries turned by its position within the cache, where they follow
// each other without a gap. Keys stay as they were written.
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace arctic {

// Rows of one sequence, one after the other, that attend together: each block of the cache is read once for all of them. The
// first is at `position`, `table` are the sequence's blocks, of which `dropped` are missing after the sinks'.
struct Tile {
    int64_t first, rows, position;
    const int64_t *table;
    int64_t dropped;
};

constexpr int64_t TOGETHER = 8; // most rows of a tile
constexpr int64_t APART = 16;   // floats of a cache line

// A block that will be read next, asked for part by part while another is worked on: blocks lie anywhere, and a core can wait for
// few lines at once, so that to ask for all in one go is to wait for them.
class Ahead {
  public:
    Ahead() = default;
    Ahead(const uint8_t *from, int64_t bytes) : at_(from), end_(from + bytes), part_(bytes / PARTS) {}

    void ask() {
        for (const uint8_t *end = std::min(at_ + part_, end_); at_ < end; at_ += 64) _mm_prefetch(reinterpret_cast<const char *>(at_), _MM_HINT_T0);
    }

  private:
    static constexpr int64_t PARTS = 4;
    const uint8_t *at_ = nullptr, *end_ = nullptr;
    int64_t part_ = 0;
};

// What one thread needs for itself.
struct AttentionScratch {
    Buffer scores, block, queries;
    std::vector<float *> outs;
};

class Attention {
  public:
    explicit Attention(const Shape &shape)
        : s_(shape), stride_(padded(shape.head_size)), heads_(shape.heads / shape.groups),
          sink_blocks_((shape.sinks + shape.block_size - 1) / shape.block_size) {}

    // Cut a step's rows into tiles.
    static void cut(const Step &step, std::vector<Tile> &tiles) {
        tiles.clear();
        int64_t row = 0;
        for (const Span *span = step.spans; span != step.spans + step.count; ++span)
            for (int64_t done = 0; done < span->rows; done += TOGETHER) {
                const int64_t rows = std::min(TOGETHER, span->rows - done);
                tiles.push_back({row, rows, span->start + done, step.tables + span->blocks, span->dropped});
                row += rows;
            }
    }

    // Floats of a row's rotation.
    int64_t rotation_size() const { return 2 * s_.head_size; }

    // Cosines and sines [2, H / 2] by which the heads of a position turn, and behind them those by which its queries meet sinks:
    // of its position within the cache. Angles are fp64: a position of a million times a frequency, rounded to fp32, would be off by degrees.
    void rotation(int64_t position, const Ends &ends, float *out) const {
        const auto write = [&](int64_t of, float *to) {
            const int64_t half = s_.head_size / 2;
            for (int64_t at = 0; at < half; ++at) {
                const double angle = static_cast<double>(of) * ends.frequencies[at];
                to[at] = static_cast<float>(std::cos(angle) * ends.magnitude);
                to[half + at] = static_cast<float>(std::sin(angle) * ends.magnitude);
            }
        };
        write(position, out);
        if (meets_sinks_apart(position)) write(s_.window + s_.sinks - 1, out + s_.head_size);
    }

    // Turn the queries and keys of one of a tile's rows, and write keys and values into the cache: those of the key-value heads
    // of a tensor rank, near which memory then is, as it is where it is written first. `sink_q` gets the queries that meet the sinks.
    void place(const LayerWeights &layer, const Tile &tile, int64_t row, const Range &groups, const float *rotation, float *q, float *sink_q,
               float *k, const float *v) const {
        const int64_t H = s_.head_size, position = tile.position + row;
        for (int64_t head = groups.begin * heads_; head < groups.end * heads_; ++head) {
            if (meets_sinks_apart(position)) {
                std::copy(q + head * H, q + (head + 1) * H, sink_q + head * H);
                turn(sink_q + head * H, rotation + H);
            }
            turn(q + head * H, rotation);
        }
        const int64_t slot = block_of(tile, position / s_.block_size) * s_.block_size + position % s_.block_size;
        for (int64_t group = groups.begin; group < groups.end; ++group) {
            float *key = k + group * H;
            turn(key, rotation);
            keep(layer.keys, layer.key_scales, group, slot, key);
            keep(layer.values, layer.value_scales, group, slot, v + group * H);
        }
    }

    // The heads of a tile's rows that share keys: scores block by block of the cache, softmax, weighted sum in the order of
    // keys, sinks first. Row t's queries are at q + t * row_stride, and so is what comes out.
    void attend(const LayerWeights &layer, const Tile &tile, int64_t group, float *q, const float *sink_q, int64_t row_stride,
                AttentionScratch &own) const {
        const int64_t size = s_.block_size, count = tile.rows * heads_;
        const Rows rows{tile.rows, tile.position, this};
        const int64_t moved = rows.first_moved(), begin = rows.first_block(0), end = rows.end_block(tile.rows - 1);
        // Not a power of two: rows of scores would share a few sets of the cache.
        const int64_t capacity = rows.sink_slots() + rows.most_blocks() * size + APART;
        float *scores = own.scores.get(count * capacity);
        float *queries = own.queries.get(3 * count * stride_), *sink_queries = queries + count * stride_, *sums = sink_queries + count * stride_;
        float *block = own.block.get(size * stride_);
        own.outs.resize(count);
        const int64_t at = group * heads_ * s_.head_size;
        for (int64_t row = 0; row < tile.rows; ++row) {
            const int64_t from = (tile.first + row) * row_stride + at;
            scale(q + from, queries + row * heads_ * stride_);
            if (rows.moved(row)) scale(sink_q + from, sink_queries + row * heads_ * stride_);
        }
        Ahead ahead;
        const auto next = [&](const void *cache, int64_t of, int64_t b) { ahead = block_ahead(cache, of, block_of(tile, b) * size); };
        const auto score = [&](const float *from, int64_t begin, int64_t end, int64_t b, auto place) {
            widen(layer.keys, layer.key_scales, group, block_of(tile, b) * size, size, block);
            for (int64_t row = begin; row < end; ++row)
                for (int64_t head = 0; head < heads_; ++head)
                    own.outs[row * heads_ + head] = scores + (row * heads_ + head) * capacity + place(row);
            int64_t query = begin * heads_;
            for (; query + 2 <= end * heads_; query += 2) dots<2>(from + query * stride_, block, own.outs.data() + query, ahead);
            if (query < end * heads_) dots<1>(from + query * stride_, block, own.outs.data() + query, ahead);
        };
        const auto add = [&](int64_t begin, int64_t end, int64_t b, auto place, auto seen) {
            // What a freed block still holds must not reach anybody: only visible keys are read.
            widen(layer.values, layer.value_scales, group, block_of(tile, b) * size, seen(end - 1).end, block);
            for (int64_t row = begin; row < end; ++row) {
                const Range range = seen(row);
                int64_t head = 0;
                const auto of = [&](int64_t head) { return scores + (row * heads_ + head) * capacity + place(row); };
                const auto to = [&](int64_t head) { return sums + (row * heads_ + head) * stride_; };
                for (; head + 2 <= heads_; head += 2) weighted<2>(of(head), capacity, block, range, to(head), ahead);
                if (head < heads_) weighted<1>(of(head), capacity, block, range, to(head), ahead);
            }
        };
        const int64_t sink_end = moved < tile.rows ? sink_blocks_ : 0;
        for (int64_t b = 0; b < sink_end; ++b)
            score(sink_queries, moved, tile.rows, b, [&](int64_t) { return b * size; });
        for (int64_t b = begin; b < end; ++b) {
            if (b + 1 < end) next(layer.keys, group, b + 1);
            else next(layer.values, group, begin);
            score(queries, rows.begin_of(b), rows.end_of(b), b, [&](int64_t row) { return rows.slot(row, b); });
        }
        for (int64_t row = 0; row < tile.rows; ++row)
            for (int64_t head = 0; head < heads_; ++head) weigh(scores + (row * heads_ + head) * capacity, rows, row);
        std::fill(sums, sums + count * stride_, 0.0f);
        for (int64_t b = 0; b < sink_end; ++b)
            add(moved, tile.rows, b, [&](int64_t) { return b * size; },
                [&](int64_t) { return Range{0, std::min(size, s_.sinks - b * size)}; });
        for (int64_t b = begin; b < end; ++b) {
            if (b + 1 < end) next(layer.values, group, b + 1);
            else if (group + 1 < s_.groups) next(layer.keys, group + 1, begin); // which this thread is likely to do next
            add(rows.begin_of(b), rows.end_of(b), b, [&](int64_t row) { return rows.slot(row, b); },
                [&](int64_t row) { return rows.seen(row, b); });
        }
        for (int64_t row = 0; row < tile.rows; ++row)
            for (int64_t head = 0; head < heads_; ++head) {
                float *to = q + (tile.first + row) * row_stride + at + head * s_.head_size;
                const float *sum = sums + (row * heads_ + head) * stride_;
                for (int64_t index = 0; index < s_.head_size; ++index) to[index] = sum[index] * INPUT;
            }
    }

  private:
    // First position that one sees after the sinks; 0 while nothing is dropped between.
    int64_t first_seen(int64_t position) const {
        const int64_t first = s_.window ? position - s_.window + 1 : 0;
        return first > s_.sinks ? first : 0;
    }

    bool meets_sinks_apart(int64_t position) const { return s_.sinks && first_seen(position); }

    // Where in a sequence a tile's rows look, and where in a row of scores that is: the slots of the sinks' blocks, for
    // rows that see these apart, then those of the blocks that hold the window.
    struct Rows {
        int64_t rows, position;
        const Attention *attention;

        int64_t size() const { return attention->s_.block_size; }
        int64_t first(int64_t row) const { return attention->first_seen(position + row); }
        bool moved(int64_t row) const { return attention->meets_sinks_apart(position + row); }
        int64_t first_moved() const {
            int64_t row = 0;
            while (row < rows && !moved(row)) ++row;
            return row;
        }
        int64_t first_block(int64_t row) const { return first(row) / size(); }
        int64_t end_block(int64_t row) const { return (position + row) / size() + 1; }
        int64_t most_blocks() const {
            int64_t most = 0;
            for (int64_t row = 0; row < rows; ++row) most = std::max(most, end_block(row) - first_block(row));
            return most;
        }
        int64_t sink_slots() const { return moved(rows - 1) ? attention->sink_blocks_ * size() : 0; }
        // Rows that see something of a block: from one to another, as both ends of the window move on with the rows.
        int64_t begin_of(int64_t b) const {
            int64_t row = 0;
            while (end_block(row) <= b) ++row;
            return row;
        }
        int64_t end_of(int64_t b) const {
            int64_t row = rows;
            while (first_block(row - 1) > b) --row;
            return row;
        }
        int64_t slot(int64_t row, int64_t b) const {
            return (moved(row) ? attention->sink_blocks_ * size() : 0) + (b - first_block(row)) * size();
        }
        Range seen(int64_t row, int64_t b) const {
            return {std::max<int64_t>(first(row) - b * size(), 0), std::min(size(), position + row + 1 - b * size())};
        }
    };

    int64_t block_of(const Tile &tile, int64_t b) const { return tile.table[b < sink_blocks_ ? b : b - tile.dropped]; }

    Ahead block_ahead(const void *cache, int64_t group, int64_t slot) const {
        const int64_t key = s_.head_size * (s_.cache_format == FP8 ? 1 : s_.cache_format == BF16 ? 2 : 4);
        return {static_cast<const uint8_t *>(cache) + (group * s_.slots + slot) * key, s_.block_size * key};
    }

    // A row's queries by 1 / sqrt(H), padded with zeros.
    void scale(const float *from, float *to) const {
        const int64_t H = s_.head_size;
        const float by = 1.0f / std::sqrt(static_cast<float>(H));
        for (int64_t head = 0; head < heads_; ++head)
            for (int64_t at = 0; at < stride_; ++at) to[head * stride_ + at] = at < H ? from[head * H + at] * by : 0.0f;
    }

    // Scores of some queries, one after the other, with the keys of a block.
    template <int Q> void dots(const float *queries, const float *block, float *const *outs, Ahead &ahead) const {
        constexpr int K = 4;
        for (int64_t key = 0; key < s_.block_size; key += K) {
            ahead.ask();
            __m256 sums[Q][K];
            for (auto &of_query : sums)
                for (auto &sum : of_query) sum = _mm256_setzero_ps();
            for (int64_t at = 0; at < stride_; at += LANES) {
                __m256 keys[K];
                for (int index = 0; index < K; ++index) keys[index] = _mm256_loadu_ps(block + (key + index) * stride_ + at);
                for (int query = 0; query < Q; ++query) {
                    const __m256 value = _mm256_loadu_ps(queries + query * stride_ + at);
                    for (int index = 0; index < K; ++index) sums[query][index] = _mm256_fmadd_ps(keys[index], value, sums[query][index]);
                }
            }
            for (int query = 0; query < Q; ++query)
                _mm_storeu_ps(outs[query] + key, add_up4(sums[query][0], sums[query][1], sums[query][2], sums[query][3]));
        }
    }

    // Add the values of a block by the weights of Q queries.
    template <int Q> void weighted(const float *weights, int64_t weight_stride, const float *block, const Range &range, float *sums, Ahead &ahead) const {
        int64_t at = 0;
        for (; at + 4 * LANES <= stride_; at += 4 * LANES) {
            ahead.ask();
            weighted_lanes<Q, 4>(weights, weight_stride, block + at, range, sums + at);
        }
        for (; at < stride_; at += LANES) weighted_lanes<Q, 1>(weights, weight_stride, block + at, range, sums + at);
    }

    template <int Q, int V>
    void weighted_lanes(const float *weights, int64_t weight_stride, const float *block, const Range &range, float *sums) const {
        __m256 all[Q][V];
        for (int query = 0; query < Q; ++query)
            for (int index = 0; index < V; ++index) all[query][index] = _mm256_loadu_ps(sums + query * stride_ + index * LANES);
        for (int64_t key = range.begin; key < range.end; ++key) {
            __m256 values[V];
            for (int index = 0; index < V; ++index) values[index] = _mm256_loadu_ps(block + key * stride_ + index * LANES);
            for (int query = 0; query < Q; ++query) {
                const __m256 weight = _mm256_set1_ps(weights[query * weight_stride + key]);
                for (int index = 0; index < V; ++index) all[query][index] = _mm256_fmadd_ps(weight, values[index], all[query][index]);
            }
        }
        for (int query = 0; query < Q; ++query)
            for (int index = 0; index < V; ++index) _mm256_storeu_ps(sums + query * stride_ + index * LANES, all[query][index]);
    }

    void turn(float *head, const float *rotation) const {
        const int64_t half = s_.head_size / 2;
        const float *cosines = rotation, *sines = rotation + half;
        for (int64_t at = 0; at < half; ++at) {
            const float first = head[at], second = head[at + half];
            head[at] = first * cosines[at] - second * sines[at];
            head[at + half] = second * cosines[at] + first * sines[at];
        }
    }

    void keep(void *cache, float *scales, int64_t group, int64_t slot, const float *from) const {
        const int64_t H = s_.head_size, key = group * s_.slots + slot;
        if (s_.cache_format == FP32) {
            std::copy(from, from + H, static_cast<float *>(cache) + key * H);
        } else if (s_.cache_format == FP8) {
            scales[key] = keep_scaled(static_cast<uint8_t *>(cache) + key * H, from);
        } else {
            uint16_t *to = static_cast<uint16_t *>(cache) + key * H;
            for (int64_t index = 0; index < H; ++index) {
                uint32_t bits;
                std::memcpy(&bits, from + index, sizeof bits);
                // To nearest, ties to even, as torch rounds; a NaN stays one.
                const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
                to[index] = is_nan ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
            }
        }
    }

    // One vector in e4m3, the greatest magnitude as 448: returns its scale. As `fp8.quantize` has it, but what is not finite
    // makes no number of the whole vector.
    float keep_scaled(uint8_t *to, const float *from) const {
        float most = 0.0f;
        bool is_finite = true;
        for (int64_t index = 0; index < s_.head_size; ++index) {
            most = std::max(most, std::fabs(from[index]));
            is_finite = is_finite && std::isfinite(from[index]);
        }
        float scale = most / GREATEST;
        if (scale == 0.0f) scale = 1.0f;
        // A scale below the least normal number may be too small by its rounding.
        for (int64_t index = 0; index < s_.head_size; ++index) to[index] = to_e4m3(std::clamp(from[index] / scale, -GREATEST, GREATEST));
        return is_finite ? scale : std::numeric_limits<float>::quiet_NaN();
    }

    // Keys or values from a slot on in fp32; head sizes are padded with zeros.
    void widen(const void *cache, const float *scales, int64_t group, int64_t slot, int64_t count, float *out) const {
        const int64_t key = group * s_.slots + slot;
        switch (s_.cache_format) {
        case FP8: return widen_as<FP8>(cache, scales + key, key, count, out);
        case BF16: return widen_as<BF16>(cache, nullptr, key, count, out);
        default: return widen_as<FP32>(cache, nullptr, key, count, out);
        }
    }

    template <Format F> void widen_as(const void *cache, const float *scales, int64_t first, int64_t count, float *out) const {
        constexpr int BYTES = bytes_of<F>();
        const int64_t H = s_.head_size, whole = H / LANES * LANES;
        const uint8_t *from = static_cast<const uint8_t *>(cache) + first * H * BYTES;
        for (int64_t key = 0; key < count; ++key, from += H * BYTES, out += stride_) {
            const auto put = [&](int64_t at, const uint8_t *values) {
                __m256 wide = read8<F>(values);
                if constexpr (F == FP8) wide = _mm256_mul_ps(wide, _mm256_set1_ps(scales[key]));
                _mm256_storeu_ps(out + at, wide);
            };
            for (int64_t at = 0; at < whole; at += LANES) put(at, from + at * BYTES);
            if (whole == H) continue;
            uint8_t rest[LANES * BYTES] = {};
            std::memcpy(rest, from + whole * BYTES, (H - whole) * BYTES);
            put(whole, rest);
        }
    }

    // Softmax over what a row sees of its scores.
    static void weigh(float *scores, const Rows &rows, int64_t row) {
        const int64_t sinks = rows.moved(row) ? rows.attention->sink_blocks_ * rows.size() : 0;
        const int64_t base = rows.first_block(row) * rows.size();
        const int64_t keys = sinks + rows.end_block(row) * rows.size() - base;
        const auto hide = [&](int64_t begin, int64_t end) {
            std::fill(scores + begin, scores + end, -std::numeric_limits<float>::infinity());
        };
        if (sinks) hide(rows.attention->s_.sinks, sinks);
        hide(sinks, sinks + rows.first(row) - base);
        hide(sinks + rows.position + row + 1 - base, keys);
        __m256 most = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
        for (int64_t key = 0; key < keys; key += LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + key));
        const __m256 top = _mm256_set1_ps(greatest(most));
        __m256 sum = _mm256_setzero_ps();
        for (int64_t key = 0; key < keys; key += LANES) {
            const __m256 value = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + key), top));
            _mm256_storeu_ps(scores + key, value);
            sum = _mm256_add_ps(sum, value);
        }
        const __m256 share = _mm256_set1_ps(1.0f / add_up(sum));
        for (int64_t key = 0; key < keys; key += LANES) _mm256_storeu_ps(scores + key, _mm256_mul_ps(_mm256_loadu_ps(scores + key), share));
    }

    const Shape s_;
    const int64_t stride_; // H, padded
    const int64_t heads_;  // that share keys
    const int64_t sink_blocks_;
};

} // namespace arctic
