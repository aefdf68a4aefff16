// Attention's two products by tensor cores, for 16 bits: a block of four warps has 64 rows, and each warp 16 of them. All
// operands are in shared memory as rows of C columns, zeros beyond d; what a warp multiplies stays in its registers.
#include "attention.cuh"
#include "tensor.cuh"

constexpr int TENSOR_THREADS = 128, TENSOR_ROWS = 64;
constexpr float LOG2_E = 1.44269504088896340736f, LN_2 = 0.69314718055994530942f;

// Rows of C columns in shared memory
template <typename T, int ROWS, int C>
struct alignas(16) Matrix {
    T v[ROWS * C];
};

// Where a pack of 8 elements lies. Packs of eight rows below one another are in different banks.
template <int C, typename T>
__device__ inline T* pack_at(T* matrix, int row, int column) {
    return matrix + row * C + ((column / 8) ^ (row & 7)) * 8;
}

// Begin to copy rows of a head to shared memory
template <int ROWS, int C, typename T>
__device__ inline void stage(T* to, const Rows<T>& rows, int row) {
    constexpr int ACROSS = C / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * ACROSS; i += TENSOR_THREADS) {
        const int r = i / ACROSS, c = i % ACROSS * 8;
        const bool there = row + r < rows.count && c < rows.d;
        const T* from = there ? rows.first + (index_t)(row + r) * rows.stride + c : rows.first;
        copy16(pack_at<C>(to, r, c), from, there);
    }
}

// This lane's part in load_matrices()
struct LanePlace {
    int eighth, odd, upper;  // a row; and which of four matrices it belongs to: the lower, the right
    __device__ LanePlace() : eighth(threadIdx.x & 7), odd(threadIdx.x >> 3 & 1), upper(threadIdx.x >> 4 & 1) {}
};

// Of a lane's sum [j][e]: its row among the 16 of the warp, and its column
__device__ inline int sum_row(int e) { return (int)(threadIdx.x & 31) / 4 + 8 * (e / 2); }
__device__ inline int sum_column(int j, int e) { return 8 * j + 2 * (int)(threadIdx.x & 3) + e % 2; }

// s = a b^T: this warp's 16 rows of a by the 8 BLOCKS rows of b
template <int C, typename T, int BLOCKS>
__device__ inline void tensor_scores(float (&s)[BLOCKS][4], T* a, T* b, int d) {
    const LanePlace at;
    const int row = (int)threadIdx.x / 32 * 16 + 8 * at.odd + at.eighth;
#pragma unroll
    for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0;
#pragma unroll
    for (int k = 0; k < C; k += 16) {
        if (k >= d) break;
        unsigned left[4];
        load_matrices<false>(left, pack_at<C>(a, row, k + 8 * at.upper));
#pragma unroll
        for (int j = 0; j < BLOCKS; j += 2) {
            unsigned both[4];
            load_matrices<false>(both, pack_at<C>(b, 8 * (j + at.upper) + at.eighth, k + 8 * at.odd));
            const unsigned first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
            multiply<T>(s[j], left, first);
            multiply<T>(s[j + 1], left, second);
        }
    }
}

template <typename T>
__device__ inline unsigned pair(float low, float high) {
    return T(low).bits | (unsigned)T(high).bits << 16;
}

// sum += p b: sums as tensor_scores() leaves them, rounded to T, are laid out as a left operand is
template <int C, typename T, int BLOCKS>
__device__ inline void tensor_accumulate(float (&sum)[C / 8][4], const float (&p)[BLOCKS][4], T* b, int d) {
    const LanePlace at;
#pragma unroll
    for (int i = 0; i < BLOCKS; i += 2) {
        const unsigned left[4] = {pair<T>(p[i][0], p[i][1]), pair<T>(p[i][2], p[i][3]),
                                  pair<T>(p[i + 1][0], p[i + 1][1]), pair<T>(p[i + 1][2], p[i + 1][3])};
#pragma unroll
        for (int j = 0; j < C / 8; j += 2) {
            if (8 * j >= d) break;
            unsigned both[4];
            load_matrices<true>(both, pack_at<C>(b, 8 * (i + at.odd) + at.eighth, 8 * (j + at.upper)));
            const unsigned first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
            multiply<T>(sum[j], left, first);
            multiply<T>(sum[j + 1], left, second);
        }
    }
}

// to[row] = sum * factor, of the rows and columns that there are
template <int C, typename T>
__device__ inline void write_sums(T* to, index_t stride, int rows, int row0, int d, const float (&sum)[C / 8][4],
                                  float upper_factor, float lower_factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = row0 + (int)threadIdx.x / 32 * 16 + sum_row(2 * half);
        const float factor = half ? lower_factor : upper_factor;
        if (row >= rows) continue;
#pragma unroll
        for (int j = 0; j < C / 8; j++) {
            const int column = sum_column(j, 0);
            if (column < d)
                *(unsigned*)(to + row * stride + column) =
                    pair<T>(sum[j][2 * half] * factor, sum[j][2 * half + 1] * factor);
        }
    }
}
