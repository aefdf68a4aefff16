// Sums over rows. A block of 256 threads takes a tile of columns: `across` threads lie side by side, with N columns
// each, and `down` of them below one another take every so many-th row. N is 16 bytes of elements, or 1.
#include "common.cuh"

constexpr int TILE_THREADS = 256;

template <int N>
struct Tile {
    int across, down;  // powers of two, TILE_THREADS together
    int row;           // of 0..down-1
    index_t column;    // the first of this thread's columns, which may lie beyond the last one

    __device__ Tile(index_t m, index_t number, int most_across) {
        across = 1;
        while (across < most_across && across * N < m) across *= 2;
        down = TILE_THREADS / across;
        row = threadIdx.x / across;
        column = (number * across + (threadIdx.x & (across - 1))) * N;
    }

    // v = its sum over the tile's rows, for all threads. First within each warp, then over the warps in their order.
    template <typename T>
    __device__ void sum(T (&v)[N]) const {
        __shared__ T parts[N][TILE_THREADS];
        for (int offset = across; offset < 32; offset *= 2)
#pragma unroll
            for (int k = 0; k < N; k++) v[k] += __shfl_xor_sync(FULL_WARP, v[k], offset);
        __syncthreads();  // a former call's values have been read
#pragma unroll
        for (int k = 0; k < N; k++) parts[k][threadIdx.x] = v[k];
        __syncthreads();
        const int width = across > 32 ? across : 32, place = threadIdx.x & (across - 1);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = 0;
            for (int start = 0; start < TILE_THREADS; start += width) v[k] += parts[k][start + place];
        }
    }

    // out[column..] = v, by one thread for each column
    template <typename T>
    __device__ void write(T* out, index_t m, const T (&v)[N]) const {
        if (row != 0 || column >= m) return;
#pragma unroll
        for (int k = 0; k < N; k++) out[column + k] = v[k];
    }
};

// Of a sum over columns that are cut into tiles along blockIdx.x
constexpr int MOST_ACROSS = 32;

// The rows of this block's chunk
struct Chunk {
    index_t begin, end;
    __device__ Chunk(index_t rows, index_t rows_per_chunk) {
        begin = blockIdx.y * rows_per_chunk;
        end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
    }
};

// for r = this thread's rows of the chunk, where it has columns
#define TILE_ROWS(r, tile, chunk, m)                                  \
    if ((tile).column < (m))                                          \
        _Pragma("unroll 2") for (index_t r = (chunk).begin + (tile).row; r < (chunk).end; r += (tile).down)
