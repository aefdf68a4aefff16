// The gradients of attention, from scores that are computed again (Dao et al. 2022): of queries by tiles of queries, of
// keys and values by tiles of keys, so that no sum depends on which block comes first.
#include "attention.cuh"
#include "rows.cuh"

template <int N, typename T>
__device__ inline void attention_delta_packed(const T* dy, const T* out, wide<T>* delta, index_t rows, index_t heads,
                                              index_t steps, index_t d, index_t dy_sequence, index_t dy_row,
                                              index_t out_sequence, index_t out_row) {
    using W = wide<T>;
    const Lanes<N> lanes(d);
    LANE_ROWS(r, width, lanes, rows, d) {
        const index_t of_all = quotient(r, steps), step = r - of_all * steps, sequence = quotient(of_all, heads);
        const index_t start = (of_all - sequence * heads) * d;
        const T* a = dy + sequence * dy_sequence + step * dy_row + start;
        const T* b = out + sequence * out_sequence + step * out_row + start;
        W sum = 0;
        LANE_COLUMNS(j, width, lanes, N) {
            const Values<T, N> x = load<N>(a + j), y = load<N>(b + j);
#pragma unroll
            for (int k = 0; k < N; k++) sum += x.v[k] * y.v[k];
        }
        sum = lanes.sum(sum);
        if (lanes.lane == 0 && width) delta[r] = sum;
    }
}

// delta (n, heads, steps) = the sum of dy * out over a head's columns
template <typename T>
__global__ void __launch_bounds__(256)
attention_delta(const T* dy, const T* out, wide<T>* delta, index_t n, index_t heads, index_t steps, index_t d,
                index_t dy_sequence, index_t dy_row, index_t out_sequence, index_t out_row) {
    constexpr int N = Pack<T>::N;
    const index_t rows = n * heads * steps;
    if (packed_rows<T>(d, dy, out) && (dy_sequence | dy_row | out_sequence | out_row) % N == 0)
        attention_delta_packed<N>(dy, out, delta, rows, heads, steps, d, dy_sequence, dy_row, out_sequence, out_row);
    else
        attention_delta_packed<1>(dy, out, delta, rows, heads, steps, d, dy_sequence, dy_row, out_sequence, out_row);
}

// The weight of a key that is looked at
template <typename W>
__device__ inline W weight_of(W score, W lse) {
    return lse == minus_infinity<W>() ? W(0) : exp(score - lse);
}

// dq = ds k, with ds = weights * (dy v^T - delta) * scale
template <typename T, int C>
__global__ void __launch_bounds__(256)
attention_dq(const T* dy, const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes, const wide<T>* lse,
             const wide<T>* delta, T* dq, index_t heads, index_t all_steps, index_t all_keys, index_t columns, index_t dy_sequence,
             index_t dy_row, index_t q_sequence, index_t q_row, index_t k_sequence, index_t k_row, index_t v_sequence,
             index_t v_row, index_t dq_sequence, index_t dq_row, index_t causal, double scale) {
    using W = wide<T>;
    using S = Tiles<T>;
    constexpr int M = S::M;
    __shared__ Shared<T, C> shared;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns, column = (int)blockIdx.y * C;
    const HeadTile tile(steps, S::R, heads);
    const index_t start = tile.head * d, of_rows = (tile.sequence * heads + tile.head) * steps;
    const Rows<T> slopes(dy + tile.sequence * dy_sequence + start, dy_row, steps, d);
    const Rows<T> queries(q + tile.sequence * q_sequence + start, q_row, steps, d);
    const Rows<T> of_keys(k + tile.sequence * k_sequence + start, k_row, keys, d);
    const Rows<T> values(v + tile.sequence * v_sequence + start, v_row, keys, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    W of_lse[M], of_delta[M], factor[M], sum[M][C / 16] = {};
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int query = tile.row + ty + 16 * i;
        of_lse[i] = query < steps ? lse[of_rows + query] : W(0);
        of_delta[i] = query < steps ? delta[of_rows + query] : W(0);
        factor[i] = W(scale);
    }
    const int end = sight.end_of_tile(tile.row, S::R);
#pragma unroll 1
    for (int first = 0; first < end; first += S::R) {
        W x[M][M], dx[M][M];
        scores<T>(x, queries, tile.row, of_keys, first, shared.chunk);
        scores<T>(dx, slopes, tile.row, values, first, shared.chunk);
#pragma unroll
        for (int j = 0; j < M; j++) {
            const int number = sight.number(first + tx + 16 * j);
#pragma unroll
            for (int i = 0; i < M; i++) {
                const bool seen = number < sight.end(tile.row + ty + 16 * i);
                x[i][j] = seen ? weight_of(x[i][j] * W(scale), of_lse[i]) * (dx[i][j] - of_delta[i]) : W(0);
            }
        }
        put<T>(shared.weights, x);
        accumulate<C, T>(sum, shared.weights, of_keys, first, column, shared.chunk);
    }
    write_rows<C, T>(dq + tile.sequence * dq_sequence + start, dq_row, steps, tile.row, column, d, sum, factor);
}

