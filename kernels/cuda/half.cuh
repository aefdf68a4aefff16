// The two 16-bit floating-point types. They are storage only: a value is computed with in wide<T>, and
// rounded to the nearest (ties to even) when it is stored. NaN stays NaN; what is too large is infinite.

__device__ inline float f16_to_float(unsigned short bits) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    unsigned sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
    if (magnitude >= 0x0400u) return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));  // bias 127 - 15
    return __uint_as_float(sign | __float_as_uint((float)magnitude * 5.9604644775390625e-8f));  // units of 2**-24
#endif
}

__device__ inline unsigned short float_to_f16(float x) {
#ifdef __CUDA_ARCH__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) magnitude = 0x7e00u;        // NaN
    else if (magnitude >= 0x477ff000u) magnitude = 0x7c00u;  // from 65520 on, infinity is nearest
    else if (magnitude >= 0x38800000u)                       // 2**-14, the smallest that is normal
        magnitude = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    else  // the last bit of a float from 0.5 to 1 is 2**-24, so this sum rounds as it should
        magnitude = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    return (unsigned short)(sign | magnitude);
#endif
}

__device__ inline float bf16_to_float(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

__device__ inline unsigned short float_to_bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    unsigned u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)(u >> 16 | 0x40u);  // NaN, without its last bits
    return (unsigned short)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

struct f16 {
    unsigned short bits;
    f16() = default;
    __device__ explicit f16(float x) : bits(float_to_f16(x)) {}
    __device__ operator float() const { return f16_to_float(bits); }
};

struct bf16 {
    unsigned short bits;
    bf16() = default;
    __device__ explicit bf16(float x) : bits(float_to_bf16(x)) {}
    __device__ operator float() const { return bf16_to_float(bits); }
};

template <typename T> struct Wide { using type = T; };
template <> struct Wide<f16> { using type = float; };
template <> struct Wide<bf16> { using type = float; };

// The type that values stored as T are computed with: float for the two, else T itself
template <typename T>
using wide = typename Wide<T>::type;
