// Attention over paged keys and values in FP8, bf16 or fp32: [G, slots, H] a layer. A row sees the latest tokens of a window, or
// all, and sinks before them; these it meets with queries turned by its position within the cache, where they follow
// each other without a gap. Keys stay as they were written.
#pragma once

#include "interface.h"
#include "numbers.h"
#include "team.h"
#include "vectors.h"

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
constexpr int64_t LATER = 3;    // blocks ahead that memory is asked for

// Heads of a tile that share keys.
struct Heads {
    const Tile *tile;
    int64_t group;
};

// Queries that are computed at once: pairs, of which 8 inputs of both lie side by side, and, as weights of values, single ones.
#ifdef __AVX512F__
constexpr int MOST_PAIRS = 4, MOST_WEIGHTED = 4;
#else
constexpr int MOST_PAIRS = 1, MOST_WEIGHTED = 2;
#endif

// Blocks that will be read, the next and one further on, asked for part by part while another is worked on: blocks lie anywhere, and
// a core can wait for few lines at once, so that to ask for all in one go is to wait for them.
class BlocksAhead {
  public:
    void look(const uint8_t *next, const uint8_t *later, int64_t bytes) {
        next_ = {next, next + bytes}, later_ = {later, later + bytes};
        part_ = (bytes + PARTS - 1) / PARTS;
    }

    void ask() {
        next_.ask<_MM_HINT_T0>(part_);
        later_.ask<_MM_HINT_T1>(part_);
    }

  private:
    static constexpr int64_t PARTS = 4;
    struct Left {
        const uint8_t *at, *end;
        template <_mm_hint CACHE> void ask(int64_t bytes) {
            for (const uint8_t *until = std::min(at + bytes, end); at < until; at += 64) _mm_prefetch(reinterpret_cast<const char *>(at), CACHE);
        }
    };
    Left next_{}, later_{};
    int64_t part_ = 0;
};

