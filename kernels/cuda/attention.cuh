// The two products that attention consists of, tile by tile: a block of 16 x 16 threads computes R x R scores, and adds
// R rows of C columns to what its threads hold (Dao et al. 2022). A thread has the rows ty + 16 i, and of scores the
// columns tx + 16 j. What is read from memory goes through shared memory, in chunks, in the type that it is computed in.
#include "mask.cuh"

constexpr int ATTENTION_THREADS = 256;

template <typename T>
struct Tiles {
    using W = wide<T>;
    static constexpr int N = Pack<W>::N;              // elements that go through shared memory at once
    static constexpr int R = sizeof(W) == 8 ? 32 : 64;  // queries, and keys, of a tile
    static constexpr int M = R / 16;                  // of those, a thread's
    static constexpr int DEPTH = 32;                  // columns of a chunk of the first product's operands
    static constexpr int KEYS = sizeof(W) == 8 ? 16 : 32;  // rows of one of the second product's right operand
    static constexpr int PITCH = DEPTH + N, WIDTH = R + N;  // between rows; N more, so that these are in other banks
};

// What a block works in
template <typename T, int C>
struct Shared {
    using S = Tiles<T>;
    static constexpr int SIDES = 2 * S::R * S::PITCH, RIGHT = S::KEYS * C;
    alignas(16) wide<T> chunk[SIDES > RIGHT ? SIDES : RIGHT];
    alignas(16) wide<T> weights[S::R * S::WIDTH];  // the second product's left operand
};

// The rows of one head in one sequence, of d columns
template <typename T>
struct Rows {
    const T* first;
    index_t stride;
    int count, d;
    bool packed;  // whether they can be read 16 bytes at a time
    __device__ Rows(const T* first, index_t stride, int count, int d)
        : first(first), stride(stride), count(count), d(d),
          packed((stride | d) % Pack<T>::N == 0 && aligned16(first)) {}
};

// to[r, c] = rows[row + r, column + c] of ROWS x COLUMNS; zeros beyond the last row and column
template <int ROWS, int COLUMNS, int PITCH, typename T>
__device__ inline void fill(wide<T>* to, const Rows<T>& rows, int row, int column) {
    if (rows.packed) {
        constexpr int N = Pack<T>::N, ACROSS = COLUMNS / N;
#pragma unroll 2
        for (int i = threadIdx.x; i < ROWS * ACROSS; i += ATTENTION_THREADS) {
            const int r = i / ACROSS, c = i % ACROSS * N;
            Values<wide<T>, N> v = {};
            if (row + r < rows.count && column + c < rows.d) {
                const Values<T, N> x = load<N>(rows.first + (index_t)(row + r) * rows.stride + column + c);
#pragma unroll
                for (int k = 0; k < N; k++) v.v[k] = x.v[k];
            }
            store(to + r * PITCH + c, v);
        }
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += ATTENTION_THREADS) {
        const int r = i / COLUMNS, c = i % COLUMNS;
        const bool there = row + r < rows.count && column + c < rows.d;
        to[r * PITCH + c] = there ? wide<T>(rows.first[(index_t)(row + r) * rows.stride + column + c]) : wide<T>(0);
    }
}

// x[i][j] = the product of row a0 + ty + 16 i of a and row b0 + tx + 16 j of b
template <typename T, int M>
__device__ inline void scores(wide<T> (&x)[M][M], const Rows<T>& a, int a0, const Rows<T>& b, int b0,
                              wide<T>* chunk) {
    using S = Tiles<T>;
    using W = wide<T>;
    constexpr int N = S::N;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    W* right = chunk + S::R * S::PITCH;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < M; j++) x[i][j] = 0;
#pragma unroll 1
    for (int column = 0; column < a.d; column += S::DEPTH) {
        __syncthreads();  // what was there has been read
        fill<S::R, S::DEPTH, S::PITCH>(chunk, a, a0, column);
        fill<S::R, S::DEPTH, S::PITCH>(right, b, b0, column);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < S::DEPTH; k += N) {
            Values<W, N> of_b[M];
#pragma unroll
            for (int j = 0; j < M; j++) of_b[j] = load<N>(right + (tx + 16 * j) * S::PITCH + k);
#pragma unroll
            for (int i = 0; i < M; i++) {
                const Values<W, N> of_a = load<N>(chunk + (ty + 16 * i) * S::PITCH + k);
#pragma unroll
                for (int e = 0; e < N; e++)
#pragma unroll
                    for (int j = 0; j < M; j++) x[i][j] += of_a.v[e] * of_b[j].v[e];
            }
        }
    }
}

