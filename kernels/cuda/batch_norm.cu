// Batch normalisation: column statistics in chunks of rows, merged in the chunks' order.
#include "common.cuh"

// Mean and sum of squared deviations of this block's rows. The second reading finds the chunk in the cache.
template <typename T>
__global__ void __launch_bounds__(256)
batch_stats(const T* x, wide<T>* means, wide<T>* deviations, index_t rows, index_t m, index_t rows_per_chunk) {
    using W = wide<T>;
    index_t column = blockIdx.x * (index_t)TILE_COLUMNS + threadIdx.x;
    const Chunk chunk(rows, rows_per_chunk);
    W sum = 0, squares = 0;
    if (column < m)
        for (index_t r = chunk.begin + threadIdx.y; r < chunk.end; r += TILE_ROWS) sum += W(x[r * m + column]);
    W mean = tile_sum_all(sum) / W(chunk.end - chunk.begin);
    if (column < m)
        for (index_t r = chunk.begin + threadIdx.y; r < chunk.end; r += TILE_ROWS) {
            W d = W(x[r * m + column]) - mean;
            squares += d * d;
        }
    squares = tile_sum(squares);
    if (threadIdx.y == 0 && column < m) {
        means[blockIdx.y * m + column] = mean;
        deviations[blockIdx.y * m + column] = squares;
    }
}

// Merge the chunks (Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979)
template <typename T>
__global__ void __launch_bounds__(256)
batch_stats_finish(const T* means, const T* deviations, T* mean, T* var, index_t rows, index_t m,
                   index_t rows_per_chunk, index_t chunks) {
    GRID_STRIDE(j, m) {
        T center = means[j], squares = deviations[j];
        index_t seen = rows_per_chunk < rows ? rows_per_chunk : rows;
        for (index_t c = 1; c < chunks; c++) {
            index_t more = rows - c * rows_per_chunk;
            if (more > rows_per_chunk) more = rows_per_chunk;
            T d = means[c * m + j] - center, share = T(more) / T(seen + more);
            center += d * share;
            squares += deviations[c * m + j] + d * d * (T(seen) * share);
            seen += more;
        }
        mean[j] = center;
        var[j] = squares / T(rows);
    }
}

// out = (x - mean) * (gamma / sqrt(var + eps)) + beta; out may be x
template <typename T>
__global__ void __launch_bounds__(256)
batch_norm_apply(const T* x, const wide<T>* gamma, const wide<T>* beta, const wide<T>* mean, const wide<T>* var, T* out,
                 index_t n, index_t m, double eps) {
    using W = wide<T>;
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(x) && aligned16(out);
    PACK_STRIDE(i, n, N) {
        Values<T> v = load_pack(x, i, n, packed);
        index_t j = remainder(i, m);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v.v[k] = (v.v[k] - mean[j]) * (gamma[j] / sqrt(var[j] + W(eps))) + beta[j];
            j = j + 1 == m ? 0 : j + 1;
        }
        store_pack(out, i, n, packed, v);
    }
}

// Sums of dy * xhat and of dy over this block's rows, into dgamma[chunk] and dbeta[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
batch_norm_dparam(const T* dy, const T* x, const wide<T>* mean, const wide<T>* var, wide<T>* dgamma, wide<T>* dbeta,
                  index_t rows, index_t m, index_t rows_per_chunk, double eps) {
    using W = wide<T>;
    index_t column = blockIdx.x * (index_t)TILE_COLUMNS + threadIdx.x;
    const Chunk chunk(rows, rows_per_chunk);
    W of_gamma = 0, of_beta = 0;
    if (column < m) {
        W center = mean[column], rstd = W(1) / sqrt(var[column] + W(eps));
        for (index_t r = chunk.begin + threadIdx.y; r < chunk.end; r += TILE_ROWS) {
            W d = dy[r * m + column];
            of_gamma += d * (W(x[r * m + column]) - center) * rstd;
            of_beta += d;
        }
    }
    of_gamma = tile_sum(of_gamma);
    of_beta = tile_sum(of_beta);
    if (threadIdx.y == 0 && column < m) {
        dgamma[blockIdx.y * m + column] = of_gamma;
        dbeta[blockIdx.y * m + column] = of_beta;
    }
}

// dx = gamma * rstd * (dy - dbeta / n - xhat * dgamma / n); dx may be dy
template <typename T>
__global__ void __launch_bounds__(256)
batch_norm_dx(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean, const wide<T>* var,
              const wide<T>* dgamma, const wide<T>* dbeta, T* dx, index_t rows, index_t m, double eps) {
    using W = wide<T>;
    index_t n = rows * m;
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(dy) && aligned16(x) && aligned16(dx);
    PACK_STRIDE(i, n, N) {
        Values<T> d = load_pack(dy, i, n, packed), v = load_pack(x, i, n, packed);
        index_t j = remainder(i, m);
#pragma unroll
        for (int k = 0; k < N; k++) {
            W rstd = W(1) / sqrt(var[j] + W(eps)), xhat = (v.v[k] - mean[j]) * rstd;
            d.v[k] = (gamma[j] * rstd) * (d.v[k] - dbeta[j] / W(rows) - xhat * (dgamma[j] / W(rows)));
            j = j + 1 == m ? 0 : j + 1;
        }
        store_pack(dx, i, n, packed, d);
    }
}

// running = (1 - momentum) * running + momentum * batch, where a step was not bad and the batch is finite
template <typename T>
__global__ void __launch_bounds__(256)
batch_norm_track(const T* mean, const T* var, const double* state, index_t m, double momentum, double unbiased,
                 T* running_mean, T* running_var) {
    if (state[STATE_BAD_STEP] != 0) return;
    GRID_STRIDE(j, m) {
        if (!isfinite(mean[j]) || !isfinite(var[j])) continue;
        running_mean[j] += T(momentum) * (mean[j] - running_mean[j]);
        running_var[j] += T(momentum) * (T(unbiased) * var[j] - running_var[j]);
    }
}
