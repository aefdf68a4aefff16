// The elementwise losses: value and slope with respect to p, the model's output (a logit for binary
// cross-entropy, a log rate for poisson). The formulas are those of backends/formulas.py.
#include "activations.cuh"

// Labels 0 and 1 as -1 and 1; targets that are already -1 and 1 stay
template <typename T>
__device__ inline T as_sign(T t) {
    return t == T(0) ? t - T(1) : t;
}

template <typename T>
struct SquaredError {
    __device__ explicit SquaredError(double) {}
    __device__ T value(T p, T t) const { return (p - t) * (p - t); }
    __device__ T slope(T p, T t) const { return T(2) * (p - t); }
};

template <typename T>
struct AbsoluteError {
    __device__ explicit AbsoluteError(double) {}
    __device__ T value(T p, T t) const { return fabs(p - t); }
    __device__ T slope(T p, T t) const {
        T d = p - t;
        return d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);  // 0 and NaN are themselves
    }
};

template <typename T>
struct Huber {
    T delta;
    __device__ explicit Huber(double param) : delta(T(param)) {}
    __device__ T value(T p, T t) const {
        T d = fabs(p - t);
        return d <= delta ? T(0.5) * d * d : delta * (d - T(0.5) * delta);
    }
    __device__ T slope(T p, T t) const {
        T d = p - t;
        return d < -delta ? -delta : (d > delta ? delta : d);
    }
};

template <typename T>
struct BinaryCrossEntropy {
    __device__ explicit BinaryCrossEntropy(double) {}
    __device__ T value(T p, T t) const { return (p < T(0) ? T(0) : p) - p * t + log1p(exp(-fabs(p))); }
    __device__ T slope(T p, T t) const { return logistic(p) - t; }
};

template <typename T>
struct Poisson {
    __device__ explicit Poisson(double) {}
    __device__ T value(T p, T t) const { return exp(p) - p * t; }
    __device__ T slope(T p, T t) const { return exp(p) - t; }
};

template <typename T>
struct Hinge {
    __device__ explicit Hinge(double) {}
    __device__ T value(T p, T t) const {
        T v = T(1) - as_sign(t) * p;
        return v < T(0) ? T(0) : v;
    }
    __device__ T slope(T p, T t) const { return as_sign(t) * p < T(1) ? -as_sign(t) : T(0); }
};
