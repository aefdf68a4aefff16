// Images (n, height, width, channels), and the windows that a pooling or a convolution lays over one.
#include "rows.cuh"

// One axis of an image and of the windows over it
struct Axis {
    int image, result;      // pixels, and windows
    int taps;               // places of a window
    int stride, pad, step;  // from window to window; before the first pixel; from place to place

    __device__ Axis(index_t image, index_t result, index_t taps, index_t stride, index_t pad, index_t step)
        : image((int)image), result((int)result), taps((int)taps), stride((int)stride), pad((int)pad),
          step((int)step) {}

    // The pixel at place r of window i, which may lie outside
    __device__ int pixel(int i, int r) const { return i * stride + r * step - pad; }
    __device__ bool inside(int at) const { return (unsigned)at < (unsigned)image; }

    // The window that has the pixel `at` in place r, or -1
    __device__ int window(int at, int r) const {
        int from = at + pad - r * step;
        if (from < 0) return -1;
        if (stride > 1) {
            if (from % stride) return -1;
            from /= stride;
        }
        return from < result ? from : -1;
    }

    // How many places of window i lie inside
    __device__ int count(int i) const {
        const int start = i * stride - pad;
        int first = start < 0 ? (-start + step - 1) / step : 0;
        int end = image > start ? (image - start + step - 1) / step : 0;
        end = end < taps ? end : taps;
        return end > first ? end - first : 0;
    }
};

// What every kernel over windows is given about them, and its two axes
#define WINDOW_PARAMETERS                                                                                        \
    index_t height, index_t width, index_t result_height, index_t result_width, index_t taps_down,               \
        index_t taps_across, index_t stride_down, index_t stride_across, index_t above, index_t left,            \
        index_t dilation_down, index_t dilation_across
#define WINDOW_ROWS Axis(height, result_height, taps_down, stride_down, above, dilation_down)
#define WINDOW_COLUMNS Axis(width, result_width, taps_across, stride_across, left, dilation_across)

// Pack number i of images, each (height, width, packs)
struct PixelPack {
    index_t image;
    int row, column;
    index_t pack;

    __device__ PixelPack(index_t i, index_t height, index_t width, index_t packs) {
        index_t rest = quotient(i, packs);
        pack = i - rest * packs;
        i = rest;
        rest = quotient(i, width);
        column = (int)(i - rest * width);
        image = quotient(rest, height);
        row = (int)(rest - image * height);
    }
};
