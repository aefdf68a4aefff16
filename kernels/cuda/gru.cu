// One step of a gated recurrent unit between its recurrent products. Its gates are reset, update and new, in an array
// (n, steps, 3 h) that holds x W + b first.
#include "recurrent.cuh"

// h_t = (1 - z) n + z h, or what it was; to y, and to `state` (n, h) for the next step's product
template <int N, typename T>
__device__ inline void gru_state(const Values<wide<T>, N>& z, const Values<wide<T>, N>& fresh, const T* h0,
                                 const void* mask, index_t mask_bytes, T* y, T* state, const Step& s, const Units& u) {
    Values<wide<T>, N> v = read_before<N>(y, h0, s, u);
    if (!padding(mask, mask_bytes, u)) {
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = fresh.v[k] + z.v[k] * (v.v[k] - fresh.v[k]);
    }
    write(y, u.in_step(s, 1, 0), v);
    if (state) write(state, u.flat, v);
}

// The reset after the product: new = tanh(x W_n + b_n + r (h U_n + c_n)). product (n, 3 h) is h U, c (3 h,); both may
// be null. What r is multiplied with goes to `inner` (n, steps, h) where that is not null.
template <int N, typename T>
__device__ inline void gru_step_units(T* gates, T* inner, const wide<T>* product, const T* c, const T* h0,
                                      const void* mask, index_t mask_bytes, T* y, T* state, const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> a[3];
#pragma unroll
        for (int g = 0; g < 3; g++) {
            a[g] = read<N>(gates, u.in_step(s, 3, g));
            Values<W, N> p = read_or_zero<N>(product, u.in_row(s, 3, g));
            const Values<W, N> bias = read_or_zero<N>(c, g * s.h + u.unit);
#pragma unroll
            for (int k = 0; k < N; k++) {
                p.v[k] += bias.v[k];
                a[g].v[k] = g == 2 ? tanh(a[2].v[k] + a[0].v[k] * p.v[k]) : logistic(a[g].v[k] + p.v[k]);
            }
            write(gates, u.in_step(s, 3, g), a[g]);
            if (g == 2 && inner) write(inner, u.in_step(s, 1, 0), p);
        }
        gru_state<N>(a[1], a[2], h0, mask, mask_bytes, y, state, s, u);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_step(T* gates, T* inner, const wide<T>* product, const T* c, const T* h0, const void* mask, index_t mask_bytes,
         T* y, T* state, index_t step, index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_step_units<Pack<T>::N>(gates, inner, product, c, h0, mask, mask_bytes, y, state, s);
    else
        gru_step_units<1>(gates, inner, product, c, h0, mask, mask_bytes, y, state, s);
}

// The reset before the product, first half: reset and update, from product (n, 2 h); and r h for the second product,
// to `reset` (n, h)
template <int N, typename T>
__device__ inline void gru_reset_units(T* gates, const wide<T>* product, const T* c, const T* y, const T* h0, T* reset,
                                       const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> a[2];
#pragma unroll
        for (int g = 0; g < 2; g++) {
            a[g] = read<N>(gates, u.in_step(s, 3, g));
            const Values<W, N> p = read_or_zero<N>(product, u.in_row(s, 2, g));
            const Values<W, N> bias = read_or_zero<N>(c, g * s.h + u.unit);
#pragma unroll
            for (int k = 0; k < N; k++) a[g].v[k] = logistic(a[g].v[k] + p.v[k] + bias.v[k]);
            write(gates, u.in_step(s, 3, g), a[g]);
        }
        Values<W, N> v = read_before<N>(y, h0, s, u);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] *= a[0].v[k];
        write(reset, i, v);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_reset(T* gates, const wide<T>* product, const T* c, const T* y, const T* h0, T* reset, index_t step,
          index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_reset_units<Pack<T>::N>(gates, product, c, y, h0, reset, s);
    else
        gru_reset_units<1>(gates, product, c, y, h0, reset, s);
}

// Second half: new, from product (n, h) = (r h) U_n, and the state
template <int N, typename T>
__device__ inline void gru_new_units(T* gates, const wide<T>* product, const T* c, const T* h0, const void* mask,
                                     index_t mask_bytes, T* y, T* state, const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> fresh = read<N>(gates, u.in_step(s, 3, 2));
        const Values<W, N> z = read<N>(gates, u.in_step(s, 3, 1)), p = read_or_zero<N>(product, i);
        const Values<W, N> bias = read_or_zero<N>(c, 2 * s.h + u.unit);
#pragma unroll
        for (int k = 0; k < N; k++) fresh.v[k] = tanh(fresh.v[k] + p.v[k] + bias.v[k]);
        write(gates, u.in_step(s, 3, 2), fresh);
        gru_state<N>(z, fresh, h0, mask, mask_bytes, y, state, s, u);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_new(T* gates, const wide<T>* product, const T* c, const T* h0, const void* mask, index_t mask_bytes, T* y,
        T* state, index_t step, index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_new_units<Pack<T>::N>(gates, product, c, h0, mask, mask_bytes, y, state, s);
    else
        gru_new_units<1>(gates, product, c, h0, mask, mask_bytes, y, state, s);
}
