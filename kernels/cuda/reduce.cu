// Sums: over the chunks of a column sum, of squares for the gradient's norm; elementwise in place.
#include "common.cuh"

// out[j] = sum over chunks of partial[chunk, j]; blockIdx.y picks the first or the second pair. Blocks are tiles: there
// may be a thousand chunks of a few columns, too many for one thread after the other to wait for.
template <typename T>
__global__ void __launch_bounds__(256)
column_finish(const T* partial0, T* out0, const T* partial1, T* out1, index_t chunks, index_t m) {
    const T* partial = blockIdx.y == 0 ? partial0 : partial1;
    T* out = blockIdx.y == 0 ? out0 : out1;
    index_t column = blockIdx.x * (index_t)TILE_COLUMNS + threadIdx.x;
    T sum = 0;
    if (column < m)
        for (index_t c = threadIdx.y; c < chunks; c += TILE_ROWS) sum += partial[c * m + column];
    sum = tile_sum(sum);
    if (threadIdx.y == 0 && column < m) out[column] = sum;
}

// out[0] = sum of squares in double. With state: also the factor that clips the global norm.
template <typename T>
__global__ void __launch_bounds__(256)
sq_norm(const T* x, index_t n, double* out, double* state, double max_norm, double* partial, unsigned* sync) {
    constexpr int N = Pack<T>::N;
    double sum = 0, total;
    bool packed = aligned16(x);
    PACK_STRIDE(i, n, N) {
        Values<T> v = load_pack(x, i, n, packed);
#pragma unroll
        for (int j = 0; j < N; j++) sum += (double)v.v[j] * v.v[j];
    }
    if (!grid_sum(sum, partial, sync, &total)) return;
    *out = total;
    if (state) {
        double scale = max_norm / (sqrt(total) + 1e-6);
        state[STATE_GRAD_SCALE] = scale > 1.0 ? 1.0 : scale;  // a NaN stays
    }
}

template <typename T>
__global__ void __launch_bounds__(256) clip_value(T* x, index_t n, double limit) {
    T top = T(limit);
    map(x, x, n, [=](T v) { return v < -top ? -top : (v > top ? top : v); });
}

template <typename T>
__global__ void __launch_bounds__(256) add(const T* x, const T* y, T* out, index_t n) {
    map(x, y, out, n, [](wide<T> a, wide<T> b) { return a + b; });
}
