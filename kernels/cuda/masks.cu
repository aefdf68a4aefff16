// Masks of steps: which are padding, and rows times what their step counts.
#include "rows.cuh"

__device__ inline bool equal(index_t x, double value) { return (double)x == value; }

// As NumPy compares: with the value as the type has it
template <typename X>
__device__ inline bool equal(X x, double value) {
    return wide<X>(x) == wide<X>(X(wide<X>(value)));
}

// out[i] = 1 where an element of the row is not `value` (NaN is none), else 0
template <typename X, typename T>
__global__ void __launch_bounds__(256) step_mask(const X* x, double value, T* out, index_t rows, index_t m) {
    const Lanes<1> lanes(m);
    LANE_ROWS(r, width, lanes, rows, m) {
        int other = 0;
        LANE_COLUMNS(j, width, lanes, 1) other |= !equal(x[r * m + j], value);
        other = lanes.sum(other);
        if (lanes.lane == 0 && width) out[r] = T(wide<T>(other != 0));
    }
}

// out = x * scale of its row; out may be x
template <typename T>
__global__ void __launch_bounds__(256) scale_rows(const T* x, const T* scale, T* out, index_t rows, index_t m) {
    GRID_STRIDE(i, rows * m) out[i] = T(wide<T>(x[i]) * wide<T>(scale[quotient(i, m)]));
}
