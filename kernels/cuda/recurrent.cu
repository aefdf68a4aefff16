// One step of a simple recurrent network or of an LSTM, between its recurrent products: all that is not a product.
#include "recurrent.cuh"

// y holds x W + b of all steps; this one's becomes the state f(x W + b + product), which goes to `state` (n, h), too,
// for the next step's product
template <int N, typename T, template <typename> class Act>
__device__ inline void rnn_step_units(const Act<wide<T>>& act, const wide<T>* product, const T* h0, const void* mask,
                                      index_t mask_bytes, T* y, T* state, const Step s) {
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<wide<T>, N> v = read<N>(y, u.in_step(s, 1, 0));
        const Values<wide<T>, N> p = read_or_zero<N>(product, i);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = act.value(v.v[k] + p.v[k]);
        if (padding(mask, mask_bytes, u)) v = read_before<N>(y, h0, s, u);
        write(y, u.in_step(s, 1, 0), v);
        if (state) write(state, i, v);
    }
}

template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
rnn_step(const wide<T>* product, const T* h0, const void* mask, index_t mask_bytes, T* y, T* state, index_t step,
         index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Act<wide<T>> act(0);
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        rnn_step_units<Pack<T>::N>(act, product, h0, mask, mask_bytes, y, state, s);
    else
        rnn_step_units<1>(act, product, h0, mask, mask_bytes, y, state, s);
}

// The gradient of x W + b: into this step of `gates` (n, steps, h), and into `row` (n, h) for the product that takes it
// to the step before. The states before go to `states`, (n, steps, h). carried: what goes past a step that is padding.
template <int N, typename T, template <typename> class Act>
__device__ inline void rnn_grad_units(const Act<wide<T>>& act, const T* dy, index_t dy_stride, index_t dy_offset,
                                      const wide<T>* product, wide<T>* carried, bool last, const T* y, const T* h0,
                                      const void* mask, index_t mask_bytes, T* gates, T* row, T* states, const Step s) {
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        const index_t at = u.in_step(s, 1, 0);
        Values<wide<T>, N> d = read_grad<N>(dy, dy_stride, dy_offset, product, last ? nullptr : carried, u);
        write(states, at, read_before<N>(y, h0, s, u));
        const bool pad = padding(mask, mask_bytes, u);
        if (carried) write(carried, i, pad ? d : Values<wide<T>, N>{});
        const Values<wide<T>, N> v = read<N>(y, at);
#pragma unroll
        for (int k = 0; k < N; k++) d.v[k] = pad ? wide<T>(0) : d.v[k] * act.slope(v.v[k]);
        write(gates, at, d);
        write(row, i, d);
    }
}

template <typename T, template <typename> class Act>
__global__ void __launch_bounds__(256)
rnn_grad_step(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product, wide<T>* carried,
              index_t last, const T* y, const T* h0, const void* mask, index_t mask_bytes, T* gates, T* row, T* states,
              index_t step, index_t before, index_t steps, index_t n, index_t h, index_t at_once) {
    const Act<wide<T>> act(0);
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        rnn_grad_units<Pack<T>::N>(act, dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes,
                                   gates, row, states, s);
    else
        rnn_grad_units<1>(act, dy, dy_stride, dy_offset, product, carried, last, y, h0, mask, mask_bytes, gates, row,
                          states, s);
}

// Of gates (n, steps, 4 h), which hold x W + b, this step's become in, forget, cell and out. The cell is kept wide in
// `cell` (n, h) from step to step; c0, cells, last_cell and state may be null.
template <int N, typename T>
__device__ inline void lstm_step_units(T* gates, const wide<T>* product, const T* h0, const T* c0, wide<T>* cell,
                                       const void* mask, index_t mask_bytes, T* y, T* cells, T* state, T* last_cell,
                                       const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        Values<W, N> a[4];
#pragma unroll
        for (int g = 0; g < 4; g++) {
            a[g] = read<N>(gates, u.in_step(s, 4, g));
            const Values<W, N> p = read_or_zero<N>(product, u.in_row(s, 4, g));
#pragma unroll
            for (int k = 0; k < N; k++) a[g].v[k] = g == 2 ? tanh(a[g].v[k] + p.v[k]) : logistic(a[g].v[k] + p.v[k]);
            write(gates, u.in_step(s, 4, g), a[g]);
        }
        Values<W, N> c = s.before < 0 ? read_or_zero<N>(c0, i) : read<N>(cell, i), v;
        if (padding(mask, mask_bytes, u)) {
            v = read_before<N>(y, h0, s, u);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) {
                c.v[k] = a[1].v[k] * c.v[k] + a[0].v[k] * a[2].v[k];
                v.v[k] = a[3].v[k] * tanh(c.v[k]);
            }
        }
        write(cell, i, c);
        write(y, u.in_step(s, 1, 0), v);
        if (cells) write(cells, u.in_step(s, 1, 0), c);
        if (state) write(state, i, v);
        if (last_cell) write(last_cell, i, c);
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
lstm_step(T* gates, const wide<T>* product, const T* h0, const T* c0, wide<T>* cell, const void* mask,
          index_t mask_bytes, T* y, T* cells, T* state, T* last_cell, index_t step, index_t before, index_t steps,
          index_t n, index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        lstm_step_units<Pack<T>::N>(gates, product, h0, c0, cell, mask, mask_bytes, y, cells, state, last_cell, s);
    else
        lstm_step_units<1>(gates, product, h0, c0, cell, mask, mask_bytes, y, cells, state, last_cell, s);
}

