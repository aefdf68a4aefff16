// The functions of cuBLASLt that are called, on host memory. They check what they are given as the library does, compute
// in double precision (factors of 16 bits in float), and do what a test asks for: refuse an epilogue, fail with an
// algorithm, count what is alive.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {
constexpr int kSuccess = 0, kInvalidValue = 7, kNotSupported = 15;
constexpr int kDefault = 1, kBias = 4, kReluBias = 6, kGeluBias = 36;
constexpr int kReluAuxBias = 134, kGeluAuxBias = 164, kReluSlope = 152, kGeluSlope = 208;
constexpr int kFloat = 0, kDouble = 1, kHalf = 2, kBfloat = 14;
constexpr int kPlainCompute = 68, kDoubleCompute = 70, kFast = 77;
constexpr uint64_t kFirst = 100;  // number of the first algorithm
constexpr int kAlgorithms = 4;
constexpr uint64_t kWorkspace[kAlgorithms] = {0, 1 << 20, 1 << 30, 0};
// The last algorithm adds up parts of a sum in the type of the result. It is there for 16 bits only.
constexpr int kRoundsParts = 3;
constexpr uint32_t kInOutputType = 1 | 4;  // reduction schemes: in place, and in the type of the result

int alive = 0;
int refused_epilogue = 0;
uint64_t failing_algorithm = 0;

struct Operation {
    int compute, scale, transa = 0, transb = 0, epilogue = kDefault;
    void* bias = nullptr;
    void* aux = nullptr;
    int64_t aux_leading = 0;
    bool masks() const { return epilogue == kReluAuxBias || epilogue == kReluSlope; }
    bool slopes() const { return epilogue == kReluSlope || epilogue == kGeluSlope; }
    bool auxiliary() const { return masks() || epilogue == kGeluAuxBias || epilogue == kGeluSlope; }
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t schemes = 7;
    uint32_t aligned[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t data[8];
};
struct Result {
    Algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

template <class T, class... Args>
int create(void** out, Args... args) {
    if (!out) return kInvalidValue;
    *out = new T{args...};
    ++alive;
    return kSuccess;
}

template <class T>
int destroy(void* made) {
    delete static_cast<T*>(made);
    --alive;
    return kSuccess;
}

bool fits(const Layout& x) { return x.leading >= int64_t(x.rows) && x.rows && x.columns; }

bool narrow(int type) { return type == kHalf || type == kBfloat; }

// Numbers of 16 bits: exact to float, and from it to the nearest, of two as near to the even one
struct Half {
    uint16_t bits;
    Half() = default;
    explicit Half(float x) : bits(std::signbit(x) ? 0x8000 : 0) {
        const float size = std::fabs(x);
        if (std::isnan(x)) {
            bits |= 0x7e00;
        } else if (size >= 65520) {  // nearer to what would come after the largest
            bits |= 0x7c00;
        } else {
            int exponent;
            std::frexp(std::max(size, 0x1p-14f), &exponent);  // below that the last place stays where it is
            const int place = exponent - 11;
            bits |= ((place + 24) << 10) + int(std::nearbyint(std::ldexp(size, -place)));  // may carry
        }
    }
    operator float() const {
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        float size = std::ldexp(float(mantissa + (exponent ? 1024 : 0)), std::max(exponent, 1) - 25);
        if (exponent == 31) size = mantissa ? NAN : INFINITY;
        return bits >> 15 ? -size : size;
    }
};
struct Bfloat {
    uint16_t bits;
    Bfloat() = default;
    explicit Bfloat(float x) {
        uint32_t all;
        std::memcpy(&all, &x, 4);
        bits = std::isnan(x) ? all >> 16 | 0x40 : (all + 0x7fff + (all >> 16 & 1)) >> 16;
    }
    operator float() const {
        const uint32_t all = uint32_t(bits) << 16;
        float x;
        std::memcpy(&x, &all, 4);
        return x;
    }
};

// Rows and columns of the product and the length of its sum; whether the operands go together.
bool sizes(const Operation& op, const Layout& a, const Layout& b, const Layout& d, uint64_t& m, uint64_t& n, uint64_t& k) {
    m = op.transa ? a.columns : a.rows;
    k = op.transa ? a.rows : a.columns;
    n = op.transb ? b.rows : b.columns;
    const uint64_t other = op.transb ? b.columns : b.rows;
    return fits(a) && fits(b) && fits(d) && k == other && d.rows == m && d.columns == n;
}

bool known(const Operation& op, const Layout& a, const Layout& b, const Layout& d) {
    const int type = a.type;
    const bool plain = op.epilogue == kDefault || op.epilogue == kBias || op.epilogue == kReluBias || op.epilogue == kGeluBias;
    const bool epilogue = plain || (op.auxiliary() && op.aux && op.aux_leading % (op.masks() ? 128 : 8) == 0 && op.aux_leading > 0);
    const bool wide = type == kFloat || type == kDouble;
    const bool types = type == b.type && (wide ? d.type == type : narrow(type) && (d.type == type || d.type == kFloat));
    const bool computes = op.compute == (type == kDouble ? kDoubleCompute : kPlainCompute) || (op.compute == kFast && type == kFloat);
    const bool scales = op.scale == (type == kDouble ? kDouble : kFloat);
    return epilogue && types && computes && scales && op.epilogue != refused_epilogue;
}

// Ten bits of mantissa, rounded to nearest
double tf32(double value) {
    float single = float(value);
    if (!std::isfinite(single)) return single;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    bits += 0xfff + ((bits >> 13) & 1);
    bits &= ~uint32_t(0x1fff);
    std::memcpy(&single, &bits, 4);
    return single;
}

double inner(double x) { return std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)); }

