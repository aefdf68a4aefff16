// What a tiled product is made of: copies from global to shared memory that run beside the arithmetic, matrices of
// 8 x 8 from shared memory to registers, and tensor cores. On a CPU the same by plain code, whose layouts of registers
// are those of the instructions.
#include "common.cuh"

// A float that is rounded to ten bits after the point before it is multiplied
struct tf32 {
    float value;
    tf32() = default;
    __device__ explicit tf32(float x) : value(x) {}
    __device__ operator float() const { return value; }
    __device__ unsigned bits() const { return __float_as_uint(value); }
};
template <> struct Wide<tf32> { using type = float; };

template <typename T> constexpr bool is_rounded = false;
template <> constexpr bool is_rounded<tf32> = true;

__device__ inline unsigned round_tf32(unsigned bits) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
#else
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#endif
}

// 16 bytes to shared memory, zeros where not `there`; they have arrived after arrived<...>() and a barrier
__device__ inline void copy16(void* shared, const void* global, bool there) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
    *(Pack<float>*)shared = there ? *(const Pack<float>*)global : Pack<float>{};
#endif
}

// Ends a group of copies
__device__ inline void end_group() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups but the last PENDING have arrived, as far as this thread began them
template <int PENDING>
__device__ inline void arrived() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four matrices of 8 x 8 elements of 16 bits. Lane l points to row l % 8 of matrix l / 8, and is given of matrix i the
// elements 2 (l % 4) and the next one of row l / 4; TURNED: of column l / 4 the rows 2 (l % 4) and the next one.
template <bool TURNED>
__device__ inline void load_matrices(unsigned (&to)[4], const void* row) {
#ifdef __CUDA_ARCH__
    const unsigned from = (unsigned)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
#else
    const int lane = threadIdx.x & 31, high = lane >> 2, low = 2 * (lane & 3);
    const unsigned long long own = (unsigned long long)row;
    for (int i = 0; i < 4; i++) {
        if (TURNED) {
            const unsigned short* first = (const unsigned short*)__shfl_sync(FULL_WARP, own, 8 * i + low);
            const unsigned short* second = (const unsigned short*)__shfl_sync(FULL_WARP, own, 8 * i + low + 1);
            to[i] = first[high] | (unsigned)second[high] << 16;
        } else {
            const unsigned short* line = (const unsigned short*)__shfl_sync(FULL_WARP, own, 8 * i + high);
            to[i] = line[low] | (unsigned)line[low + 1] << 16;
        }
    }
#endif
}

// The sum of the products of what two registers hold of T
template <typename T>
__device__ inline float dot(unsigned a, unsigned b) {
    T first, second, third, fourth;
    first.bits = (unsigned short)a;
    second.bits = (unsigned short)(a >> 16);
    third.bits = (unsigned short)b;
    fourth.bits = (unsigned short)(b >> 16);
    return (float)first * (float)third + (float)second * (float)fourth;
}
template <>
__device__ inline float dot<tf32>(unsigned a, unsigned b) {
    return __uint_as_float(a) * __uint_as_float(b);
}

// What the instruction does, by shuffles
template <typename T>
__device__ inline void multiply_slowly(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const int lane = threadIdx.x & 31, row = lane & ~3, column = 2 * (lane & 3);
    const auto pair = [](unsigned low, unsigned high) { return low | (unsigned long long)high << 32; };
    const unsigned long long upper = pair(a[0], a[2]), lower = pair(a[1], a[3]), right = pair(b[0], b[1]);
    for (int q = 0; q < 4; q++) {
        const unsigned long long top = __shfl_sync(FULL_WARP, upper, row + q);
        const unsigned long long bottom = __shfl_sync(FULL_WARP, lower, row + q);
        for (int j = 0; j < 2; j++) {
            const unsigned long long from = __shfl_sync(FULL_WARP, right, 4 * (column + j) + q);
            const unsigned first = (unsigned)from, second = (unsigned)(from >> 32);
            sum[j] += dot<T>((unsigned)top, first) + dot<T>((unsigned)(top >> 32), second);
            sum[2 + j] += dot<T>((unsigned)bottom, first) + dot<T>((unsigned)(bottom >> 32), second);
        }
    }
}

// sum (16 x 8) += a (16 x k) b (k x 8), a warp together; k is 16, or 8 of tf32
template <typename T>
__device__ inline void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
__device__ inline void multiply<f16>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
    multiply_slowly<f16>(sum, a, b);
#endif
}

template <>
__device__ inline void multiply<bf16>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
    __trap();  // the backend gives no bfloat16 to a GPU without it
#else
    multiply_slowly<bf16>(sum, a, b);
#endif
}

template <>
__device__ inline void multiply<tf32>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
    __trap();  // the backend does not round there
#else
    multiply_slowly<tf32>(sum, a, b);
#endif
}
