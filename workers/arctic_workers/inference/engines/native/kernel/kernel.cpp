// One call a step: the layers of one rank over a ragged batch, with paged keys and values. C++20, AVX2 and FMA;
// compiled for AVX-512 too, where products have code of their own and the other loops wider vectors.
//
// Bits of a row do not depend on other rows, on how a prompt is cut, or on the number of threads or tensor ranks.
//
// A tensor rank is some of the threads, with a range of the outputs of each weight, or whole experts of their own, and some of the
// key-value heads, in memory that they alone read. Each output is computed whole by one thread; what lies between weights is shared by all.
//
// Names: T rows of the step, D hidden, F intermediate, N query heads, G key-value heads, H head size, E experts, K experts of
// a token, R rows of one product.

#include "additions.h"
#include "attention.h"
#include "interface.h"
#include "numbers.h"
#include "products.h"
#include "team.h"
#include "vectors.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>
#include <vector>

namespace arctic {

using Clock = std::chrono::steady_clock;

// Parts of a step, each ended by a barrier.
enum Part { NORMS, PROJECTIONS, PLACING, ATTENTION_AND_EXPERTS, OUTPUTS, RESIDUAL_IN, RESIDUAL_OUT, LOGITS, PARTS };

// What one thread needs for itself.
struct Scratch {
    Range groups; // key-value heads of its tensor rank
    int64_t layer = 0; // that it is at
    Buffer sums, out, gated;
    AttentionScratch attention;
    std::vector<const float *> rows;
};

class Rank {
  public:
    Rank(const Shape &shape, const LayerWeights *layers, const Ends &ends, const uint8_t *cpus)
        : s_(shape), layers_(layers, layers + static_cast<int64_t>(shape.tensor) * shape.layers), ends_(ends), attention_(shape),
          team_(shape.threads, shape.tensor, cpus), scratch_(shape.threads), expert_blocks_(shape.tensor) {
        for (int rank = 0; ends.head && rank < shape.tensor; ++rank) vocabulary_ += ends.head[rank].outputs;
        for (int thread = 0; thread < shape.threads; ++thread) scratch_[thread].groups = part_of(s_.groups, team_.rank_of(thread), s_.tensor);
        hidden_ = stride_of_inputs(s_.hidden);
        attended_ = stride_of_inputs(static_cast<int64_t>(s_.heads) * s_.head_size);
        grouped_ = row_stride(static_cast<int64_t>(s_.groups) * s_.head_size);
        inner_ = stride_of_inputs(s_.intermediate);
        gated_ = std::max(inner_, hidden_);
    }

    // Have adapters [count, layers] for the spans that name them; what it leads to must outlive this.
    void adapt(const LayerAdditions *additions, int64_t count) { additions_.set(additions, count, s_.layers); }

    // Run all layers over x [T, D], in place; where the step has tokens, these are what x is made of.
    void run(const Step &step, float *x) {
        step_ = &step;
        Attention::cut(step, tiles_);
        additions_.begin(step);
        const int64_t rows = step.rows, choices = rows * s_.chosen;
        a_ = a_buffer_.get(rows * hidden_);
        m_ = m_buffer_.get(rows * hidden_);
        h_ = h_buffer_.get(rows * hidden_);
        q_ = q_buffer_.get(rows * attended_);
        sink_q_ = s_.sinks ? sink_q_buffer_.get(rows * attended_) : q_;
        k_ = k_buffer_.get(rows * grouped_);
        v_ = v_buffer_.get(rows * grouped_);
        g_ = g_buffer_.get(rows * gated_);
        logits_ = logits_buffer_.get(rows * padded(std::max(s_.experts, 1)));
        gates_ = gates_buffer_.get(choices);
        chosen_.resize(choices);
        expert_gated_ = expert_gated_buffer_.get(choices * inner_);
        expert_out_ = expert_out_buffer_.get(choices * hidden_);
        rotations_ = rotations_buffer_.get(rows * attention_.rotation_size());
        since_ = Clock::now();
        team_.run([&](int thread) {
            team_.share(thread, static_cast<int64_t>(tiles_.size()), [&](int64_t index) { begin(tiles_[index], x); });
            finish(NORMS);
            const LayerWeights *own = layers_.data() + static_cast<int64_t>(team_.rank_of(thread)) * s_.layers;
            for (int64_t &layer = scratch_[thread].layer = 0; layer < s_.layers; ++layer) run_layer(own[layer], x, thread);
        });
    }

