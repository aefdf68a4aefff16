// Convolution of each channel by itself. Result channel o sees the channel o / multiplier. A gradient is gathered by
// what it belongs to: the pixel, or the weight.
#include "activations.cuh"
#include "columns.cuh"
#include "images.cuh"

// The elements of N channels of the image for N neighbouring ones of the result
template <int N, typename T>
__device__ inline Values<T, N> load_inputs(const T* pixel, index_t channel, int multiplier) {
    if (multiplier == 1) return load<N>(pixel + channel);
    Values<T, N> v;
#pragma unroll
    for (int k = 0; k < N; k++) v.v[k] = pixel[quotient(channel + k, multiplier)];
    return v;
}

template <int N, typename T>
__device__ inline void depthwise_packed(const T* x, const T* weights, const T* bias, T* saved, T* out, index_t n,
                                        index_t c, int multiplier, int act, double alpha, const Axis& rows,
                                        const Axis& columns) {
    const index_t m = c * multiplier, packs = m / N;
    GRID_STRIDE(i, n * rows.result * columns.result * packs) {
        const PixelPack at(i, rows.result, columns.result, packs);
        const index_t channel = at.pack * N;
        Values<T, N> sum = {};
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.pixel(at.row, r);
            if (!rows.inside(row)) continue;
            const T* line = x + (at.image * rows.image + row) * columns.image * c;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.pixel(at.column, s);
                if (!columns.inside(column)) continue;
                const Values<T, N> v = load_inputs<N>(line + column * c, channel, multiplier);
                const Values<T, N> w = load<N>(weights + (r * columns.taps + s) * m + channel);
#pragma unroll
                for (int k = 0; k < N; k++) sum.v[k] += v.v[k] * w.v[k];
            }
        }
        if (bias) {
            const Values<T, N> b = load<N>(bias + channel);
#pragma unroll
            for (int k = 0; k < N; k++) sum.v[k] += b.v[k];
        }
        if (saved) store(saved + i * N, sum);
        activate(sum.v, act, alpha);
        store(out + i * N, sum);
    }
}

// out = f(x * weights + bias), saved = what f is given; weights (places, 1, m). bias and saved may be null.
template <typename T>
__global__ void __launch_bounds__(256)
depthwise(const T* x, const T* weights, const T* bias, T* saved, T* out, index_t n, index_t c, index_t multiplier,
          index_t act, double alpha, WINDOW_PARAMETERS) {
    const bool packed = packed_rows<T>(c * multiplier, x, weights, bias, saved, out);
    if (packed)
        depthwise_packed<Pack<T>::N>(x, weights, bias, saved, out, n, c, (int)multiplier, (int)act, alpha, WINDOW_ROWS,
                                     WINDOW_COLUMNS);
    else
        depthwise_packed<1>(x, weights, bias, saved, out, n, c, (int)multiplier, (int)act, alpha, WINDOW_ROWS,
                            WINDOW_COLUMNS);
}

template <int N, typename T>
__device__ inline void depthwise_dx_packed(const T* dy, const T* weights, T* dx, index_t n, index_t c, int multiplier,
                                           const Axis& rows, const Axis& columns) {
    const index_t m = c * multiplier, packs = c / N;
    GRID_STRIDE(i, n * rows.image * columns.image * packs) {
        const PixelPack at(i, rows.image, columns.image, packs);
        Values<T, N> sum = {};
        for (int r = 0; r < rows.taps; r++) {
            const int row = rows.window(at.row, r);
            if (row < 0) continue;
            const T* line = dy + (at.image * rows.result + row) * columns.result * m;
            for (int s = 0; s < columns.taps; s++) {
                const int column = columns.window(at.column, s);
                if (column < 0) continue;
                const T* pixel = line + column * m;
                const T* place = weights + (r * columns.taps + s) * m;
                if (multiplier == 1) {
                    const Values<T, N> d = load<N>(pixel + at.pack * N), w = load<N>(place + at.pack * N);
#pragma unroll
                    for (int k = 0; k < N; k++) sum.v[k] += d.v[k] * w.v[k];
                    continue;
                }
#pragma unroll
                for (int k = 0; k < N; k++) {
                    const index_t first = (at.pack * N + k) * multiplier;
                    for (int q = 0; q < multiplier; q++)
                        sum.v[k] += wide<T>(pixel[first + q]) * wide<T>(place[first + q]);
                }
            }
        }
        store(dx + i * N, sum);
    }
}

// The gradient with respect to x
template <typename T>
__global__ void __launch_bounds__(256)
depthwise_dx(const T* dy, const T* weights, T* dx, index_t n, index_t c, index_t multiplier, WINDOW_PARAMETERS) {
    if (packed_rows<T>(c, dy, weights, dx))
        depthwise_dx_packed<Pack<T>::N>(dy, weights, dx, n, c, (int)multiplier, WINDOW_ROWS, WINDOW_COLUMNS);
    else
        depthwise_dx_packed<1>(dy, weights, dx, n, c, (int)multiplier, WINDOW_ROWS, WINDOW_COLUMNS);
}

template <int N, typename T>
__device__ inline void depthwise_weights_packed(const T* dy, const T* x, wide<T>* sums, index_t n, index_t c,
                                                int multiplier, index_t rows_per_chunk, const Axis& rows,
                                                const Axis& columns) {
    const index_t m = c * multiplier;
    const Tile<N> tile(m, blockIdx.x, MOST_ACROSS);
    const Chunk chunk(n * rows.result * columns.result, rows_per_chunk);
    const int r = (int)blockIdx.z / columns.taps, s = (int)blockIdx.z % columns.taps;
    wide<T> sum[N] = {};
    TILE_ROWS(p, tile, chunk, m) {
        const PixelPack at(p, rows.result, columns.result, 1);
        const int row = rows.pixel(at.row, r), column = columns.pixel(at.column, s);
        if (!rows.inside(row) || !columns.inside(column)) continue;
        const T* pixel = x + ((at.image * rows.image + row) * columns.image + column) * c;
        const Values<T, N> d = load<N>(dy + p * m + tile.column), v = load_inputs<N>(pixel, tile.column, multiplier);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += d.v[k] * v.v[k];
    }
    tile.sum(sum);
    tile.write(sums + (blockIdx.y * gridDim.z + blockIdx.z) * m, m, sum);
}

// Sums over this block's pixels of x and dy for one place of the window, into sums[chunk], shaped as the weights
template <typename T>
__global__ void __launch_bounds__(256)
depthwise_weights(const T* dy, const T* x, wide<T>* sums, index_t n, index_t c, index_t multiplier,
                  index_t rows_per_chunk, index_t at_once, WINDOW_PARAMETERS) {
    if (at_once > 1)
        depthwise_weights_packed<Pack<T>::N>(dy, x, sums, n, c, (int)multiplier, rows_per_chunk, WINDOW_ROWS,
                                             WINDOW_COLUMNS);
    else
        depthwise_weights_packed<1>(dy, x, sums, n, c, (int)multiplier, rows_per_chunk, WINDOW_ROWS, WINDOW_COLUMNS);
}