double gelu_slope(double x) {
    const double t = inner(x);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

// What becomes of a number of the product at (i, j), and what is left beside it, in the type of the result
template <class D>
double after(const Operation& op, double x, uint64_t i, uint64_t j) {
    const int64_t at = i + j * op.aux_leading;
    auto* const bits = static_cast<uint8_t*>(op.aux);
    switch (op.epilogue) {
        case kReluAuxBias:
            if (x > 0) bits[at / 8] |= 1 << at % 8;
            else bits[at / 8] &= ~(1 << at % 8);
            [[fallthrough]];
        case kReluBias: return x < 0 ? 0 : x;
        case kGeluAuxBias: static_cast<D*>(op.aux)[at] = D(x); [[fallthrough]];
        case kGeluBias: return 0.5 * x * (1 + inner(x));
        case kReluSlope: return bits[at / 8] >> at % 8 & 1 ? x : 0;
        case kGeluSlope: return x * gelu_slope(static_cast<const D*>(op.aux)[at]);
        default: return x;
    }
}

struct Call {
    const Operation& op;
    const Layout &la, &lb, &lc, &ld;
    const void *alpha, *a, *b, *beta, *c;
    void* d;
    uint64_t m, n, k;
};

// Factors of type T, a result of type D, alpha and beta of type S; sums are of type Sum
template <class T, class D, class S, class Sum>
void multiply(const Call& call) {
    const Operation& op = call.op;
    const auto *a = static_cast<const T*>(call.a), *b = static_cast<const T*>(call.b);
    const auto* c = static_cast<const D*>(call.c);
    auto *d = static_cast<D*>(call.d), *bias = static_cast<D*>(op.bias);
    const Sum alpha = *static_cast<const S*>(call.alpha), beta = *static_cast<const S*>(call.beta);
    const auto round = [&](T x) { return op.compute == kFast ? Sum(tf32(x)) : Sum(x); };
    for (uint64_t j = 0; j < call.n; ++j)
        for (uint64_t i = 0; i < call.m; ++i) {
            Sum sum = 0;
            for (uint64_t p = 0; p < call.k; ++p)
                sum += round(op.transa ? a[p + i * call.la.leading] : a[i + p * call.la.leading]) *
                       round(op.transb ? b[j + p * call.lb.leading] : b[p + j * call.lb.leading]);
            Sum value = alpha * sum;
            if (beta != 0) value += beta * Sum(c[i + j * call.lc.leading]);
            if (op.epilogue != kDefault && !op.slopes()) value += Sum(bias[i]);
            d[i + j * call.ld.leading] = D(Sum(after<D>(op, value, i, j)));
        }
    for (uint64_t i = 0; op.slopes() && i < call.m; ++i) {
        Sum sum = 0;
        for (uint64_t j = 0; j < call.n; ++j) sum += Sum(d[i + j * call.ld.leading]);
        bias[i] = D(sum);
    }
}
}  // namespace

extern "C" {
void fake_refuse(int epilogue) { refused_epilogue = epilogue; }
void fake_fail(uint64_t algorithm) { failing_algorithm = algorithm; }
int fake_alive() { return alive; }
// What a captured call keeps: the operation as it is now
void* fake_snapshot(const void* operation) { return new Operation(*static_cast<const Operation*>(operation)); }

size_t cublasLtGetVersion() { return 130100; }
int cublasLtCreate(void** out) { return create<int>(out, 0); }
int cublasLtDestroy(void* made) { return destroy<int>(made); }

int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    const int made = create<Operation>(out, compute, scale);
    return made;
}
int cublasLtMatmulDescDestroy(void* made) { return destroy<Operation>(made); }
int cublasLtMatmulDescSetAttribute(void* made, int attribute, const void* value, size_t bytes) {
    auto& op = *static_cast<Operation*>(made);
    void* const wide = attribute == 8 ? (void*)&op.bias : attribute == 11 ? (void*)&op.aux : attribute == 12 ? (void*)&op.aux_leading : nullptr;
    if (wide && bytes == 8) {
        std::memcpy(wide, value, 8);
        return kSuccess;
    }
    int* const to = attribute == 3 ? &op.transa : attribute == 4 ? &op.transb : attribute == 7 ? &op.epilogue : nullptr;
    if (!to || bytes != 4) return kInvalidValue;
    std::memcpy(to, value, 4);
    return kSuccess;
}

