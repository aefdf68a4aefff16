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

// N elements of an array, as they are computed with
template <typename T, int COUNT = Pack<T>::N>
struct Values {
    static constexpr int N = COUNT;
    wide<T> v[N];
};

__device__ inline bool aligned(const void* p, unsigned bytes) { return ((unsigned long long)p & (bytes - 1)) == 0; }
__device__ inline bool aligned16(const void* p) { return aligned(p, 16); }

// N elements in transactions of 16 bytes; of all their bytes where those are fewer
template <int N, typename T>
__device__ inline Values<T, N> load(const T* a) {
    constexpr int AT_ONCE = N < Pack<T>::N ? N : Pack<T>::N;
    Values<T, N> values;
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
        const Pack<T, AT_ONCE> pack = *reinterpret_cast<const Pack<T, AT_ONCE>*>(a + i);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) values.v[i + j] = pack.v[j];
    }
    return values;
}

template <typename T, int N>
__device__ inline void store(T* a, const Values<T, N>& values) {
    constexpr int AT_ONCE = N < Pack<T>::N ? N : Pack<T>::N;
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
        Pack<T, AT_ONCE> pack;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) pack.v[j] = T(values.v[i + j]);
        *reinterpret_cast<Pack<T, AT_ONCE>*>(a + i) = pack;
    }
}

// The elements i.. of an array of n: in one transaction where `packed` says that addresses allow it, and
// one by one at the array's end, with zeros beyond it
template <typename T>
__device__ inline Values<T> load_pack(const T* a, index_t i, index_t n, bool packed) {
    if (packed && i + Pack<T>::N <= n) return load<Pack<T>::N>(a + i);
    Values<T> values;
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j++) values.v[j] = i + j < n ? wide<T>(a[i + j]) : wide<T>(0);
    return values;
}

template <typename T>
__device__ inline void store_pack(T* a, index_t i, index_t n, bool packed, const Values<T>& values) {
    if (packed && i + Pack<T>::N <= n) return store(a + i, values);
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j++)
        if (i + j < n) a[i + j] = T(values.v[j]);
}

// What an array of m, one element a column, has for N neighbouring elements of a matrix of m columns; the last column
// is followed by the first. packed: N divides m, and the address allows transactions of 16 bytes.
template <int N, typename T>
__device__ inline Values<T, N> load_columns(const T* a, index_t column, index_t m, bool packed) {
    if (packed) return load<N>(a + column);
    Values<T, N> values;
#pragma unroll
    for (int j = 0; j < N; j++) {
        values.v[j] = a[column];
        column = column + 1 == m ? 0 : column + 1;
    }
    return values;
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
