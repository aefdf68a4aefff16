// Layer normalisation: one warp a row. Its gradients with respect to gamma and beta are column sums.
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256)
layer_norm(const T* x, const wide<T>* gamma, const wide<T>* beta, T* out, wide<T>* mean, wide<T>* rstd, index_t rows,
           index_t m, double eps) {
    using W = wide<T>;
    int lane = threadIdx.x & 31;
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    for (index_t r = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); r < rows; r += warps) {
        const T* in = x + r * m;
        W sum = 0, squares = 0;
        for (index_t j = lane; j < m; j += 32) sum += W(in[j]);
        W center = warp_sum(sum) / W(m);
        for (index_t j = lane; j < m; j += 32) squares += (W(in[j]) - center) * (W(in[j]) - center);
        W scale = W(1) / sqrt(warp_sum(squares) / W(m) + W(eps));
        for (index_t j = lane; j < m; j += 32) out[r * m + j] = T((W(in[j]) - center) * scale * gamma[j] + beta[j]);
        if (lane == 0) {
            mean[r] = center;
            rstd[r] = scale;
        }
    }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * gamma; dx may be dy
template <typename T>
__global__ void __launch_bounds__(256)
layer_norm_dx(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean, const wide<T>* rstd, T* dx,
              index_t rows, index_t m) {
    using W = wide<T>;
    int lane = threadIdx.x & 31;
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    for (index_t r = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); r < rows; r += warps) {
        index_t start = r * m;
        W center = mean[r], scale = rstd[r], of_mean = 0, of_scale = 0;
        for (index_t j = lane; j < m; j += 32) {
            W g = W(dy[start + j]) * gamma[j];
            of_mean += g;
            of_scale += g * (W(x[start + j]) - center) * scale;
        }
        of_mean = warp_sum(of_mean) / W(m);
        of_scale = warp_sum(of_scale) / W(m);
        for (index_t j = lane; j < m; j += 32) {
            W g = W(dy[start + j]) * gamma[j], xhat = (W(x[start + j]) - center) * scale;
            dx[start + j] = T(scale * (g - of_mean - xhat * of_scale));
        }
    }
}

// Sums of dy * xhat and of dy over this block's rows, into dgamma[chunk] and dbeta[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
layer_norm_dparam(const T* dy, const T* x, const wide<T>* mean, const wide<T>* rstd, wide<T>* dgamma, wide<T>* dbeta,
                  index_t rows, index_t m, index_t rows_per_chunk) {
    using W = wide<T>;
    index_t column = blockIdx.x * (index_t)TILE_COLUMNS + threadIdx.x;
    const Chunk chunk(rows, rows_per_chunk);
    W of_gamma = 0, of_beta = 0;
    if (column < m)
        for (index_t r = chunk.begin + threadIdx.y; r < chunk.end; r += TILE_ROWS) {
            W d = dy[r * m + column];
            of_gamma += d * (W(x[r * m + column]) - mean[r]) * rstd[r];
            of_beta += d;
        }
    of_gamma = tile_sum(of_gamma);
    of_beta = tile_sum(of_beta);
    if (threadIdx.y == 0 && column < m) {
        dgamma[blockIdx.y * m + column] = of_gamma;
        dbeta[blockIdx.y * m + column] = of_beta;
    }
}
