// Images that become larger or smaller.
#include "images.cuh"
#include "units.cuh"

// out[:, i, j] = x[:, (i + down) / tall, (j + across) / broad], and 0 where that lies outside: a border, a part, or
// each pixel several times. `units` are those of a pixel.
template <class U>
__global__ void __launch_bounds__(256)
resample(const void* x, void* out, index_t n, index_t height, index_t width, index_t result_height,
         index_t result_width, index_t units, index_t down, index_t across, index_t tall, index_t broad) {
    const U* from = (const U*)x;
    U* to = (U*)out;
    GRID_STRIDE(i, n * result_height * result_width * units) {
        const PixelPack at(i, result_height, result_width, units);
        index_t row = at.row + down, column = at.column + across;
        U v = {};
        if (row >= 0 && column >= 0) {
            row = quotient(row, tall);
            column = quotient(column, broad);
            if (row < height && column < width)
                v = from[((at.image * height + row) * width + column) * units + at.pack];
        }
        to[i] = v;
    }
}

template <int N, typename T>
__device__ inline void upsample_grad_packed(const T* dy, T* dx, index_t n, index_t height, index_t width, index_t c,
                                            int tall, int broad) {
    const index_t packs = c / N;
    GRID_STRIDE(i, n * height * width * packs) {
        const PixelPack at(i, height, width, packs);
        Values<T, N> sum = {};
        for (int r = 0; r < tall; r++) {
            const index_t row = (at.image * height + at.row) * tall + r;
            const T* block = dy + (row * width + at.column) * broad * c + at.pack * N;
            for (int s = 0; s < broad; s++) {
                const Values<T, N> v = load<N>(block + s * c);
#pragma unroll
                for (int k = 0; k < N; k++) sum.v[k] += v.v[k];
            }
        }
        store(dx + i * N, sum);
    }
}

// dx (n, height, width, c) = the sum of each block of tall x broad pixels of dy
template <typename T>
__global__ void __launch_bounds__(256)
upsample_grad(const T* dy, T* dx, index_t n, index_t height, index_t width, index_t c, index_t tall, index_t broad) {
    if (packed_rows<T>(c, dy, dx))
        upsample_grad_packed<Pack<T>::N>(dy, dx, n, height, width, c, (int)tall, (int)broad);
    else
        upsample_grad_packed<1>(dy, dx, n, height, width, c, (int)tall, (int)broad);
}

// Pixel i of an axis enlarged `factor` times: the pixel in whose block it lies, the neighbour on its side, and the
// neighbour's share of the value, which is 0 beyond the last centre. step = 1 / (2 factor).
template <typename W>
struct Between {
    int own, neighbour;
    W share;

    __device__ Between(int i, int size, int factor, W step) : own(i / factor) {
        const int off = 2 * (i - own * factor) + 1 - factor;
        const int beside = own + (off < 0 ? -1 : 1);
        const bool inside = off != 0 && beside >= 0 && beside < size;
        neighbour = inside ? beside : own;
        share = inside ? W(off < 0 ? -off : off) * step : W(0);
    }
};

template <typename T, int N>
__device__ inline void blend(Values<T, N>& own, const Values<T, N>& neighbour, wide<T> share) {
#pragma unroll
    for (int k = 0; k < N; k++) own.v[k] = (1 - share) * own.v[k] + share * neighbour.v[k];
}

// The value of a line of pixels of x at a place between two of its columns
template <int N, typename T>
__device__ inline Values<T, N> between_columns(const T* line, index_t c, const Between<wide<T>>& column) {
    Values<T, N> v = load<N>(line + column.own * c);
    if (column.share != 0) blend(v, load<N>(line + column.neighbour * c), column.share);
    return v;
}

