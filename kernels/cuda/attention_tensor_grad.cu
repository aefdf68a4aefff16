// attention_grad.cu for 16 bits, by tensor cores
#include "attention_tensor.cuh"

// 2**x of this base is the weight of a score: 0 where the query looked at nothing
__device__ inline float weight_base(float lse) {
    return lse == minus_infinity<float>() ? -minus_infinity<float>() : lse * LOG2_E;
}

// As attention_dq(), for d of C at most; d, the strides and the addresses allow 16 bytes at a time
template <typename T, int C>
__global__ void __launch_bounds__(128)
attention_tensor_dq(const T* dy, const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes,
                    const float* lse, const float* delta, T* dq, index_t heads, index_t all_steps, index_t all_keys,
                    index_t columns, index_t dy_sequence, index_t dy_row, index_t q_sequence, index_t q_row,
                    index_t k_sequence, index_t k_row, index_t v_sequence, index_t v_row, index_t dq_sequence,
                    index_t dq_row, index_t causal, double scale) {
    constexpr int KEYS = C > 64 ? 32 : 64, BLOCKS = KEYS / 8;
    __shared__ Matrix<T, TENSOR_ROWS, C> queries, slopes;
    __shared__ Matrix<T, KEYS, C> some_keys, some_values;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns;
    const HeadTile tile(steps, TENSOR_ROWS, heads);
    const index_t start = tile.head * d, of_rows = (tile.sequence * heads + tile.head) * steps;
    const Rows<T> of_keys(k + tile.sequence * k_sequence + start, k_row, keys, d);
    const Rows<T> values(v + tile.sequence * v_sequence + start, v_row, keys, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    const int end = sight.end_of_tile(tile.row, TENSOR_ROWS), own_row = tile.row + (int)threadIdx.x / 32 * 16;
    const float to_bits = (float)scale * LOG2_E;
    float sum[C / 8][4] = {}, base[2], of_delta[2];
    int query_end[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = own_row + sum_row(2 * half);
        base[half] = query < steps ? weight_base(lse[of_rows + query]) : 0.0f;
        of_delta[half] = query < steps ? delta[of_rows + query] : 0.0f;
        query_end[half] = sight.end(query);
    }
    stage<TENSOR_ROWS, C>(queries.v, Rows<T>(q + tile.sequence * q_sequence + start, q_row, steps, d), tile.row);
    stage<TENSOR_ROWS, C>(slopes.v, Rows<T>(dy + tile.sequence * dy_sequence + start, dy_row, steps, d), tile.row);
#pragma unroll 1
    for (int first = 0; first < end; first += KEYS) {
        float s[BLOCKS][4], ds[BLOCKS][4];
        stage<KEYS, C>(some_keys.v, of_keys, first);
        end_group();
        stage<KEYS, C>(some_values.v, values, first);
        end_group();
        arrived<1>();
        __syncthreads();
        tensor_scores<C>(s, queries.v, some_keys.v, d);
        arrived<0>();
        __syncthreads();
        tensor_scores<C>(ds, slopes.v, some_values.v, d);
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const int number = sight.number(first + sum_column(j, odd));
#pragma unroll
                for (int e = odd; e < 4; e += 2) {
                    const float weight = exp2(s[j][e] * to_bits - base[e / 2]);
                    ds[j][e] = number < query_end[e / 2] ? weight * (ds[j][e] - of_delta[e / 2]) : 0.0f;
                }
            }
        tensor_accumulate<C>(sum, ds, some_keys.v, d);
        __syncthreads();  // keys and values have been read
    }
    write_sums<C>(dq + tile.sequence * dq_sequence + start, dq_row, steps, tile.row, d, sum, (float)scale,
                  (float)scale);
}

// As attention_dkv(), under the same conditions
template <typename T, int C>
__global__ void __launch_bounds__(128)
attention_tensor_dkv(const T* dy, const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes,
                     const float* lse, const float* delta, T* dk, T* dv, index_t heads, index_t all_steps,
                     index_t all_keys, index_t columns, index_t dy_sequence, index_t dy_row, index_t q_sequence,
                     index_t q_row, index_t k_sequence, index_t k_row, index_t v_sequence, index_t v_row,
                     index_t dk_sequence, index_t dk_row, index_t dv_sequence, index_t dv_row, index_t causal,
                     double scale) {
    constexpr int QUERIES = 32, BLOCKS = QUERIES / 8;
    __shared__ Matrix<T, TENSOR_ROWS, C> own_keys, own_values;
    __shared__ Matrix<T, QUERIES, C> some_queries, some_slopes;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns;
    const HeadTile tile(keys, TENSOR_ROWS, heads);
    const index_t start = tile.head * d, of_rows = (tile.sequence * heads + tile.head) * steps;
    const Rows<T> slopes(dy + tile.sequence * dy_sequence + start, dy_row, steps, d);
    const Rows<T> queries(q + tile.sequence * q_sequence + start, q_row, steps, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    const int own_row = tile.row + (int)threadIdx.x / 32 * 16;
    const int number[2] = {sight.number(own_row + sum_row(0)), sight.number(own_row + sum_row(2))};
    const float to_bits = (float)scale * LOG2_E;
    float of_keys[C / 8][4] = {}, of_values[C / 8][4] = {};
    stage<TENSOR_ROWS, C>(own_keys.v, Rows<T>(k + tile.sequence * k_sequence + start, k_row, keys, d), tile.row);
    stage<TENSOR_ROWS, C>(own_values.v, Rows<T>(v + tile.sequence * v_sequence + start, v_row, keys, d), tile.row);
    // The first query that looks at the first of these keys, from the start of its tile
    int from = causal ? tile.row - (keys - steps) : 0;
    from = from < 0 ? 0 : from / QUERIES * QUERIES;
#pragma unroll 1
    for (int first = from; first < steps; first += QUERIES) {
        float s[BLOCKS][4], ds[BLOCKS][4];
        stage<QUERIES, C>(some_queries.v, queries, first);
        end_group();
        stage<QUERIES, C>(some_slopes.v, slopes, first);
        end_group();
        arrived<1>();
        __syncthreads();
        tensor_scores<C>(s, own_keys.v, some_queries.v, d);
        arrived<0>();
        __syncthreads();
        tensor_scores<C>(ds, own_values.v, some_slopes.v, d);
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const int query = first + sum_column(j, odd), end = sight.end(query);
                const float base = query < steps ? weight_base(lse[of_rows + query]) : 0.0f;
                const float of_delta = query < steps ? delta[of_rows + query] : 0.0f;
#pragma unroll
                for (int e = odd; e < 4; e += 2) {
                    s[j][e] = number[e / 2] < end ? exp2(s[j][e] * to_bits - base) : 0.0f;
                    ds[j][e] = s[j][e] * (ds[j][e] - of_delta);
                }
            }
        tensor_accumulate<C>(of_values, s, some_slopes.v, d);
        tensor_accumulate<C>(of_keys, ds, some_queries.v, d);
        __syncthreads();  // queries and slopes have been read
    }
    write_sums<C>(dk + tile.sequence * dk_sequence + start, dk_row, keys, tile.row, d, of_keys, (float)scale,
                  (float)scale);
    write_sums<C>(dv + tile.sequence * dv_sequence + start, dv_row, keys, tile.row, d, of_values, 1.0f, 1.0f);
}