// dv = weights^T dy, dk = ds^T q; rows of a block are keys, and its columns queries
template <typename T, int C>
__global__ void __launch_bounds__(256)
attention_dkv(const T* dy, const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes, const wide<T>* lse,
              const wide<T>* delta, T* dk, T* dv, index_t heads, index_t all_steps, index_t all_keys, index_t columns,
              index_t dy_sequence, index_t dy_row, index_t q_sequence, index_t q_row, index_t k_sequence, index_t k_row,
              index_t v_sequence, index_t v_row, index_t dk_sequence, index_t dk_row, index_t dv_sequence,
              index_t dv_row, index_t causal, double scale) {
    using W = wide<T>;
    using S = Tiles<T>;
    constexpr int M = S::M;
    __shared__ Shared<T, C> shared;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns, column = (int)blockIdx.y * C;
    const HeadTile tile(keys, S::R, heads);
    const index_t start = tile.head * d, of_rows = (tile.sequence * heads + tile.head) * steps;
    const Rows<T> slopes(dy + tile.sequence * dy_sequence + start, dy_row, steps, d);
    const Rows<T> queries(q + tile.sequence * q_sequence + start, q_row, steps, d);
    const Rows<T> of_keys(k + tile.sequence * k_sequence + start, k_row, keys, d);
    const Rows<T> values(v + tile.sequence * v_sequence + start, v_row, keys, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    W of_keys_sum[M][C / 16] = {}, of_values_sum[M][C / 16] = {}, factor[M], one[M];
    int number[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        factor[i] = W(scale);
        one[i] = W(1);
        number[i] = sight.number(tile.row + ty + 16 * i);
    }
    // The first query that looks at the first of these keys, from the start of its tile
    int from = causal ? tile.row - (keys - steps) : 0;
    from = from < 0 ? 0 : from / S::R * S::R;
#pragma unroll 1
    for (int first = from; first < steps; first += S::R) {
        W x[M][M];
        scores<T>(x, of_keys, tile.row, queries, first, shared.chunk);
#pragma unroll
        for (int j = 0; j < M; j++) {
            const int query = first + tx + 16 * j, end = sight.end(query);
            const W of_lse = query < steps ? lse[of_rows + query] : W(0);
#pragma unroll
            for (int i = 0; i < M; i++) x[i][j] = number[i] < end ? weight_of(x[i][j] * W(scale), of_lse) : W(0);
        }
        put<T>(shared.weights, x);
        accumulate<C, T>(of_values_sum, shared.weights, slopes, first, column, shared.chunk);
        // The weights stay there, not in registers, until each thread takes its own back
        scores<T>(x, values, tile.row, slopes, first, shared.chunk);
#pragma unroll
        for (int j = 0; j < M; j++) {
            const int query = first + tx + 16 * j;
            const W of_delta = query < steps ? delta[of_rows + query] : W(0);
#pragma unroll
            for (int i = 0; i < M; i++)
                x[i][j] = shared.weights[(ty + 16 * i) * S::WIDTH + tx + 16 * j] * (x[i][j] - of_delta);
        }
        put<T>(shared.weights, x);
        accumulate<C, T>(of_keys_sum, shared.weights, queries, first, column, shared.chunk);
    }
    write_rows<C, T>(dk + tile.sequence * dk_sequence + start, dk_row, keys, tile.row, column, d, of_keys_sum,
                     factor);
    write_rows<C, T>(dv + tile.sequence * dv_sequence + start, dv_row, keys, tile.row, column, d, of_values_sum, one);
}
