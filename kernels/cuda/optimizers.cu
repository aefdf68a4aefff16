// One flat optimizer step: parameter and moments are read and written once.
#include "common.cuh"
#include "optimizers.cuh"

// The rule on one element; keeps the old values and returns true where a new one is not finite
template <class R, typename T>
__device__ inline bool advance(const R& rule, T* v) {
    T fresh[2 + R::MOMENTS];
#pragma unroll
    for (int k = 0; k < 2 + R::MOMENTS; k++) fresh[k] = v[k];
    rule.update(fresh);
    bool finite = isfinite(fresh[0]);
#pragma unroll
    for (int k = 2; k < 2 + R::MOMENTS; k++) finite = finite && isfinite(fresh[k]);
    if (!finite) return true;
#pragma unroll
    for (int k = 0; k < 2 + R::MOMENTS; k++) v[k] = fresh[k];
    return false;
}

// The elements i.. of the 16-bit copy of a parameter; a double would be rounded twice
template <typename H>
__device__ inline void store_rounded(H* copy, index_t i, index_t n, const Values<float>& from) {
    constexpr int N = Values<float>::N;
    Pack<H, N> rounded;
#pragma unroll
    for (int j = 0; j < N; j++) rounded.v[j] = H(from.v[j]);
    if (i + N <= n && aligned(copy + i, sizeof rounded)) {
        *reinterpret_cast<Pack<H, N>*>(copy + i) = rounded;
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++)
        if (i + j < n) copy[i + j] = rounded.v[j];
}

// Moments that the rule does not have are null. sync[0] counts the blocks, sync[1] says that an
// element was not finite: BAD_STEP is written by the last block, after every block has read it.
// low: a copy of a float parameter, as f16 (kind 1) or bf16 (2); kind 0 asks for none.
template <class R>
__global__ void __launch_bounds__(256)
optimizer_step(typename R::type* param, const typename R::type* grad, typename R::type* moment0,
               typename R::type* moment1, typename R::type* moment2, double* state, unsigned* sync, index_t n,
               void* low, index_t kind) {
    using T = typename R::type;
    constexpr int A = 2 + R::MOMENTS, N = Pack<T>::N;
    __shared__ R shared_rule;  // pow in double, once a block
    __shared__ bool stopped;
    if (threadIdx.x == 0) {
        stopped = state[STATE_BAD_STEP] != 0 || state[STATE_SKIP_STEP] != 0;
        shared_rule.load(state);
    }
    __syncthreads();
    bool bad = false;
    if (!stopped) {
        const R rule = shared_rule;
        T* arrays[5] = {param, const_cast<T*>(grad), moment0, moment1, moment2};
        bool packed = true;
#pragma unroll
        for (int k = 0; k < A; k++) packed = packed && aligned16(arrays[k]);
        PACK_STRIDE(i, n, N) {
            Values<T> v[A];
#pragma unroll
            for (int k = 0; k < A; k++) v[k] = load_pack(arrays[k], i, n, packed);
#pragma unroll
            for (int j = 0; j < N; j++) {
                T e[A];
#pragma unroll
                for (int k = 0; k < A; k++) e[k] = v[k].v[j];
                bool failed = advance(rule, e);
                bad |= failed && i + j < n;
#pragma unroll
                for (int k = 0; k < A; k++) v[k].v[j] = e[k];
            }
#pragma unroll
            for (int k = 0; k < A; k++)
                if (k != 1) store_pack(arrays[k], i, n, packed, v[k]);
            if constexpr (sizeof(T) == sizeof(float)) {
                if (kind == 1) store_rounded((f16*)low, i, n, v[0]);
                if (kind == 2) store_rounded((bf16*)low, i, n, v[0]);
            }
        }
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0 && bad) atomicOr(sync + 1, 1u);
    if (!last_block(sync) || threadIdx.x != 0) return;
    if (atomicExch(sync + 1, 0u)) state[STATE_BAD_STEP] = state[STATE_STEP];
    if (!stopped) shared_rule.store(state);
}

// average = EMA_DECAY * average + (1 - EMA_DECAY) * param, unless a step was bad or is skipped
template <typename T>
__global__ void __launch_bounds__(256) ema_step(const T* param, T* average, const double* state, index_t n) {
    if (state[STATE_BAD_STEP] != 0 || state[STATE_SKIP_STEP] != 0) return;
    T keep = T(state[STATE_EMA_DECAY]), rest = T(1.0 - state[STATE_EMA_DECAY]);
    map(average, param, average, n, [=](T a, T p) { return keep * a + rest * p; });
}
