// Attention of single rows over paged keys and values in bf16 or fp32: [G, slots, H] a layer.
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

namespace arctic {

// What one thread needs for itself.
struct AttentionScratch {
    Buffer scores, block;
};

class Attention {
  public:
    explicit Attention(const Shape &shape) : s_(shape) {}

    // Turn a row's queries and keys by its position, and write keys and values into the cache.
    void place(const LayerWeights &layer, const Step &step, int64_t row, float *q, float *k, const float *v) const {
        const int64_t H = s_.head_size;
        const float *cosines = step.cosines + row * H, *sines = step.sines + row * H;
        for (int head = 0; head < s_.heads; ++head) turn(q + head * H, cosines, sines);
        const int64_t position = step.positions[row];
        const int32_t *table = step.tables + step.offsets[row];
        const int64_t slot = static_cast<int64_t>(table[position / s_.block_size]) * s_.block_size + position % s_.block_size;
        for (int group = 0; group < s_.groups; ++group) {
            float *key = k + group * H;
            turn(key, cosines, sines);
            keep(layer.keys, group, slot, key);
            keep(layer.values, group, slot, v + group * H);
        }
    }

    // All heads of a row that share keys: scores block by block of the cache, softmax, weighted sum in the order of keys.
    void attend(const LayerWeights &layer, const Step &step, int64_t row, int64_t group, float *q, AttentionScratch &own) const {
        const int64_t H = s_.head_size, stride = padded(H), heads = s_.heads / s_.groups, size = s_.block_size;
        const int64_t visible = step.positions[row] + 1, blocks = (visible + size - 1) / size, keys = blocks * size;
        const int32_t *table = step.tables + step.offsets[row];
        float *scores = own.scores.get(heads * keys + (2 * heads) * stride), *queries = scores + heads * keys, *sums = queries + heads * stride;
        float *block = own.block.get(size * stride);
        float *from = q + group * heads * H;
        const float scale = 1.0f / std::sqrt(static_cast<float>(H));
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t at = 0; at < stride; ++at) queries[head * stride + at] = at < H ? from[head * H + at] * scale : 0.0f;
        for (int64_t b = 0; b < blocks; ++b) {
            widen(layer.keys, cache_at(group, table[b] * size), size, block);
            for (int64_t head = 0; head < heads; ++head)
                for (int64_t key = 0; key < size; key += LANES) {
                    __m256 dots[LANES];
                    for (int index = 0; index < LANES; ++index) {
                        __m256 sum = _mm256_setzero_ps();
                        for (int64_t at = 0; at < stride; at += LANES)
                            sum = _mm256_fmadd_ps(_mm256_loadu_ps(block + (key + index) * stride + at), _mm256_loadu_ps(queries + head * stride + at), sum);
                        dots[index] = sum;
                    }
                    _mm256_storeu_ps(scores + head * keys + b * size + key, add_up8(dots));
                }
        }
        for (int64_t head = 0; head < heads; ++head) weigh(scores + head * keys, visible, keys);
        std::fill(sums, sums + heads * stride, 0.0f);
        for (int64_t b = 0; b < blocks; ++b) {
            // What a freed block still holds must not reach anybody: only visible keys are read.
            const int64_t count = std::min(size, visible - b * size);
            widen(layer.values, cache_at(group, table[b] * size), count, block);
            for (int64_t head = 0; head < heads; ++head)
                for (int64_t at = 0; at < stride; at += LANES) {
                    __m256 sum = _mm256_loadu_ps(sums + head * stride + at);
                    for (int64_t key = 0; key < count; ++key)
                        sum = _mm256_fmadd_ps(_mm256_set1_ps(scores[head * keys + b * size + key]), _mm256_loadu_ps(block + key * stride + at), sum);
                    _mm256_storeu_ps(sums + head * stride + at, sum);
                }
        }
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t at = 0; at < H; ++at) from[head * H + at] = sums[head * stride + at] * INPUT;
    }

  private:
    void turn(float *head, const float *cosines, const float *sines) const {
        const int64_t half = s_.head_size / 2;
        for (int64_t at = 0; at < half; ++at) {
            const float first = head[at], second = head[at + half];
            head[at] = first * cosines[at] - second * sines[at];
            head[at + half] = second * cosines[at + half] + first * sines[at + half];
        }
    }

    int64_t cache_at(int64_t group, int64_t slot) const { return (group * s_.slots + slot) * s_.head_size; }

    void keep(void *cache, int64_t group, int64_t slot, const float *from) const {
        const int64_t at = cache_at(group, slot);
        if (s_.cache_format == FP32) {
            std::copy(from, from + s_.head_size, static_cast<float *>(cache) + at);
            return;
        }
        uint16_t *to = static_cast<uint16_t *>(cache) + at;
        for (int64_t index = 0; index < s_.head_size; ++index) {
            uint32_t bits;
            std::memcpy(&bits, from + index, sizeof bits);
            // To nearest, ties to even, as torch rounds; a NaN stays one.
            const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
            to[index] = is_nan ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
        }
    }

    // 8 or more values of the cache in fp32; head sizes are padded with zeros.
    void widen(const void *cache, int64_t at, int64_t count, float *out) const {
        const int64_t H = s_.head_size, stride = padded(H);
        for (int64_t key = 0; key < count; ++key) {
            float *to = out + key * stride;
            const int64_t from = at + key * H, whole = H / LANES * LANES;
            for (int64_t index = 0; index < whole; index += LANES)
                _mm256_storeu_ps(to + index, s_.cache_format == FP32
                                                 ? read8<FP32>(reinterpret_cast<const uint8_t *>(static_cast<const float *>(cache) + from + index))
                                                 : read8<BF16>(reinterpret_cast<const uint8_t *>(static_cast<const uint16_t *>(cache) + from + index)));
            for (int64_t index = whole; index < stride; ++index) to[index] = index < H ? one(cache, from + index) : 0.0f;
        }
    }

    float one(const void *cache, int64_t at) const {
        if (s_.cache_format == FP32) return static_cast<const float *>(cache)[at];
        const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t *>(cache)[at]) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

    // Softmax over the first `visible` of a row of scores.
    static void weigh(float *scores, int64_t visible, int64_t keys) {
        std::fill(scores + visible, scores + keys, -std::numeric_limits<float>::infinity());
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
};

} // namespace arctic