// weights[ty + 16 i, tx + 16 j] = x[i][j]; accumulate() waits for all of them
template <typename T, int M>
__device__ inline void put(wide<T>* weights, const wide<T> (&x)[M][M]) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < M; j++) weights[(ty + 16 * i) * Tiles<T>::WIDTH + tx + 16 * j] = x[i][j];
}

// The column of a thread's element c of C / 16
template <typename T>
__device__ inline int column_of(int c) {
    constexpr int N = Tiles<T>::N;
    return c / N * 16 * N + (int)threadIdx.x % 16 * N + c % N;
}

// sum[i][c] += the products of the row ty + 16 i of the weights and of columns of the rows from b0 on
template <int C, typename T, int M>
__device__ inline void accumulate(wide<T> (&sum)[M][C / 16], const wide<T>* weights, const Rows<T>& b, int b0,
                                  int column, wide<T>* chunk) {
    using S = Tiles<T>;
    using W = wide<T>;
    constexpr int N = S::N, PACKS = C / 16 / N;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 1
    for (int first = 0; first < S::R; first += S::KEYS) {
        __syncthreads();  // what was there has been read, and weights are written
        fill<S::KEYS, C, C>(chunk, b, b0 + first, column);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < S::KEYS; k += N) {
            Values<W, N> left[M];
#pragma unroll
            for (int i = 0; i < M; i++) left[i] = load<N>(weights + (ty + 16 * i) * S::WIDTH + first + k);
#pragma unroll
            for (int e = 0; e < N; e++)
#pragma unroll
                for (int p = 0; p < PACKS; p++) {
                    const Values<W, N> right = load<N>(chunk + (k + e) * C + (p * 16 + tx) * N);
#pragma unroll
                    for (int i = 0; i < M; i++)
#pragma unroll
                        for (int c = 0; c < N; c++) sum[i][p * N + c] += left[i].v[e] * right.v[c];
                }
        }
    }
}

// to[row, column..] = sum[i] * factor[i], of the rows and columns that there are
template <int C, typename T, int M>
__device__ inline void write_rows(T* to, index_t stride, int rows, int row0, int column, int d,
                                  const wide<T> (&sum)[M][C / 16], const wide<T> (&factor)[M]) {
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = row0 + (int)threadIdx.x / 16 + 16 * i;
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < C / 16; c++) {
            const int j = column + column_of<T>(c);
            if (j < d) to[(index_t)row * stride + j] = T(sum[i][c] * factor[i]);
        }
    }
}

// The sequence and the head of a block, and its tile of rows. Tiles come last first: with `causal`, what has most to do.
struct HeadTile {
    index_t sequence, head;
    int row;
    __device__ HeadTile(int rows, int tile_rows, index_t heads) {
        const int tiles = (rows + tile_rows - 1) / tile_rows;
        const index_t of_all = quotient(blockIdx.x, tiles);
        row = (tiles - 1 - (int)(blockIdx.x - of_all * tiles)) * tile_rows;
        sequence = quotient(of_all, heads);
        head = of_all - sequence * heads;
    }
};

// Which keys a query looks at: those of which number() is less than end()
struct Sight {
    const void* mask;
    index_t mask_bytes, mask_start;
    int steps, keys;
    bool causal;
    __device__ int end(int query) const {
        if (query >= steps) return 0;
        return causal && query + 1 < steps ? query + 1 + keys - steps : keys;
    }
    __device__ int number(int key) const {
        if (key < keys && (!mask || is_set(mask, mask_bytes, mask_start + key))) return key;
        return 0x7fffffff;
    }
    // Of the keys that queries of a tile look at, the last, plus one
    __device__ int end_of_tile(int row, int rows) const {
        return end(row + rows < steps ? row + rows - 1 : steps - 1);
    }
};

template <typename W>
__device__ inline W minus_infinity() { return W(__uint_as_float(0xff800000u)); }
