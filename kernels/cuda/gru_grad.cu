// The backward pass of gru.cu, step by step: gates become the gradients of x W + b.
#include "recurrent.cuh"

// What the state's gradient d makes of update and new; and, in `carried` (n, h), how it reaches the state before
// without a product. All of it is nothing, but for what is carried, where the step is padding.
template <int N, typename W>
__device__ inline void through_state(Values<W, N>& d, Values<W, N>& z, Values<W, N>& fresh, const Values<W, N>& before,
                                     bool pad, wide<W>* carried, index_t i) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        const W update = z.v[k], value = fresh.v[k], of_state = d.v[k];
        d.v[k] = pad ? of_state : of_state * update;
        z.v[k] = pad ? W(0) : of_state * (before.v[k] - value) * update * (W(1) - update);
        fresh.v[k] = pad ? W(0) : of_state * (W(1) - update) * (W(1) - value * value);
    }
    write(carried, i, d);
}

// The reset after the product: the gradient of h U + c goes to `recurrent` (steps, n, 3 h), the states before to
// `states` (steps, n, h)
template <int N, typename T>
__device__ inline void gru_grad_units(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product,
                                      wide<T>* carried, bool last, const T* y, const T* h0, const void* mask,
                                      index_t mask_bytes, T* gates, const T* inner, T* recurrent, T* states,
                                      const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> d = read_grad<N>(dy, dy_stride, dy_offset, product, last ? nullptr : carried, u);
        const Values<W, N> before = read_before<N>(y, h0, s, u), times = read<N>(inner, u.in_step(s, 1, 0));
        Values<W, N> r = read<N>(gates, u.in_step(s, 3, 0)), z = read<N>(gates, u.in_step(s, 3, 1));
        Values<W, N> fresh = read<N>(gates, u.in_step(s, 3, 2));
        through_state(d, z, fresh, before, padding(mask, mask_bytes, u), carried, i);
        write(states, u.in_stack(s, 1, 0), before);
        write(gates, u.in_step(s, 3, 1), z);
        write(recurrent, u.in_stack(s, 3, 1), z);
        write(gates, u.in_step(s, 3, 2), fresh);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const W reset = r.v[k];
            r.v[k] = fresh.v[k] * times.v[k] * reset * (W(1) - reset);
            fresh.v[k] *= reset;
        }
        write(gates, u.in_step(s, 3, 0), r);
        write(recurrent, u.in_stack(s, 3, 0), r);
        write(recurrent, u.in_stack(s, 3, 2), fresh);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_grad_step(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product, wide<T>* carried,
              index_t last, const T* y, const T* h0, const void* mask, index_t mask_bytes, T* gates, const T* inner,
              T* recurrent, T* states, index_t step, index_t before, index_t steps, index_t n, index_t h,
              index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_grad_units<Pack<T>::N>(dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes, gates,
                                   inner, recurrent, states, s);
    else
        gru_grad_units<1>(dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes, gates, inner,
                          recurrent, states, s);
}

// The reset before the product, first half: update and new; the latter's gradient also to `news` (steps, n, h), for the
// product that takes it to r h
template <int N, typename T>
__device__ inline void gru_grad_new_units(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product,
                                          wide<T>* carried, bool last, const T* y, const T* h0, const void* mask,
                                          index_t mask_bytes, T* gates, T* news, const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> d = read_grad<N>(dy, dy_stride, dy_offset, product, last ? nullptr : carried, u);
        Values<W, N> z = read<N>(gates, u.in_step(s, 3, 1)), fresh = read<N>(gates, u.in_step(s, 3, 2));
        through_state(d, z, fresh, read_before<N>(y, h0, s, u), padding(mask, mask_bytes, u), carried, i);
        write(gates, u.in_step(s, 3, 1), z);
        write(gates, u.in_step(s, 3, 2), fresh);
        write(news, u.in_stack(s, 1, 0), fresh);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_grad_new(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product, wide<T>* carried,
             index_t last, const T* y, const T* h0, const void* mask, index_t mask_bytes, T* gates, T* news,
             index_t step, index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_grad_new_units<Pack<T>::N>(dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes, gates,
                                       news, s);
    else
        gru_grad_new_units<1>(dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes, gates, news,
                              s);
}

// Second half: product (n, h) is the gradient of r h. `row` (n, 2 h) takes the gradients of reset and update, for the
// product that takes them to the state before; `states` (n, steps, h) the states before.
template <int N, typename T>
__device__ inline void gru_grad_reset_units(const wide<T>* product, wide<T>* carried, const T* y, const T* h0, T* gates,
                                            T* row, T* states, const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        const Values<W, N> d = read<N>(product, i), before = read_before<N>(y, h0, s, u);
        Values<W, N> r = read<N>(gates, u.in_step(s, 3, 0)), past = read<N>(carried, i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const W reset = r.v[k];
            past.v[k] += d.v[k] * reset;
            r.v[k] = d.v[k] * before.v[k] * reset * (W(1) - reset);
        }
        write(carried, i, past);
        write(gates, u.in_step(s, 3, 0), r);
        write(row, u.in_row(s, 2, 0), r);
        write(row, u.in_row(s, 2, 1), read<N>(gates, u.in_step(s, 3, 1)));
        write(states, u.in_step(s, 1, 0), before);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
gru_grad_reset(const wide<T>* product, wide<T>* carried, const T* y, const T* h0, T* gates, T* row, T* states,
               index_t step, index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        gru_grad_reset_units<Pack<T>::N>(product, carried, y, h0, gates, row, states, s);
    else
        gru_grad_reset_units<1>(product, carried, y, h0, gates, row, states, s);
}
