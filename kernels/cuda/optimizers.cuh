// The optimizers' rules: load() reads the state once a block, update() does one element in registers.
// v[0] is the parameter, v[1] the gradient, v[2..] the moments. What P0..P7 mean stands in
// backends/base.py; coefficients are computed in double, as in backends/array_optimizers.py.

template <typename T>
struct Rule {
    using type = T;
    T scale, decay, rate;
    __device__ void load(const double* state) {
        scale = T(state[STATE_GRAD_SCALE]);
        decay = T(state[STATE_WEIGHT_DECAY]);
        rate = T(state[STATE_LR]);
    }
    // g = GRAD_SCALE * grad + WEIGHT_DECAY * param
    __device__ T gradient(const T* v) const {
        T g = scale * v[1];
        if (decay != T(0)) g += decay * v[0];
        return g;
    }
    __device__ void store(double*) const {}
};

template <typename T>
struct Sgd : Rule<T> {
    static constexpr int MOMENTS = 0;
    __device__ void update(T* v) const { v[0] -= this->rate * this->gradient(v); }
};

template <typename T, bool NESTEROV>
struct Momentum : Rule<T> {
    static constexpr int MOMENTS = 1;
    T momentum;
    __device__ void load(const double* state) {
        Rule<T>::load(state);
        momentum = T(state[STATE_P0]);
    }
    __device__ void update(T* v) const {
        T g = this->gradient(v);
        v[2] = momentum * v[2] + g;
        v[0] -= this->rate * (NESTEROV ? g + momentum * v[2] : v[2]);
    }
};

template <typename T>
struct Adagrad : Rule<T> {
    static constexpr int MOMENTS = 1;
    T eps;
    __device__ void load(const double* state) {
        Rule<T>::load(state);
        eps = T(state[STATE_P0]);
    }
    __device__ void update(T* v) const {
        T g = this->gradient(v);
        v[2] += g * g;
        v[0] -= this->rate * g / (sqrt(v[2]) + eps);
    }
};

// Moments: sq, then mean where centered, then velocity where there is momentum
template <typename T, bool CENTERED, bool MOMENTUM>
struct RmsProp : Rule<T> {
    static constexpr int MOMENTS = 1 + CENTERED + MOMENTUM;
    T rho, rest, eps, momentum;
    __device__ void load(const double* state) {
        Rule<T>::load(state);
        rho = T(state[STATE_P0]);
        rest = T(1.0 - state[STATE_P0]);
        eps = T(state[STATE_P1]);
        momentum = T(state[STATE_P2]);
    }
    __device__ void update(T* v) const {
        T g = this->gradient(v);
        v[2] = rho * v[2] + rest * g * g;
        T variance = v[2];
        if constexpr (CENTERED) {
            v[3] = rho * v[3] + rest * g;
            variance -= v[3] * v[3];
            if (variance < T(0)) variance = 0;
        }
        T u = g / (sqrt(variance) + eps);
        if constexpr (MOMENTUM) {
            constexpr int velocity = 3 + CENTERED;
            v[velocity] = momentum * v[velocity] + u;
            u = v[velocity];
        }
        v[0] -= this->rate * u;
    }
};

// What Adam and its kin share
template <typename T>
struct AdamRule : Rule<T> {
    T beta1, rest1, beta2, rest2, eps;
    __device__ void load(const double* state) {
        Rule<T>::load(state);
        beta1 = T(state[STATE_P0]);
        rest1 = T(1.0 - state[STATE_P0]);
        beta2 = T(state[STATE_P1]);
        rest2 = T(1.0 - state[STATE_P1]);
        eps = T(state[STATE_P2]);
    }
    // 1 - beta**t
    __device__ static double correction(const double* state, int slot) {
        return 1.0 - pow(state[slot], state[STATE_STEP]);
    }
};

template <typename T, bool DECOUPLED>
struct Adam : AdamRule<T> {
    static constexpr int MOMENTS = 2;
    T keep, step, root;
    __device__ void load(const double* state) {
        AdamRule<T>::load(state);
        keep = T(1.0 - state[STATE_LR] * state[STATE_WEIGHT_DECAY]);
        step = T(state[STATE_LR] / this->correction(state, STATE_P0));
        root = T(sqrt(this->correction(state, STATE_P1)));
        if (state[STATE_P3] != 0) this->eps /= root;
    }
    __device__ void update(T* v) const {
        T g = DECOUPLED ? this->scale * v[1] : this->gradient(v);
        v[2] = this->beta1 * v[2] + this->rest1 * g;
        v[3] = this->beta2 * v[3] + this->rest2 * g * g;
        T start = DECOUPLED ? v[0] * keep : v[0];
        v[0] = start - step * v[2] / (sqrt(v[3]) / root + this->eps);
    }
};

template <typename T>
struct Adamax : AdamRule<T> {
    static constexpr int MOMENTS = 2;
    T step;
    __device__ void load(const double* state) {
        AdamRule<T>::load(state);
        step = T(state[STATE_LR] / this->correction(state, STATE_P0));
    }
    __device__ void update(T* v) const {
        T g = this->gradient(v);
        v[2] = this->beta1 * v[2] + this->rest1 * g;
        T size = fabs(g) + this->eps, old = this->beta2 * v[3];
        v[3] = old > size ? old : size;  // a NaN gradient gives NaN here
        v[0] -= step * v[2] / v[3];
    }
};

// Dozat, "Incorporating Nesterov momentum into Adam" (2016), with its schedule of mu
template <typename T>
struct Nadam : AdamRule<T> {
    static constexpr int MOMENTS = 2;
    T correction2, of_gradient, of_moment;
    double product;
    __device__ void load(const double* state) {
        AdamRule<T>::load(state);
        double t = state[STATE_STEP], beta1 = state[STATE_P0];
        double mu = beta1 * (1.0 - 0.5 * pow(0.96, t * state[STATE_P3]));
        double mu_next = beta1 * (1.0 - 0.5 * pow(0.96, (t + 1.0) * state[STATE_P3]));
        product = state[STATE_P4] * mu;
        correction2 = T(this->correction(state, STATE_P1));
        of_gradient = T((1.0 - mu) / (1.0 - product));
        of_moment = T(mu_next / (1.0 - product * mu_next));
    }
    __device__ void update(T* v) const {
        T g = this->gradient(v);
        v[2] = this->beta1 * v[2] + this->rest1 * g;
        v[3] = this->beta2 * v[3] + this->rest2 * g * g;
        T u = of_gradient * g + of_moment * v[2];
        v[0] -= this->rate * u / (sqrt(v[3] / correction2) + this->eps);
    }
    __device__ void store(double* state) const { state[STATE_P4] = product; }
};

// Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2
template <typename T>
struct Lion : Rule<T> {
    static constexpr int MOMENTS = 1;
    T beta1, rest1, beta2, rest2;
    __device__ void load(const double* state) {
        Rule<T>::load(state);
        beta1 = T(state[STATE_P0]);
        rest1 = T(1.0 - state[STATE_P0]);
        beta2 = T(state[STATE_P1]);
        rest2 = T(1.0 - state[STATE_P1]);
    }
    __device__ void update(T* v) const {
        T g = this->scale * v[1], d = beta1 * v[2] + rest1 * g;
        T sign = d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);
        v[0] -= this->rate * (sign + this->decay * v[0]);
        v[2] = beta2 * v[2] + rest2 * g;
    }
};
