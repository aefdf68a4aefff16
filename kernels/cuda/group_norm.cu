// Group normalisation: a block for each image and group of channels. Its gradients with respect to gamma and beta are
// column sums.
#include "norms.cuh"
#include "rows.cuh"

// The elements of one image's group, a pack at a time
template <int N>
struct Slab {
    index_t start, items, packs, c;

    __device__ Slab(index_t pixels, index_t c, index_t groups) : packs(c / groups / N), c(c) {
        const index_t image = blockIdx.x / groups, group = blockIdx.x % groups;
        start = image * pixels * c + group * packs * N;
        items = pixels * packs;
    }
    __device__ index_t channel(index_t i) const { return (i - quotient(i, packs) * packs) * N + start % c; }
    __device__ index_t element(index_t i) const {
        const index_t pixel = quotient(i, packs);
        return start + pixel * c + (i - pixel * packs) * N;
    }
};

#define SLAB_ITEMS(i, slab) _Pragma("unroll 1") for (index_t i = threadIdx.x; i < (slab).items; i += blockDim.x)

template <int N, typename T>
__device__ inline void group_norm_packed(const T* x, const wide<T>* gamma, const wide<T>* beta, T* out, wide<T>* mean,
                                         wide<T>* rstd, index_t pixels, index_t c, index_t groups, double eps) {
    using W = wide<T>;
    const Slab<N> slab(pixels, c, groups);
    const W count = W(slab.items * N);
    W sum = 0, squares = 0;
    SLAB_ITEMS(i, slab) {
        const Values<T, N> v = load<N>(x + slab.element(i));
#pragma unroll
        for (int k = 0; k < N; k++) sum += v.v[k];
    }
    const W center = block_sum(sum) / count;
    SLAB_ITEMS(i, slab) {
        const Values<T, N> v = load<N>(x + slab.element(i));
#pragma unroll
        for (int k = 0; k < N; k++) squares += (v.v[k] - center) * (v.v[k] - center);
    }
    const W scale = W(1) / sqrt(block_sum(squares) / count + W(eps));
    SLAB_ITEMS(i, slab) {
        const index_t at = slab.element(i), channel = slab.channel(i);
        Values<T, N> v = load<N>(x + at);
        const Values<W, N> g = load<N>(gamma + channel), b = load<N>(beta + channel);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = (v.v[k] - center) * scale * g.v[k] + b.v[k];
        store(out + at, v);
    }
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = center;
        rstd[blockIdx.x] = scale;
    }
}

// out = (x - mean) * rstd * gamma + beta; mean and rstd = 1 / sqrt(var + eps), of each image and group, are kept
template <typename T>
__global__ void __launch_bounds__(256)
group_norm(const T* x, const wide<T>* gamma, const wide<T>* beta, T* out, wide<T>* mean, wide<T>* rstd,
           index_t pixels, index_t c, index_t groups, double eps) {
    if (packed_rows<T>(c / groups, x, out, gamma, beta))
        group_norm_packed<Pack<T>::N>(x, gamma, beta, out, mean, rstd, pixels, c, groups, eps);
    else
        group_norm_packed<1>(x, gamma, beta, out, mean, rstd, pixels, c, groups, eps);
}

template <int N, typename T>
__device__ inline void group_norm_dx_packed(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean,
                                            const wide<T>* rstd, T* dx, index_t pixels, index_t c, index_t groups) {
    using W = wide<T>;
    const Slab<N> slab(pixels, c, groups);
    const W count = W(slab.items * N), center = mean[blockIdx.x], scale = rstd[blockIdx.x];
    W of_mean = 0, of_scale = 0;
    SLAB_ITEMS(i, slab) {
        const index_t at = slab.element(i);
        const Values<T, N> d = load<N>(dy + at), v = load<N>(x + at);
        const Values<W, N> weight = load<N>(gamma + slab.channel(i));
#pragma unroll
        for (int k = 0; k < N; k++) {
            const W g = d.v[k] * weight.v[k];
            of_mean += g;
            of_scale += g * (v.v[k] - center) * scale;
        }
    }
    of_mean = block_sum(of_mean) / count;
    of_scale = block_sum(of_scale) / count;
    SLAB_ITEMS(i, slab) {
        const index_t at = slab.element(i);
        Values<T, N> d = load<N>(dy + at), v = load<N>(x + at);
        const Values<W, N> weight = load<N>(gamma + slab.channel(i));
#pragma unroll
        for (int k = 0; k < N; k++) {
            const W g = d.v[k] * weight.v[k], xhat = (v.v[k] - center) * scale;
            d.v[k] = scale * (g - of_mean - xhat * of_scale);
        }
        store(dx + at, d);
    }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * gamma; dx may be dy
template <typename T>
__global__ void __launch_bounds__(256)
group_norm_dx(const T* dy, const T* x, const wide<T>* gamma, const wide<T>* mean, const wide<T>* rstd, T* dx,
              index_t pixels, index_t c, index_t groups) {
    if (packed_rows<T>(c / groups, dy, x, dx, gamma))
        group_norm_dx_packed<Pack<T>::N>(dy, x, gamma, mean, rstd, dx, pixels, c, groups);
    else
        group_norm_dx_packed<1>(dy, x, gamma, mean, rstd, dx, pixels, c, groups);
}

template <int N, typename T>
__device__ inline void group_norm_dparam_packed(const T* dy, const T* x, const wide<T>* mean, const wide<T>* rstd,
                                                wide<T>* dgamma, wide<T>* dbeta, index_t rows, index_t c,
                                                index_t pixels, index_t groups, index_t rows_per_chunk) {
    const Tile<N> tile(c, blockIdx.x, MOST_ACROSS);
    const index_t size = c / groups, first = quotient(tile.column, size), within = tile.column - first * size;
    norm_dparam(dy, x, dgamma, dbeta, rows, c, rows_per_chunk, tile, [=](wide<T> v, index_t r, int k) {
        const index_t slab = quotient(r, pixels) * groups + first + quotient(within + k, size);
        return (v - mean[slab]) * rstd[slab];
    });
}

// Sums of dy * xhat and of dy over this block's rows, which are pixels, into dgamma[chunk] and dbeta[chunk]
template <typename T>
__global__ void __launch_bounds__(256)
group_norm_dparam(const T* dy, const T* x, const wide<T>* mean, const wide<T>* rstd, wide<T>* dgamma, wide<T>* dbeta,
                  index_t rows, index_t c, index_t pixels, index_t groups, index_t rows_per_chunk, index_t at_once) {
    if (at_once > 1)
        group_norm_dparam_packed<Pack<T>::N>(dy, x, mean, rstd, dgamma, dbeta, rows, c, pixels, groups, rows_per_chunk);
    else
        group_norm_dparam_packed<1>(dy, x, mean, rstd, dgamma, dbeta, rows, c, pixels, groups, rows_per_chunk);
}
