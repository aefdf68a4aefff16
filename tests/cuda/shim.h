// Just enough CUDA for g++: runs the kernels of kernels/cuda on the CPU, one block after another, each
// thread of a block as a fiber. Barriers, shuffles and atomics mean what they mean on a GPU; a barrier
// that not all threads reach, an unaligned or null access, and an index outside of a shared array are
// errors. The order in which blocks and threads run can be changed: no result may depend on it.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

using std::erf, std::exp, std::expm1, std::fabs, std::isfinite, std::log, std::log1p, std::pow, std::sqrt, std::tanh;

struct Dim3 {
    unsigned x, y, z;
};
struct f16;  // of half.cuh
struct bf16;
struct tf32;  // of tensor.cuh
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr int MOST_THREADS = 1024, STACK_BYTES = 256 * 1024;
enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool started = false;
    State state = DONE;
    Dim3 index;
    int parity = 0;
};

inline Fiber* fibers;
inline jmp_buf scheduler;
inline int current, threads, order;
inline bool vote;           // of __syncthreads_or, while threads arrive
inline bool vote_result;    // and once they have
inline unsigned long long slots[2][MOST_THREADS];  // of shuffles; two, so that one barrier is enough
inline char error[512];
inline void (*body)(void*);
inline void* body_arguments;

inline void fail(const char* what) {
    if (!error[0])
        snprintf(error, sizeof error, "%s (block %u,%u thread %u,%u)", what, blockIdx.x, blockIdx.y, threadIdx.x,
                 threadIdx.y);
}

inline void pause();

// An error inside a thread ends the launch: the thread is left where it is
inline void abandon(const char* what) {
    fail(what);
    pause();
}

inline void pause() {
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

inline void fiber_main() {
    for (;;) {
        body(body_arguments);
        fibers[current].state = DONE;
        pause();
    }
}

inline void resume(int t) {
    Fiber& f = fibers[t];
    current = t;
    threadIdx = f.index;
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.at, 1);
    f.started = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = malloc(STACK_BYTES);
    f.start.uc_stack.ss_size = STACK_BYTES;
    f.start.uc_link = nullptr;
    makecontext(&f.start, fiber_main, 0);
    setcontext(&f.start);
}

inline void wait(State where) {
    fibers[current].state = where;
    pause();
}

// The place of item i of n in the chosen order: forward, backward, or strided by a number prime to n
inline int place(int i, int n) {
    if (order == 1) return n - 1 - i;
    if (order == 2) return (int)((i * 1009ll + 7) % n);
    return i;
}

inline bool release(int from, int to, State where) {
    for (int t = from; t < to; t++)
        if (fibers[t].state != where) return false;
    for (int t = from; t < to; t++) fibers[t].state = READY;
    return true;
}

// The fibers start anew next time; their stacks are lost
inline bool give_up() {
    for (int t = 0; t < threads; t++) fibers[t].started = false;
    return false;
}

inline bool run_block() {
    for (int t = 0; t < threads; t++) {
        fibers[t].state = READY;
        fibers[t].parity = 0;
        fibers[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    }
    vote = false;
    for (;;) {
        bool moved = false;
        int done = 0;
        for (int i = 0; i < threads; i++) {
            int t = place(i, threads);
            if (fibers[t].state == READY) resume(t), moved = true;
            if (error[0]) return give_up();
            done += fibers[t].state == DONE;
        }
        if (done == threads) return true;
        for (int w = 0; w + 32 <= threads; w += 32) moved |= release(w, w + 32, AT_WARP);
        if (release(0, threads, AT_BLOCK)) {
            moved = true;
            vote_result = vote;
            vote = false;
        }
        if (!moved) {
            fail("not all threads reach a barrier, a shuffle or a vote");
            return give_up();
        }
    }
}

inline int run(void (*kernel)(void*), void* arguments, const unsigned* shape) {
    if (!fibers) fibers = new Fiber[MOST_THREADS];
    error[0] = 0;
    body = kernel;
    body_arguments = arguments;
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    threads = (int)(blockDim.x * blockDim.y * blockDim.z);
    int blocks = (int)(gridDim.x * gridDim.y * gridDim.z);
    if (blocks < 1 || (threads != 1 && threads % 32) || threads < 1 || threads > MOST_THREADS) {
        fail("launch shape out of range");
        return 1;
    }
    for (int i = 0; i < blocks; i++) {
        unsigned b = (unsigned)place(i, blocks);
        blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
        if (!run_block()) break;
    }
    return error[0] != 0;
}

template <typename T>
T exchange(T v, int source) {
    Fiber& f = fibers[current];
    unsigned long long* row = slots[f.parity ^= 1];
    memcpy(&row[current], &v, sizeof v);
    wait(AT_WARP);
    memcpy(&v, &row[(current & ~31) | source], sizeof v);
    return v;
}

inline void full(unsigned mask) {
    if (mask != 0xffffffffu) abandon("a shuffle or vote without the full warp");
}

// A kernel's parameters as text: const pointers "kf", pointers "pf", scalars "f", elements named as in NumPy,
// bfloat16 "E" as in ml_dtypes
template <typename T>
const char* letter() {
    if constexpr (std::is_void_v<T>) return "v";
    else if constexpr (std::is_same_v<T, float> || std::is_same_v<T, tf32>) return "f";
    else if constexpr (std::is_same_v<T, double>) return "d";
    else if constexpr (std::is_same_v<T, f16>) return "e";
    else if constexpr (std::is_same_v<T, bf16>) return "E";
    else if constexpr (std::is_same_v<T, long long>) return "q";
    else if constexpr (std::is_same_v<T, unsigned>) return "I";
    else return "?";
}

template <typename T>
void describe(char* to) {
    using Element = std::remove_pointer_t<T>;
    if constexpr (std::is_pointer_v<T>) strcat(to, std::is_const_v<Element> ? "k" : "p");
    strcat(to, letter<std::remove_cv_t<Element>>());
    strcat(to, " ");
}

template <auto K>
struct Entry;

template <typename... A, void (*K)(A...)>
struct Entry<K> {
    static int launch(const unsigned* shape, void** arguments) {
        return run([](void* p) { call((void**)p, std::index_sequence_for<A...>()); }, arguments, shape);
    }
    template <size_t... I>
    static void call(void** p, std::index_sequence<I...>) {
        K(*(A*)p[I]...);
    }
    static const char* signature() {
        static char text[256];
        if (!text[0]) (describe<A>(text), ...);
        return text;
    }
};

struct Row {
    const char* name;
    const char* (*signature)();
    int (*launch)(const unsigned*, void**);
};

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::AT_BLOCK); }
inline int __syncthreads_or(int value) {
    shim::vote |= value != 0;
    shim::wait(shim::AT_BLOCK);
    return shim::vote_result;
}
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int lanes) {
    shim::full(mask);
    return shim::exchange(v, (shim::current & 31) ^ lanes);
}