// What one thread needs for itself.
struct AttentionScratch {
    Buffer scores, block, queries, unwanted;
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
    // keys, sinks first. Row t's queries are at q + t * row_stride, and so is what comes out. `after` is what this thread is likely to
    // do next.
    void attend(const LayerWeights &layer, const Heads &heads, const Heads &after, float *q, const float *sink_q, int64_t row_stride,
                AttentionScratch &own) const {
        const Tile &tile = *heads.tile;
        const int64_t group = heads.group, size = s_.block_size, count = tile.rows * heads_, padded_count = (count + 1) / 2 * 2;
        const Rows rows(tile, *this);
        const int64_t moved = rows.first_moved(), begin = rows.first_block(), blocks = rows.end_block() - begin;
        // Not a power of two: rows of scores would share a few sets of the cache.
        const int64_t capacity = rows.sink_slots() + rows.most_blocks() * size + APART;
        float *scores = own.scores.get(count * capacity);
        float *queries = own.queries.get(2 * padded_count * stride_ + count * stride_);
        float *sink_queries = queries + padded_count * stride_, *sums = sink_queries + padded_count * stride_;
        float *block = own.block.get(size * stride_);
        own.outs.resize(padded_count);
        const int64_t at = group * heads_ * s_.head_size;
        for (int64_t row = 0; row < tile.rows; ++row) {
            const int64_t from = (tile.first + row) * row_stride + at;
            scale(q + from, row * heads_, queries);
            if (rows[row].moved) scale(sink_q + from, row * heads_, sink_queries);
        }
        // Keys, values, and the keys of who comes after.
        const int64_t begin_after = first_seen(after.tile->position) / size;
        const auto address = [&](int64_t index) {
            if (index < blocks) return block_at(layer.keys, group, tile, begin + index);
            if (index < 2 * blocks) return block_at(layer.values, group, tile, begin + index - blocks);
            return block_at(layer.keys, after.group, *after.tile, begin_after);
        };
        BlocksAhead ahead;
        const auto look = [&](int64_t index) { ahead.look(address(index + 1), address(index + LATER), size * s_.head_size * bytes()); };
        const auto score = [&](const float *from, int64_t begin, int64_t end, int64_t b, auto place) {
            widen(layer.keys, layer.key_scales, group, block_of(tile, b) * size, size, block);
            // Two queries are computed together; who does not see the block has the other one's company.
            std::fill(own.outs.begin(), own.outs.end(), own.unwanted.get(size));
            for (int64_t row = begin; row < end; ++row) {
                float *out = scores + row * heads_ * capacity + place(row);
                for (int64_t head = 0; head < heads_; ++head, out += capacity) own.outs[row * heads_ + head] = out;
            }
            dots<MOST_PAIRS>(from, begin * heads_ / 2, (end * heads_ + 1) / 2, block, own.outs.data(), ahead);
        };
        const auto add = [&](int64_t begin, int64_t end, int64_t b, auto place, auto seen) {
            // What a freed block still holds must not reach anybody: only visible keys are read.
            widen(layer.values, layer.value_scales, group, block_of(tile, b) * size, seen(end - 1).end, block);
            for (int64_t row = begin; row < end; ++row)
                weighted<MOST_WEIGHTED>(heads_, scores + row * heads_ * capacity + place(row), capacity, block, seen(row), sums + row * heads_ * stride_, ahead);
        };
        const int64_t sink_end = moved < tile.rows ? sink_blocks_ : 0;
        for (int64_t b = 0; b < sink_end; ++b)
            score(sink_queries, moved, tile.rows, b, [&](int64_t) { return b * size; });
        for (int64_t index = 0; index < blocks; ++index) {
            const int64_t b = begin + index;
            look(index);
            score(queries, rows.begin_of(b), rows.end_of(b), b, [&](int64_t row) { return rows.slot(row, b); });
        }
        for (int64_t row = 0; row < tile.rows; ++row)
            for (int64_t head = 0; head < heads_; ++head) weigh(scores + (row * heads_ + head) * capacity, rows, row);
        std::fill(sums, sums + count * stride_, 0.0f);
        for (int64_t b = 0; b < sink_end; ++b)
            add(moved, tile.rows, b, [&](int64_t) { return b * size; },
                [&](int64_t) { return Range{0, std::min(size, s_.sinks - b * size)}; });
        for (int64_t index = 0; index < blocks; ++index) {
            const int64_t b = begin + index;
            look(blocks + index);
            add(rows.begin_of(b), rows.end_of(b), b, [&](int64_t row) { return rows.slot(row, b); },
                [&](int64_t row) { return rows.seen(row, b); });
        }
        for (int64_t row = 0; row < tile.rows; ++row)
            for (int64_t head = 0; head < heads_; ++head) {
                float *to = q + (tile.first + row) * row_stride + at + head * s_.head_size;
                const float *sum = sums + (row * heads_ + head) * stride_;
                for (int64_t index = 0; index < s_.head_size; ++index) to[index] = sum[index] * INPUT;
            }
        if (!s_.rounds) return;
        const int64_t inputs = padded(static_cast<int64_t>(s_.heads) * s_.head_size);
        const int64_t end = group + 1 < s_.groups ? at + heads_ * s_.head_size : inputs;
        for (int64_t row = tile.first; row < tile.first + tile.rows; ++row) round_inputs(q + row * row_stride, inputs, at, end);
    }

  private:
    // First position that one sees after the sinks; 0 while nothing is dropped between.
    int64_t first_seen(int64_t position) const {
        const int64_t first = s_.window ? position - s_.window + 1 : 0;
        return first > s_.sinks ? first : 0;
    }

    bool meets_sinks_apart(int64_t position) const { return s_.sinks && first_seen(position); }

    // Where in a sequence a row looks, in blocks, and whether it sees the sinks apart.
    struct Row {
        int64_t position, first, first_block, end_block;
        bool moved;
    };

    // Where in a sequence a tile's rows look, and where in a row of scores that is: the slots of the sinks' blocks, for
    // rows that see these apart, then those of the blocks that hold the window.
    class Rows {
      public:
        Rows(const Tile &tile, const Attention &attention) : count_(tile.rows), size_(attention.s_.block_size), sinks_(attention.sink_blocks_ * size_) {
            for (int64_t row = 0; row < count_; ++row) {
                const int64_t position = tile.position + row, first = attention.first_seen(position);
                rows_[row] = {position, first, first / size_, position / size_ + 1, attention.meets_sinks_apart(position)};
            }
        }

