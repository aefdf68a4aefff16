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

// Word number `at` of the stream, of the block of four that it is in
__device__ inline unsigned word(const Words& w, index_t at) {
    const unsigned low = at & 1 ? w.v[1] : w.v[0], high = at & 1 ? w.v[3] : w.v[2];
    return at & 2 ? high : low;
}

template <int N, typename T>
__device__ inline void spatial_dropout_packed(const T* x, T* y, index_t n, index_t pixels, index_t c, index_t run,
                                              const double* state, unsigned stream, index_t threshold, double scale) {
    using W = wide<T>;
    const unsigned long long step = (unsigned long long)state[STATE_STEP];
    const unsigned k0 = (unsigned)state[STATE_SEED_LO], k1 = (unsigned)state[STATE_SEED_HI];
    const index_t packs = c / N, runs = (pixels + run - 1) / run;
    GRID_STRIDE(i, n * runs * packs) {
        const index_t line = quotient(i, packs), pack = i - line * packs;
        const index_t image = quotient(line, runs), first = (line - image * runs) * run;
        const index_t channel = image * c + pack * N;  // as an element of an (n, c) array
        W factor[N];
        Words w;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const index_t at = channel + k;
            if (k == 0 || (at & 3) == 0)
                w = philox(Words{{(unsigned)(at >> 2), stream, (unsigned)step, (unsigned)(step >> 32)}}, k0, k1);
            factor[k] = word(w, at) < threshold ? W(scale) : W(0);
        }
        const index_t end = first + run < pixels ? first + run : pixels;
#pragma unroll 1
        for (index_t p = first; p < end; p++) {
            const index_t at = (image * pixels + p) * c + pack * N;
            Values<T, N> v = load<N>(x + at);
#pragma unroll
            for (int k = 0; k < N; k++) v.v[k] = factor[k] != W(0) ? v.v[k] * factor[k] : W(0);
            store(y + at, v);
        }
    }
}

// Whole channels of images (n, pixels, c). A thread draws once for a run of pixels; y may be x
template <typename T>
__global__ void __launch_bounds__(256)
spatial_dropout(const T* x, T* y, index_t n, index_t pixels, index_t c, index_t run, const double* state,
                index_t stream, index_t threshold, double scale) {
    if (c % Pack<T>::N == 0 && aligned16(x) && aligned16(y))
        spatial_dropout_packed<Pack<T>::N>(x, y, n, pixels, c, run, state, (unsigned)stream, threshold, scale);
    else
        spatial_dropout_packed<1>(x, y, n, pixels, c, run, state, (unsigned)stream, threshold, scale);
}
