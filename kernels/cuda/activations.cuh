// The activations: value(z), and slope of the output or of z as activations.py says which is saved.
// The formulas are those of backends/formulas.py; comparisons are written so that NaN stays NaN.

template <typename T>
__device__ inline T logistic(T z) {
    T e = exp(-fabs(z));  // never overflows
    return (z >= T(0) ? T(1) : e) / (T(1) + e);
}

template <typename T>
__device__ inline T log1p_exp(T z) {
    return (z < T(0) ? T(0) : z) + log1p(exp(-fabs(z)));
}

template <typename T>
__device__ inline T hard_step(T z) {
    T v = z / T(6) + T(0.5);
    return v < T(0) ? T(0) : (v > T(1) ? T(1) : v);
}

template <typename T>
struct Identity {
    __device__ explicit Identity(double) {}
    __device__ T value(T z) const { return z; }
    __device__ T slope(T) const { return T(1); }
};

template <typename T>
struct Relu {
    __device__ explicit Relu(double) {}
    __device__ T value(T z) const { return z < T(0) ? T(0) : z; }
    __device__ T slope(T y) const { return y > T(0) ? T(1) : T(0); }
};

template <typename T>
struct LeakyRelu {
    T alpha;
    __device__ explicit LeakyRelu(double a) : alpha(T(a)) {}
    __device__ T value(T z) const { return z > T(0) ? z : alpha * z; }
    __device__ T slope(T y) const { return y > T(0) ? T(1) : alpha; }
};

template <typename T>
struct Elu {
    T alpha;
    __device__ explicit Elu(double a) : alpha(T(a)) {}
    __device__ T value(T z) const { return z > T(0) ? z : alpha * expm1(z); }
    __device__ T slope(T y) const { return y > T(0) ? T(1) : y + alpha; }
};

// Klambauer et al., "Self-normalizing neural networks" (2017)
template <typename T>
struct Selu {
    static constexpr double ALPHA = 1.6732632423543772848170429916717, SCALE = 1.0507009873554804934193349852946;
    __device__ explicit Selu(double) {}
    __device__ T value(T z) const { return T(SCALE) * (z > T(0) ? z : T(ALPHA) * expm1(z)); }
    __device__ T slope(T y) const { return y > T(0) ? T(SCALE) : y + T(SCALE * ALPHA); }
};

template <typename T>
struct Sigmoid {
    __device__ explicit Sigmoid(double) {}
    __device__ T value(T z) const { return logistic(z); }
    __device__ T slope(T y) const { return y * (T(1) - y); }
};

template <typename T>
struct Tanh {
    __device__ explicit Tanh(double) {}
    __device__ T value(T z) const { return tanh(z); }
    __device__ T slope(T y) const { return T(1) - y * y; }
};

template <typename T>
struct Softplus {
    __device__ explicit Softplus(double) {}
    __device__ T value(T z) const { return log1p_exp(z); }
    __device__ T slope(T y) const { return -expm1(-y); }
};

template <typename T>
struct Softsign {
    __device__ explicit Softsign(double) {}
    __device__ T value(T z) const { return z / (T(1) + fabs(z)); }
    __device__ T slope(T y) const {
        T rest = T(1) - fabs(y);
        return rest * rest;
    }
};

template <typename T>
struct Gelu {
    __device__ explicit Gelu(double) {}
    __device__ static T cdf(T z) { return T(0.5) * (T(1) + erf(z * T(0.70710678118654752440))); }
    __device__ T value(T z) const { return z * cdf(z); }
    __device__ T slope(T z) const { return cdf(z) + z * exp(T(-0.5) * z * z) * T(0.39894228040143267794); }
};

template <typename T>
struct GeluTanh {
    static constexpr double ROOT_2_PI = 0.79788456080286535588, CUBIC = 0.044715;
    __device__ explicit GeluTanh(double) {}
    __device__ static T inner(T z) { return tanh(T(ROOT_2_PI) * (z + T(CUBIC) * z * z * z)); }
    __device__ T value(T z) const { return T(0.5) * z * (T(1) + inner(z)); }
    __device__ T slope(T z) const {
        T t = inner(z);
        return T(0.5) * (T(1) + t)
            + T(0.5) * z * (T(1) - t * t) * T(ROOT_2_PI) * (T(1) + T(3 * CUBIC) * z * z);
    }
};

template <typename T>
struct Silu {
    __device__ explicit Silu(double) {}
    __device__ T value(T z) const { return z * logistic(z); }
    __device__ T slope(T z) const {
        T s = logistic(z);
        return s * (T(1) + z * (T(1) - s));
    }
};

template <typename T>
struct Mish {
    __device__ explicit Mish(double) {}
    __device__ T value(T z) const { return z * tanh(log1p_exp(z)); }
    __device__ T slope(T z) const {
        T t = tanh(log1p_exp(z));
        return t + z * logistic(z) * (T(1) - t * t);
    }
};

template <typename T>
struct HardSigmoid {
    __device__ explicit HardSigmoid(double) {}
    __device__ T value(T z) const { return hard_step(z); }
    __device__ T slope(T y) const { return y > T(0) && y < T(1) ? T(1.0 / 6.0) : T(0); }
};

template <typename T>
struct HardSwish {
    __device__ explicit HardSwish(double) {}
    __device__ T value(T z) const { return z * hard_step(z); }
    __device__ T slope(T z) const { return z <= T(-3) ? T(0) : (z >= T(3) ? T(1) : z / T(3) + T(0.5)); }
};

// value(z) of the activation with this number: its place in ACTIVATIONS of loader.py. For a kernel that is too large to
// be compiled for each.
template <typename T>
__device__ inline T activated(int number, double alpha, T z) {
    switch (number) {
        case 1: return Relu<T>(alpha).value(z);
        case 2: return LeakyRelu<T>(alpha).value(z);
        case 3: return Elu<T>(alpha).value(z);
        case 4: return Selu<T>(alpha).value(z);
        case 5: return Sigmoid<T>(alpha).value(z);
        case 6: return Tanh<T>(alpha).value(z);
        case 7: return Softplus<T>(alpha).value(z);
        case 8: return Softsign<T>(alpha).value(z);
        case 9: return Gelu<T>(alpha).value(z);
        case 10: return GeluTanh<T>(alpha).value(z);
        case 11: return Silu<T>(alpha).value(z);
        case 12: return Mish<T>(alpha).value(z);
        case 13: return HardSigmoid<T>(alpha).value(z);
        case 14: return HardSwish<T>(alpha).value(z);
        default: return z;
    }
}

// v = value(v) for all N. Not unrolled: the code of all activations is there once, and a value is picked out of its
// registers without an address.
template <typename T, int N>
__device__ inline void activate(T (&v)[N], int number, double alpha) {
    if (number == 0) return;
#pragma unroll 1
    for (int k = 0; k < N; k++) {
        T z = v[0];
#pragma unroll
        for (int j = 1; j < N; j++) z = j == k ? v[j] : z;
        z = activated(number, alpha, z);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = j == k ? z : v[j];
    }
}
