// What training in 16 bits needs besides: copies between the types, and the scale of its gradients.
#include "common.cuh"

// out = in, rounded. float, which has the larger elements, says how many a thread moves at once.
template <typename From, typename To>
__global__ void __launch_bounds__(256) cast(const From* in, To* out, index_t n) {
    constexpr int N = Pack<float>::N;
    bool packed = aligned(in, N * sizeof(From)) && aligned(out, N * sizeof(To));
    PACK_STRIDE(i, n, N) {
        if (packed && i + N <= n) {
            const Pack<From, N> from = *reinterpret_cast<const Pack<From, N>*>(in + i);
            Pack<To, N> to;
#pragma unroll
            for (int j = 0; j < N; j++) to.v[j] = To(from.v[j]);
            *reinterpret_cast<Pack<To, N>*>(out + i) = to;
        } else {
            for (index_t j = i; j < n && j < i + N; j++) out[j] = To(in[j]);
        }
    }
}

// grad /= LOSS_SCALE. Where an element is not finite the step is skipped and the scale halved; after
// enough steps without one it is doubled. The last block writes the state, after every block has read it.
// sync[0] counts the blocks, sync[1] says that an element was not finite.
__global__ void __launch_bounds__(256) unscale(float* grad, index_t n, double* state, unsigned* sync) {
    if (state[STATE_BAD_STEP] != 0) return;  // all blocks do: nobody writes it meanwhile
    double held = state[STATE_LOSS_SCALE];
    if (held == 0) held = 1;
    float scale = (float)held;
    bool packed = aligned16(grad), bad = false;
    PACK_STRIDE(i, n, Pack<float>::N) {
        Values<float> v = load_pack(grad, i, n, packed);
#pragma unroll
        for (int j = 0; j < Pack<float>::N; j++) {
            v.v[j] /= scale;
            bad |= !isfinite(v.v[j]);
        }
        store_pack(grad, i, n, packed, v);
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0 && bad) atomicOr(sync + 1, 1u);
    if (!last_block(sync) || threadIdx.x != 0) return;
    if (atomicExch(sync + 1, 0u)) {
        state[STATE_SKIP_STEP] = 1;
        state[STATE_LOSS_SCALE] = held > 2 ? held / 2 : 1;
        state[STATE_GOOD_STEPS] = 0;
    } else if ((state[STATE_GOOD_STEPS] += 1) >= STATE_GROWTH_INTERVAL) {
        state[STATE_LOSS_SCALE] = 2 * held < STATE_MOST_LOSS_SCALE ? 2 * held : STATE_MOST_LOSS_SCALE;
        state[STATE_GOOD_STEPS] = 0;
    }
}