int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    return create<Layout>(out, type, rows, columns, leading);
}
int cublasLtMatrixLayoutDestroy(void* made) { return destroy<Layout>(made); }

int cublasLtMatmulPreferenceCreate(void** out) { return create<Preference>(out); }
int cublasLtMatmulPreferenceDestroy(void* made) { return destroy<Preference>(made); }
int cublasLtMatmulPreferenceSetAttribute(void* made, int attribute, const void* value, size_t bytes) {
    auto& preference = *static_cast<Preference*>(made);
    if (attribute == 1 && bytes == 8) {
        std::memcpy(&preference.workspace, value, 8);
    } else if (attribute == 3 && bytes == 4) {
        std::memcpy(&preference.schemes, value, 4);
    } else if (attribute >= 5 && attribute <= 8 && bytes == 4) {
        std::memcpy(&preference.aligned[attribute - 5], value, 4);
    } else {
        return kInvalidValue;
    }
    return kSuccess;
}

int cublasLtMatmulAlgoGetHeuristic(void*, void* op, void* a, void* b, void* c, void* d, void* preference, int most,
                                   Result* results, int* found) {
    uint64_t m, n, k;
    const auto& operation = *static_cast<Operation*>(op);
    const auto &A = *static_cast<Layout*>(a), &B = *static_cast<Layout*>(b), &D = *static_cast<Layout*>(d);
    const auto& wanted = *static_cast<Preference*>(preference);
    *found = 0;
    if (c != d || !sizes(operation, A, B, D, m, n, k)) return kInvalidValue;
    if (!known(operation, A, B, D)) return kNotSupported;
    for (int i = 0; i < kAlgorithms && *found < most; ++i) {
        if (kWorkspace[i] > wanted.workspace) continue;
        if (i == kRoundsParts && (!narrow(D.type) || (wanted.schemes & kInOutputType) == 0)) continue;
        results[*found] = Result{{{kFirst + i}}, size_t(kWorkspace[i]), kSuccess, 1.0f, {}};
        ++*found;
    }
    return *found ? kSuccess : kNotSupported;
}

int cublasLtMatmulAlgoCheck(void*, void* op, void* a, void* b, void*, void* d, const Algorithm* algorithm,
                            Result* result) {
    const uint64_t number = algorithm->data[0] - kFirst;
    if (number >= kAlgorithms) return kInvalidValue;
    if (!known(*static_cast<Operation*>(op), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(d)))
        return kNotSupported;
    *result = Result{*algorithm, size_t(kWorkspace[number]), kSuccess, 1.0f, {}};
    return kSuccess;
}

int cublasLtMatmul(void*, void* op, const void* alpha, const void* a, void* la, const void* b, void* lb, const void* beta,
                   const void* c, void* lc, void* d, void* ld, const Algorithm* algorithm, void* workspace, size_t bytes,
                   void*) {
    const auto& operation = *static_cast<Operation*>(op);
    const auto &A = *static_cast<Layout*>(la), &B = *static_cast<Layout*>(lb);
    const auto &C = *static_cast<Layout*>(lc), &D = *static_cast<Layout*>(ld);
    uint64_t m, n, k;
    const uint64_t number = algorithm->data[0] - kFirst;
    if (!sizes(operation, A, B, D, m, n, k) || number >= kAlgorithms || !a || !b || !d) return kInvalidValue;
    if (!known(operation, A, B, D) || algorithm->data[0] == failing_algorithm) return kNotSupported;
    if (bytes < kWorkspace[number] || (bytes && !workspace)) return kInvalidValue;
    if (operation.epilogue != kDefault && !operation.bias) return kInvalidValue;
    if (operation.auxiliary() && operation.aux_leading < int64_t(m)) return kInvalidValue;
    if (kWorkspace[number]) std::memset(workspace, 0x5a, kWorkspace[number]);
    const Call call{operation, A, B, C, D, alpha, a, b, beta, c, d, m, n, k};
    const bool widened = D.type == kFloat;
    if (A.type == kFloat) multiply<float, float, float, double>(call);
    else if (A.type == kDouble) multiply<double, double, double, double>(call);
    else if (A.type == kHalf) (widened ? multiply<Half, float, float, float> : multiply<Half, Half, float, float>)(call);
    else (widened ? multiply<Bfloat, float, float, float> : multiply<Bfloat, Bfloat, float, float>)(call);
    return kSuccess;
}
}
