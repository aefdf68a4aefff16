// Softmax over rows: one warp a row.
#include "common.cuh"

// y = exp(z - max) / sum over the last axis; y may be z
template <typename T>
__global__ void __launch_bounds__(256) softmax(const T* z, T* y, index_t rows, index_t m) {
    using W = wide<T>;
    int lane = threadIdx.x & 31;
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    for (index_t r = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); r < rows; r += warps) {
        const T* in = z + r * m;
        T* out = y + r * m;
        W top = in[lane < m ? lane : 0];
        for (index_t j = lane; j < m; j += 32) top = W(in[j]) > top ? W(in[j]) : top;
        top = warp_max(top);
        W total = 0;
        for (index_t j = lane; j < m; j += 32) total += exp(W(in[j]) - top);
        total = warp_sum(total);
        for (index_t j = lane; j < m; j += 32) out[j] = T(exp(W(in[j]) - top) / total);
    }
}

// dz = y * (dy - sum(dy * y)); dz may be dy
template <typename T>
__global__ void __launch_bounds__(256) softmax_grad(const T* dy, const T* y, T* dz, index_t rows, index_t m) {
    using W = wide<T>;
    int lane = threadIdx.x & 31;
    index_t warps = (index_t)gridDim.x * (blockDim.x >> 5);
    for (index_t r = blockIdx.x * (index_t)(blockDim.x >> 5) + (threadIdx.x >> 5); r < rows; r += warps) {
        index_t start = r * m;
        W inner = 0;
        for (index_t j = lane; j < m; j += 32) inner += W(dy[start + j]) * W(y[start + j]);
        inner = warp_sum(inner);
        for (index_t j = lane; j < m; j += 32) dz[start + j] = T(W(y[start + j]) * (W(dy[start + j]) - inner));
    }
}
