// The gradients of a normalisation's gamma and beta, which are column sums, whatever it normalises over.
#include "columns.cuh"

// Sums of dy * xhat and of dy over this block's rows, into dgamma[chunk] and dbeta[chunk], which may be null;
// xhat(v, r, k) is what the element v of row r, and of this thread's column k, became
template <int N, typename T, class Normalised>
__device__ inline void norm_dparam(const T* dy, const T* x, wide<T>* dgamma, wide<T>* dbeta, index_t rows, index_t m,
                                   index_t rows_per_chunk, const Tile<N>& tile, const Normalised& xhat) {
    using W = wide<T>;
    const Chunk chunk(rows, rows_per_chunk);
    W of_gamma[N] = {}, of_beta[N] = {};
    TILE_ROWS(r, tile, chunk, m) {
        const Values<T, N> d = load<N>(dy + r * m + tile.column), v = load<N>(x + r * m + tile.column);
#pragma unroll
        for (int k = 0; k < N; k++) {
            of_gamma[k] += d.v[k] * xhat(v.v[k], r, k);
            of_beta[k] += d.v[k];
        }
    }
    tile.sum(of_gamma);
    tile.write(dgamma + blockIdx.y * m, m, of_gamma);
    if (!dbeta) return;
    tile.sum(of_beta);
    tile.write(dbeta + blockIdx.y * m, m, of_beta);
}
