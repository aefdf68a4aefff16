// Rows by index: the current batch, stored outputs, embeddings; parts of rows. Rows are moved as units of 1 to 16
// bytes, whatever their dtype; the caller picks the widest unit that divides a row and fits the addresses.
#include "common.cuh"
#include "units.cuh"

// dst[i] = src[index[first + i]]; first is ROW of the state where it is given, else 0
template <class U>
__global__ void __launch_bounds__(256)
gather_rows(const void* src, const index_t* index, const double* state, void* dst, index_t rows, index_t units) {
    const U* from = (const U*)src;
    U* to = (U*)dst;
    index_t first = state ? (index_t)state[STATE_ROW] : 0;
    index_t n = rows * units;
    GRID_STRIDE(i, n) {
        index_t row = quotient(i, units);
        to[i] = from[index[first + row] * units + (i - row * units)];
    }
}

// dst[ROW + i] = src[i]
template <class U>
__global__ void __launch_bounds__(256)
store_rows(const void* src, const double* state, void* dst, index_t rows, index_t units) {
    const U* from = (const U*)src;
    U* to = (U*)dst + (index_t)state[STATE_ROW] * units;
    index_t n = rows * units;
    GRID_STRIDE(i, n) to[i] = from[i];
}

// Row i of dst = row i of src; from row to row it is so many units
template <class U>
__global__ void __launch_bounds__(256)
copy_rows(const void* src, void* dst, index_t rows, index_t units, index_t src_step, index_t dst_step) {
    const U* from = (const U*)src;
    U* to = (U*)dst;
    index_t n = rows * units;
    GRID_STRIDE(i, n) {
        index_t row = quotient(i, units), unit = i - row * units;
        to[row * dst_step + unit] = from[row * src_step + unit];
    }
}
