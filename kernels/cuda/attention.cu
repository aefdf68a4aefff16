// Attention without the matrix of scores: a block takes a tile of queries through all keys (Dao et al. 2022), with the
// softmax's maximum and sum carried on (Milakov, Gimelshein 2018).
#include "attention.cuh"

// The largest, or the sum, of what the 16 threads of a row have
template <typename W>
__device__ inline W row_max(W v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) {
        const W other = __shfl_xor_sync(FULL_WARP, v, offset);
        v = other > v ? other : v;  // NaN may be lost: the sum has it
    }
    return v;
}

template <typename W>
__device__ inline W row_sum(W v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

// out = softmax(scale * q k^T) v for each head of d columns, and lse (n, heads, steps), which may be null. Blocks are
// tiles of queries by heads, times chunks of C columns of v. *_sequence and *_row are the elements between sequences
// and between rows.
template <typename T, int C>
__global__ void __launch_bounds__(256)
attention(const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes, T* out, wide<T>* lse, index_t heads,
          index_t all_steps, index_t all_keys, index_t columns, index_t q_sequence, index_t q_row, index_t k_sequence, index_t k_row,
          index_t v_sequence, index_t v_row, index_t out_sequence, index_t out_row, index_t causal, double scale) {
    using W = wide<T>;
    using S = Tiles<T>;
    constexpr int M = S::M;
    __shared__ Shared<T, C> shared;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns, column = (int)blockIdx.y * C;
    const HeadTile tile(steps, S::R, heads);
    const index_t start = tile.head * d;
    const Rows<T> queries(q + tile.sequence * q_sequence + start, q_row, steps, d);
    const Rows<T> of_keys(k + tile.sequence * k_sequence + start, k_row, keys, d);
    const Rows<T> values(v + tile.sequence * v_sequence + start, v_row, keys, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    W most[M], total[M], sum[M][C / 16] = {};
#pragma unroll
    for (int i = 0; i < M; i++) {
        most[i] = minus_infinity<W>();
        total[i] = 0;
    }
    const int end = sight.end_of_tile(tile.row, S::R);
#pragma unroll 1
    for (int first = 0; first < end; first += S::R) {
        W x[M][M];
        scores<T>(x, queries, tile.row, of_keys, first, shared.chunk);
        int number[M];
#pragma unroll
        for (int j = 0; j < M; j++) number[j] = sight.number(first + tx + 16 * j);
#pragma unroll
        for (int i = 0; i < M; i++) {
            const int query_end = sight.end(tile.row + ty + 16 * i);
            W top = most[i], part = 0;
#pragma unroll
            for (int j = 0; j < M; j++) {
                x[i][j] = number[j] < query_end ? x[i][j] * W(scale) : minus_infinity<W>();
                top = x[i][j] > top ? x[i][j] : top;
            }
            top = row_max(top);
            const W base = top == minus_infinity<W>() ? W(0) : top, shrink = exp(most[i] - base);
#pragma unroll
            for (int j = 0; j < M; j++) {
                x[i][j] = exp(x[i][j] - base);
                part += x[i][j];
            }
            total[i] = total[i] * shrink + row_sum(part);
            most[i] = top;
#pragma unroll
            for (int c = 0; c < C / 16; c++) sum[i][c] *= shrink;
        }
        put<T>(shared.weights, x);
        accumulate<C, T>(sum, shared.weights, values, first, column, shared.chunk);
    }
    W factor[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int query = tile.row + ty + 16 * i;
        factor[i] = total[i] == W(0) ? W(0) : W(1) / total[i];
        if (lse && tx == 0 && blockIdx.y == 0 && query < steps)
            lse[(tile.sequence * heads + tile.head) * steps + query] = most[i] + log(total[i]);
    }
    write_rows<C, T>(out + tile.sequence * out_sequence + start, out_row, steps, tile.row, column, d, sum, factor);
}
