// One call a step: the layers of one rank over a ragged batch, with paged keys and values. C++20, AVX2 and FMA.
//
// Bits of a row do not depend on other rows, on how a prompt is cut, or on the number of threads: each output is one
// accumulator of 8 lanes that takes k = 0..7, 8..15, ... in order, whichever path computes it, and is added up by one tree.
//
// e4m3 is decoded exactly: its 7 low bits, moved into the exponent and mantissa of an fp32, are the value x 2^-120, so every
// input of a product carries 2^64 and every output is multiplied by what is left. Subnormal codes become subnormal fp32s.
//
// Weights lie in panels of 8 outputs: [outputs / 8][inputs / 8][8 outputs][8 inputs], padded with zeros, so that one row
// reads memory as one stream. Names: T rows of the step, D hidden, F intermediate, N query heads, G key-value heads, H head
// size, E experts, K experts of a token, R rows of one product.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 8;
constexpr float INPUT = 0x1p64f;        // of every input of a product
constexpr float FROM_FP8 = 0x1p56f;     // 2^120 / INPUT
constexpr float FROM_OTHERS = 0x1p-64f; // 1 / INPUT
constexpr int TILE_ROWS = 3;            // 4 outputs x 3 rows: 12 accumulators, 3 inputs and a weight fill the 16 registers
constexpr int64_t BLOCK_BYTES = 256 << 10; // inputs of a block of rows, which stay in the second cache
constexpr int KEYS = 16;                // of a block of the cache at least; scores are computed for 8 at once

enum Format : int32_t { FP8 = 0, BF16 = 1, FP32 = 2 };

inline int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

// ---------------------------------------------------------------------------------------------------------- threads

