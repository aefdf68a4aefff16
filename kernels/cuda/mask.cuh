// Masks: an element is set where it is not 0, whatever its type.
#include "common.cuh"

__device__ inline bool is_set(const void* mask, index_t bytes, index_t i) {
    if (bytes == 4) return ((const unsigned*)mask)[i] != 0;
    if (bytes == 2) return ((const unsigned short*)mask)[i] != 0;
    if (bytes == 1) return ((const unsigned char*)mask)[i] != 0;
    return ((const unsigned long long*)mask)[i] != 0;
}
