// What the largest of some numbers is, and which of them that was: NaN is larger than all, and found by NaN.
#include "images.cuh"

template <typename W>
__device__ inline W larger(W a, W b) {
    return b > a || b != b ? b : a;
}

template <typename W>
__device__ inline bool is_it(W v, W largest) {
    return v == largest || (v != v && largest != largest);
}