    // Logits [R, V] of some rows of x [T, D], and the likeliest token of each.
    void logits(const float *x, const int64_t *rows, int64_t count, float *out, int64_t *likeliest) {
        a_ = a_buffer_.get(count * hidden_);
        since_ = Clock::now();
        team_.run([&](int thread) {
            team_.share(thread, count, [&](int64_t row) { norm(x + rows[row] * s_.hidden, ends_.norm, a_ + row * hidden_); });
            finish(NORMS);
            products(ends_.head[team_.rank_of(thread)], a_, hidden_, count, thread, [&](int64_t row, int64_t at, __m256 value) {
                store(out + row * vocabulary_, at, vocabulary_, value);
            });
            finish(LOGITS);
            team_.share(thread, count, [&](int64_t row) { likeliest[row] = place_of_greatest(out + row * vocabulary_, vocabulary_); });
            finish(LOGITS);
        });
    }

    // Seconds of each part since the rank was made, waiting for each other included.
    const double *seconds() const { return seconds_; }

  private:
    // Wait for all threads: the part of the step is over. The last to come runs `between` before any goes on.
    template <class Between> void finish(Part part, Between between) {
        team_.barrier([&] {
            const auto now = Clock::now();
            seconds_[part] += std::chrono::duration<double>(now - since_).count();
            since_ = now;
            between();
        });
    }

    void finish(Part part) {
        finish(part, [] {});
    }

    // What the layers ask of a tile's rows: their rotations, and hidden states if they begin here.
    void begin(const Tile &tile, float *x) {
        for (int64_t row = tile.first; row < tile.first + tile.rows; ++row) {
            attention_.rotation(tile.position + row - tile.first, ends_, rotations_ + row * attention_.rotation_size());
            if (step_->tokens) embed(step_->tokens[row], x + row * s_.hidden);
        }
    }

    void embed(int64_t token, float *out) const {
        const int64_t from = token * s_.hidden;
        if (ends_.embedding.format == FP32) {
            const float *values = reinterpret_cast<const float *>(ends_.embedding.data) + from;
            std::copy(values, values + s_.hidden, out);
        } else {
            const uint16_t *values = reinterpret_cast<const uint16_t *>(ends_.embedding.data) + from;
            for (int64_t at = 0; at < s_.hidden; ++at) out[at] = std::bit_cast<float>(static_cast<uint32_t>(values[at]) << 16);
        }
    }

    // The first place of the greatest of some values; of what is no number nothing is said.
    static int64_t place_of_greatest(const float *values, int64_t count) {
        const int64_t whole = count / LANES * LANES;
        __m256 most = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
        for (int64_t at = 0; at < whole; at += LANES) most = _mm256_max_ps(_mm256_loadu_ps(values + at), most);
        float top = greatest(most);
        for (int64_t at = whole; at < count; ++at) top = std::max(top, values[at]);
        return (std::find(values, values + count, top) - values) % count;
    }

    // Floats from one row to the next of what products read: where they round, the row in bf16 follows.
    int64_t stride_of_inputs(int64_t size) const { return row_stride(s_.rounds ? padded(size) + padded(size) / 2 : size); }

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
        for (int64_t at = s_.hidden; at < padded(s_.hidden); ++at) out[at] = 0.0f;
        if (s_.rounds) round_inputs(out, padded(s_.hidden), 0, padded(s_.hidden));
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

    static Tasks tasks_of(const Matrix &matrix, int64_t rows) { return {rows, block_rows(matrix.inputs, rows), panels_of(matrix)}; }

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
        multiply(matrix, p, rows_of(x, stride, first, rows, own), rows, out, own.sums);
        for (int64_t row = 0; row < rows; ++row) put(first + row, output_of(matrix, p), _mm256_loadu_ps(out + row * LANES));
    }

