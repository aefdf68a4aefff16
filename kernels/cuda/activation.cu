// Bias + activation forward, and its backward with the bias gradient in the same pass.
#include "activations.cuh"
#include "columns.cuh"

// z = x + bias; y = f(z). bias (m,) may be null, z too (then it is not kept). z or y may be x.
template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
bias_act(const T* x, const T* bias, T* z, T* y, index_t n, index_t m, double alpha) {
    using W = wide<T>;
    const Act<W> act(alpha);
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(x) && aligned16(y) && aligned16(z), bias_packed = m % N == 0 && aligned16(bias);
    PACK_STRIDE(i, n, N) {
        Values<T> v = load_pack(x, i, n, packed);
        if (bias) {
            const Values<T, N> b = load_columns<N>(bias, remainder(i, m), m, bias_packed);
#pragma unroll
            for (int j = 0; j < N; j++) v.v[j] += b.v[j];
        }
        if (z) store_pack(z, i, n, packed, v);
#pragma unroll
        for (int j = 0; j < N; j++) v.v[j] = act.value(v.v[j]);
        store_pack(y, i, n, packed, v);
    }
}

// dz = dy * f'; dz may be dy
template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256) act_grad(const T* dy, const T* saved, T* dz, index_t n, double alpha) {
    using W = wide<T>;
    const Act<W> act(alpha);
    map(dy, saved, dz, n, [=](W d, W s) { return d * act.slope(s); });
}

template <int N, typename T, class Functor>
__device__ inline void act_grad_columns(const T* dy, const T* saved, T* dz, wide<T>* sums, index_t rows, index_t m,
                                        index_t rows_per_chunk, const Functor& act) {
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    const Chunk chunk(rows, rows_per_chunk);
    wide<T> sum[N] = {};
    TILE_ROWS(r, tile, chunk, m) {
        const index_t i = r * m + tile.column;
        Values<T, N> d = load<N>(dy + i);
        if (dz) {
            const Values<T, N> s = load<N>(saved + i);
#pragma unroll
            for (int k = 0; k < N; k++) d.v[k] *= act.slope(s.v[k]);
            store(dz + i, d);
        }
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += d.v[k];
    }
    tile.sum(sum);
    tile.write(sums + blockIdx.y * m, m, sum);
}

// dz = dy * f', and the sums of dz over this block's rows into sums[chunk]. With dz null (and the
// identity, which reads no `saved`) this is the plain sum of columns.
template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
act_grad_bias(const T* dy, const T* saved, T* dz, wide<T>* sums, index_t rows, index_t m, index_t rows_per_chunk,
              index_t at_once, double alpha) {
    const Act<wide<T>> act(alpha);
    if (at_once > 1)
        act_grad_columns<Pack<T>::N>(dy, saved, dz, sums, rows, m, rows_per_chunk, act);
    else
        act_grad_columns<1>(dy, saved, dz, sums, rows, m, rows_per_chunk, act);
}
