// The structures that Python calls with: `library.py` has the same. Names: D hidden, F intermediate, N query heads, G
// key-value heads, H head size.
#pragma once

#include <cstdint>

extern "C" {

// A tensor rank's range of the outputs of a weight, in panels, the first of which is `first` in the whole weight; it may be empty.
// `scale` is one a padded output, or, where `block` is not 0, one a panel and `block` inputs, a multiple of 8: [panels, blocks];
// null where there is none. `subnormals`, in e4m3 alone, has a bit for each block of 8 outputs and 8 inputs, which says whether any of
// its codes is one: [panels, ceil(inputs / 8 / 64)].
struct Matrix {
    const uint8_t *data;
    const float *scale;
    int32_t format;
    int32_t outputs;
    int32_t inputs;
    int32_t first;
    int32_t block;
    const uint64_t *subnormals;
};

// A tensor rank's part of a layer; of a layer without experts `w1`, `w3`, `w2` are its one MLP and `gate.inputs` is 0.
struct LayerWeights {
    const float *input_norm;
    const float *post_norm;
    const float *residual_norm;
    Matrix q, k, v, o;
    Matrix residual_w1, residual_w3, residual_w2;
    Matrix gate;
    const Matrix *w1, *w3, *w2; // one an expert
    void *keys;                 // of all tensor ranks: [G, slots, H] in the cache's format
    void *values;
    float *key_scales; // [G, slots] of keys in FP8; null in other formats
    float *value_scales;
};

// What a low-rank adapter adds to a matrix, on the same inputs.
struct Addition {
    const float *down; // [rank, inputs], rows padded to 8: A
    const float *up;   // [outputs / 8, rank, 8], outputs padded: B, by the adapter's scale
    int32_t rank;      // 0 where it adds nothing
    int32_t inputs;
};

// An adapter's part in a layer: of q, k, v, o, and w1, w3, w2 of the residual MLP or of the one MLP of a layer without experts.
struct LayerAdditions {
    Addition of[7];
};

// What is before the layers and behind them.
struct Ends {
    Matrix embedding; // [tokens, D] in rows, bf16 or fp32; its `data` is null where hidden states come from another pipeline rank
    const float *norm;
    const Matrix *head;        // of each tensor rank; null where hidden states go on to another pipeline rank
    const double *frequencies; // [H / 2] of the rotary positions, radians a position
    double magnitude;          // of what they turn
};

struct Shape {
    int32_t hidden, intermediate, heads, groups, head_size, experts, chosen, layers, cache_format, block_size, threads, tensor;
    int32_t rounds; // whether rows are rounded to bf16 for weights that are laid out for that
    float eps;
    int64_t slots;
    int64_t window; // latest tokens that one sees, itself among them; 0 for all
    int64_t sinks;  // first tokens that it sees besides
};

constexpr int64_t CPU_BYTES = 1024; // of a set of CPUs, a bit each: as many as Linux can be built for

// Consecutive tokens of one sequence: the first is at position `start`, the table of its blocks begins at `tables[blocks]` and
// lacks `dropped` blocks after those of the sinks. `adapter` is which of the rank's adapters is added, -1 for none.
struct Span {
    int64_t start, rows, blocks, dropped, adapter;
};

struct Step {
    int64_t rows, count; // of rows, and of spans
    const Span *spans;
    const int64_t *tables;
    const int64_t *tokens; // of each row; null where hidden states come from another rank
};
}
