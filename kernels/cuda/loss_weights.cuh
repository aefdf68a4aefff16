// Sample weights: none (bytes 0), float (4) or double (8), widened to double when they are read; and the
// factor on the gradient of a loss.

__device__ inline double weight_at(const void* weight, index_t bytes, index_t i) {
    return bytes == 4 ? (double)((const float*)weight)[i] : ((const double*)weight)[i];
}

// What divides the weighted sum of losses: `columns` times the weights' sum, which is already in the state
__device__ inline double mean_divisor(const void* weight, const double* state, index_t rows, index_t columns) {
    double total = weight ? state[STATE_BATCH_WEIGHT] : (double)rows;
    return (double)columns * (total == 0 ? 1.0 : total);
}

// LOSS_SCALE, which lifts gradients into the range of a 16-bit type; a state of zeros means 1
__device__ inline double loss_scale(const double* state) {
    double scale = state[STATE_LOSS_SCALE];
    return scale == 0 ? 1.0 : scale;
}

// One thread of the grid ends here with the loss
__device__ inline void write_loss(double loss, const void* weight, double* state, index_t rows, double* partial,
                                  unsigned* sync) {
    double total;
    if (!grid_sum(loss, partial, sync, &total)) return;
    state[STATE_LOSS] = total;
    if (!weight) state[STATE_BATCH_WEIGHT] = (double)rows;
}
