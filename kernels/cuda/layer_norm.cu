// Layer normalisation over rows. Its gradients with respect to gamma and beta are column sums.
#include "norms.cuh"
#include "rows.cuh"

template <int N, typename T>
__device__ inline void layer_norm_packed(const T* x, const wide<T>* gamma, const wide<T>* beta, T* out, wide<T>* mean,
                                         wide<T>* rstd, index_t rows, index_t m, double eps) {
    using W = wide<T>;
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        const T* in = x + r * m;
        W sum = 0, squares = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> v = load<N>(in + j);
#pragma unroll
            for (int k = 0; k < N; k++) sum += v.v[k];
        }
        W center = lanes.sum(sum) / W(m);
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> v = load<N>(in + j);
#pragma unroll
            for (int k = 0; k < N; k++) squares += (v.v[k] - center) * (v.v[k] - center);
        }
        W scale = W(1) / sqrt(lanes.sum(squares) / W(m) + W(eps));
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> v = load<N>(in + j);
            const Values<W, N> g = load<N>(gamma + j), b = load<N>(beta + j);
#pragma unroll
            for (int k = 0; k < N; k++) v.v[k] = (v.v[k] - center) * scale * g.v[k] + b.v[k];
            store(out + r * m + j, v);
        }
        if (lanes.lane == 0 && width) {
            mean[r] = center;
            rstd[r] = scale;
        }
    }
}

// out = (x - mean) * rstd * gamma + beta; mean and rstd = 1 / sqrt(var + eps), of each row, are kept
template <typename T>
__global__ void __launch_bounds__(256)
layer_norm(const T* x, const wide<T>* gamma, const wide<T>* beta, T* out, wide<T>* mean, wide<T>* rstd, index_t rows,
           index_t m, double eps) {
    if (packed_rows<T>(m, x, out, gamma, beta))
        layer_norm_packed<Pack<T>::N>(x, gamma, beta, out, mean, rstd, rows, m, eps);
    else
        layer_norm_packed<1>(x, gamma, beta, out, mean, rstd, rows, m, eps);
}

template <int N, typename T>
__device__ inline void layer_norm_dx_packed(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean,
                                            const wide<T>* rstd, T* dx, index_t rows, index_t m) {
    using W = wide<T>;
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        const index_t start = r * m;
        W center = width ? mean[r] : W(0), scale = width ? rstd[r] : W(0), of_mean = 0, of_scale = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> d = load<N>(dy + start + j), v = load<N>(x + start + j);
            const Values<W, N> weight = load<N>(gamma + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                W g = d.v[k] * weight.v[k];
                of_mean += g;
                of_scale += g * (v.v[k] - center) * scale;
            }
        }
        of_mean = lanes.sum(of_mean) / W(m);
        of_scale = lanes.sum(of_scale) / W(m);
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> d = load<N>(dy + start + j), v = load<N>(x + start + j);
            const Values<W, N> weight = load<N>(gamma + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                W g = d.v[k] * weight.v[k], xhat = (v.v[k] - center) * scale;
                d.v[k] = scale * (g - of_mean - xhat * of_scale);
            }
            store(dx + start + j, d);
        }
    }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * gamma; dx may be dy
template <typename T>
__global__ void __launch_bounds__(256)
layer_norm_dx(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean, const wide<T>* rstd, T* dx,
              index_t rows, index_t m) {
    if (packed_rows<T>(m, dy, x, dx, gamma))
        layer_norm_dx_packed<Pack<T>::N>(dy, x, gamma, mean, rstd, dx, rows, m);
    else
        layer_norm_dx_packed<1>(dy, x, gamma, mean, rstd, dx, rows, m);
}

template <int N, typename T>
__device__ inline void layer_norm_dparam_packed(const T* dy, const T* x, const wide<T>* mean, const wide<T>* rstd,
                                                wide<T>* dgamma, wide<T>* dbeta, index_t rows, index_t m,
                                                index_t rows_per_chunk) {
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    norm_dparam(dy, x, dgamma, dbeta, rows, m, rows_per_chunk, tile,
                [=](wide<T> v, index_t r, int) { return (v - mean[r]) * rstd[r]; });
}

// Sums of dy * xhat and of dy over this block's rows, into dgamma[chunk] and dbeta[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
layer_norm_dparam(const T* dy, const T* x, const wide<T>* mean, const wide<T>* rstd, wide<T>* dgamma, wide<T>* dbeta,
                  index_t rows, index_t m, index_t rows_per_chunk, index_t at_once) {
    if (at_once > 1)
        layer_norm_dparam_packed<Pack<T>::N>(dy, x, mean, rstd, dgamma, dbeta, rows, m, rows_per_chunk);
    else
        layer_norm_dparam_packed<1>(dy, x, mean, rstd, dgamma, dbeta, rows, m, rows_per_chunk);
}