    template <class Put> void products(const Matrix &matrix, const float *x, int64_t stride, int64_t rows, int thread, Put put) {
        const Tasks tasks = tasks_of(matrix, rows);
        team_.share_in_rank(thread, tasks.count(), [&](int64_t index) { product(matrix, tasks, index, x, stride, thread, put); });
    }

    // What products of these inputs, which have just been made, want of adapters: all threads need it before they go on.
    void shrink(int thread, std::initializer_list<Target> targets, const float *x, int64_t stride, Part part) {
        if (!additions_.used()) return;
        team_.share(thread, step_->rows, [&](int64_t row) { additions_.shrink(scratch_[thread].layer, row, targets, x + row * stride); });
        finish(part);
    }

    __m256 added(int thread, int64_t row, Target target, int64_t at, __m256 value) { return additions_.added(scratch_[thread].layer, row, target, at, value); }

    // One panel of silu(w1 x) * w3 x of some rows, carrying INPUT, for w2: `out(row)` is where a row's begins, `add` what adapters add.
    template <class Out, class Add>
    void gate(const Matrix &w1, const Matrix &w3, const Matrix &w2, int64_t p, const float *const *x, int64_t rows, int thread, Out out, Add add) {
        Scratch &own = scratch_[thread];
        float *first = own.out.get(rows * LANES), *third = own.gated.get(rows * LANES);
        multiply(w1, p, x, rows, first, own.sums);
        multiply(w3, p, x, rows, third, own.sums);
        for (int64_t row = 0; row < rows; ++row)
            for (auto [target, values] : {std::pair{W1, first}, {W3, third}})
                _mm256_storeu_ps(values + row * LANES, add(row, target, _mm256_loadu_ps(values + row * LANES)));
        each_vector(rows * LANES, [&]<class V>(int64_t at) {
            const auto value = V::mul(silu<V>(V::load(first + at)), V::load(third + at));
            V::store(first + at, V::mul(value, V::all(INPUT)));
        });
        const int64_t at = output_of(w1, p);
        for (int64_t row = 0; row < rows; ++row) {
            _mm256_storeu_ps(out(row) + at, _mm256_loadu_ps(first + row * LANES));
            if (s_.rounds) round_inputs(out(row), padded(w2.inputs), at, at + LANES);
        }
    }

    void run_layer(const LayerWeights &layer, float *x, int thread) {
        const int64_t rows = step_->rows, D = s_.hidden;
        const bool experts = layer.gate.inputs != 0;
        team_.share(thread, rows, [&](int64_t row) {
            norm(x + row * D, layer.input_norm, a_ + row * hidden_);
            if (experts) norm(x + row * D, layer.post_norm, m_ + row * hidden_);
        });
        finish(NORMS);
        shrink(thread, {Q, K, V}, a_, hidden_, PROJECTIONS);
        project(layer, thread, experts);
        finish(PROJECTIONS);
        if (const Range &groups = scratch_[thread].groups; groups.size())
            team_.share_in_rank(thread, static_cast<int64_t>(tiles_.size()), [&](int64_t index) {
                const Tile &tile = tiles_[index];
                for (int64_t row = tile.first; row < tile.first + tile.rows; ++row)
                    attention_.place(layer, tile, row - tile.first, groups, rotations_ + row * attention_.rotation_size(), q_ + row * attended_,
                                     sink_q_ + row * attended_, k_ + row * grouped_, v_ + row * grouped_);
            });
        if (experts) team_.share(thread, rows, [&](int64_t row) { route(row); });
        finish(PLACING, [&] { if (experts) sort_by_expert(scratch_[thread].layer); });
        attend_and_expand(layer, thread, experts);
        finish(ATTENTION_AND_EXPERTS);
        shrink(thread, {O}, q_, attended_, OUTPUTS);
        contract_and_project(layer, x, thread, experts);
        finish(OUTPUTS);
        const float *second_norm = experts ? layer.residual_norm : layer.post_norm;
        team_.share(thread, rows, [&](int64_t row) { norm(h_ + row * hidden_, second_norm, m_ + row * hidden_); });
        finish(NORMS);
        shrink(thread, {W1, W3}, m_, hidden_, RESIDUAL_IN);
        const Matrix &w1 = experts ? layer.residual_w1 : layer.w1[0], &w3 = experts ? layer.residual_w3 : layer.w3[0];
        const Matrix &w2 = experts ? layer.residual_w2 : layer.w2[0];
        const Tasks tasks = tasks_of(w1, rows);
        team_.share_in_rank(thread, tasks.count(), [&](int64_t index) {
            const int64_t first = index / tasks.panels * tasks.block, count = std::min(tasks.block, rows - first);
            const float *const *inputs = rows_of(m_, hidden_, first, count, scratch_[thread]);
            const int64_t p = index % tasks.panels, at = output_of(w1, p);
            gate(w1, w3, w2, p, inputs, count, thread, [&](int64_t row) { return g_ + (first + row) * gated_; },
                 [&](int64_t row, Target target, __m256 value) { return added(thread, first + row, target, at, value); });
        });
        finish(RESIDUAL_IN);
        shrink(thread, {W2}, g_, gated_, RESIDUAL_OUT);
        products(w2, g_, gated_, rows, thread, [&](int64_t row, int64_t at, __m256 value) {
            __m256 y = _mm256_add_ps(_mm256_loadu_ps(h_ + row * hidden_ + at), added(thread, row, W2, at, value));
            if (experts) y = _mm256_add_ps(y, mixed(row, at));
            store(x + row * D, at, D, y);
        });
        finish(RESIDUAL_OUT);
    }

