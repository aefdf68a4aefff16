// The largest and the mean of windows. A gradient is gathered by the pixel: it looks at the windows that it lies in, so
// that nothing is added up in the order of arrival.
#include "pooling.cuh"

template <int N, typename T>
__device__ inline void max_pool_packed(const T* x, T* out, index_t n, index_t c, const Axis& rows,
                                       const Axis& columns) {
    using W = wide<T>;
    const index_t packs = c / N;
    GRID_STRIDE(i, n * rows.result * columns.result * packs) {
        const PixelPack at(i, rows.result, columns.result, packs);
        Values<T, N> best;
#pragma unroll
        for (int k = 0; k < N; k++) best.v[k] = W(__uint_as_float(0xff800000u));  // -infinity
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.pixel(at.row, r);
            if (!rows.inside(row)) continue;
            const T* line = x + ((at.image * rows.image + row) * columns.image) * c + at.pack * N;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.pixel(at.column, s);
                if (!columns.inside(column)) continue;
                const Values<T, N> v = load<N>(line + column * c);
#pragma unroll
                for (int k = 0; k < N; k++) best.v[k] = larger(best.v[k], v.v[k]);
            }
        }
        store(out + i * N, best);
    }
}

// out = the largest of each window; NaN where one is in it
template <typename T>
__global__ void __launch_bounds__(256) max_pool(const T* x, T* out, index_t n, index_t c, WINDOW_PARAMETERS) {
    if (packed_rows<T>(c, x, out))
        max_pool_packed<Pack<T>::N>(x, out, n, c, WINDOW_ROWS, WINDOW_COLUMNS);
    else
        max_pool_packed<1>(x, out, n, c, WINDOW_ROWS, WINDOW_COLUMNS);
}

// Whether a place of window (i, j) before (r, s) has its largest in the channel that `image` and `largest` point to
template <typename T>
__device__ inline bool found_before(const T* image, wide<T> largest, index_t c, const Axis& rows, const Axis& columns,
                                    int i, int j, int r, int s) {
    for (int before = 0; before < r * columns.taps + s; before++) {
        const int row = rows.pixel(i, before / columns.taps), column = columns.pixel(j, before % columns.taps);
        if (rows.inside(row) && columns.inside(column)
            && is_it(wide<T>(image[((index_t)row * columns.image + column) * c]), largest))
            return true;
    }
    return false;
}

template <int N, typename T>
__device__ inline void max_pool_grad_packed(const T* dy, const T* x, const T* y, T* dx, index_t n, index_t c,
                                            const Axis& rows, const Axis& columns) {
    const index_t packs = c / N;
    GRID_STRIDE(i, n * rows.image * columns.image * packs) {
        const PixelPack at(i, rows.image, columns.image, packs);
        const Values<T, N> own = load<N>(x + i * N);
        const T* image = x + at.image * rows.image * columns.image * c + at.pack * N;
        Values<T, N> sum = {};
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.window(at.row, r);
            if (row < 0) continue;
            const index_t line = ((at.image * rows.result + row) * columns.result) * c + at.pack * N;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.window(at.column, s);
                if (column < 0) continue;
                const Values<T, N> largest = load<N>(y + line + column * c), d = load<N>(dy + line + column * c);
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (is_it(own.v[k], largest.v[k])
                        && !found_before(image + k, largest.v[k], c, rows, columns, row, column, r, s))
                        sum.v[k] += d.v[k];
            }
        }
        store(dx + i * N, sum);
    }
}

// dx = the sum of dy over the windows whose y this pixel is, the first such one of each
template <typename T>
__global__ void __launch_bounds__(256)
max_pool_grad(const T* dy, const T* x, const T* y, T* dx, index_t n, index_t c, WINDOW_PARAMETERS) {
    if (packed_rows<T>(c, dy, x, y, dx))
        max_pool_grad_packed<Pack<T>::N>(dy, x, y, dx, n, c, WINDOW_ROWS, WINDOW_COLUMNS);
    else
        max_pool_grad_packed<1>(dy, x, y, dx, n, c, WINDOW_ROWS, WINDOW_COLUMNS);
}

// What a window's sum is divided by; every: places outside count, too
__device__ inline int divisor(const Axis& rows, const Axis& columns, int i, int j, bool every) {
    if (every) return rows.taps * columns.taps;
    const int count = rows.count(i) * columns.count(j);
    return count > 0 ? count : 1;
}

template <int N, typename T>
__device__ inline void avg_pool_packed(const T* x, T* out, index_t n, index_t c, bool every, const Axis& rows,
                                       const Axis& columns) {
    using W = wide<T>;
    const index_t packs = c / N;
    GRID_STRIDE(i, n * rows.result * columns.result * packs) {
        const PixelPack at(i, rows.result, columns.result, packs);
        Values<T, N> sum = {};
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.pixel(at.row, r);
            if (!rows.inside(row)) continue;
            const T* line = x + ((at.image * rows.image + row) * columns.image) * c + at.pack * N;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.pixel(at.column, s);
                if (!columns.inside(column)) continue;
                const Values<T, N> v = load<N>(line + column * c);
#pragma unroll
                for (int k = 0; k < N; k++) sum.v[k] += v.v[k];
            }
        }
        const W count = W(divisor(rows, columns, at.row, at.column, every));
#pragma unroll
        for (int k = 0; k < N; k++) sum.v[k] /= count;
        store(out + i * N, sum);
    }
}

// out = the mean of each window
template <typename T>
__global__ void __launch_bounds__(256)
avg_pool(const T* x, T* out, index_t n, index_t c, index_t every, WINDOW_PARAMETERS) {
    if (packed_rows<T>(c, x, out))
        avg_pool_packed<Pack<T>::N>(x, out, n, c, every != 0, WINDOW_ROWS, WINDOW_COLUMNS);
    else
        avg_pool_packed<1>(x, out, n, c, every != 0, WINDOW_ROWS, WINDOW_COLUMNS);
}

template <int N, typename T>
__device__ inline void avg_pool_grad_packed(const T* dy, T* dx, index_t n, index_t c, bool every, const Axis& rows,
                                            const Axis& columns) {
    using W = wide<T>;
    const index_t packs = c / N;
    GRID_STRIDE(i, n * rows.image * columns.image * packs) {
        const PixelPack at(i, rows.image, columns.image, packs);
        Values<T, N> sum = {};
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.window(at.row, r);
            if (row < 0) continue;
            const T* line = dy + ((at.image * rows.result + row) * columns.result) * c + at.pack * N;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.window(at.column, s);
                if (column < 0) continue;
                const W count = W(divisor(rows, columns, row, column, every));
                const Values<T, N> d = load<N>(line + column * c);
#pragma unroll
                for (int k = 0; k < N; k++) sum.v[k] += d.v[k] / count;
            }
        }
        store(dx + i * N, sum);
    }
}

// dx = the sum of dy over the windows that this pixel lies in, each by what its sum was divided by
template <typename T>
__global__ void __launch_bounds__(256)
avg_pool_grad(const T* dy, T* dx, index_t n, index_t c, index_t every, WINDOW_PARAMETERS) {
    if (packed_rows<T>(c, dy, dx))
        avg_pool_grad_packed<Pack<T>::N>(dy, dx, n, c, every != 0, WINDOW_ROWS, WINDOW_COLUMNS);
    else
        avg_pool_grad_packed<1>(dy, dx, n, c, every != 0, WINDOW_ROWS, WINDOW_COLUMNS);
}
