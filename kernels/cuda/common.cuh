// What all kernels share: index type, 16-byte packs, and sums whose order never changes.
//
// No floating-point atomics anywhere: a sum is taken per thread, per warp, per block, and over the
// blocks in the order of their numbers, so that equal inputs give equal bits. Blocks have a multiple
// of 32 threads. The STATE_* slots come from step_state.py.
#include "half.cuh"

typedef long long index_t;

constexpr unsigned FULL_WARP = 0xffffffffu;

// for i = this thread's elements of 0..n-1, over the whole grid. Not unrolled: the grid fills the device,
// and four copies of a double-precision erf only spill registers.
#define GRID_STRIDE(i, n)                                                                  \
    _Pragma("unroll 1") for (index_t i = blockIdx.x * (index_t)blockDim.x + threadIdx.x; i < (n);              \
         i += (index_t)gridDim.x * blockDim.x)

// One memory transaction of a thread, of 16 bytes where nothing else is asked for
template <typename T, int COUNT = 16 / sizeof(T)>
struct alignas(COUNT * sizeof(T)) Pack {
    static constexpr int N = COUNT;
    T v[N];
};

// A pack's elements as they are computed with
template <typename T>
struct Values {
    static constexpr int N = Pack<T>::N;
    wide<T> v[N];
};

__device__ inline bool aligned(const void* p, unsigned bytes) { return ((unsigned long long)p & (bytes - 1)) == 0; }
__device__ inline bool aligned16(const void* p) { return aligned(p, 16); }

// The elements i.. of an array of n: in one transaction where `packed` says that addresses allow it, and
// one by one at the array's end, with zeros beyond it
template <typename T>
__device__ inline Values<T> load_pack(const T* a, index_t i, index_t n, bool packed) {
    Values<T> values;
    if (packed && i + Pack<T>::N <= n) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(a + i);
#pragma unroll
        for (int j = 0; j < Pack<T>::N; j++) values.v[j] = pack.v[j];
        return values;
    }
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j++) values.v[j] = i + j < n ? wide<T>(a[i + j]) : wide<T>(0);
    return values;
}

template <typename T>
__device__ inline void store_pack(T* a, index_t i, index_t n, bool packed, const Values<T>& values) {
    if (packed && i + Pack<T>::N <= n) {
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < Pack<T>::N; j++) pack.v[j] = T(values.v[j]);
        *reinterpret_cast<Pack<T>*>(a + i) = pack;
        return;
    }
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j++)
        if (i + j < n) a[i + j] = T(values.v[j]);
}

// for i = the first element of each of this thread's packs
#define PACK_STRIDE(i, n, N)                                                               \
    _Pragma("unroll 1") for (index_t i = (blockIdx.x * (index_t)blockDim.x + threadIdx.x) * (N); i < (n); \
         i += (index_t)gridDim.x * blockDim.x * (N))

// out[i] = f(a[i]); out may be a
template <typename T, class F>
__device__ inline void map(const T* a, T* out, index_t n, F f) {
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(a) && aligned16(out);
    PACK_STRIDE(i, n, N) {
        Values<T> x = load_pack(a, i, n, packed);
#pragma unroll
        for (int j = 0; j < N; j++) x.v[j] = f(x.v[j]);
        store_pack(out, i, n, packed, x);
    }
}

// out[i] = f(a[i], b[i]); out may be a or b
template <typename T, class F>
__device__ inline void map(const T* a, const T* b, T* out, index_t n, F f) {
    constexpr int N = Pack<T>::N;
    bool packed = aligned16(a) && aligned16(b) && aligned16(out);
    PACK_STRIDE(i, n, N) {
        Values<T> x = load_pack(a, i, n, packed), y = load_pack(b, i, n, packed);
#pragma unroll
        for (int j = 0; j < N; j++) x.v[j] = f(x.v[j], y.v[j]);
        store_pack(out, i, n, packed, x);
    }
}

// i % m; a 64-bit division costs several times a 32-bit one
__device__ inline index_t remainder(index_t i, index_t m) {
    if (((unsigned long long)(i | m) >> 32) == 0) return (unsigned)i % (unsigned)m;
    return i % m;
}

__device__ inline index_t quotient(index_t i, index_t m) {
    if (((unsigned long long)(i | m) >> 32) == 0) return (unsigned)i / (unsigned)m;
    return i / m;
}

template <typename T>
__device__ inline T warp_sum(T v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

// A NaN may be lost: whoever calls this meets it again in the values themselves
template <typename T>
__device__ inline T warp_max(T v) {
    for (int offset = 16; offset > 0; offset >>= 1) {
        T other = __shfl_xor_sync(FULL_WARP, v, offset);
        v = other > v ? other : v;
    }
    return v;
}

// The sum over a one-dimensional block, for all of its threads
template <typename T>
__device__ inline T block_sum(T v) {
    __shared__ T parts[32];
    v = warp_sum(v);
    __syncthreads();  // a former call's values have been read
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    T total = 0;
    for (int w = 0; w < (int)(blockDim.x >> 5); w++) total += parts[w];
    return total;
}

// True for all threads of the block that finishes last. Counts in sync[0], which wraps back to 0.
__device__ inline bool last_block(unsigned* sync) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(sync, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    return last;
}

// Sum over the grid. True in one thread of the grid, which then has the total. partial: one double a block.
__device__ inline bool grid_sum(double v, double* partial, unsigned* sync, double* total) {
    v = block_sum(v);
    if (threadIdx.x == 0) ((volatile double*)partial)[blockIdx.x] = v;
    if (!last_block(sync)) return false;
    __threadfence();
    v = 0;
    for (index_t i = threadIdx.x; i < gridDim.x; i += blockDim.x) v += ((volatile double*)partial)[i];
    *total = block_sum(v);
    return threadIdx.x == 0;
}

// Column sums of (rows, m): blocks of 32 x 8 threads, 32 columns by one chunk of rows each
constexpr int TILE_COLUMNS = 32, TILE_ROWS = 8;

// The sum over threadIdx.y, for the threads with threadIdx.y == 0
template <typename T>
__device__ inline T tile_sum(T v) {
    __shared__ T tile[TILE_ROWS][TILE_COLUMNS];
    __syncthreads();
    tile[threadIdx.y][threadIdx.x] = v;
    __syncthreads();
    T total = 0;
    if (threadIdx.y == 0)
        for (int r = 0; r < TILE_ROWS; r++) total += tile[r][threadIdx.x];
    return total;
}

// The same, for all threads of the tile
template <typename T>
__device__ inline T tile_sum_all(T v) {
    __shared__ T tile[TILE_ROWS][TILE_COLUMNS];
    __syncthreads();
    tile[threadIdx.y][threadIdx.x] = v;
    __syncthreads();
    T total = 0;
    for (int r = 0; r < TILE_ROWS; r++) total += tile[r][threadIdx.x];
    return total;
}

// The rows of this block's chunk
struct Chunk {
    index_t begin, end;
    __device__ Chunk(index_t rows, index_t rows_per_chunk) {
        begin = blockIdx.y * rows_per_chunk;
        end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
    }
};
