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
    GRID_STRIDE(i, n) {
        double factor = (weight ? weight_at(weight, weight_bytes, quotient(i, m)) : 1.0) / divisor;
        W p = pred[i], t = target[i];
        sum += (double)loss.value(p, t) * factor;
        if (dpred) dpred[i] = T(loss.slope(p, t) * W(factor * lift));
    }
    write_loss(sum, weight, state, rows, partial, sync);
}