// A team that persists. Who waits spins for some microseconds, then sleeps: other processes need the cores too.
class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int index = 1; index < size; ++index) threads_.emplace_back([this, index] { serve(index); });
    }

    ~Team() {
        stopping_ = true;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto &thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // Run `work(index)` on every thread; returns when all are done.
    void run(const std::function<void(int)> &work) {
        work_ = &work;
        start_.fetch_add(1);
        start_.notify_all();
        work(0);
        barrier([] {});
    }

    // Wait for all; the last one to come runs `between` before any goes on.
    template <class Between> void barrier(Between between) {
        const uint32_t phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            arrived_.store(0);
            next_.store(0);
            between();
            phase_.fetch_add(1);
            phase_.notify_all();
        } else {
            wait_while(phase_, phase);
        }
    }

    // The next of the tasks that all threads share since the last barrier.
    int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  private:
    static void wait_while(std::atomic<uint32_t> &value, uint32_t old) {
        for (int spin = 0; spin < 4000; ++spin) {
            if (value.load(std::memory_order_acquire) != old) return;
            _mm_pause();
        }
        while (value.load(std::memory_order_acquire) == old) value.wait(old);
    }

    void serve(int index) {
        uint32_t seen = 0;
        while (true) {
            wait_while(start_, seen);
            ++seen;
            if (stopping_) return;
            (*work_)(index);
            barrier([] {});
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    const std::function<void(int)> *work_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int64_t> next_{0};
};

// ---------------------------------------------------------------------------------------------------------- memory

// Floats that grow and keep no content when they do; aligned to a cache line.
class Buffer {
  public:
    ~Buffer() { std::free(data_); }
    float *get(int64_t count) {
        if (count > count_) {
            std::free(data_);
            const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
            data_ = static_cast<float *>(std::aligned_alloc(64, bytes));
            if (data_ == nullptr) throw std::bad_alloc();
            count_ = count;
        }
        return data_;
    }

  private:
    float *data_ = nullptr;
    int64_t count_ = 0;
};

// ---------------------------------------------------------------------------------------------------------- numbers

template <Format F> constexpr int bytes_of() { return F == FP8 ? 1 : F == BF16 ? 2 : 4; }

// 8 values that lie side by side, as they take part in products.
template <Format F> inline __m256 read8(const uint8_t *from) {
    if constexpr (F == FP8) {
        const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
        const __m256i moved = _mm256_slli_epi32(wide, 20);
        return _mm256_castsi256_ps(_mm256_and_si256(moved, _mm256_set1_epi32(static_cast<int>(0x87F00000u))));
    } else if constexpr (F == BF16) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    } else {
        return _mm256_loadu_ps(reinterpret_cast<const float *>(from));
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

// e^x by Cephes' expf: 2^n times a polynomial of the rest, at most 2 units in the last place off; 0 below -87.3.
inline __m256 exp8(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.33654f);
    const __m256 tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, low), _mm256_set1_ps(88.0f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

inline __m256 silu8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(x, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

} // namespace

// ---------------------------------------------------------------------------------------------------------- interface

extern "C" {

// A weight in panels; `scale` (one a padded output) is null where there is none.
struct Matrix {
    const uint8_t *data;
    const float *scale;
    int32_t format;
    int32_t outputs;
    int32_t inputs;
    int32_t unused;
};

// One layer; of a layer without experts `w1`, `w3`, `w2` are its one MLP and `gate.data` is null.
struct LayerWeights {
    const float *input_norm;
    const float *post_norm;
    const float *residual_norm;
    Matrix q, k, v, o;
    Matrix residual_w1, residual_w3, residual_w2;
    Matrix gate;
    const Matrix *w1, *w3, *w2; // one an expert
    void *keys;                 // [G, slots, H] in the cache's format
    void *values;
};

struct Shape {
    int32_t hidden, intermediate, heads, groups, head_size, experts, chosen, layers, cache_format, block_size, threads;
    float eps;
    int64_t slots;
};

// A step: row t is at `positions[t]` of its sequence, whose block table begins at `tables[offsets[t]]`.
struct Step {
    int64_t rows;
    const int32_t *positions;
    const int32_t *offsets;
    const int32_t *tables;
    const float *cosines; // [rows, H]
    const float *sines;
};
}

namespace {

// ---------------------------------------------------------------------------------------------------------- products

// 8 outputs x 1 row: one stream of weights.
template <Format F> void one_row(const uint8_t *w, const float *x, int64_t blocks, float *out) {
    __m256 sums[LANES];
    for (auto &sum : sums) sum = _mm256_setzero_ps();
    constexpr int STEP = LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        const __m256 input = _mm256_loadu_ps(x + block * LANES);
#pragma GCC unroll 8
        for (int output = 0; output < LANES; ++output) sums[output] = _mm256_fmadd_ps(read8<F>(w + output * STEP), input, sums[output]);
        w += LANES * STEP;
    }
    _mm256_storeu_ps(out, add_up8(sums));
}

// 4 outputs x R rows, R at most 3: each weight is decoded once.
template <Format F, int R>
void tile(const uint8_t *w, const float *const *x, int64_t blocks, float *out) {
    __m256 sums[R][4];
    for (auto &row : sums)
        for (auto &sum : row) sum = _mm256_setzero_ps();
    constexpr int STEP = LANES * bytes_of<F>();
    for (int64_t block = 0; block < blocks; ++block) {
        __m256 inputs[R];
#pragma GCC unroll 3
        for (int row = 0; row < R; ++row) inputs[row] = _mm256_loadu_ps(x[row] + block * LANES);
#pragma GCC unroll 4
        for (int output = 0; output < 4; ++output) {
            const __m256 weight = read8<F>(w + output * STEP);
#pragma GCC unroll 3
            for (int row = 0; row < R; ++row) sums[row][output] = _mm256_fmadd_ps(weight, inputs[row], sums[row][output]);
        }
        w += LANES * STEP;
    }
    for (int row = 0; row < R; ++row)
        _mm_storeu_ps(out + row * LANES, add_up4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
}

// All rows over one panel that is read as it is.
template <Format F> void tiles(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *from = w + half * 4 * LANES * bytes_of<F>();
        int64_t row = 0;
        for (; row + TILE_ROWS <= rows; row += TILE_ROWS) tile<F, 3>(from, x + row, blocks, out + row * LANES + half * 4);
        if (rows - row == 2) tile<F, 2>(from, x + row, blocks, out + row * LANES + half * 4);
        if (rows - row == 1) tile<F, 1>(from, x + row, blocks, out + row * LANES + half * 4);
    }
}

template <Format F> void panel(const uint8_t *w, const float *const *x, int64_t rows, int64_t blocks, float *out, Buffer &wide) {
    if (rows == 1) return one_row<F>(w, x[0], blocks, out);
    if (F == FP32 || rows <= TILE_ROWS) return tiles<F>(w, x, rows, blocks, out);
    // Many rows: decode the panel once.
    float *decoded = wide.get(blocks * LANES * LANES);
    for (int64_t index = 0; index < blocks * LANES; ++index)
        _mm256_store_ps(decoded + index * LANES, read8<F>(w + index * LANES * bytes_of<F>()));
    tiles<FP32>(reinterpret_cast<const uint8_t *>(decoded), x, rows, blocks, out);
}

// Outputs 8 p to 8 p + 7 of each row of `x` (which carries INPUT): out [R, 8].
void multiply(const Matrix &matrix, int64_t p, const float *const *x, int64_t rows, float *out, Buffer &wide) {
    const int64_t blocks = padded(matrix.inputs) / LANES;
    const int64_t size = blocks * LANES * LANES;
    switch (matrix.format) {
    case FP8: panel<FP8>(matrix.data + p * size, x, rows, blocks, out, wide); break;
    case BF16: panel<BF16>(matrix.data + p * size * 2, x, rows, blocks, out, wide); break;
    default: panel<FP32>(matrix.data + p * size * 4, x, rows, blocks, out, wide);
    }
    __m256 factor = _mm256_set1_ps(matrix.format == FP8 ? FROM_FP8 : FROM_OTHERS);
    for (int64_t row = 0; row < rows; ++row) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(out + row * LANES), factor);
        if (matrix.scale) value = _mm256_mul_ps(value, _mm256_loadu_ps(matrix.scale + p * LANES));
        _mm256_storeu_ps(out + row * LANES, value);
    }
}