template <int N, typename T>
__device__ inline void upsample_bilinear_packed(const T* x, T* out, index_t n, int height, int width, index_t c,
                                                int tall, int broad) {
    using W = wide<T>;
    const W down = W(0.5) / W(tall), across = W(0.5) / W(broad);
    const index_t rows = (index_t)height * tall, columns = (index_t)width * broad, packs = c / N;
    GRID_STRIDE(i, n * rows * columns * packs) {
        const PixelPack at(i, rows, columns, packs);
        const Between<W> row(at.row, height, tall, down), column(at.column, width, broad, across);
        const T* image = x + at.image * height * width * c + at.pack * N;
        Values<T, N> v = between_columns<N>(image + row.own * width * c, c, column);
        if (row.share != 0) blend(v, between_columns<N>(image + row.neighbour * width * c, c, column), row.share);
        store(out + i * N, v);
    }
}

// out (n, height * tall, width * broad, c) = x with what lies between its pixels interpolated
template <typename T>
__global__ void __launch_bounds__(256)
upsample_bilinear(const T* x, T* out, index_t n, index_t height, index_t width, index_t c, index_t tall,
                  index_t broad) {
    if (packed_rows<T>(c, x, out))
        upsample_bilinear_packed<Pack<T>::N>(x, out, n, (int)height, (int)width, c, (int)tall, (int)broad);
    else
        upsample_bilinear_packed<1>(x, out, n, (int)height, (int)width, c, (int)tall, (int)broad);
}

// The pixels of an enlarged axis that have a share of pixel `at`: those from `first` up to `end`
template <typename W>
struct Reach {
    int first, end, centre;  // the last is of the pixel's block, in halves of pixels
    W step, before, after;   // the least shares on both sides of it

    __device__ Reach(int at, int size, int factor, W step)
        : centre((2 * at + 1) * factor - 1), step(step), before(at == 0), after(at == size - 1) {
        first = at == 0 ? 0 : (at - 1) * factor + (factor + 1) / 2;
        end = at == size - 1 ? size * factor : (at + 1) * factor + factor / 2;
    }

    // As Between has it; beyond the last centre all of pixel i is this one's
    __device__ W share(int i) const {
        const int off = 2 * i - centre;
        const W share = 1 - W(off < 0 ? -off : off) * step, least = off < 0 ? before : after;
        return share > least ? share : least;
    }
};

template <int N, typename T>
__device__ inline void upsample_bilinear_grad_packed(const T* dy, T* dx, index_t n, int height, int width, index_t c,
                                                     int tall, int broad) {
    using W = wide<T>;
    const W down = W(0.5) / W(tall), across = W(0.5) / W(broad);
    const index_t packs = c / N;
    GRID_STRIDE(i, n * height * width * packs) {
        const PixelPack at(i, height, width, packs);
        const Reach<W> rows(at.row, height, tall, down), columns(at.column, width, broad, across);
        Values<T, N> sum = {};
        for (int r = rows.first; r < rows.end; r++) {
            const T* line = dy + (at.image * height * tall + r) * width * broad * c + at.pack * N;
            Values<T, N> of_row = {};
            for (int s = columns.first; s < columns.end; s++) {
                const Values<T, N> d = load<N>(line + s * c);
                const W share = columns.share(s);
#pragma unroll
                for (int k = 0; k < N; k++) of_row.v[k] += share * d.v[k];
            }
            const W share = rows.share(r);
#pragma unroll
            for (int k = 0; k < N; k++) sum.v[k] += share * of_row.v[k];
        }
        store(dx + i * N, sum);
    }
}

// dx (n, height, width, c) = what each pixel of dy has of it
template <typename T>
__global__ void __launch_bounds__(256)
upsample_bilinear_grad(const T* dy, T* dx, index_t n, index_t height, index_t width, index_t c, index_t tall,
                       index_t broad) {
    if (packed_rows<T>(c, dy, dx))
        upsample_bilinear_grad_packed<Pack<T>::N>(dy, dx, n, (int)height, (int)width, c, (int)tall, (int)broad);
    else
        upsample_bilinear_grad_packed<1>(dy, dx, n, (int)height, (int)width, c, (int)tall, (int)broad);
}
