// Convolution as a product of matrices whose left factor is gathered from the image while it is multiplied: a row for
// each pixel of the result, a column for each place of the window and channel. The gradient with respect to the image
// is the same over the result's gradient, by the phases of the stride. That with respect to the weights sums over
// pixels, which are shared out to blocks and added up in order.
#include "activations.cuh"
#include "images.cuh"
#include "product.cuh"

// The places of a window, along one axis, that the pixels of one phase of the result see, and where
struct Taps {
    int first, every, count;  // place number i is first + every * i
    int scale, offset, step;  // for pixel p of the phase it is the source's pixel scale * p + offset + step * i

    // Of a convolution
    __device__ explicit Taps(const Axis& axis)
        : first(0), every(1), count(axis.taps), scale(axis.stride), offset(-axis.pad), step(axis.step) {}

    // Of its gradient: the result is the image, and its pixels phase, phase + stride, ... are those of this phase
    __device__ Taps(const Axis& axis, int phase) : first(0), every(1), count(0), scale(1), offset(0), step(0) {
        while (first < axis.taps && (phase + axis.pad - first * axis.step) % axis.stride) first++;
        while (every * axis.step % axis.stride) every++;
        if (first >= axis.taps) return;
        count = (axis.taps - first + every - 1) / every;
        offset = (phase + axis.pad - first * axis.step) / axis.stride;
        step = -(every * axis.step / axis.stride);
    }
};

// A column of the gathered factor: a place of the window, and a channel
struct Column {
    int down, across, channel;

    __device__ Column(int k, const Taps& columns, int channels) {
        const int place = (int)((unsigned)k / (unsigned)channels), count = columns.count > 0 ? columns.count : 1;
        channel = k - place * channels;
        down = (int)((unsigned)place / (unsigned)count);
        across = place - down * count;
    }

    __device__ void advance(int by, const Taps& columns, int channels) {
        for (channel += by; channel >= channels; channel -= channels)
            if (++across == columns.count) {
                across = 0;
                down++;
            }
    }
};

// What a row of the gathered factor is: a pixel of the result, and of the source the place 0 of its window
struct Row {
    index_t image, pixel;  // the first element of the source's image; the result's pixel, or -1
    int down, across;      // far outside where there is no pixel
};

// result = f(source * weights + bias), saved = what f is given; both pixels x groups * result_channels. The source has
// groups * channels, the weights are (places, channels, groups * result_channels). bias and saved may be null.
// backward: the window lies over the result, not the source.
template <typename T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(256, TILE_BLOCKS(ROWS, COLUMNS))
conv(const T* source, const T* weights, const T* bias, T* saved, T* result, index_t n, index_t groups,
     index_t channels, index_t result_channels, index_t backward, index_t act, double alpha, WINDOW_PARAMETERS) {
    using W = wide<T>;
    using Tiles = Layout<T, ROWS, COLUMNS, false>;
    constexpr int PACK = Pack<T>::N, EACH = ROWS / 64;
    __shared__ Memory<T, ROWS, COLUMNS, false> memory;
    __shared__ Row of_row[ROWS];

    const Axis axis_down = WINDOW_ROWS, axis_across = WINDOW_COLUMNS;
    const int phases_down = backward ? axis_down.stride : 1, phases_across = backward ? axis_across.stride : 1;
    const int phase = blockIdx.z % (phases_down * phases_across), group = blockIdx.z / (phases_down * phases_across);
    const int phase_down = phase / phases_across, phase_across = phase % phases_across;
    const Taps down = backward ? Taps(axis_down, phase_down) : Taps(axis_down);
    const Taps across = backward ? Taps(axis_across, phase_across) : Taps(axis_across);
    const int source_height = backward ? axis_down.result : axis_down.image;
    const int source_width = backward ? axis_across.result : axis_across.image;
    const int target_height = backward ? axis_down.image : axis_down.result;
    const int target_width = backward ? axis_across.image : axis_across.result;
    // Pixels of this phase
    const index_t lines = (target_height - phase_down + phases_down - 1) / phases_down;
    const index_t line = (target_width - phase_across + phases_across - 1) / phases_across;

    const index_t tiles = (result_channels + COLUMNS - 1) / COLUMNS;
    const index_t first_row = blockIdx.x / tiles * ROWS, first_column = blockIdx.x % tiles * COLUMNS;
    if (first_row >= n * lines * line) return;
    const index_t total = groups * channels, result_total = groups * result_channels;

    for (int i = threadIdx.x; i < ROWS; i += TILE_THREADS) {
        Row row = {0, -1, -(1 << 30), 0};
        if (first_row + i < n * lines * line) {
            const PixelPack at(first_row + i, lines, line, 1);
            row.image = at.image * source_height * source_width * total + group * channels;
            row.pixel = (at.image * target_height + at.row * phases_down + phase_down) * target_width
                + at.column * phases_across + phase_across;
            row.down = at.row * down.scale + down.offset;
            row.across = at.column * across.scale + across.offset;
        }
        of_row[i] = row;
    }
    __syncthreads();

    // Each thread brings one pack of k of every 64th row, and packs of the weights
    const int own_pack = threadIdx.x % 4 * PACK, own_row = threadIdx.x / 4;
    Row rows[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) rows[i] = of_row[own_row + 64 * i];
    const bool left_packed = channels % PACK == 0 && aligned16(source);
    const bool right_packed = result_channels % PACK == 0 && aligned16(weights);
    const bool all_places = down.count == axis_down.taps && across.count == axis_across.taps;
    const int depth = down.count * across.count * (int)channels, columns_left = (int)(result_channels - first_column);
    const T* own_weights = weights + group * result_channels + first_column;
    Column column(own_pack, across, (int)channels);

    const auto element = [&](const Row& row, const Column& at) -> const T* {
        const int y = row.down + at.down * down.step, x = row.across + at.across * across.step;
        const bool inside = (unsigned)y < (unsigned)source_height && (unsigned)x < (unsigned)source_width;
        return inside ? source + row.image + ((index_t)y * source_width + x) * total + at.channel : nullptr;
    };
    const auto fetch = [&](int chunk, T* left, T* right) {
        const int first = chunk * Tiles::CHUNK, k = first + own_pack;
        if (left_packed) {
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const T* from = k < depth ? element(rows[i], column) : nullptr;
                copy16(left + (own_row + 64 * i) * Tiles::LEFT_PITCH + own_pack, from ? from : source, from);
            }
            column.advance(Tiles::CHUNK, across, (int)channels);
        } else {
#pragma unroll 1
            for (int e = 0; e < PACK; e++) {
                const Column at(k + e, across, (int)channels);
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    const T* from = k + e < depth ? element(rows[i], at) : nullptr;
                    left[(own_row + 64 * i) * Tiles::LEFT_PITCH + own_pack + e] = from ? *from : T(0);
                }
            }
        }
