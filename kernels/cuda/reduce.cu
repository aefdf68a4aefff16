// Sums: over the chunks of a column sum, of squares for the gradient's norm; elementwise.
#include "columns.cuh"

template <int N, typename T>
__device__ inline void column_finish_packed(const T* partial, T* out, index_t chunks, index_t m) {
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    T sum[N] = {};
    if (tile.column < m)
#pragma unroll 2
        for (index_t c = tile.row; c < chunks; c += tile.down) {
            const Values<T, N> v = load<N>(partial + c * m + tile.column);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += v.v[k];
        }
    tile.sum(sum);
    tile.write(out, m, sum);
}

// out[j] = sum over chunks of partial[chunk, j]; blockIdx.y picks the first or the second pair. Blocks are tiles: there
// may be a thousand chunks of a few columns, too many for one thread after the other to wait for.
template <typename T>
__global__ void __launch_bounds__(256)
column_finish(const T* partial0, T* out0, const T* partial1, T* out1, index_t chunks, index_t m, index_t at_once) {
    const T* partial = blockIdx.y == 0 ? partial0 : partial1;
    T* out = blockIdx.y == 0 ? out0 : out1;
    if (at_once > 1)
        column_finish_packed<Pack<T>::N>(partial, out, chunks, m);
    else
        column_finish_packed<1>(partial, out, chunks, m);
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

// grad += strength * param / BATCH_WEIGHT, and share * strength / 2 * |param|^2 / BATCH_WEIGHT in LOSS and LOSS_SUM
template <typename T>
__global__ void __launch_bounds__(256)
l2_penalty(const T* param, T* grad, index_t n, double* state, double strength, double share, double* partial,
           unsigned* sync) {
    constexpr int N = Pack<T>::N;
    const double weight = state[STATE_BATCH_WEIGHT], divisor = weight == 0 ? 1.0 : weight;
    const T factor = T(strength / divisor);
    double sum = 0, total;
    bool packed = aligned16(param) && aligned16(grad);
    PACK_STRIDE(i, n, N) {
        const Values<T> p = load_pack(param, i, n, packed);
        Values<T> g = load_pack(grad, i, n, packed);
#pragma unroll
        for (int j = 0; j < N; j++) {
            g.v[j] += factor * p.v[j];
            sum += (double)p.v[j] * p.v[j];
        }
        store_pack(grad, i, n, packed, g);
    }
    if (!grid_sum(sum, partial, sync, &total)) return;
    const double penalty = 0.5 * strength * share * total / divisor;
    state[STATE_LOSS] += penalty;
    state[STATE_LOSS_SUM] += penalty * weight;
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

template <typename T>
__global__ void __launch_bounds__(256) multiply(const T* x, const T* y, T* out, index_t n) {
    map(x, y, out, n, [](wide<T> a, wide<T> b) { return a * b; });
}

template <typename T>
__global__ void __launch_bounds__(256) scale(const T* x, double factor, T* out, index_t n) {
    const wide<T> f = wide<T>(factor);
    map(x, out, n, [=](wide<T> a) { return a * f; });
}