int64_t panels_of(const Matrix &matrix) { return padded(matrix.outputs) / LANES; }

// Rows that are computed together, so that their inputs stay near.
int64_t block_rows(int64_t inputs) { return std::max<int64_t>(12, BLOCK_BYTES / (padded(inputs) * 4) / 12 * 12); }

// ---------------------------------------------------------------------------------------------------------- the rank

// What one thread needs for itself.
struct Scratch {
    Buffer wide, out, gated, scores, block;
    std::vector<const float *> rows;
};

class Rank {
  public:
    Rank(const Shape &shape, const LayerWeights *layers, const float *final_norm, const Matrix *head)
        : s_(shape), layers_(layers, layers + shape.layers), final_norm_(final_norm), team_(shape.threads), scratch_(shape.threads) {
        if (head) head_ = *head;
        hidden_ = padded(s_.hidden);
        attended_ = padded(static_cast<int64_t>(s_.heads) * s_.head_size);
        grouped_ = padded(static_cast<int64_t>(s_.groups) * s_.head_size);
        inner_ = padded(s_.intermediate);
        gated_ = std::max(inner_, hidden_);
    }

    // Run all layers over x [T, D], in place.
    void run(const Step &step, float *x) {
        step_ = &step;
        const int64_t rows = step.rows, choices = rows * s_.chosen;
        a_ = a_buffer_.get(rows * hidden_);
        m_ = m_buffer_.get(rows * hidden_);
        h_ = h_buffer_.get(rows * hidden_);
        q_ = q_buffer_.get(rows * attended_);
        k_ = k_buffer_.get(rows * grouped_);
        v_ = v_buffer_.get(rows * grouped_);
        g_ = g_buffer_.get(rows * gated_);
        logits_ = logits_buffer_.get(rows * padded(std::max(s_.experts, 1)));
        gates_ = gates_buffer_.get(choices);
        chosen_.resize(choices);
        expert_gated_ = expert_gated_buffer_.get(choices * inner_);
        expert_out_ = expert_out_buffer_.get(choices * hidden_);
        team_.run([&](int thread) {
            for (const auto &layer : layers_) run_layer(layer, x, thread);
        });
    }

    // Logits [R, V] of some rows of x [T, D].
    void logits(const float *x, const int64_t *rows, int64_t count, float *out) {
        a_ = a_buffer_.get(count * hidden_);
        team_.run([&](int thread) {
            share(count, [&](int64_t row) { norm(x + rows[row] * s_.hidden, final_norm_, a_ + row * hidden_); });
            team_.barrier([] {});
            products(head_, a_, hidden_, count, thread, [&](int64_t row, int64_t at, __m256 value) {
                store(out + row * head_.outputs, at, head_.outputs, value);
            });
        });
    }

