// Bias + activation forward, and its backward with the bias gradient in the same pass.
#include "common.cuh"
#include "activations.cuh"

// z = x + bias; y = f(z). bias (m,) may be null, z too (then it is not kept). z or y may be x.
template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
bias_act(const T* x, const T* bias, T* z, T* y, index_t n, index_t m, double alpha) {
    using W = wide<T>;
    const Act<W> act(alpha);
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(x) && aligned16(y) && aligned16(z);
    PACK_STRIDE(i, n, N) {
        Values<T> v = load_pack(x, i, n, packed);
        if (bias) {
            index_t column = remainder(i, m);
#pragma unroll
            for (int j = 0; j < N; j++) {
                v.v[j] += bias[column];
                column = column + 1 == m ? 0 : column + 1;
            }
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

// dz = dy * f', and the sums of dz over this block's rows into sums[chunk]. With dz null (and the
// identity, which reads no `saved`) this is the plain sum of columns.
template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
act_grad_bias(const T* dy, const T* saved, T* dz, wide<T>* sums, index_t rows, index_t m, index_t rows_per_chunk,
              double alpha) {
    using W = wide<T>;
    const Act<W> act(alpha);
    index_t column = blockIdx.x * (index_t)TILE_COLUMNS + threadIdx.x;
    const Chunk chunk(rows, rows_per_chunk);
    W sum = 0;
    if (column < m)
#pragma unroll 2  // enough loads in flight; four copies of a double-precision erf are not worth it
        for (index_t r = chunk.begin + threadIdx.y; r < chunk.end; r += TILE_ROWS) {
            index_t i = r * m + column;
            W d = dy[i];
            if (dz) {
                d *= act.slope(saved[i]);
                dz[i] = T(d);
            }
            sum += d;
        }
    sum = tile_sum(sum);
    if (threadIdx.y == 0 && column < m) sums[blockIdx.y * m + column] = sum;
}
