// Losses: the value in double, in an order that never changes, and the gradient in the same pass.
#include "common.cuh"
#include "losses.cuh"
#include "loss_weights.cuh"

// mean over elements of l(pred, target), rows weighted; dpred, LOSS_SCALE times its gradient, may be null or pred
template <typename T, template <typename> class Loss>
__global__ void __launch_bounds__(256)
elementwise_loss(const T* pred, const wide<T>* target, const void* weight, index_t weight_bytes, double* state,
                 T* dpred, index_t rows, index_t m, double param, double* partial, unsigned* sync) {
    using W = wide<T>;
    const Loss<W> loss(param);
    double divisor = mean_divisor(weight, state, rows, m), lift = loss_scale(state), sum = 0;
    index_t n = rows * m;
    constexpr int N = Pack<T>::N, NT = Pack<W>::N;
    bool packed = aligned16(pred) && aligned16(dpred), targets_packed = aligned16(target);
    PACK_STRIDE(i, n, N) {
        Values<T> p = load_pack(pred, i, n, packed), slopes;
#pragma unroll
        for (int k = 0; k < N; k += NT) {
            Values<W> t = load_pack(target, i + k, n, targets_packed);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                index_t at = i + k + j < n ? i + k + j : n - 1;
                double factor = (weight ? weight_at(weight, weight_bytes, quotient(at, m)) : 1.0) / divisor;
                if (i + k + j < n) sum += (double)loss.value(p.v[k + j], t.v[j]) * factor;
                slopes.v[k + j] = loss.slope(p.v[k + j], t.v[j]) * W(factor * lift);
            }
        }
        if (dpred) store_pack(dpred, i, n, packed, slopes);
    }
    write_loss(sum, weight, state, rows, partial, sync);
}
