// Softmax + cross-entropy: loss, gradient and its column sums in one pass over the logits, one warp a row.
#include "common.cuh"
#include "loss_weights.cuh"

// BATCH_WEIGHT = sum of the weights, by one block
__global__ void __launch_bounds__(1024)
weight_total(const void* weight, index_t weight_bytes, index_t n, double* state) {
    double sum = 0;
    GRID_STRIDE(i, n) sum += weight_at(weight, weight_bytes, i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) state[STATE_BATCH_WEIGHT] = sum;
}

template <typename T>
__device__ inline T target_at(const index_t* labels, index_t row, index_t, index_t j) {
    return labels[row] == j ? T(1) : T(0);
}

template <typename T>
__device__ inline T target_at(const T* targets, index_t row, index_t c, index_t j) {
    return targets[row * c + j];
}

// Label is index_t for labels (rows,), or wide<T> for targets (rows, c), which need not sum to one.
// dlogits, LOSS_SCALE times the gradient, may be null or logits. The sums of its columns over this block's rows, which
// the last layer's bias gradient is made of, go to sums[block] where that is not null; then c is 32 at most.
template <typename T, typename Label>
__global__ void __launch_bounds__(256)
softmax_xent(const T* logits, const Label* labels, const void* weight, index_t weight_bytes, double* state,
             T* dlogits, wide<T>* sums, index_t rows, index_t c, double smoothing, double* partial, unsigned* sync) {
    using W = wide<T>;
    W column = 0;
    int lane = threadIdx.x & 31;
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    W keep = W(1.0 - smoothing), spread = W(smoothing / (double)c);
    double divisor = mean_divisor(weight, state, rows, 1), lift = loss_scale(state), loss = 0;
    for (index_t r = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); r < rows; r += warps) {
        const T* z = logits + r * c;
        double factor = (weight ? weight_at(weight, weight_bytes, r) : 1.0) / divisor;
        W top = z[lane < c ? lane : 0];
        for (index_t j = lane; j < c; j += 32) top = W(z[j]) > top ? W(z[j]) : top;
        top = warp_max(top);
        W total = 0, mass = 0;
#pragma unroll 1  // more copies of exp only spill registers
        for (index_t j = lane; j < c; j += 32) {
            total += exp(W(z[j]) - top);
            mass += keep * target_at<W>(labels, r, c, j) + spread;
        }
        total = warp_sum(total);
        mass = warp_sum(mass);
        W log_total = log(total), scale = W(factor * lift), inverse = mass / total;
#pragma unroll 1
        for (index_t j = lane; j < c; j += 32) {
            W shifted = W(z[j]) - top, t = keep * target_at<W>(labels, r, c, j) + spread;
            loss -= (double)(t * (shifted - log_total)) * factor;
            // d/dz_j of -sum_k t_k log p_k
            if (dlogits) {
                T gradient = T((exp(shifted) * inverse - t) * scale);
                dlogits[r * c + j] = gradient;
                column += W(gradient);  // of use where a lane has one column
            }
        }
    }
    if (sums) {
        __shared__ W tile[32][32];
        tile[threadIdx.x >> 5][lane] = column;
        __syncthreads();
        if (threadIdx.x < c) {
            W total = 0;
            for (int w = 0; w < (int)(blockDim.x >> 5); w++) total += tile[w][lane];
            sums[blockIdx.x * c + lane] = total;
        }
    }
    write_loss(loss, weight, state, rows, partial, sync);
}