  private:
    template <class Task> void share(int64_t tasks, Task task) {
        for (int64_t index = team_.take(); index < tasks; index = team_.take()) task(index);
    }

    // x / rms(x) * weight, carrying INPUT; what pads it is zero.
    void norm(const float *x, const float *weight, float *out) const {
        __m256 sum = _mm256_setzero_ps();
        const int64_t whole = s_.hidden / LANES * LANES;
        for (int64_t at = 0; at < whole; at += LANES) {
            const __m256 value = _mm256_loadu_ps(x + at);
            sum = _mm256_fmadd_ps(value, value, sum);
        }
        float squares = add_up(sum);
        for (int64_t at = whole; at < s_.hidden; ++at) squares += x[at] * x[at];
        const float scale = 1.0f / std::sqrt(squares / static_cast<float>(s_.hidden) + s_.eps);
        for (int64_t at = 0; at < s_.hidden; ++at) out[at] = weight[at] * (x[at] * scale) * INPUT;
        for (int64_t at = s_.hidden; at < hidden_; ++at) out[at] = 0.0f;
    }

    static void store(float *out, int64_t at, int64_t size, __m256 value) {
        if (at + LANES <= size) {
            _mm256_storeu_ps(out + at, value);
            return;
        }
        alignas(32) float all[LANES];
        _mm256_store_ps(all, value);
        std::copy(all, all + (size - at), out + at);
    }

    static __m256 load(const float *from, int64_t at, int64_t size) {
        if (at + LANES <= size) return _mm256_loadu_ps(from + at);
        alignas(32) float all[LANES] = {};
        std::copy(from + at, from + size, all);
        return _mm256_load_ps(all);
    }

    // Tasks of a product: (block of rows, panel). `task(first row, rows, panel)`.
    struct Tasks {
        int64_t rows, block, panels;
        int64_t count() const { return (rows + block - 1) / block * panels; }
    };

    static Tasks tasks_of(const Matrix &matrix, int64_t rows) { return {rows, block_rows(matrix.inputs), panels_of(matrix)}; }

    const float *const *rows_of(const float *x, int64_t stride, int64_t first, int64_t rows, Scratch &own) {
        own.rows.resize(rows);
        for (int64_t row = 0; row < rows; ++row) own.rows[row] = x + (first + row) * stride;
        return own.rows.data();
    }

    // One task of a product of all rows of x.
    template <class Put>
    void product(const Matrix &matrix, const Tasks &tasks, int64_t index, const float *x, int64_t stride, int thread, Put put) {
        const int64_t first = index / tasks.panels * tasks.block, rows = std::min(tasks.block, tasks.rows - first);
        const int64_t p = index % tasks.panels;
        Scratch &own = scratch_[thread];
        float *out = own.out.get(rows * LANES);
        multiply(matrix, p, rows_of(x, stride, first, rows, own), rows, out, own.wide);
        for (int64_t row = 0; row < rows; ++row) put(first + row, p * LANES, _mm256_loadu_ps(out + row * LANES));
    }

    template <class Put> void products(const Matrix &matrix, const float *x, int64_t stride, int64_t rows, int thread, Put put) {
        const Tasks tasks = tasks_of(matrix, rows);
        share(tasks.count(), [&](int64_t index) { product(matrix, tasks, index, x, stride, thread, put); });
    }

    // One panel of silu(w1 x) * w3 x of some rows, carrying INPUT: `out(row)` is where a row's begins.
    template <class Out>
    void gate(const Matrix &w1, const Matrix &w3, int64_t p, const float *const *x, int64_t rows, int thread, Out out) {
        Scratch &own = scratch_[thread];
        float *first = own.out.get(rows * LANES), *third = own.gated.get(rows * LANES);
        multiply(w1, p, x, rows, first, own.wide);
        multiply(w3, p, x, rows, third, own.wide);
        for (int64_t row = 0; row < rows; ++row) {
            const __m256 value = _mm256_mul_ps(silu8(_mm256_loadu_ps(first + row * LANES)), _mm256_loadu_ps(third + row * LANES));
            _mm256_storeu_ps(out(row) + p * LANES, _mm256_mul_ps(value, _mm256_set1_ps(INPUT)));
        }
    }

