// Rotary position embedding (Su et al. 2021): pairs of a head's columns turn by an angle that grows with the position.
#include "common.cuh"

// Column i of a head and column i + d / 2 turn by position / base**(2 i / d); backwards with `inverse`. A thread turns
// one pair of columns at one step, in all heads. Angles are computed in double: a float knows those of late positions
// to two digits. out may be x.
template <typename T>
__global__ void __launch_bounds__(256)
rotary(const T* x, T* out, index_t n, index_t steps, index_t heads, index_t d, index_t x_sequence, index_t x_row,
       index_t out_sequence, index_t out_row, index_t first, double base, index_t inverse) {
    using W = wide<T>;
    const index_t half = d / 2;
    GRID_STRIDE(e, n * steps * half) {
        const index_t of_all = quotient(e, half), i = e - of_all * half;
        const index_t sequence = quotient(of_all, steps), step = of_all - sequence * steps;
        const double turns = (double)(first + step) * exp(-2.0 * (double)i / (double)d * log(base)) / 6.283185307179586;
        double sine, cosine;
        sincospi(2.0 * (turns - rint(turns)), &sine, &cosine);
        const W s = W(inverse ? -sine : sine), c = W(cosine);
        const T* from = x + sequence * x_sequence + step * x_row + i;
        T* to = out + sequence * out_sequence + step * out_row + i;
#pragma unroll 1
        for (index_t head = 0; head < heads; head++) {
            const W a = from[head * d], b = from[head * d + half];
            to[head * d] = T(a * c - b * s);
            to[head * d + half] = T(a * s + b * c);
        }
    }
}
