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
