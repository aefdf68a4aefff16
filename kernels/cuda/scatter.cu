// Adding rows at indices that may repeat, without atomics.
#include "rows.cuh"

template <int N, typename X, typename T>
__device__ inline void add_row(const X* from, T* to, index_t m) {
#pragma unroll 1
    for (index_t j = (threadIdx.x & 31) * (index_t)N; j < m; j += 32 * N) {
        Values<T, N> sum = load<N>(to + j);
        const Values<X, N> v = load<N>(from + j);
#pragma unroll
        for (int k = 0; k < N; k++) sum.v[k] += v.v[k];
        store(to + j, sum);
    }
}

// out[index[i]] += x[i]. One warp per i: the one whose index has not occurred before adds up all rows
// of that index in their order. out is wide where x is not. Deterministic; quadratic in the number of indices, but at 32 a step.
template <typename X, typename T>
__global__ void __launch_bounds__(256)
add_at_rows(const X* x, const index_t* index, T* out, index_t n, index_t m) {
    int lane = threadIdx.x & 31;
    bool packed = packed_rows<T>(m, x, out);
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    for (index_t i = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); i < n; i += warps) {
        index_t mine = index[i];
        bool first = true;
        for (index_t start = 0; start < i && first; start += 32) {
            bool same = start + lane < i && index[start + lane] == mine;
            first = __ballot_sync(FULL_WARP, same) == 0;
        }
        if (!first) continue;
        T* to = out + mine * m;
        for (index_t start = i; start < n; start += 32) {
            bool same = start + lane < n && index[start + lane] == mine;
            for (unsigned hits = __ballot_sync(FULL_WARP, same); hits; hits &= hits - 1) {
                const X* from = x + (start + __ffs((int)hits) - 1) * m;
                if (packed)
                    add_row<Pack<T>::N>(from, to, m);
                else
                    add_row<1>(from, to, m);
            }
        }
    }
}
