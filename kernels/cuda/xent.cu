// Softmax + cross-entropy: loss, gradient and its column sums in one pass over the logits.
#include "columns.cuh"
#include "loss_weights.cuh"
#include "rows.cuh"

// BATCH_WEIGHT = sum of the weights, by one block
__global__ void __launch_bounds__(1024)
weight_total(const void* weight, index_t weight_bytes, index_t n, double* state) {
    double sum = 0;
    GRID_STRIDE(i, n) sum += weight_at(weight, weight_bytes, i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) state[STATE_BATCH_WEIGHT] = sum;
}

// N targets of a row, from its label or as they are
template <int N, typename W>
__device__ inline Values<W, N> targets_at(const index_t* labels, index_t row, index_t, index_t j) {
    Values<W, N> t;
    const index_t label = labels[row] - j;
#pragma unroll
    for (int k = 0; k < N; k++) t.v[k] = label == k ? W(1) : W(0);
    return t;
}

template <int N, typename W>
__device__ inline Values<W, N> targets_at(const W* targets, index_t row, index_t c, index_t j) {
    return load<N>(targets + row * c + j);
}

// The sum of a row's targets
template <int N, typename W>
__device__ inline W target_sum(const Lanes<N>&, const index_t*, index_t, index_t) {
    return W(1);
}

template <int N, typename W>
__device__ inline W target_sum(const Lanes<N>& lanes, const W* targets, index_t row, index_t width) {
    W sum = 0;
    LANE_COLUMNS(j, width, lanes, N) {
        const Values<W, N> t = load<N>(targets + row * width + j);
#pragma unroll
        for (int k = 0; k < N; k++) sum += t.v[k];
    }
    return lanes.sum(sum);
}

constexpr int MOST_TILE_ROWS = 64;

// What the gradient of a row needs to know of all of it
template <typename W>
struct RowSums {
    W top, log_total, inverse;  // of exp(z - top): the log of their sum, and the targets' sum over theirs
    W scale;                    // on the gradient
    double factor;              // on the loss
};

// A block takes tile_rows rows at a time: first its warps share them out, for the sums over each row; then each thread
// has columns, so that the sums over rows stay in its registers. The second reading finds the rows in the cache.
// Returns this thread's share of the loss.
template <int N, typename T, typename Label>
__device__ inline double
softmax_xent_packed(const T* logits, const Label* labels, const void* weight, index_t weight_bytes, const double* state,
                    T* dlogits, wide<T>* sums, index_t rows, index_t c, double smoothing, index_t tile_rows) {
    using W = wide<T>;
    __shared__ RowSums<W> of_row[MOST_TILE_ROWS];
    const Lanes<N> lanes(c, threadIdx.x, TILE_THREADS);
    const Tile<N> tile(c, 0, TILE_THREADS);
    const W keep = W(1.0 - smoothing), spread = W(smoothing / (double)c);
    const double divisor = mean_divisor(weight, state, rows, 1);
    const bool in_registers = c <= tile.across * (index_t)N;
    const index_t begin = blockIdx.x * tile_rows;
    double loss = 0;
    W column[N] = {};
    for (index_t first = begin; first < rows; first += gridDim.x * tile_rows) {
        const index_t here = rows - first < tile_rows ? rows - first : tile_rows;
        LANE_ROWS(r, width, lanes, here, c) {
            W top, total;
            exponentials(lanes, logits + (first + r) * c, width, &top, &total);
            W mass = keep * target_sum<N, W>(lanes, labels, first + r, width) + spread * W(c);
            if (lanes.lane == 0 && width) {
                double factor = (weight ? weight_at(weight, weight_bytes, first + r) : 1.0) / divisor;
                of_row[r] = {top, log(total), mass / total, W(factor * loss_scale(state)), factor};
            }
        }
        __syncthreads();
        for (index_t j = tile.column; j < c; j += tile.across * (index_t)N) {
#pragma unroll 1  // more copies of exp only spill registers
            for (index_t r = tile.row; r < here; r += tile.down) {
                const RowSums<W> row = of_row[r];
                const index_t i = (first + r) * c + j;
                Values<T, N> z = load<N>(logits + i);
                const Values<W, N> targets = targets_at<N, W>(labels, first + r, c, j);
                W part = 0;
#pragma unroll
                for (int k = 0; k < N; k++) {
                    W shifted = z.v[k] - row.top, t = keep * targets.v[k] + spread;
                    part += t * (shifted - row.log_total);
                    // d/dz_j of -sum_k t_k log p_k, rounded before it is summed up
                    z.v[k] = W(T((exp(shifted) * row.inverse - t) * row.scale));
                    column[k] += z.v[k];
                }
                loss -= (double)part * row.factor;
                if (dlogits) store(dlogits + i, z);
            }
            if (sums && !in_registers) {  // then no other thread of the block has this column
#pragma unroll
                for (int k = 0; k < N; k++) {
                    W* sum = sums + blockIdx.x * c + j + k;
                    *sum = first == begin ? column[k] : *sum + column[k];
                    column[k] = 0;
                }
            }
        }
        __syncthreads();  // of_row has been read
    }
    if (sums && in_registers) {
        tile.sum(column);
        tile.write(sums + blockIdx.x * c, c, column);
    }
    return loss;
}

// Label is index_t for labels (rows,), or wide<T> for targets (rows, c), which need not sum to one.
// dlogits, LOSS_SCALE times the gradient, may be null or logits. The sums of its columns over this block's rows, which
// the last layer's bias gradient is made of, go to sums[block] where that is not null. Blocks are TILE_THREADS, none of
// them without rows; tile_rows is MOST_TILE_ROWS at most.
template <typename T, typename Label>
__global__ void __launch_bounds__(256, 2)  // asked for more blocks at a time, the compiler spills registers
softmax_xent(const T* logits, const Label* labels, const void* weight, index_t weight_bytes, double* state,
             T* dlogits, wide<T>* sums, index_t rows, index_t c, double smoothing, index_t tile_rows, double* partial,
             unsigned* sync) {
    double loss;
    if (packed_rows<T>(c, logits, dlogits) && aligned16(labels))
        loss = softmax_xent_packed<Pack<T>::N>(logits, labels, weight, weight_bytes, state, dlogits, sums, rows, c,
                                               smoothing, tile_rows);
    else
        loss = softmax_xent_packed<1>(logits, labels, weight, weight_bytes, state, dlogits, sums, rows, c, smoothing,
                                      tile_rows);
    write_loss(loss, weight, state, rows, partial, sync);
}