    // Queries, keys, values, and the router's logits.
    void project(const LayerWeights &layer, int thread, bool experts) {
        const int64_t rows = step_->rows;
        struct Product {
            const Matrix *matrix;
            const float *x;
            float *out;
            int64_t stride;
        };
        const Product parts[] = {{&layer.q, a_, q_, attended_},
                              {&layer.k, a_, k_, grouped_},
                              {&layer.v, a_, v_, grouped_},
                              {&layer.gate, m_, logits_, padded(std::max(s_.experts, 1))}};
        const int used = experts ? 4 : 3;
        Tasks tasks[4];
        int64_t ends[4], total = 0;
        for (int part = 0; part < used; ++part) ends[part] = total += (tasks[part] = tasks_of(*parts[part].matrix, rows)).count();
        team_.share_in_rank(thread, total, [&](int64_t index) {
            int part = 0;
            while (index >= ends[part]) ++part;
            const Product &of = parts[part];
            const int64_t own = index - (part ? ends[part - 1] : 0);
            product(*of.matrix, tasks[part], own, of.x, hidden_, thread, [&](int64_t row, int64_t at, __m256 value) {
                if (part < 3) value = added(thread, row, static_cast<Target>(Q + part), at, value);
                _mm256_storeu_ps(of.out + row * of.stride + at, value);
            });
        });
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

    // Which choices each expert has, in blocks of rows, by the tensor ranks that have something of it; on one thread.
    void sort_by_expert(int64_t layer) {
        const int64_t choices = step_->rows * s_.chosen;
        starts_.assign(s_.experts + 1, 0);
        for (int64_t choice = 0; choice < choices; ++choice) ++starts_[chosen_[choice] + 1];
        for (int expert = 0; expert < s_.experts; ++expert) starts_[expert + 1] += starts_[expert];
        sorted_.resize(choices);
        auto next = starts_;
        for (int64_t choice = 0; choice < choices; ++choice) sorted_[next[chosen_[choice]]++] = choice;
        for (int rank = 0; rank < s_.tensor; ++rank) {
            const LayerWeights &own = layers_[rank * s_.layers + layer];
            ExpertBlocks &blocks = expert_blocks_[rank] = {};
            for (int expert = 0; expert < s_.experts; ++expert) {
                const int64_t panels_in = panels_of(own.w1[expert]), panels_out = panels_of(own.w2[expert]);
                if (panels_in + panels_out == 0) continue;
                blocks.panels_in = panels_in, blocks.panels_out = panels_out; // the same of all that it has
                const int64_t end = starts_[expert + 1], rows = block_rows(std::max(s_.hidden, s_.intermediate), end - starts_[expert]);
                for (int64_t first = starts_[expert]; first < end; first += rows) blocks.all.push_back({expert, first, std::min(rows, end - first)});
            }
        }
    }

    // Rows of one expert that are computed together: places in `sorted_`.
    struct ExpertBlock {
        int expert;
        int64_t first, rows;
    };

    // A tensor rank's, and how many panels of w1 and w3, and of w2, it has of each of their experts.
    struct ExpertBlocks {
        std::vector<ExpertBlock> all;
        int64_t panels_in = 0, panels_out = 0;
        int64_t tasks(int64_t panels) const { return static_cast<int64_t>(all.size()) * panels; }
    };

    // Where the inputs of a block are: `from` is the first row's, of the tokens or of their choices.
    const float *const *rows_of(const ExpertBlock &block, const float *from, int64_t stride, int64_t choices_of_a_row, Scratch &own) {
        own.rows.resize(block.rows);
        for (int64_t row = 0; row < block.rows; ++row) own.rows[row] = from + sorted_[block.first + row] / choices_of_a_row * stride;
        return own.rows.data();
    }

    // Attention, and what of the experts does not wait for it: they read the layer's input from before attention.
    void attend_and_expand(const LayerWeights &layer, int thread, bool experts) {
        Scratch &own = scratch_[thread];
        const int64_t groups = own.groups.size(), attentions = static_cast<int64_t>(tiles_.size()) * groups;
        const ExpertBlocks &blocks = expert_blocks_[team_.rank_of(thread)];
        const int64_t panels = blocks.panels_in;
        team_.share_in_rank(thread, attentions + (experts ? blocks.tasks(panels) : 0), [&](int64_t index) {
            // The last rows of a prompt see the most keys: they begin.
            if (index < attentions) {
                const auto heads = [&](int64_t index) { return Heads{&tiles_[tiles_.size() - 1 - index / groups], own.groups.begin + index % groups}; };
                const Heads after = heads(std::min(index + 1, attentions - 1));
                return attention_.attend(layer, heads(index), after, q_, sink_q_, attended_, own.attention);
            }
            const ExpertBlock &block = blocks.all[(index - attentions) / panels];
            gate(layer.w1[block.expert], layer.w3[block.expert], layer.w2[block.expert], (index - attentions) % panels, rows_of(block, m_, hidden_, s_.chosen, own),
                 block.rows, thread, [&](int64_t row) { return expert_gated_ + sorted_[block.first + row] * inner_; },
                 [](int64_t, Target, __m256 value) { return value; });
        });
    }

    // The output projection of attention, and of the experts.
    void contract_and_project(const LayerWeights &layer, const float *x, int thread, bool experts) {
        const Tasks tasks = tasks_of(layer.o, step_->rows);
        const ExpertBlocks &blocks = expert_blocks_[team_.rank_of(thread)];
        const int64_t panels = blocks.panels_out;
        Scratch &own = scratch_[thread];
        team_.share_in_rank(thread, tasks.count() + (experts ? blocks.tasks(panels) : 0), [&](int64_t index) {
            if (index < tasks.count()) {
                product(layer.o, tasks, index, q_, attended_, thread, [&](int64_t row, int64_t at, __m256 value) {
                    const __m256 before = load(x + row * s_.hidden, at, s_.hidden);
                    _mm256_storeu_ps(h_ + row * hidden_ + at, _mm256_add_ps(before, added(thread, row, O, at, value)));
                });
                return;
            }
            const ExpertBlock &block = blocks.all[(index - tasks.count()) / panels];
            const int64_t panel = (index - tasks.count()) % panels;
            float *out = own.out.get(block.rows * LANES);
            const Matrix &w2 = layer.w2[block.expert];
            multiply(w2, panel, rows_of(block, expert_gated_, inner_, 1, own), block.rows, out, own.sums);
            for (int64_t row = 0; row < block.rows; ++row)
                _mm256_storeu_ps(expert_out_ + sorted_[block.first + row] * hidden_ + output_of(w2, panel), _mm256_loadu_ps(out + row * LANES));
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

    const Shape s_;
    const std::vector<LayerWeights> layers_; // [tensor, layers]
    const Ends ends_;
    int64_t vocabulary_ = 0;
    const Attention attention_;
    Additions additions_;
    Team team_;
    std::vector<Scratch> scratch_;
    int64_t hidden_, attended_, grouped_, inner_, gated_; // from row to row
    Buffer a_buffer_, m_buffer_, h_buffer_, q_buffer_, sink_q_buffer_, k_buffer_, v_buffer_, g_buffer_, logits_buffer_, gates_buffer_, expert_gated_buffer_, expert_out_buffer_, rotations_buffer_;
    // Of the step under way. a, m: normalised inputs; h: after attention; g: gated; the others by their names.
    std::vector<Tile> tiles_;
    const Step *step_ = nullptr;
    float *a_, *m_, *h_, *q_, *sink_q_, *k_, *v_, *g_, *logits_, *gates_, *expert_gated_, *expert_out_, *rotations_;
    std::vector<int32_t> chosen_;
    Clock::time_point since_;
    double seconds_[PARTS] = {};
    std::vector<int64_t> starts_, sorted_;
    std::vector<ExpertBlocks> expert_blocks_; // by tensor rank
};

} // namespace arctic

extern "C" {

// Whether this processor has what this file is compiled for.
int arctic_supported() {
    __builtin_cpu_init();
    bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef __AVX512F__
    has = has && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    has = has && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
#ifdef ARCTIC_ROUNDS
    has = has && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
#endif
    return has;
}

// Whether rows can be rounded to bf16 (`Shape::rounds`).
int arctic_rounds() {
#ifdef ARCTIC_ROUNDS
    return 1;
#else
    return 0;
#endif
}

// The digest of the sources that this was built from (sources.py): who calls compares it with that of those that there are.
const char *arctic_sources() { return ARCTIC_SOURCES; }

// Sizes of the structures that Python calls with, to be compared with those that it has.
const int64_t *arctic_sizes() {
    static const int64_t sizes[] = {sizeof(Matrix), sizeof(LayerWeights), sizeof(Ends), sizeof(Shape), sizeof(Step), sizeof(LayerAdditions)};
    return sizes;
}

// Mark the blocks of panels in e4m3 that have subnormals, for `Matrix::subnormals`: marks [panels, ceil(blocks / 64)], zeros before.
void arctic_mark_subnormals(const uint8_t *data, int64_t panels, int64_t blocks, uint64_t *marks) {
    arctic::mark_subnormals(data, panels, blocks, marks);
}

// A rank of `layers` [tensor, layers]; null when there is no memory. What the pointers lead to must outlive it. `cpus` [tensor,
// CPU_BYTES] says where the threads of each tensor rank stay; null lets them go anywhere.
void *arctic_rank(const Shape *shape, const LayerWeights *layers, const Ends *ends, const uint8_t *cpus) {
    try {
        return new arctic::Rank(*shape, layers, *ends, cpus);
    } catch (...) {
        return nullptr;
    }
}

// Give a rank adapters [count, layers], which must outlive it: spans name them by their place.
void arctic_adapt(void *rank, const LayerAdditions *additions, int64_t count) { static_cast<arctic::Rank *>(rank)->adapt(additions, count); }

// Seconds of each part of all steps so far: [PARTS] in their order.
const double *arctic_seconds(void *rank) { return static_cast<arctic::Rank *>(rank)->seconds(); }

void arctic_free(void *rank) { delete static_cast<arctic::Rank *>(rank); }

// Run the layers over x [rows, hidden], in place, or from the step's tokens; 0, or 1 when memory has run out.
int arctic_run(void *rank, const Step *step, float *x) {
    try {
        static_cast<arctic::Rank *>(rank)->run(*step, x);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// Logits [count, vocabulary] of some rows of x, and the likeliest token of each.
int arctic_logits(void *rank, const float *x, const int64_t *rows, int64_t count, float *out, int64_t *likeliest) {
    try {
        static_cast<arctic::Rank *>(rank)->logits(x, rows, count, out, likeliest);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
}
