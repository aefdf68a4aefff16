// Batch normalisation: column statistics in chunks of rows, merged in the chunks' order.
#include "norms.cuh"

template <int N, typename T>
__device__ inline void batch_stats_packed(const T* x, wide<T>* means, wide<T>* deviations, index_t rows, index_t m,
                                          index_t rows_per_chunk) {
    using W = wide<T>;
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    const Chunk chunk(rows, rows_per_chunk);
    W mean[N] = {}, squares[N] = {};
    TILE_ROWS(r, tile, chunk, m) {
        const Values<T, N> v = load<N>(x + r * m + tile.column);
#pragma unroll
        for (int k = 0; k < N; k++) mean[k] += v.v[k];
    }
    tile.sum(mean);
#pragma unroll
    for (int k = 0; k < N; k++) mean[k] /= W(chunk.end - chunk.begin);
    TILE_ROWS(r, tile, chunk, m) {
        const Values<T, N> v = load<N>(x + r * m + tile.column);
#pragma unroll
        for (int k = 0; k < N; k++) squares[k] += (v.v[k] - mean[k]) * (v.v[k] - mean[k]);
    }
    tile.sum(squares);
    tile.write(means + blockIdx.y * m, m, mean);
    tile.write(deviations + blockIdx.y * m, m, squares);
}

// Mean and sum of squared deviations of this block's rows. The second reading finds the chunk in the cache.
template <typename T>
__global__ void __launch_bounds__(256)
batch_stats(const T* x, wide<T>* means, wide<T>* deviations, index_t rows, index_t m, index_t rows_per_chunk,
            index_t at_once) {
    if (at_once > 1)
        batch_stats_packed<Pack<T>::N>(x, means, deviations, rows, m, rows_per_chunk);
    else
        batch_stats_packed<1>(x, means, deviations, rows, m, rows_per_chunk);
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
    bool columns_packed = m % N == 0 && aligned16(gamma) && aligned16(beta) && aligned16(mean) && aligned16(var);
    PACK_STRIDE(i, n, N) {
        Values<T> v = load_pack(x, i, n, packed);
        const index_t column = remainder(i, m);
        const Values<W, N> g = load_columns<N>(gamma, column, m, columns_packed),
                           b = load_columns<N>(beta, column, m, columns_packed),
                           center = load_columns<N>(mean, column, m, columns_packed),
                           spread = load_columns<N>(var, column, m, columns_packed);
#pragma unroll
        for (int k = 0; k < N; k++)
            v.v[k] = (v.v[k] - center.v[k]) * (g.v[k] / sqrt(spread.v[k] + W(eps))) + b.v[k];
        store_pack(out, i, n, packed, v);
    }
}

template <int N, typename T>
__device__ inline void batch_norm_dparam_packed(const T* dy, const T* x, const wide<T>* mean, const wide<T>* var,
                                                wide<T>* dgamma, wide<T>* dbeta, index_t rows, index_t m,
                                                index_t rows_per_chunk, double eps) {
    using W = wide<T>;
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    W center[N] = {}, rstd[N] = {};
    if (tile.column < m)
#pragma unroll
        for (int k = 0; k < N; k++) {
            center[k] = mean[tile.column + k];
            rstd[k] = W(1) / sqrt(var[tile.column + k] + W(eps));
        }
    norm_dparam(dy, x, dgamma, dbeta, rows, m, rows_per_chunk, tile,
                [&](W v, index_t, int k) { return (v - center[k]) * rstd[k]; });
}

// Sums of dy * xhat and of dy over this block's rows, into dgamma[chunk] and dbeta[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
batch_norm_dparam(const T* dy, const T* x, const wide<T>* mean, const wide<T>* var, wide<T>* dgamma, wide<T>* dbeta,
                  index_t rows, index_t m, index_t rows_per_chunk, index_t at_once, double eps) {
    if (at_once > 1)
        batch_norm_dparam_packed<Pack<T>::N>(dy, x, mean, var, dgamma, dbeta, rows, m, rows_per_chunk, eps);
    else
        batch_norm_dparam_packed<1>(dy, x, mean, var, dgamma, dbeta, rows, m, rows_per_chunk, eps);
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
    bool columns_packed = m % N == 0 && aligned16(gamma) && aligned16(mean) && aligned16(var) && aligned16(dgamma) &&
                          aligned16(dbeta);
    PACK_STRIDE(i, n, N) {
        Values<T> d = load_pack(dy, i, n, packed), v = load_pack(x, i, n, packed);
        const index_t column = remainder(i, m);
        const Values<W, N> g = load_columns<N>(gamma, column, m, columns_packed),
                           center = load_columns<N>(mean, column, m, columns_packed),
                           spread = load_columns<N>(var, column, m, columns_packed),
                           of_gamma = load_columns<N>(dgamma, column, m, columns_packed),
                           of_beta = load_columns<N>(dbeta, column, m, columns_packed);
#pragma unroll
        for (int k = 0; k < N; k++) {
            W rstd = W(1) / sqrt(spread.v[k] + W(eps)), xhat = (v.v[k] - center.v[k]) * rstd;
            d.v[k] = (g.v[k] * rstd) * (d.v[k] - of_beta.v[k] / W(rows) - xhat * (of_gamma.v[k] / W(rows)));
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
