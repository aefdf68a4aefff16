// attention.cu for 16 bits, by tensor cores. Keys and values are copied while what came before them is computed with.
#include "attention_tensor.cuh"

// As attention(), for d of C at most; d, the strides and the addresses allow 16 bytes at a time
template <typename T, int C>
__global__ void __launch_bounds__(128)
attention_tensor(const T* q, const T* k, const T* v, const void* mask, index_t mask_bytes, T* out, float* lse,
                 index_t heads, index_t all_steps, index_t all_keys, index_t columns, index_t q_sequence, index_t q_row,
                 index_t k_sequence, index_t k_row, index_t v_sequence, index_t v_row, index_t out_sequence,
                 index_t out_row, index_t causal, double scale) {
    constexpr int KEYS = 64, BLOCKS = KEYS / 8;
    __shared__ Matrix<T, TENSOR_ROWS, C> queries;
    __shared__ Matrix<T, KEYS, C> some_keys, some_values;
    const int steps = (int)all_steps, keys = (int)all_keys, d = (int)columns;
    const HeadTile tile(steps, TENSOR_ROWS, heads);
    const index_t start = tile.head * d;
    const Rows<T> of_keys(k + tile.sequence * k_sequence + start, k_row, keys, d);
    const Rows<T> values(v + tile.sequence * v_sequence + start, v_row, keys, d);
    const Sight sight{mask, mask_bytes, tile.sequence * keys, steps, keys, causal != 0};
    const int end = sight.end_of_tile(tile.row, TENSOR_ROWS), own_row = tile.row + (int)threadIdx.x / 32 * 16;
    const float to_bits = (float)scale * LOG2_E;  // exp(scale x) is 2**(to_bits x)
    float sum[C / 8][4] = {}, most[2], total[2] = {};
    most[0] = most[1] = minus_infinity<float>();
    stage<TENSOR_ROWS, C>(queries.v, Rows<T>(q + tile.sequence * q_sequence + start, q_row, steps, d), tile.row);
    stage<KEYS, C>(some_keys.v, of_keys, 0);
    end_group();
#pragma unroll 1
    for (int first = 0; first < end; first += KEYS) {
        float s[BLOCKS][4];
        stage<KEYS, C>(some_values.v, values, first);
        end_group();
        arrived<1>();
        __syncthreads();
        tensor_scores<C>(s, queries.v, some_keys.v, d);
        __syncthreads();  // the keys have been read
        if (first + KEYS < end) stage<KEYS, C>(some_keys.v, of_keys, first + KEYS);
        end_group();
        if (mask || first + KEYS > sight.end(own_row) || own_row + 15 >= steps) {
#pragma unroll
            for (int j = 0; j < BLOCKS; j++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++) {
                    const int number = sight.number(first + sum_column(j, odd));
#pragma unroll
                    for (int e = odd; e < 4; e += 2)
                        if (number >= sight.end(own_row + sum_row(e))) s[j][e] = minus_infinity<float>();
                }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = most[half];
#pragma unroll
            for (int j = 0; j < BLOCKS; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[j][e] = s[j][e] == minus_infinity<float>() ? s[j][e] : s[j][e] * to_bits;
                    top = s[j][e] > top ? s[j][e] : top;  // NaN may be lost: the sum has it
                }
#pragma unroll
            for (int offset = 1; offset < 4; offset *= 2) {
                const float other = __shfl_xor_sync(FULL_WARP, top, offset);
                top = other > top ? other : top;
            }
            const float base = top == minus_infinity<float>() ? 0.0f : top, shrink = exp2(most[half] - base);
            most[half] = top;
            total[half] *= shrink;
#pragma unroll
            for (int j = 0; j < BLOCKS; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[j][e] = exp2(s[j][e] - base);
                    total[half] += s[j][e];
                }
#pragma unroll
            for (int j = 0; j < C / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) sum[j][e] *= shrink;
        }
        arrived<1>();
        __syncthreads();
        tensor_accumulate<C>(sum, s, some_values.v, d);
        __syncthreads();  // the values have been read
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 1);
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 2);
        const int query = own_row + sum_row(2 * half);
        if (lse && (threadIdx.x & 3) == 0 && query < steps)
            lse[(tile.sequence * heads + tile.head) * steps + query] = most[half] * LN_2 + log(total[half]);
        total[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
    }
    write_sums<C>(out + tile.sequence * out_sequence + start, out_row, steps, tile.row, d, sum, total[0], total[1]);
}