        const Row &operator[](int64_t row) const { return rows_[row]; }
        int64_t first_block() const { return rows_[0].first_block; }
        int64_t end_block() const { return rows_[count_ - 1].end_block; }
        int64_t first_moved() const {
            int64_t row = 0;
            while (row < count_ && !rows_[row].moved) ++row;
            return row;
        }
        int64_t most_blocks() const {
            int64_t most = 0;
            for (int64_t row = 0; row < count_; ++row) most = std::max(most, rows_[row].end_block - rows_[row].first_block);
            return most;
        }
        int64_t sinks_of(int64_t row) const { return rows_[row].moved ? sinks_ : 0; }
        int64_t sink_slots() const { return sinks_of(count_ - 1); }
        // Rows that see something of a block: from one to another, as both ends of the window move on with the rows.
        int64_t begin_of(int64_t b) const {
            int64_t row = 0;
            while (rows_[row].end_block <= b) ++row;
            return row;
        }
        int64_t end_of(int64_t b) const {
            int64_t row = count_;
            while (rows_[row - 1].first_block > b) --row;
            return row;
        }
        int64_t slot(int64_t row, int64_t b) const { return sinks_of(row) + (b - rows_[row].first_block) * size_; }
        Range seen(int64_t row, int64_t b) const {
            return {std::max<int64_t>(rows_[row].first - b * size_, 0), std::min(size_, rows_[row].position + 1 - b * size_)};
        }

      private:
        int64_t count_, size_, sinks_;
        Row rows_[TOGETHER] = {};
    };

    int64_t block_of(const Tile &tile, int64_t b) const { return tile.table[b < sink_blocks_ ? b : b - tile.dropped]; }

    int64_t bytes() const { return s_.cache_format == FP8 ? 1 : s_.cache_format == BF16 ? 2 : 4; }

    const uint8_t *block_at(const void *cache, int64_t group, const Tile &tile, int64_t b) const {
        return static_cast<const uint8_t *>(cache) + (group * s_.slots + block_of(tile, b) * s_.block_size) * s_.head_size * bytes();
    }

    // A row's queries by 1 / sqrt(H), padded with zeros, from one on: 8 inputs of two queries, then the next 8 of both.
    void scale(const float *from, int64_t query, float *queries) const {
        const int64_t H = s_.head_size;
        const float by = 1.0f / std::sqrt(static_cast<float>(H));
        for (int64_t head = 0; head < heads_; ++head, ++query, from += H) {
            float *to = queries + query / 2 * 2 * stride_ + query % 2 * LANES;
            for (int64_t at = 0; at < stride_; at += LANES, to += 2 * LANES)
                for (int lane = 0; lane < LANES; ++lane) to[lane] = at + lane < H ? from[at + lane] * by : 0.0f;
        }
    }

    // Scores with the keys of a block of some pairs of queries, at most P at once.
    template <int P> void dots(const float *queries, int64_t begin, int64_t end, const float *block, float *const *outs, BlocksAhead &ahead) const {
        for (; begin + P <= end; begin += P) dots_of_pairs<P>(queries + begin * 2 * stride_, block, outs + begin * 2, ahead);
        if constexpr (P > 1) dots<P / 2>(queries, begin, end, block, outs, ahead);
    }

    template <int P> void dots_of_pairs(const float *queries, const float *block, float *const *outs, BlocksAhead &ahead) const {
        constexpr int K = 4, VECTORS = 2 * LANES / Widest::SIZE; // of a pair
        using Type = Widest::Type;
        for (int64_t key = 0; key < s_.block_size; key += K) {
            ahead.ask();
            Type sums[P * VECTORS][K];
            for (auto &of_vector : sums)
                for (auto &sum : of_vector) sum = Widest::all(0.0f);
            for (int64_t at = 0; at < stride_; at += LANES) {
                Type keys[K];
                for (int index = 0; index < K; ++index) keys[index] = Widest::repeated(_mm256_loadu_ps(block + (key + index) * stride_ + at));
                for (int vector = 0; vector < P * VECTORS; ++vector) {
                    const Type value = Widest::load(queries + (vector / VECTORS * stride_ + at) * 2 + vector % VECTORS * LANES);
                    for (int index = 0; index < K; ++index) sums[vector][index] = Widest::fmadd(keys[index], value, sums[vector][index]);
                }
            }
#ifdef __AVX512F__
            for (int pair = 0; pair < P; ++pair) {
                const __m256 scores = add_up4_halves(sums[pair]);
                _mm_storeu_ps(outs[2 * pair] + key, _mm256_castps256_ps128(scores));
                _mm_storeu_ps(outs[2 * pair + 1] + key, _mm256_extractf128_ps(scores, 1));
            }
#else
            for (int query = 0; query < 2 * P; ++query)
                _mm_storeu_ps(outs[query] + key, add_up4(sums[query][0], sums[query][1], sums[query][2], sums[query][3]));
#endif
        }
    }

