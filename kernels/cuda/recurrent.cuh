// Steps of sequences (n, steps, h): where a step's elements lie, and what came before it. A thread takes N neighbouring
// units of a row: 16 bytes of them, or one where their number or an address does not allow it.
#include "activations.cuh"
#include "mask.cuh"

// A step, and the one that was done before it: -1 where there is none
struct Step {
    index_t step, before, steps, n, h;
};

// One thread's units
struct Units {
    index_t row, unit;  // of a matrix (n, h)
    index_t flat;       // where they lie in it
    index_t place;      // of the row's step among all steps of all rows
    __device__ Units(const Step& s, index_t i) : row(quotient(i, s.h)), unit(i - row * s.h), flat(i) {
        place = row * s.steps + s.step;
    }
    // Where a gate of them is in a matrix (n, gates * h), and in this step of sequences (n, steps, gates * h)
    __device__ index_t in_row(const Step& s, int gates, int gate) const { return (row * gates + gate) * s.h + unit; }
    __device__ index_t in_step(const Step& s, int gates, int gate) const { return (place * gates + gate) * s.h + unit; }
    // In this step of sequences of which the steps come first, (steps, n, gates * h)
    __device__ index_t in_stack(const Step& s, int gates, int gate) const {
        return s.step * s.n * s.h * gates + in_row(s, gates, gate);
    }
};

// N numbers of an array, in the type that they are computed with
template <int N, typename T>
__device__ inline Values<wide<T>, N> read(const T* a, index_t i) {
    const Values<T, N> x = load<N>(a + i);
    Values<wide<T>, N> y;
#pragma unroll
    for (int k = 0; k < N; k++) y.v[k] = x.v[k];
    return y;
}

// The same, or zeros where there is no array
template <int N, typename T>
__device__ inline Values<wide<T>, N> read_or_zero(const T* a, index_t i) {
    if (a) return read<N>(a, i);
    Values<wide<T>, N> zeros;
#pragma unroll
    for (int k = 0; k < N; k++) zeros.v[k] = 0;
    return zeros;
}

template <typename T, int N>
__device__ inline void write(T* a, index_t i, const Values<wide<T>, N>& x) {
    Values<T, N> y;
#pragma unroll
    for (int k = 0; k < N; k++) y.v[k] = x.v[k];
    store(a + i, y);
}

// The state (or cell) before this step
template <int N, typename T>
__device__ inline Values<wide<T>, N> read_before(const T* states, const T* initial, const Step& s, const Units& u) {
    if (s.before < 0) return read_or_zero<N>(initial, u.flat);
    return read<N>(states, (u.row * s.steps + s.before) * s.h + u.unit);
}

// Whether this step of the row is padding: its place in the mask is 0, whatever the type of that
__device__ inline bool padding(const void* mask, index_t bytes, const Units& u) {
    return mask && !is_set(mask, bytes, u.place);
}

// What reaches the state of this step: from above, by the recurrent product of the step after it, and past that.
// dy is that of all states, or of the last one alone: `stride` elements from row to row.
template <int N, typename T>
__device__ inline Values<wide<T>, N> read_grad(const T* dy, index_t stride, index_t offset, const wide<T>* product,
                                               const wide<T>* carried, const Units& u) {
    Values<wide<T>, N> d = read_or_zero<N>(dy, u.row * stride + offset + u.unit);
    const Values<wide<T>, N> p = read_or_zero<N>(product, u.flat), c = read_or_zero<N>(carried, u.flat);
#pragma unroll
    for (int k = 0; k < N; k++) d.v[k] += p.v[k] + c.v[k];
    return d;
}