#pragma unroll
        for (int i = threadIdx.x; i < Tiles::CHUNK * COLUMNS / PACK; i += TILE_THREADS) {
            const int row = i / (COLUMNS / PACK), to = i % (COLUMNS / PACK) * PACK;
            int from = first + row;
            const int left_over = from < depth ? columns_left - to : 0;
            if (!all_places && left_over > 0) {
                const Column at(from, across, (int)channels);
                const int taken = down.first + down.every * at.down, beside = across.first + across.every * at.across;
                from = (taken * axis_across.taps + beside) * (int)channels + at.channel;
            }
            const T* at = left_over > 0 ? own_weights + from * result_total + to : weights;
            fetch_pack(right + row * Tiles::RIGHT_PITCH + to, at, left_over, right_packed);
        }
    };

    Product<T, ROWS, COLUMNS, false> product;
    add_chunks(product, memory, (depth + Tiles::CHUNK - 1) / Tiles::CHUNK, fetch);

    const bool packed = result_channels % PACK == 0 && aligned16(result) && aligned16(saved) && aligned16(bias);
    each_run<PACK>(product, memory, [&](int row, int to, const Values<W, PACK>& sums) {
        const index_t pixel = of_row[row].pixel, channel = group * result_channels + first_column + to;
        const index_t left_over = result_channels - first_column - to, end = (group + 1) * result_channels;
        if (pixel < 0 || left_over <= 0) return;
        Values<T> v;
#pragma unroll
        for (int k = 0; k < PACK; k++) v.v[k] = sums.v[k];
        if (bias) {
            const Values<T> b = load_pack(bias, channel, end, packed);
#pragma unroll
            for (int k = 0; k < PACK; k++) v.v[k] += b.v[k];
        }
        if (saved) store_pack(saved + pixel * result_total, channel, end, packed, v);
        activate(v.v, (int)act, alpha);
        store_pack(result + pixel * result_total, channel, end, packed, v);
    });
}