    void run_layer(const LayerWeights &layer, float *x, int thread) {
        const int64_t rows = step_->rows, D = s_.hidden;
        const bool experts = layer.gate.data != nullptr;
        share(rows, [&](int64_t row) {
            norm(x + row * D, layer.input_norm, a_ + row * hidden_);
            if (experts) norm(x + row * D, layer.post_norm, m_ + row * hidden_);
        });
        team_.barrier([] {});
        project(layer, thread, experts);
        team_.barrier([] {});
        share(rows, [&](int64_t row) {
            place(layer, row);
            if (experts) route(row);
        });
        team_.barrier([&] { if (experts) sort_by_expert(); });
        attend_and_expand(layer, thread, experts);
        team_.barrier([] {});
        contract_and_project(layer, x, thread, experts);
        team_.barrier([] {});
        const float *second_norm = experts ? layer.residual_norm : layer.post_norm;
        share(rows, [&](int64_t row) { norm(h_ + row * hidden_, second_norm, m_ + row * hidden_); });
        team_.barrier([] {});
        const Matrix &w1 = experts ? layer.residual_w1 : layer.w1[0], &w3 = experts ? layer.residual_w3 : layer.w3[0];
        const Matrix &w2 = experts ? layer.residual_w2 : layer.w2[0];
        const Tasks tasks = tasks_of(w1, rows);
        share(tasks.count(), [&](int64_t index) {
            const int64_t first = index / tasks.panels * tasks.block, count = std::min(tasks.block, rows - first);
            const float *const *inputs = rows_of(m_, hidden_, first, count, scratch_[thread]);
            gate(w1, w3, index % tasks.panels, inputs, count, thread, [&](int64_t row) { return g_ + (first + row) * gated_; });
        });
        team_.barrier([] {});
        products(w2, g_, gated_, rows, thread, [&](int64_t row, int64_t at, __m256 value) {
            __m256 y = _mm256_add_ps(_mm256_loadu_ps(h_ + row * hidden_ + at), value);
            if (experts) y = _mm256_add_ps(y, mixed(row, at));
            store(x + row * D, at, D, y);
        });
        team_.barrier([] {});
    }

    // Queries, keys, values, and the router's logits.
    void project(const LayerWeights &layer, int thread, bool experts) {
        const int64_t rows = step_->rows;
        struct Part {
            const Matrix *matrix;
            const float *x;
            float *out;
            int64_t stride;
        };
        const Part parts[] = {{&layer.q, a_, q_, attended_},
                              {&layer.k, a_, k_, grouped_},
                              {&layer.v, a_, v_, grouped_},
                              {&layer.gate, m_, logits_, padded(std::max(s_.experts, 1))}};
        const int used = experts ? 4 : 3;
        Tasks tasks[4];
        int64_t ends[4], total = 0;
        for (int part = 0; part < used; ++part) ends[part] = total += (tasks[part] = tasks_of(*parts[part].matrix, rows)).count();
        share(total, [&](int64_t index) {
            int part = 0;
            while (index >= ends[part]) ++part;
            const Part &of = parts[part];
            const int64_t own = index - (part ? ends[part - 1] : 0);
            product(*of.matrix, tasks[part], own, of.x, hidden_, thread, [&](int64_t row, int64_t at, __m256 value) {
                _mm256_storeu_ps(of.out + row * of.stride + at, value);
            });
        });
    }

    // Turn a row's queries and keys by its position, and write keys and values into the cache.
    void place(const LayerWeights &layer, int64_t row) {
        const int64_t H = s_.head_size;
        const float *cosines = step_->cosines + row * H, *sines = step_->sines + row * H;
        for (int head = 0; head < s_.heads; ++head) turn(q_ + row * attended_ + head * H, cosines, sines);
        const int64_t position = step_->positions[row];
        const int32_t *table = step_->tables + step_->offsets[row];
        const int64_t slot = static_cast<int64_t>(table[position / s_.block_size]) * s_.block_size + position % s_.block_size;
        for (int group = 0; group < s_.groups; ++group) {
            float *key = k_ + row * grouped_ + group * H;
            turn(key, cosines, sines);
            keep(layer.keys, group, slot, key);
            keep(layer.values, group, slot, v_ + row * grouped_ + group * H);
        }
    }

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