    // Add the values of a block by the weights of some queries, at most Q at once.
    template <int Q>
    void weighted(int64_t count, const float *weights, int64_t weight_stride, const float *block, const Range &range, float *sums, BlocksAhead &ahead) const {
        for (; count >= Q; count -= Q, weights += Q * weight_stride, sums += Q * stride_) {
            int64_t at = 0;
            const auto lanes = [&]<class V, int N>() {
                for (; at + N * V::SIZE <= stride_; at += N * V::SIZE) weighted_lanes<V, Q, N>(weights, weight_stride, block + at, range, sums + at, ahead);
            };
            lanes.template operator()<Widest, 4>();
            lanes.template operator()<Widest, 1>();
            if constexpr (Widest::SIZE != LANES) lanes.template operator()<Vector8, 1>();
        }
        if constexpr (Q > 1) weighted<Q / 2>(count, weights, weight_stride, block, range, sums, ahead);
    }

    template <class V, int Q, int N>
    void weighted_lanes(const float *weights, int64_t weight_stride, const float *block, const Range &range, float *sums, BlocksAhead &ahead) const {
        typename V::Type all[Q][N];
        for (int query = 0; query < Q; ++query)
            for (int index = 0; index < N; ++index) all[query][index] = V::load(sums + query * stride_ + index * V::SIZE);
        for (int64_t key = range.begin; key < range.end; ++key) {
            if (key % 4 == 0) ahead.ask();
            typename V::Type values[N];
            for (int index = 0; index < N; ++index) values[index] = V::load(block + key * stride_ + index * V::SIZE);
            for (int query = 0; query < Q; ++query) {
                const auto weight = V::all(weights[query * weight_stride + key]);
                for (int index = 0; index < N; ++index) all[query][index] = V::fmadd(weight, values[index], all[query][index]);
            }
        }
        for (int query = 0; query < Q; ++query)
            for (int index = 0; index < N; ++index) V::store(sums + query * stride_ + index * V::SIZE, all[query][index]);
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
            to_bf16(from, H, static_cast<uint16_t *>(cache) + key * H);
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
        const int64_t H = s_.head_size;
        const uint8_t *from = static_cast<const uint8_t *>(cache) + first * H * BYTES;
        for (int64_t key = 0; key < count; ++key, from += H * BYTES, out += stride_) {
            int64_t at = 0;
            const auto put = [&]<class V>(const uint8_t *values) {
                auto wide = V::template read<F>(values);
                if constexpr (F == FP8) wide = V::mul(wide, V::all(scales[key]));
                V::store(out + at, wide);
            };
            for (; at + Widest::SIZE <= H; at += Widest::SIZE) put.template operator()<Widest>(from + at * BYTES);
            for (; at + LANES <= H; at += LANES) put.template operator()<Vector8>(from + at * BYTES);
            if (at == H) continue;
            uint8_t rest[LANES * BYTES] = {};
            std::memcpy(rest, from + at * BYTES, (H - at) * BYTES);
            put.template operator()<Vector8>(rest);
        }
    }

    // Softmax over what a row sees of its scores.
    void weigh(float *scores, const Rows &rows, int64_t row) const {
        const int64_t size = s_.block_size, sinks = rows.sinks_of(row), base = rows[row].first_block * size;
        const int64_t keys = sinks + rows[row].end_block * size - base;
        const auto hide = [&](int64_t begin, int64_t end) {
            std::fill(scores + begin, scores + end, -std::numeric_limits<float>::infinity());
        };
        if (sinks) hide(s_.sinks, sinks);
        hide(sinks, sinks + rows[row].first - base);
        hide(sinks + rows[row].position + 1 - base, keys);
        __m256 most = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
        for (int64_t key = 0; key < keys; key += LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + key));
        const float top = greatest(most);
        each_vector(keys, [&]<class V>(int64_t key) { V::store(scores + key, exp<V>(V::sub(V::load(scores + key), V::all(top)))); });
        __m256 sum = _mm256_setzero_ps();
        for (int64_t key = 0; key < keys; key += LANES) sum = _mm256_add_ps(sum, _mm256_loadu_ps(scores + key));
        const float share = 1.0f / add_up(sum);
        each_vector(keys, [&]<class V>(int64_t key) { V::store(scores + key, V::mul(V::load(scores + key), V::all(share))); });
    }

    const Shape s_;
    const int64_t stride_; // H, padded
    const int64_t heads_;  // that share keys
    const int64_t sink_blocks_;
};

} // namespace arctic
