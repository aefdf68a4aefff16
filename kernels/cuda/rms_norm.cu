// Normalisation of rows by their root mean square. Its gradient with respect to gamma is a column sum.
#include "norms.cuh"
#include "rows.cuh"

template <int N, typename T>
__device__ inline void rms_norm_packed(const T* x, const wide<T>* gamma, T* out, wide<T>* rstd, index_t rows, index_t m,
                                       double eps) {
    using W = wide<T>;
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        W squares = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> v = load<N>(x + r * m + j);
#pragma unroll
            for (int k = 0; k < N; k++) squares += v.v[k] * v.v[k];
        }
        const W scale = W(1) / sqrt(lanes.sum(squares) / W(m) + W(eps));
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> v = load<N>(x + r * m + j);
            const Values<W, N> g = load<N>(gamma + j);
#pragma unroll
            for (int k = 0; k < N; k++) v.v[k] = v.v[k] * scale * g.v[k];
            store(out + r * m + j, v);
        }
        if (lanes.lane == 0 && width) rstd[r] = scale;
    }
}

// out = x * rstd * gamma; rstd = 1 / sqrt(mean(x**2) + eps) of each row is kept
template <typename T>
__global__ void __launch_bounds__(256)
rms_norm(const T* x, const wide<T>* gamma, T* out, wide<T>* rstd, index_t rows, index_t m, double eps) {
    if (packed_rows<T>(m, x, out, gamma))
        rms_norm_packed<Pack<T>::N>(x, gamma, out, rstd, rows, m, eps);
    else
        rms_norm_packed<1>(x, gamma, out, rstd, rows, m, eps);
}

template <int N, typename T>
__device__ inline void rms_norm_dx_packed(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* rstd, T* dx,
                                          index_t rows, index_t m) {
    using W = wide<T>;
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        const index_t start = r * m;
        const W scale = width ? rstd[r] : W(0);
        W of_scale = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> d = load<N>(dy + start + j), v = load<N>(x + start + j);
            const Values<W, N> weight = load<N>(gamma + j);
#pragma unroll
            for (int k = 0; k < N; k++) of_scale += d.v[k] * weight.v[k] * v.v[k] * scale;
        }
        of_scale = lanes.sum(of_scale) / W(m);
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> d = load<N>(dy + start + j), v = load<N>(x + start + j);
            const Values<W, N> weight = load<N>(gamma + j);
#pragma unroll
            for (int k = 0; k < N; k++) d.v[k] = scale * (d.v[k] * weight.v[k] - v.v[k] * scale * of_scale);
            store(dx + start + j, d);
        }
    }
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * gamma, xhat = x * rstd; dx may be dy
template <typename T>
__global__ void __launch_bounds__(256)
rms_norm_dx(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* rstd, T* dx, index_t rows, index_t m) {
    if (packed_rows<T>(m, dy, x, dx, gamma))
        rms_norm_dx_packed<Pack<T>::N>(dy, x, gamma, rstd, dx, rows, m);
    else
        rms_norm_dx_packed<1>(dy, x, gamma, rstd, dx, rows, m);
}

template <int N, typename T>
__device__ inline void rms_norm_dparam_packed(const T* dy, const T* x, const wide<T>* rstd, wide<T>* dgamma,
                                              index_t rows, index_t m, index_t rows_per_chunk) {
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    norm_dparam(dy, x, dgamma, (wide<T>*)nullptr, rows, m, rows_per_chunk, tile,
                [=](wide<T> v, index_t r, int) { return v * rstd[r]; });
}

// Sums of dy * xhat over this block's rows, into dgamma[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
rms_norm_dparam(const T* dy, const T* x, const wide<T>* rstd, wide<T>* dgamma, index_t rows, index_t m,
                index_t rows_per_chunk, index_t at_once) {
    if (at_once > 1)
        rms_norm_dparam_packed<Pack<T>::N>(dy, x, rstd, dgamma, rows, m, rows_per_chunk);
    else
        rms_norm_dparam_packed<1>(dy, x, rstd, dgamma, rows, m, rows_per_chunk);
}
