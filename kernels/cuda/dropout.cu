// Dropout from Philox 4x32-10 (Salmon et al., SC 2011): the mask is a function of seed, step, stream
// and element, so the backward pass draws it again instead of reading it.
#include "common.cuh"

struct Words {
    unsigned v[4];
};

__device__ inline Words philox(Words c, unsigned k0, unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = 0xD2511F53ull * c.v[0], p1 = 0xCD9E8D57ull * c.v[2];
        c = Words{{(unsigned)(p1 >> 32) ^ c.v[1] ^ k0, (unsigned)p1, (unsigned)(p0 >> 32) ^ c.v[3] ^ k1, (unsigned)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// A thread draws four words for four elements, twice where a pack has eight; y may be x
template <typename T>
__global__ void __launch_bounds__(256)
dropout(const T* x, T* y, index_t n, const double* state, index_t stream, index_t threshold, double scale) {
    using W = wide<T>;
    constexpr int N = Pack<T>::N, GROUP = N > 4 ? N : 4, DRAWS = GROUP / 4;
    unsigned long long step = (unsigned long long)state[STATE_STEP];
    unsigned k0 = (unsigned)state[STATE_SEED_LO], k1 = (unsigned)state[STATE_SEED_HI];
    bool packed = aligned16(x) && aligned16(y);
    index_t groups = (n + GROUP - 1) / GROUP;
    GRID_STRIDE(g, groups) {
        Words w[DRAWS];
#pragma unroll
        for (int d = 0; d < DRAWS; d++) {
            unsigned block = (unsigned)(g * DRAWS + d);
            w[d] = philox(Words{{block, (unsigned)stream, (unsigned)step, (unsigned)(step >> 32)}}, k0, k1);
        }
#pragma unroll
        for (int j = 0; j < GROUP; j += N) {
            Values<T> v = load_pack(x, GROUP * g + j, n, packed);
#pragma unroll
            for (int i = 0; i < N; i++)
                v.v[i] = w[(j + i) / 4].v[(j + i) % 4] < threshold ? v.v[i] * W(scale) : W(0);
            store_pack(y, GROUP * g + j, n, packed, v);
        }
    }
}