// This step's gates become the gradients of x W + b; otherwise as in rnn_grad_step. cell_grad (n, h) goes from step to
// step.
template <int N, typename T>
__device__ inline void lstm_grad_units(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product,
                                       wide<T>* carried, wide<T>* cell_grad, bool last, const T* y, const T* h0,
                                       const T* cells, const T* c0, const void* mask, index_t mask_bytes, T* gates,
                                       T* row, T* states, const Step s) {
    using W = wide<T>;
    PACK_STRIDE(i, s.n * s.h, N) {
        const Units u(s, i);
        const Values<W, N> d = read_grad<N>(dy, dy_stride, dy_offset, product, last ? nullptr : carried, u);
        Values<W, N> dc = read_or_zero<N>(last ? nullptr : cell_grad, i);
        write(states, u.in_step(s, 1, 0), read_before<N>(y, h0, s, u));
        const bool pad = padding(mask, mask_bytes, u);
        if (carried) write(carried, i, pad ? d : Values<W, N>{});
        Values<W, N> a[4];
#pragma unroll
        for (int g = 0; g < 4; g++) a[g] = read<N>(gates, u.in_step(s, 4, g));
        const Values<W, N> c = read<N>(cells, u.in_step(s, 1, 0)), c_before = read_before<N>(cells, c0, s, u);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const W in = a[0].v[k], forget = a[1].v[k], g = a[2].v[k], out = a[3].v[k], top = tanh(c.v[k]);
            if (pad) {
                a[0].v[k] = a[1].v[k] = a[2].v[k] = a[3].v[k] = 0;
                continue;
            }
            const W of_cell = dc.v[k] + d.v[k] * out * (W(1) - top * top);
            a[0].v[k] = of_cell * g * in * (W(1) - in);
            a[1].v[k] = of_cell * c_before.v[k] * forget * (W(1) - forget);
            a[2].v[k] = of_cell * in * (W(1) - g * g);
            a[3].v[k] = d.v[k] * top * out * (W(1) - out);
            dc.v[k] = of_cell * forget;
        }
        write(cell_grad, i, dc);
#pragma unroll
        for (int g = 0; g < 4; g++) {
            write(gates, u.in_step(s, 4, g), a[g]);
            write(row, u.in_row(s, 4, g), a[g]);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
lstm_grad_step(const T* dy, index_t dy_stride, index_t dy_offset, const wide<T>* product, wide<T>* carried,
               wide<T>* cell_grad, index_t last, const T* y, const T* h0, const T* cells, const T* c0, const void* mask,
               index_t mask_bytes, T* gates, T* row, T* states, index_t step, index_t before, index_t steps, index_t n,
               index_t h, index_t at_once) {
    const Step s{step, before, steps, n, h};
    if (at_once > 1)
        lstm_grad_units<Pack<T>::N>(dy, dy_stride, dy_offset, product, carried, cell_grad, last, y, h0, cells, c0,
                                    mask, mask_bytes, gates, row, states, s);
    else
        lstm_grad_units<1>(dy, dy_stride, dy_offset, product, carried, cell_grad, last, y, h0, cells, c0, mask,
                           mask_bytes, gates, row, states, s);
}

// out = product + carried, which may be null: the gradient of an initial state or cell
template <typename T>
__global__ void __launch_bounds__(256)
initial_grad(const wide<T>* product, const wide<T>* carried, T* out, index_t count) {
    GRID_STRIDE(i, count) out[i] = T(product[i] + (carried ? carried[i] : wide<T>(0)));
}
