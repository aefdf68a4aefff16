// The product of two tiles in shared memory, a block of 256 threads together: ROWS x COLUMNS sums in registers.
//
// The right factor lies as [k][column]. The left one lies as [row][k], or, where it is DOWN, as [k][row]; a chunk has
// 64 bytes of k. Rows of shared memory have 16 or 32 bytes more than they need, so that what a warp reads below one
// another lies in different banks.
#include "tensor.cuh"

constexpr int TILE_THREADS = 256;

// Blocks that a multiprocessor holds: the largest tile is kept to half of the registers where that makes it spill none
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define TILE_BLOCKS(rows, columns) ((rows) * (columns) > 8192 ? 2 : 1)
#else
#define TILE_BLOCKS(rows, columns) 1
#endif

template <typename T, int ROWS, int COLUMNS, bool DOWN>
struct Layout {
    static constexpr int PACK = Pack<T>::N, CHUNK = 4 * PACK;
    static constexpr int GAP = is_rounded<T> ? 2 * PACK : PACK;
    static constexpr int LEFT_PITCH = DOWN ? ROWS + GAP : CHUNK + PACK, RIGHT_PITCH = COLUMNS + GAP;
    static constexpr int LEFT = (DOWN ? CHUNK : ROWS) * LEFT_PITCH, RIGHT = CHUNK * RIGHT_PITCH;
    static constexpr int STAGE = (LEFT + RIGHT) * (int)sizeof(T);  // bytes of both
    static constexpr int STAGES = STAGE > 14 * 1024 ? 2 : 3;
};

// By the arithmetic of each thread: float and double
template <typename T, int ROWS, int COLUMNS, bool DOWN>
struct Product {
    using Tiles = Layout<T, ROWS, COLUMNS, DOWN>;
    static constexpr int DEEP = ROWS / 16, WIDE = COLUMNS / 16, PACK = Pack<T>::N;
    static constexpr int AT_ONCE = DEEP > 4 ? 2 : PACK;  // of k, in registers
    static constexpr int RUN = WIDE < PACK ? WIDE : PACK, DOWN_RUN = DEEP < PACK ? DEEP : PACK;

    T sum[DEEP][WIDE];

    __device__ Product() {
#pragma unroll
        for (int i = 0; i < DEEP; i++)
#pragma unroll
            for (int j = 0; j < WIDE; j++) sum[i][j] = T(0);
    }

    // Where this thread's sum [i][j] belongs
    __device__ static int row(int i) {
        const int y = threadIdx.x / 16;
        return DOWN ? (i / DOWN_RUN * 16 + y) * DOWN_RUN + i % DOWN_RUN : y + 16 * i;
    }
    __device__ static int column(int j) { return (j / RUN * 16 + (int)threadIdx.x % 16) * RUN + j % RUN; }

    __device__ void add(const T* left, const T* right) {
#pragma unroll
        for (int k = 0; k < Tiles::CHUNK; k += DOWN ? 1 : AT_ONCE) {
            constexpr int KS = DOWN ? 1 : AT_ONCE;
            T a[DEEP][KS];
            if (DOWN) {
#pragma unroll
                for (int i = 0; i < DEEP; i += DOWN_RUN) {
                    const Values<T, DOWN_RUN> v = load<DOWN_RUN>(left + k * Tiles::LEFT_PITCH + row(i));
#pragma unroll
                    for (int e = 0; e < DOWN_RUN; e++) a[i + e][0] = v.v[e];
                }
            } else {
#pragma unroll
                for (int i = 0; i < DEEP; i++) {
                    const Values<T, KS> v = load<KS>(left + row(i) * Tiles::LEFT_PITCH + k);
#pragma unroll
                    for (int e = 0; e < KS; e++) a[i][e] = v.v[e];
                }
            }
#pragma unroll
            for (int e = 0; e < KS; e++) {
                T b[WIDE];
#pragma unroll
                for (int j = 0; j < WIDE; j += RUN) {
                    const Values<T, RUN> v = load<RUN>(right + (k + e) * Tiles::RIGHT_PITCH + column(j));
#pragma unroll
                    for (int f = 0; f < RUN; f++) b[j + f] = v.v[f];
                }
#pragma unroll
                for (int i = 0; i < DEEP; i++)
#pragma unroll
                    for (int j = 0; j < WIDE; j++) sum[i][j] += a[i][e] * b[j];
            }
        }
    }

