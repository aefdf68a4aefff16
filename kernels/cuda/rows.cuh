// Rows shared out to the lanes of warps, which move N elements at once: 16 bytes, or one element where
// the length of a row or an address does not allow it. A row has as many lanes as it has use for, so
// that a warp takes several short ones.
#include "common.cuh"

// Whether rows of m elements can be read and written 16 bytes at a time
template <typename T, typename... Arrays>
__device__ inline bool packed_rows(index_t m, const Arrays*... arrays) {
    return m % Pack<T>::N == 0 && (aligned16(arrays) && ...);
}

template <int N>
struct Lanes {
    int count, lane;      // lanes of a row, a power of two; and which of them this is
    int own;              // this lane's row among those of its warp
    index_t first, step;  // the first row of the warp; and how many rows there are before its next ones

    // All threads of the grid share out rows of m elements
    __device__ explicit Lanes(index_t m)
        : Lanes(m, blockIdx.x * (index_t)blockDim.x + threadIdx.x, (index_t)gridDim.x * blockDim.x) {}

    // `threads` of them do, and this is number `thread`
    __device__ Lanes(index_t m, index_t thread, index_t threads) {
        count = 32;
        while (count > 1 && count / 2 * N >= m) count /= 2;
        lane = threadIdx.x & (count - 1);
        own = (int)(threadIdx.x & 31) / count;
        first = (thread & ~(index_t)31) / count;
        step = threads / count;
    }

    // The sum over the lanes of each row, for all of them; the warp must be here as a whole
    template <typename T>
    __device__ T sum(T v) const {
        for (int offset = count / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
        return v;
    }

    // A NaN may be lost: whoever calls this meets it again in the values themselves
    template <typename T>
    __device__ T max(T v) const {
        for (int offset = count / 2; offset > 0; offset /= 2) {
            T other = __shfl_xor_sync(FULL_WARP, v, offset);
            v = other > v ? other : v;
        }
        return v;
    }
};

// for r = this lane's rows, whole warps at a time: a lane that has none left finds `width` 0, else m
#define LANE_ROWS(r, width, lanes, rows, m)                                                       \
    _Pragma("unroll 1") for (index_t r##_base = (lanes).first, r = r##_base + (lanes).own,         \
                             width = r < (rows) ? (m) : 0;                                        \
                             r##_base < (rows); r##_base += (lanes).step, r = r##_base + (lanes).own, \
                             width = r < (rows) ? (m) : 0)

// for j = the first column of each of this lane's packs
#define LANE_COLUMNS(j, width, lanes, N) \
    _Pragma("unroll 1") for (index_t j = (lanes).lane * (index_t)(N); j < (width); j += (lanes).count * (index_t)(N))

// top = max(z) and total = sum(exp(z - top)) of each row, in one reading: the sum so far is scaled where a
// larger element is met (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018)
template <int N, typename T>
__device__ inline void exponentials(const Lanes<N>& lanes, const T* z, index_t width, wide<T>* top, wide<T>* total) {
    using W = wide<T>;
    const W lowest = W(__uint_as_float(0xff800000u));  // -infinity
    W most = lowest, sum = 0;
    LANE_COLUMNS(j, width, lanes, N) {
        Values<T, N> v = load<N>(z + j);
        W larger = most;
#pragma unroll
        for (int k = 0; k < N; k++) larger = v.v[k] > larger ? v.v[k] : larger;
        if (larger == lowest) {  // nothing but -infinity so far, which adds nothing, and NaN, which stays
#pragma unroll
            for (int k = 0; k < N; k++) sum += v.v[k] == lowest ? W(0) : v.v[k];
            continue;
        }
        if (larger > most) sum *= exp(most - larger);
        most = larger;
#pragma unroll
        for (int k = 0; k < N; k++) sum += exp(v.v[k] - most);
    }
    *top = lanes.max(most);
    *total = lanes.sum(most < *top ? sum * exp(most - *top) : sum);
}