// Sums over this block's pixels of x and dy, into sums[chunk], which has the shape of the weights
template <typename T, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(256, TILE_BLOCKS(ROWS, COLUMNS))
conv_weights(const T* dy, const T* x, wide<T>* sums, index_t n, index_t groups, index_t channels,
             index_t result_channels, index_t pixels_per_chunk, WINDOW_PARAMETERS) {
    using W = wide<T>;
    using Tiles = Layout<T, ROWS, COLUMNS, true>;
    constexpr int PACK = Pack<T>::N, ACROSS = ROWS / PACK;
    __shared__ Memory<T, ROWS, COLUMNS, true> memory;
    __shared__ int tap_down[ROWS], tap_across[ROWS], tap_channel[ROWS];

    const Axis axis_down = WINDOW_ROWS, axis_across = WINDOW_COLUMNS;
    const Taps down(axis_down), across(axis_across);
    const int group = blockIdx.z, depth = axis_down.taps * axis_across.taps * (int)channels;
    const index_t tiles = (result_channels + COLUMNS - 1) / COLUMNS;
    const int first_row = (int)(blockIdx.x / tiles) * ROWS;
    const index_t first_column = blockIdx.x % tiles * COLUMNS;
    const index_t total = groups * channels, result_total = groups * result_channels;
    const index_t pixels = n * axis_down.result * axis_across.result, first_pixel = blockIdx.y * pixels_per_chunk;
    const index_t end = first_pixel + pixels_per_chunk < pixels ? first_pixel + pixels_per_chunk : pixels;

    for (int i = threadIdx.x; i < ROWS; i += TILE_THREADS) {
        const Column at(first_row + i, across, (int)channels);
        tap_down[i] = at.down * down.step + down.offset;
        tap_across[i] = at.across * across.step + across.offset;
        tap_channel[i] = first_row + i < depth ? at.channel : -1;
    }
    __syncthreads();

    const bool left_packed = channels % PACK == 0 && aligned16(x);
    const bool right_packed = result_channels % PACK == 0 && aligned16(dy);
    const int columns_left = (int)(result_channels - first_column);
    const T* own_dy = dy + group * result_channels + first_column;
    const auto fetch = [&](int chunk, T* left, T* right) {
        const index_t first = first_pixel + (index_t)chunk * Tiles::CHUNK;
#pragma unroll
        for (int i = threadIdx.x; i < Tiles::CHUNK * ACROSS; i += TILE_THREADS) {
            const int to = i % ACROSS * PACK, row = i / ACROSS;
            const bool there = first + row < end;
            const PixelPack at(there ? first + row : 0, axis_down.result, axis_across.result, 1);
            const int y = at.row * down.scale, z = at.column * across.scale;
            const T* image = x + at.image * axis_down.image * axis_across.image * total + group * channels;
            const auto element = [&](int tap) -> const T* {
                const int line = y + tap_down[tap], place = z + tap_across[tap];
                if (!there || tap_channel[tap] < 0) return nullptr;
                if (!axis_down.inside(line) || !axis_across.inside(place)) return nullptr;
                return image + ((index_t)line * axis_across.image + place) * total + tap_channel[tap];
            };
            T* target = left + row * Tiles::LEFT_PITCH + to;
            if (left_packed) {
                const T* from = element(to);
                copy16(target, from ? from : x, from);
            } else {
#pragma unroll 1
                for (int e = 0; e < PACK; e++) {
                    const T* from = element(to + e);
                    target[e] = from ? *from : T(0);
                }
            }
        }
#pragma unroll
        for (int i = threadIdx.x; i < Tiles::CHUNK * COLUMNS / PACK; i += TILE_THREADS) {
            const int row = i / (COLUMNS / PACK), to = i % (COLUMNS / PACK) * PACK;
            const int left_over = first + row < end ? columns_left - to : 0;
            const T* at = left_over > 0 ? own_dy + (first + row) * result_total + to : dy;
            fetch_pack(right + row * Tiles::RIGHT_PITCH + to, at, left_over, right_packed);
        }
    };

    Product<T, ROWS, COLUMNS, true> product;
    const index_t chunks = end > first_pixel ? (end - first_pixel + Tiles::CHUNK - 1) / Tiles::CHUNK : 0;
    add_chunks(product, memory, (int)chunks, fetch);

    const bool packed = result_channels % Pack<W>::N == 0 && aligned16(sums);
    sums += (index_t)blockIdx.y * depth * result_total;
    each_run<Pack<W>::N>(product, memory, [&](int row, int to, const Values<W, Pack<W>::N>& values) {
        if (first_row + row >= depth || first_column + to >= result_channels) return;
        W* line = sums + (first_row + row) * result_total;
        store_pack(line, group * result_channels + first_column + to, (group + 1) * result_channels, packed, values);
    });
}

// out (places, out_channels, groups * channels) = the weights (places, channels, groups * out_channels) with a group's
// input and output channels exchanged. A block turns 32 x 32 of them, of 256 threads.
template <typename T>
__global__ void __launch_bounds__(256)
turn_weights(const T* weights, T* out, index_t groups, index_t channels, index_t out_channels) {
    __shared__ T tile[32][33];
    const index_t below = (channels + 31) / 32, beside = (out_channels + 31) / 32;
    index_t block = blockIdx.x;
    const index_t from = block % beside * 32;
    block /= beside;
    const index_t to = block % below * 32;
    block /= below;
    const index_t group = block % groups, place = block / groups;
    const int x = threadIdx.x % 32, y = threadIdx.x / 32;
    for (int i = y; i < 32; i += 8)
        if (to + i < channels && from + x < out_channels)
            tile[i][x] = weights[((place * channels + to + i) * groups + group) * out_channels + from + x];
    __syncthreads();
    for (int i = y; i < 32; i += 8)
        if (from + i < out_channels && to + x < channels)
            out[((place * out_channels + from + i) * groups + group) * channels + to + x] = tile[x][i];
}