    // f(row, column, sum) for all of this thread's
    template <class F>
    __device__ void each(const F& f) const {
#pragma unroll
        for (int i = 0; i < DEEP; i++)
#pragma unroll
            for (int j = 0; j < WIDE; j++) f(row(i), column(j), sum[i][j]);
    }
};

// By tensor cores, summed up in float. Each warp has a part of the tile, in blocks of 16 x 8.
template <typename T, int ROWS, int COLUMNS, bool DOWN>
struct TensorProduct {
    using Tiles = Layout<T, ROWS, COLUMNS, DOWN>;
    static constexpr int ACROSS = COLUMNS > 32 ? 4 : 2, BELOW = 8 / ACROSS;  // warps
    static constexpr int DEEP = ROWS / BELOW / 16, WIDE = COLUMNS / ACROSS / 8;

    float sum[DEEP][WIDE][4];

    __device__ TensorProduct() {
#pragma unroll
        for (int i = 0; i < DEEP; i++)
#pragma unroll
            for (int j = 0; j < WIDE; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] = 0;
    }

    __device__ static int first_row() { return (int)(threadIdx.x / 32) / ACROSS * DEEP * 16; }
    __device__ static int first_column() { return (int)(threadIdx.x / 32) % ACROSS * WIDE * 8; }

    __device__ void add(const T* left, const T* right) {
        const int lane = threadIdx.x & 31, eighth = lane & 7, odd = lane >> 3 & 1, upper = lane >> 4;
        constexpr int DEPTH = 32 / (int)sizeof(T);  // of k, in one instruction: half of it lies in 16 bytes
#pragma unroll
        for (int k = 0; k < Tiles::CHUNK; k += DEPTH) {
            unsigned a[DEEP][4], b[WIDE][2];
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                const int row = first_row() + 16 * i, at = k + DEPTH / 2 * upper;
                if (!DOWN)
                    load_matrices<false>(a[i], left + (row + 8 * odd + eighth) * Tiles::LEFT_PITCH + at);
                else if constexpr (!is_rounded<T>)
                    load_matrices<true>(a[i], left + (at + eighth) * Tiles::LEFT_PITCH + row + 8 * odd);
                else
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int depth = k + 4 * (e >> 1) + lane % 4;
                        a[i][e] = left[depth * Tiles::LEFT_PITCH + row + 8 * (e & 1) + lane / 4].bits();
                    }
            }
#pragma unroll
            for (int j = 0; j < WIDE; j += 2) {
                unsigned both[4];
                const int column = first_column() + 8 * j;
                if constexpr (!is_rounded<T>)
                    load_matrices<true>(both, right + (k + 8 * odd + eighth) * Tiles::RIGHT_PITCH + column + 8 * upper);
                else
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int depth = k + 4 * (e & 1) + lane % 4;
                        both[e] = right[depth * Tiles::RIGHT_PITCH + column + 8 * (e >> 1) + lane / 4].bits();
                    }
                b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
            }
            if constexpr (is_rounded<T>) {
#pragma unroll
                for (int i = 0; i < DEEP; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) a[i][e] = round_tf32(a[i][e]);
#pragma unroll
                for (int j = 0; j < WIDE; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) b[j][e] = round_tf32(b[j][e]);
            }
#pragma unroll
            for (int i = 0; i < DEEP; i++)
#pragma unroll
                for (int j = 0; j < WIDE; j++) multiply<T>(sum[i][j], a[i], b[j]);
        }
    }

    template <class F>
    __device__ void each(const F& f) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < DEEP; i++)
#pragma unroll
            for (int j = 0; j < WIDE; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    f(first_row() + 16 * i + (lane >> 2) + 8 * (e >> 1),
                      first_column() + 8 * j + 2 * (lane & 3) + (e & 1), sum[i][j][e]);
    }
};

