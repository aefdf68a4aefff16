// The step's own bookkeeping: single threads on the step state.
#include "common.cuh"

__global__ void begin_step(double* state, const double* lr_table, index_t length) {
    index_t cursor = (index_t)state[STATE_CURSOR];
    state[STATE_STEP] += 1;
    state[STATE_LR] = lr_table[cursor < length ? cursor : length - 1];
    state[STATE_CURSOR] += 1;
    state[STATE_GRAD_SCALE] = 1;
    state[STATE_SKIP_STEP] = 0;
}

__global__ void sum_losses(double* state, double weight, index_t first) {
    state[STATE_TOTAL_LOSS] = (first ? 0 : state[STATE_TOTAL_LOSS]) + weight * state[STATE_LOSS];
    state[STATE_LOSS] = state[STATE_TOTAL_LOSS];
}

__global__ void record_loss(double* state) {
    if (state[STATE_BAD_STEP] != 0) return;
    if (!isfinite(state[STATE_LOSS])) {
        state[STATE_BAD_STEP] = state[STATE_STEP];
        return;
    }
    state[STATE_LOSS_SUM] += state[STATE_LOSS] * state[STATE_BATCH_WEIGHT];
    state[STATE_WEIGHT_SUM] += state[STATE_BATCH_WEIGHT];
}

__global__ void end_step(double* state, index_t rows) { state[STATE_ROW] += (double)rows; }

__global__ void end_epoch(double* state, double* results, index_t length) {
    index_t epoch = (index_t)state[STATE_EPOCH_INDEX];
    if (state[STATE_BAD_STEP] != 0 || epoch >= length) return;
    double* row = results + 3 * epoch;
    row[0] = state[STATE_LOSS_SUM];
    row[1] = state[STATE_WEIGHT_SUM];
    row[2] = state[STATE_LR];
    state[STATE_LOSS_SUM] = 0;
    state[STATE_WEIGHT_SUM] = 0;
    state[STATE_EPOCH_INDEX] += 1;
}