template <typename T>
T __shfl_sync(unsigned mask, T v, int lane) {
    shim::full(mask);
    return shim::exchange(v, lane & 31);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    shim::full(mask);
    shim::Fiber& f = shim::fibers[shim::current];
    unsigned long long* row = shim::slots[f.parity ^= 1];
    row[shim::current] = predicate != 0;
    shim::wait(shim::AT_WARP);
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; lane++) ballot |= (unsigned)row[(shim::current & ~31) | lane] << lane;
    return ballot;
}

inline void sincospi(double x, double* s, double* c) { sincos(3.14159265358979323846 * x, s, c); }

inline int __ffs(int v) { return __builtin_ffs(v); }

inline unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

inline unsigned atomicInc(unsigned* at, unsigned most) {
    unsigned old = *at;
    *at = old >= most ? 0 : old + 1;
    return old;
}
inline unsigned atomicOr(unsigned* at, unsigned bits) {
    unsigned old = *at;
    *at |= bits;
    return old;
}
inline unsigned atomicExch(unsigned* at, unsigned value) {
    unsigned old = *at;
    *at = value;
    return old;
}

// What g++ -fsanitize calls; the source location comes first in each record
struct Place {
    const char* file;
    uint32_t line, column;
};
#define SHIM_TRAP(name, what, ...)                                                         \
    extern "C" void name(Place* at, ##__VA_ARGS__) {                                       \
        char text[400];                                                                    \
        snprintf(text, sizeof text, "%s at %s:%u", what, at->file, at->line);              \
        shim::abandon(text);                                                               \
    }
SHIM_TRAP(__ubsan_handle_type_mismatch_v1, "unaligned or null access", void*)
SHIM_TRAP(__ubsan_handle_out_of_bounds, "index out of bounds", void*)
SHIM_TRAP(__ubsan_handle_shift_out_of_bounds, "shift out of bounds", void*, void*)
SHIM_TRAP(__ubsan_handle_add_overflow, "integer overflow", void*, void*)
SHIM_TRAP(__ubsan_handle_sub_overflow, "integer overflow", void*, void*)
SHIM_TRAP(__ubsan_handle_mul_overflow, "integer overflow", void*, void*)
SHIM_TRAP(__ubsan_handle_negate_overflow, "integer overflow", void*)
SHIM_TRAP(__ubsan_handle_divrem_overflow, "integer division by zero", void*, void*)

#define SHIM_TABLE(...)                                                                    \
    static const shim::Row shim_rows[] = {__VA_ARGS__};                                    \
    extern "C" {                                                                           \
    int shim_count() { return (int)(sizeof shim_rows / sizeof *shim_rows); }               \
    const char* shim_name(int i) { return shim_rows[i].name; }                             \
    const char* shim_signature(int i) { return shim_rows[i].signature(); }                 \
    int shim_launch(int i, const unsigned* shape, void** arguments) {                      \
        return shim_rows[i].launch(shape, arguments);                                      \
    }                                                                                      \
    const char* shim_error() { return shim::error; }                                       \
    void shim_order(int order) { shim::order = order; }                                    \
    }