template <int ROWS, int COLUMNS, bool DOWN>
struct Product<f16, ROWS, COLUMNS, DOWN> : TensorProduct<f16, ROWS, COLUMNS, DOWN> {};
template <int ROWS, int COLUMNS, bool DOWN>
struct Product<bf16, ROWS, COLUMNS, DOWN> : TensorProduct<bf16, ROWS, COLUMNS, DOWN> {};
template <int ROWS, int COLUMNS, bool DOWN>
struct Product<tf32, ROWS, COLUMNS, DOWN> : TensorProduct<tf32, ROWS, COLUMNS, DOWN> {};

// Shared memory of a product: the stages of its factors, then the sums, a few rows at a time
template <typename T, int ROWS, int COLUMNS, bool DOWN>
struct Memory {
    using Tiles = Layout<T, ROWS, COLUMNS, DOWN>;
    using W = wide<T>;
    static constexpr int AT_A_TIME = 32, SUM_PITCH = COLUMNS + Pack<W>::N;
    static constexpr int SUMS = AT_A_TIME * SUM_PITCH * (int)sizeof(W), STAGED = Tiles::STAGES * Tiles::STAGE;
    static constexpr int BYTES = STAGED > SUMS ? STAGED : SUMS;

    Pack<float> bytes[BYTES / 16];

    __device__ T* left(int stage) { return (T*)((char*)bytes + stage % Tiles::STAGES * Tiles::STAGE); }
    __device__ T* right(int stage) { return left(stage) + Tiles::LEFT; }
    __device__ W* sums() { return (W*)bytes; }
};

// product += the chunks that fetch(chunk, left, right) brings to shared memory; the copies of one run beside the
// arithmetic of those before
template <typename T, int ROWS, int COLUMNS, bool DOWN, class Fetch>
__device__ inline void add_chunks(Product<T, ROWS, COLUMNS, DOWN>& product, Memory<T, ROWS, COLUMNS, DOWN>& memory,
                                  int chunks, const Fetch& fetch) {
    constexpr int STAGES = Layout<T, ROWS, COLUMNS, DOWN>::STAGES;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < chunks) fetch(i, memory.left(i), memory.right(i));
        end_group();
    }
#pragma unroll 1
    for (int i = 0; i < chunks; i++) {
        arrived<STAGES - 2>();
        __syncthreads();  // and all threads are done with the chunk before, whose place the next one takes
        const int next = i + STAGES - 1;
        if (next < chunks) fetch(next, memory.left(next), memory.right(next));
        end_group();
        product.add(memory.left(i), memory.right(i));
    }
    arrived<0>();
    __syncthreads();
}

// write(row, column, values) for the sums, N neighbouring columns at a time
template <int N, typename T, int ROWS, int COLUMNS, bool DOWN, class Write>
__device__ inline void each_run(const Product<T, ROWS, COLUMNS, DOWN>& product,
                                Memory<T, ROWS, COLUMNS, DOWN>& memory, const Write& write) {
    using M = Memory<T, ROWS, COLUMNS, DOWN>;
    using W = wide<T>;
    W* sums = memory.sums();
#pragma unroll 1
    for (int start = 0; start < ROWS; start += M::AT_A_TIME) {
        __syncthreads();
        product.each([&](int row, int column, W sum) {
            const int at = row - start;
            if (at >= 0 && at < M::AT_A_TIME) sums[at * M::SUM_PITCH + column] = sum;
        });
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < M::AT_A_TIME * COLUMNS / N; i += TILE_THREADS) {
            const int row = i / (COLUMNS / N), column = i % (COLUMNS / N) * N;
            write(start + row, column, load<N>(sums + row * M::SUM_PITCH + column));
        }
    }
}

// N neighbouring elements to shared memory, zeros where there are none: from[i] for i < left
template <typename T>
__device__ inline void fetch_pack(T* to, const T* from, int left, bool packed) {
    if (packed) return copy16(to, from, left > 0);
#pragma unroll
    for (int i = 0; i < Pack<T>::N; i++) to[i] = i < left ? from[i] : T(0);
}
