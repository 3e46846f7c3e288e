// The structures that Python calls with: `library.py` has the same. Names: D hidden, F intermediate, N query heads, G
// key-value heads, H head size.
#pragma once

#include <cstdint>

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
    int64_t window; // latest tokens that one sees, itself among them; 0 for all
    int64_t sinks;  // first tokens that it sees besides
};

// A step: row t is at `positions[t]` of its sequence, whose block table begins at `tables[offsets[t]]` and lacks
// `dropped[t]` blocks after those of the sinks.
struct Step {
    int64_t rows;
    const int64_t *positions;
    const int32_t *offsets;
    const int64_t *dropped;
    const int32_t *tables;
    const float *cosines; // [rows, H]
    const float *sines;
    const float *sink_cosines; // [rows, H] of positions within the cache, by which queries meet sinks; null without these
    const float *sink_sines;
};
}
