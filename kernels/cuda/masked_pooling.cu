// The largest and the mean of the steps of sequences that are there. Padding is read, which is sooner done than to wait
// for the mask, but never counts, whatever is in it.
#include "pooling.cuh"

constexpr int BLOCK = 256;

template <typename T>
__device__ inline bool is_there(const T* mask, index_t i) {
    return wide<T>(mask[i]) != wide<T>(0);
}

// What is made of the steps of a channel: from what it begins with, step by step, to the result
struct Largest {
    template <typename W>
    __device__ static W first() {
        return W(__uint_as_float(0xff800000u));  // -infinity
    }
    template <typename W>
    __device__ static W both(W a, W b) {
        return larger(a, b);
    }
    template <typename W>
    __device__ static W result(W all, int count) {
        return count > 0 ? all : W(0);
    }
};

struct Mean {
    template <typename W>
    __device__ static W first() {
        return 0;
    }
    template <typename W>
    __device__ static W both(W a, W b) {
        return a + b;
    }
    template <typename W>
    __device__ static W result(W all, int count) {
        return all / W(count > 0 ? count : 1);
    }
};

// A block takes up to 32 packs of a sequence at a time; the threads that these leave share out the steps
template <class R, int N, typename T>
__device__ inline void pool_packed(const T* x, const T* mask, T* out, index_t n, index_t steps, index_t c) {
    using W = wide<T>;
    __shared__ Values<T, N> totals[BLOCK];
    __shared__ int counts[BLOCK];
    const index_t packs = c / N;
    int across = 32;
    while (across > 1 && across / 2 >= packs) across /= 2;
    const int lanes = BLOCK / across, lane = (int)threadIdx.x / across, own = (int)threadIdx.x % across;
    const index_t tiles = (packs + across - 1) / across;
    for (index_t tile = blockIdx.x; tile < n * tiles; tile += gridDim.x) {
        const index_t row = quotient(tile, tiles), pack = (tile - row * tiles) * across + own;
        Values<T, N> total;
        int count = 0;
#pragma unroll
        for (int k = 0; k < N; k++) total.v[k] = R::template first<W>();
        if (pack < packs) {
#pragma unroll 4
            for (index_t s = lane; s < steps; s += lanes) {
                const bool there = is_there(mask, row * steps + s);
                const Values<T, N> v = load<N>(x + (row * steps + s) * c + pack * N);
                count += there;
#pragma unroll
                for (int k = 0; k < N; k++) total.v[k] = there ? R::both(total.v[k], v.v[k]) : total.v[k];
            }
        }
        for (int half = lanes / 2; half > 0; half /= 2) {
            totals[threadIdx.x] = total;
            counts[threadIdx.x] = count;
            __syncthreads();
            if (lane < half) {
                const int other = threadIdx.x + half * across;
                count += counts[other];
#pragma unroll
                for (int k = 0; k < N; k++) total.v[k] = R::both(total.v[k], totals[other].v[k]);
            }
            __syncthreads();  // what is to be written again has been read
        }
        if (lane == 0 && pack < packs) {
#pragma unroll
            for (int k = 0; k < N; k++) total.v[k] = R::result(total.v[k], count);
            store(out + row * c + pack * N, total);
        }
    }
}

// out = the largest of the steps of x; NaN where one is, 0 where all are padding
template <typename T>
__global__ void __launch_bounds__(BLOCK)
masked_max(const T* x, const T* mask, T* out, index_t n, index_t steps, index_t c) {
    if (packed_rows<T>(c, x, out))
        pool_packed<Largest, Pack<T>::N>(x, mask, out, n, steps, c);
    else
        pool_packed<Largest, 1>(x, mask, out, n, steps, c);
}

// out = the mean of the steps of x; 0 where all are padding
template <typename T>
__global__ void __launch_bounds__(BLOCK)
masked_mean(const T* x, const T* mask, T* out, index_t n, index_t steps, index_t c) {
    if (packed_rows<T>(c, x, out))
        pool_packed<Mean, Pack<T>::N>(x, mask, out, n, steps, c);
    else
        pool_packed<Mean, 1>(x, mask, out, n, steps, c);
}

template <int N, typename T>
__device__ inline void masked_max_grad_packed(const T* dy, const T* x, const T* y, const T* mask, T* dx, index_t n,
                                              index_t steps, index_t c) {
    const index_t packs = c / N;
    GRID_STRIDE(i, n * steps * packs) {
        const PixelPack at(i, 1, steps, packs);
        const index_t first = at.image * steps, sequence = at.image * c + at.pack * N;
        Values<T, N> grad = {};
        if (is_there(mask, first + at.column)) {
            const Values<T, N> own = load<N>(x + i * N), largest = load<N>(y + sequence), d = load<N>(dy + sequence);
#pragma unroll
            for (int k = 0; k < N; k++) {
                bool hit = is_it(own.v[k], largest.v[k]);
                for (int s = 0; hit && s < at.column; s++)  // none but the first one that is
                    hit = !(is_there(mask, first + s)
                            && is_it(wide<T>(x[(first + s) * c + at.pack * N + k]), largest.v[k]));
                if (hit) grad.v[k] = d.v[k];
            }
        }
        store(dx + i * N, grad);
    }
}

// dx = dy in the first step of each sequence that is its y
template <typename T>
__global__ void __launch_bounds__(BLOCK) masked_max_grad(const T* dy, const T* x, const T* y, const T* mask, T* dx,
                                                         index_t n, index_t steps, index_t c) {
    if (packed_rows<T>(c, dy, x, y, dx))
        masked_max_grad_packed<Pack<T>::N>(dy, x, y, mask, dx, n, steps, c);
    else
        masked_max_grad_packed<1>(dy, x, y, mask, dx, n, steps, c);
}

// A block counts the steps of a sequence and writes a part of their gradients
template <int N, typename T>
__device__ inline void masked_mean_grad_packed(const T* dy, const T* mask, T* dx, index_t n, index_t steps, index_t c,
                                               index_t parts) {
    using W = wide<T>;
    const index_t packs = c / N;
    for (index_t b = blockIdx.x; b < n * parts; b += gridDim.x) {
        const index_t row = quotient(b, parts), part = b - row * parts;
        int count = 0;
        for (index_t s = threadIdx.x; s < steps; s += BLOCK) count += is_there(mask, row * steps + s);
        count = block_sum(count);
        for (index_t i = part * BLOCK + threadIdx.x; i < steps * packs; i += parts * BLOCK) {
            const index_t s = quotient(i, packs), pack = i - s * packs;
            Values<T, N> grad = {};
            if (is_there(mask, row * steps + s)) {
                grad = load<N>(dy + row * c + pack * N);
#pragma unroll
                for (int k = 0; k < N; k++) grad.v[k] /= W(count);
            }
            store(dx + (row * steps + s) * c + pack * N, grad);
        }
    }
}

// dx = dy in the steps that are there, by their number
template <typename T>
__global__ void __launch_bounds__(BLOCK)
masked_mean_grad(const T* dy, const T* mask, T* dx, index_t n, index_t steps, index_t c, index_t parts) {
    if (packed_rows<T>(c, dy, dx))
        masked_mean_grad_packed<Pack<T>::N>(dy, mask, dx, n, steps, c, parts);
    else
        masked_mean_grad_packed<1>(dy, mask, dx, n, steps, c, parts);
}