    // Softmax in fp32, the likeliest K, their probabilities by the sum of these.
    void route(int64_t row) {
        const float *logits = logits_ + row * padded(s_.experts);
        const float most = *std::max_element(logits, logits + s_.experts);
        int32_t *chosen = chosen_.data() + row * s_.chosen;
        float *gates = gates_ + row * s_.chosen;
        float total = 0.0f;
        for (int choice = 0; choice < s_.chosen; ++choice) {
            int best = -1;
            for (int expert = 0; expert < s_.experts; ++expert) {
                const bool taken = std::find(chosen, chosen + choice, expert) != chosen + choice;
                if (!taken && (best < 0 || logits[expert] > logits[best])) best = expert;
            }
            chosen[choice] = best;
            gates[choice] = std::exp(logits[best] - most);
            total += gates[choice];
        }
        for (int choice = 0; choice < s_.chosen; ++choice) gates[choice] /= total;
    }

    // Which rows each expert has; on one thread.
    void sort_by_expert() {
        const int64_t choices = step_->rows * s_.chosen;
        starts_.assign(s_.experts + 1, 0);
        for (int64_t choice = 0; choice < choices; ++choice) ++starts_[chosen_[choice] + 1];
        for (int expert = 0; expert < s_.experts; ++expert) starts_[expert + 1] += starts_[expert];
        sorted_.resize(choices);
        auto next = starts_;
        for (int64_t choice = 0; choice < choices; ++choice) sorted_[next[chosen_[choice]]++] = choice;
    }

    // Tasks of products of experts: block of an expert's rows by panel.
    struct ExpertTask {
        int expert;
        int64_t first, rows, panel;
    };

    int64_t expert_tasks(int64_t panels, int64_t block) const {
        int64_t total = 0;
        for (int expert = 0; expert < s_.experts; ++expert) total += (starts_[expert + 1] - starts_[expert] + block - 1) / block * panels;
        return total;
    }

    ExpertTask expert_task(int64_t index, int64_t panels, int64_t block) const {
        for (int expert = 0;; ++expert) {
            const int64_t rows = starts_[expert + 1] - starts_[expert], count = (rows + block - 1) / block * panels;
            if (index < count) {
                const int64_t first = index / panels * block;
                return {expert, starts_[expert] + first, std::min(block, rows - first), index % panels};
            }
            index -= count;
        }
    }

    // Attention, and what of the experts does not wait for it: they read the layer's input from before attention.
    void attend_and_expand(const LayerWeights &layer, int thread, bool experts) {
        const int64_t attentions = step_->rows * s_.groups;
        const int64_t panels = experts ? panels_of(layer.w1[0]) : 0, block = experts ? block_rows(s_.hidden) : 1;
        const int64_t total = attentions + (experts ? expert_tasks(panels, block) : 0);
        share(total, [&](int64_t index) {
            // The last rows of a prompt see the most keys: they begin.
            if (index < attentions) return attend(layer, step_->rows - 1 - index / s_.groups, index % s_.groups, thread);
            const ExpertTask task = expert_task(index - attentions, panels, block);
            Scratch &own = scratch_[thread];
            own.rows.resize(task.rows);
            for (int64_t row = 0; row < task.rows; ++row) own.rows[row] = m_ + sorted_[task.first + row] / s_.chosen * hidden_;
            gate(layer.w1[task.expert], layer.w3[task.expert], task.panel, own.rows.data(), task.rows, thread,
                 [&](int64_t row) { return expert_gated_ + sorted_[task.first + row] * inner_; });
        });
    }

