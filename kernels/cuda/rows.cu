// Softmax over rows.
#include "rows.cuh"

template <int N, typename T>
__device__ inline void softmax_packed(const T* z, T* y, index_t rows, index_t m) {
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        wide<T> top, total;
        exponentials(lanes, z + r * m, width, &top, &total);
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> v = load<N>(z + r * m + j);
#pragma unroll
            for (int k = 0; k < N; k++) v.v[k] = exp(v.v[k] - top) / total;
            store(y + r * m + j, v);
        }
    }
}

// y = exp(z - max) / sum over the last axis; y may be z
template <typename T>
__global__ void __launch_bounds__(256) softmax(const T* z, T* y, index_t rows, index_t m) {
    if (packed_rows<T>(m, z, y))
        softmax_packed<Pack<T>::N>(z, y, rows, m);
    else
        softmax_packed<1>(z, y, rows, m);
}

template <int N, typename T>
__device__ inline void softmax_grad_packed(const T* dy, const T* y, T* dz, index_t rows, index_t m) {
    const Lanes<N> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        wide<T> inner = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> d = load<N>(dy + r * m + j), v = load<N>(y + r * m + j);
#pragma unroll
            for (int k = 0; k < N; k++) inner += d.v[k] * v.v[k];
        }
        inner = lanes.sum(inner);
        LANE_COLUMNS(j, width, lanes, N) {
            Values<T, N> d = load<N>(dy + r * m + j), v = load<N>(y + r * m + j);
#pragma unroll
            for (int k = 0; k < N; k++) d.v[k] = v.v[k] * (d.v[k] - inner);
            store(dz + r * m + j, d);
        }
    }
}

// dz = y * (dy - sum(dy * y)); dz may be dy
template <typename T>
__global__ void __launch_bounds__(256) softmax_grad(const T* dy, const T* y, T* dz, index_t rows, index_t m) {
    if (packed_rows<T>(m, dy, y, dz))
        softmax_grad_packed<Pack<T>::N>(dy, y, dz, rows, m);
    else
        softmax_grad_packed<1>(dy, y, dz, rows, m);
}