    // The output projection of attention, and of the experts.
    void contract_and_project(const LayerWeights &layer, const float *x, int thread, bool experts) {
        const Tasks tasks = tasks_of(layer.o, step_->rows);
        const int64_t panels = experts ? panels_of(layer.w2[0]) : 0, block = experts ? block_rows(s_.intermediate) : 1;
        const int64_t total = tasks.count() + (experts ? expert_tasks(panels, block) : 0);
        share(total, [&](int64_t index) {
            if (index < tasks.count()) {
                product(layer.o, tasks, index, q_, attended_, thread, [&](int64_t row, int64_t at, __m256 value) {
                    const __m256 before = load(x + row * s_.hidden, at, s_.hidden);
                    _mm256_storeu_ps(h_ + row * hidden_ + at, _mm256_add_ps(before, value));
                });
                return;
            }
            const ExpertTask task = expert_task(index - tasks.count(), panels, block);
            Scratch &own = scratch_[thread];
            own.rows.resize(task.rows);
            for (int64_t row = 0; row < task.rows; ++row) own.rows[row] = expert_gated_ + sorted_[task.first + row] * inner_;
            float *out = own.out.get(task.rows * LANES);
            multiply(layer.w2[task.expert], task.panel, own.rows.data(), task.rows, out, own.wide);
            for (int64_t row = 0; row < task.rows; ++row)
                _mm256_storeu_ps(expert_out_ + sorted_[task.first + row] * hidden_ + task.panel * LANES, _mm256_loadu_ps(out + row * LANES));
        });
    }

    // The experts' outputs of a row by their gates, in the order of choice.
    __m256 mixed(int64_t row, int64_t at) const {
        __m256 sum = _mm256_setzero_ps();
        for (int choice = 0; choice < s_.chosen; ++choice) {
            const int64_t index = row * s_.chosen + choice;
            sum = _mm256_fmadd_ps(_mm256_set1_ps(gates_[index]), _mm256_loadu_ps(expert_out_ + index * hidden_ + at), sum);
        }
        return sum;
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

    // All heads of a row that share keys: scores block by block of the cache, softmax, weighted sum in the order of keys.
    void attend(const LayerWeights &layer, int64_t row, int64_t group, int thread) {
        const int64_t H = s_.head_size, stride = padded(H), heads = s_.heads / s_.groups, size = s_.block_size;
        const int64_t visible = step_->positions[row] + 1, blocks = (visible + size - 1) / size, keys = blocks * size;
        const int32_t *table = step_->tables + step_->offsets[row];
        Scratch &own = scratch_[thread];
        float *scores = own.scores.get(heads * keys + (2 * heads) * stride), *queries = scores + heads * keys, *sums = queries + heads * stride;
        float *block = own.block.get(size * stride);
        float *from = q_ + row * attended_ + group * heads * H;
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
    const std::vector<LayerWeights> layers_;
    const float *final_norm_;
    Matrix head_{};
    Team team_;
    std::vector<Scratch> scratch_;
    int64_t hidden_, attended_, grouped_, inner_, gated_; // padded sizes
    Buffer a_buffer_, m_buffer_, h_buffer_, q_buffer_, k_buffer_, v_buffer_, g_buffer_, logits_buffer_, gates_buffer_, expert_gated_buffer_, expert_out_buffer_;
    // Of the step under way. a, m: normalised inputs; h: after attention; g: gated; the others by their names.
    const Step *step_ = nullptr;
    float *a_, *m_, *h_, *q_, *k_, *v_, *g_, *logits_, *gates_, *expert_gated_, *expert_out_;
    std::vector<int32_t> chosen_;
    std::vector<int64_t> starts_, sorted_;
};

} // namespace

extern "C" {

// Whether this processor has what this file is compiled for.
int arctic_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// A rank; null when there is no memory. What the pointers lead to must outlive it.
void *arctic_rank(const Shape *shape, const LayerWeights *layers, const float *final_norm, const Matrix *head) {
    try {
        return new Rank(*shape, layers, final_norm, head);
    } catch (...) {
        return nullptr;
    }
}

void arctic_free(void *rank) { delete static_cast<Rank *>(rank); }

// Run the layers over x [rows, hidden], in place; 0, or 1 when memory has run out.
int arctic_run(void *rank, const Step *step, float *x) {
    try {
        static_cast<Rank *>(rank)->run(*step, x);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// Logits [count, vocabulary] of some rows of x.
int arctic_logits(void *rank, const float *x, const int64_t *rows, int64_t count, float *out) {
    try {
        static_cast<Rank *>(rank)->logits(x, rows, count, out);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
}
