/* Convolutions with 3 x 3 kernels in float32 by Winograd's F(2 x 4, 3 x 3): 24 instead of 72 products for a tile of 2 x 4
   outputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). Larger tiles would need
   fewer products, but lose digits.

   y = A'[(G w H') * (B' x D)]C, where * is a product of matrices of channels at each of the 24 places of a tile: A, B and
   G are of 2 outputs, down, and C, D and H of 4, across. The gradient of the weights is the transpose,
   G'[(B' x D)'(A g C')]H; that of the input is a convolution of the padded gradient with the turned kernel. Tiles are
   worked on in blocks that stay in the caches.

   All images are channels-last. Channels are filled up to whole vectors, with zeros. Sums over tiles are made in parts,
   which are added up in their order: so they do not depend on the threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The rows of a product that are kept in registers: many with 2 vectors each, or few with 3. */
#ifdef __AVX512F__
#define LANES 16
#define MANY_ROWS 12
#define FEW_ROWS 8
#elif defined __AVX__
#define LANES 8
#define MANY_ROWS 6
#define FEW_ROWS 4
#else
#define LANES 4
#define MANY_ROWS 4
#define FEW_ROWS 4
#endif
/* Outputs of a tile; inputs of a tile, which are also its places. */
#define DOWN 2
#define ACROSS 4
#define HIGH (DOWN + 2)
#define WIDE (ACROSS + 2)
#define PLACES (HIGH * WIDE)
/* Tiles of a block, a multiple of MANY_ROWS and FEW_ROWS. */
#define TILES 24
/* The same value as in winograd.py. */
#define MOST_CHANNELS 256
/* Values from one place of a tile to the next, for a block: no power of two, whose multiples share places in the cache. */
#define STEP(channels) (TILES * (channels) + 80)
#define FILLED(channels) (((channels) + LANES - 1) / LANES * LANES)
#define BYTES(channels) (PLACES * STEP(channels) * sizeof(float))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 24")

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

static const float nothing[MOST_CHANNELS + LANES];

/* A batch of images, and how the outputs of their convolution are cut into tiles. */
typedef struct {
    int64_t images, height, width, channels; /* of the images that are read or written here */
    int64_t down, across;                    /* tiles of an image */
} Grid;

/* The number and the shape, (images, height, width), of the batches of a call, and by how much outputs are larger. */
typedef struct {
    int64_t batches;
    const int64_t *shapes;
    int64_t growth;
} Batches;

static Grid grid_of(const Batches *all, int64_t batch, int64_t channels, int64_t growth) {
    const int64_t *shape = all->shapes + 3 * batch;
    int64_t down = (shape[1] + all->growth + DOWN - 1) / DOWN, across = (shape[2] + all->growth + ACROSS - 1) / ACROSS;
    return (Grid){shape[0], shape[1] + growth, shape[2] + growth, channels, down, across};
}

static int64_t blocks_of(const Batches *all, int64_t batch) {
    Grid grid = grid_of(all, batch, 0, 0);
    return (grid.images * grid.down * grid.across + TILES - 1) / TILES;
}

static int64_t all_blocks(const Batches *all) {
    int64_t blocks = 0;
    for (int64_t batch = 0; batch < all->batches; batch++) blocks += blocks_of(all, batch);
    return blocks;
}

/* The batch of a block, which is then counted within the batch. */
static int64_t batch_of(const Batches *all, int64_t *block) {
    int64_t batch = 0;
    for (; *block >= blocks_of(all, batch); batch++) *block -= blocks_of(all, batch);
    return batch;
}

typedef struct {
    int64_t image, row, column;
} Place;

INLINE Place place_of(const Grid *grid, int64_t tile) {
    return (Place){tile / (grid->down * grid->across), tile / grid->across % grid->down, tile % grid->across};
}

/* Pointers to `high` times `wide` pixels, the first at row and column; to `nothing` outside of the images. */
INLINE void find_pixels(const float *x, const Grid *grid, int64_t image, int64_t row, int64_t column, const int high,
                        const int wide, const float **pixels) {
    int reaches = row + high > grid->height || column + wide > grid->width;
    if (image < grid->images && row >= 0 && column >= 0 && !reaches) {
        const float *first = x + ((image * grid->height + row) * grid->width + column) * grid->channels;
        UNROLL
        for (int i = 0; i < high * wide; i++) pixels[i] = first + (i / wide * grid->width + i % wide) * grid->channels;
        return;
    }
    for (int i = 0; i < high * wide; i++) {
        int64_t r = row + i / wide, c = column + i % wide;
        int inside = image < grid->images && r >= 0 && r < grid->height && c >= 0 && c < grid->width;
        pixels[i] = inside ? x + ((image * grid->height + r) * grid->width + c) * grid->channels : nothing;
    }
}

/* Up to LANES channels from the k-th on. */
INLINE vector load(const float *from, int64_t k, int64_t channels) {
    vector values = {0};
    if (k + LANES <= channels) return *(const vector *)(from + k);
    memcpy(&values, from + k, (channels - k) * sizeof(float));
    return values;
}

INLINE void store(float *to, vector values, int64_t k, int64_t channels) {
    if (k + LANES <= channels)
        *(vector *)(to + k) = values;
    else
        memcpy(to + k, &values, (channels - k) * sizeof(float));
}

typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4)));

/* LeakyReLU; a slope of 1 leaves all as it is. */
INLINE vector leaky(vector values, float negative_slope) {
    mask positive = values > 0;
    return (vector)((positive & (mask)values) | (~positive & (mask)(negative_slope * values)));
}

/* c[m][n] (+)= sum over k of a[m * row + k * column] * b[k][n], for a few rows and vectors of n. */
INLINE void product_of_rows(const float *a, int64_t row, int64_t column, const float *b, int64_t depth, int64_t filled,
                            float *c, const int rows, const int vectors, const int adds) {
    vector sums[MANY_ROWS][3];
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < vectors; v++) sums[m][v] = adds ? *(const vector *)(c + m * filled + v * LANES) : (vector){0};
    for (int64_t k = 0; k < depth; k++) {
        vector factors[3];
        for (int v = 0; v < vectors; v++) factors[v] = *(const vector *)(b + k * filled + v * LANES);
        UNROLL
        for (int m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++) sums[m][v] += a[m * row + k * column] * factors[v];
    }
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < vectors; v++) *(vector *)(c + m * filled + v * LANES) = sums[m][v];
}

/* The same for `rows` rows, a multiple of FEW_ROWS, and `filled` columns, a multiple of LANES. */
INLINE void product(const float *a, int64_t row, int64_t column, const float *b, int64_t rows, int64_t depth,
                    int64_t filled, float *c, const int adds) {
    for (int64_t left = filled / LANES, vectors; left; left -= vectors, b += vectors * LANES, c += vectors * LANES) {
        vectors = left == 1 || left == 3 ? left : 2;
        for (int64_t m = 0, count; m < rows; m += count) {
            const float *factors = a + m * row;
            float *to = c + m * filled;
            count = vectors < 3 && (rows - m) % MANY_ROWS == 0 ? MANY_ROWS : FEW_ROWS;
            if (vectors == 3)
                product_of_rows(factors, row, column, b, depth, filled, to, FEW_ROWS, 3, adds);
            else if (vectors == 2 && count == MANY_ROWS)
                product_of_rows(factors, row, column, b, depth, filled, to, MANY_ROWS, 2, adds);
            else if (vectors == 2)
                product_of_rows(factors, row, column, b, depth, filled, to, FEW_ROWS, 2, adds);
            else if (count == MANY_ROWS)
                product_of_rows(factors, row, column, b, depth, filled, to, MANY_ROWS, 1, adds);
            else
                product_of_rows(factors, row, column, b, depth, filled, to, FEW_ROWS, 1, adds);
        }
    }
}

/* The transforms of one row or column of a tile; `step` is from one value to the next. */

INLINE void inputs_down(const vector *d, vector *to, int64_t step) { /* B' */
    to[0] = d[0] - d[2 * step];
    to[step] = d[step] + d[2 * step];
    to[2 * step] = d[2 * step] - d[step];
    to[3 * step] = d[step] - d[3 * step];
}

INLINE void inputs_across(const vector *d, vector *to) { /* D' */
    vector even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], near = d[4] - d[2], far = 2 * (d[3] - d[1]);
    to[0] = 4 * (d[0] - d[2]) + near;
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = near + far;
    to[4] = near - far;
    to[5] = d[5] - d[3] - 2 * far;
}

INLINE void outputs_down(const vector *m, vector *to, int64_t step) { /* A' */
    to[0] = m[0] + m[step] + m[2 * step];
    to[step] = m[step] - m[2 * step] - m[3 * step];
}

INLINE void outputs_across(const vector *m, vector *to) { /* C' */
    vector even = m[1] + m[2], odd = m[1] - m[2], far_even = m[3] + m[4], far_odd = m[3] - m[4];
    to[0] = m[0] + even + far_even;
    to[1] = odd + 2 * far_odd;
    to[2] = even + 4 * far_even;
    to[3] = odd + 8 * far_odd + m[5];
}

INLINE void gradients_down(const vector *g, vector *to, int64_t step) { /* A */
    to[0] = g[0];
    to[step] = g[0] + g[step];
    to[2 * step] = g[0] - g[step];
    to[3 * step] = -g[step];
}

INLINE void gradients_across(const vector *g, vector *to) { /* C */
    vector even = g[0] + g[2], odd = g[1] + g[3], far_even = g[0] + 4 * g[2], far_odd = 2 * g[1] + 8 * g[3];
    to[0] = g[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = far_even + far_odd;
    to[4] = far_even - far_odd;
    to[5] = g[3];
}

INLINE void filters_down(const vector *w, vector *to, int64_t step) { /* G */
    vector outer = 0.5f * (w[0] + w[2 * step]), inner = 0.5f * w[step];
    to[0] = w[0];
    to[step] = outer + inner;
    to[2 * step] = outer - inner;
    to[3 * step] = w[2 * step];
}

INLINE void filters_across(const vector *w, vector *to) { /* H */
    vector outer = (w[0] + w[2]) / 6, inner = w[1] / 6, far_outer = w[0] / 24 + w[2] / 6, far_inner = w[1] / 12;
    to[0] = w[0] / 4;
    to[1] = -outer - inner;
    to[2] = inner - outer;
    to[3] = far_outer + far_inner;
    to[4] = far_outer - far_inner;
    to[5] = w[2];
}

INLINE void filters_down_backward(const vector *s, vector *to, int64_t step) { /* G' */
    vector outer = 0.5f * (s[step] + s[2 * step]);
    to[0] = s[0] + outer;
    to[step] = 0.5f * (s[step] - s[2 * step]);
    to[2 * step] = outer + s[3 * step];
}

INLINE void filters_across_backward(const vector *s, vector *to) { /* H' */
    vector outer = (s[1] + s[2]) / 6, far_outer = s[3] + s[4];
    to[0] = s[0] / 4 - outer + far_outer / 24;
    to[1] = (s[2] - s[1]) / 6 + (s[3] - s[4]) / 12;
    to[2] = far_outer / 6 - outer + s[5];
}

/* B' x D of a block of tiles, `to` is (places, tiles, channels); the images begin `pad` pixels inside. */
static void inputs_of_tiles(const float *x, const Grid *grid, int64_t pad, int64_t first, float *to) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, to += filled) {
        Place at = place_of(grid, first + tile);
        const float *pixels[PLACES];
        find_pixels(x, grid, at.image, DOWN * at.row - pad, ACROSS * at.column - pad, HIGH, WIDE, pixels);
        for (int64_t k = 0; k < channels; k += LANES) {
            vector d[PLACES], half[PLACES], places[WIDE];
            UNROLL
            for (int i = 0; i < PLACES; i++) d[i] = load(pixels[i], k, channels);
            UNROLL
            for (int j = 0; j < WIDE; j++) inputs_down(d + j, half + j, WIDE);
            UNROLL
            for (int i = 0; i < PLACES; i += WIDE) {
                inputs_across(half + i, places);
                UNROLL
                for (int j = 0; j < WIDE; j++) *(vector *)(to + (i + j) * step + k) = places[j];
            }
        }
    }
}

/* A g C' of a block of tiles, `to` is (places, tiles, channels). */
static void gradients_of_tiles(const float *g, const Grid *grid, int64_t first, float *to) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, to += filled) {
        Place at = place_of(grid, first + tile);
        const float *pixels[DOWN * ACROSS];
        find_pixels(g, grid, at.image, DOWN * at.row, ACROSS * at.column, DOWN, ACROSS, pixels);
        for (int64_t k = 0; k < channels; k += LANES) {
            vector d[DOWN * ACROSS], half[HIGH * ACROSS], places[WIDE];
            UNROLL
            for (int i = 0; i < DOWN * ACROSS; i++) d[i] = load(pixels[i], k, channels);
            UNROLL
            for (int j = 0; j < ACROSS; j++) gradients_down(d + j, half + j, ACROSS);
            UNROLL
            for (int i = 0; i < HIGH; i++) {
                gradients_across(half + i * ACROSS, places);
                UNROLL
                for (int j = 0; j < WIDE; j++) *(vector *)(to + (i * WIDE + j) * step + k) = places[j];
            }
        }
    }
}

/* LeakyReLU of A' m C plus the bias, of a block of tiles, into the images. */
static void outputs_of_tiles(const float *from, const Grid *grid, const float *bias, float negative_slope, int64_t first,
                             float *y) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, from += filled) {
        Place at = place_of(grid, first + tile);
        if (at.image >= grid->images) return;
        const float *pixels[DOWN * ACROSS];
        find_pixels(y, grid, at.image, DOWN * at.row, ACROSS * at.column, DOWN, ACROSS, pixels);
        for (int64_t k = 0; k < channels; k += LANES) {
            vector m[PLACES], half[DOWN * WIDE], values[ACROSS], shift = bias ? load(bias, k, channels) : (vector){0};
            UNROLL
            for (int i = 0; i < PLACES; i++) m[i] = *(const vector *)(from + i * step + k);
            UNROLL
            for (int j = 0; j < WIDE; j++) outputs_down(m + j, half + j, WIDE);
            UNROLL
            for (int i = 0; i < DOWN; i++) {
                outputs_across(half + i * WIDE, values);
                UNROLL
                for (int j = 0; j < ACROSS; j++) {
                    const float *to = pixels[ACROSS * i + j];
                    if (to != nothing) store((float *)to, leaky(values[j] + shift, negative_slope), k, channels);
                }
            }
        }
    }
}

int winograd_lanes(void) {
    return LANES;
}

/* G w H' of a weight (outputs, 3, 3, inputs): `to` is (places, filled inputs, filled outputs). If turned, the filters of
   the convolution back: (places, filled outputs, filled inputs). */
void winograd_filters(const float *w, int64_t inputs, int64_t outputs, int64_t turned, float *to) {
    int64_t depth = FILLED(inputs), filled = FILLED(outputs), step = depth * filled;
    memset(to, 0, PLACES * step * sizeof(float));
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t k = 0; k < inputs; k += LANES) {
            vector kernel[9], half[3 * HIGH], places[PLACES];
            for (int i = 0; i < 9; i++) kernel[i] = load(w + (9 * o + (turned ? 8 - i : i)) * inputs, k, inputs);
            for (int j = 0; j < 3; j++) filters_down(kernel + j, half + j, 3);
            for (int i = 0; i < HIGH; i++) filters_across(half + 3 * i, places + WIDE * i);
            for (int i = 0; i < PLACES; i++)
                if (turned)
                    *(vector *)(to + i * step + o * depth + k) = places[i];
                else
                    for (int lane = 0; lane < LANES; lane++) to[i * step + (k + lane) * filled + o] = places[i][lane];
        }
}

/* y, after LeakyReLU, of images x, which are padded by `pad` zeros on each side, for batches of these shapes (images,
   height, width); `filters` are from winograd_filters, a bias may be missing. */
void winograd_convolve(int64_t batches, const float *const *x, const int64_t *shapes, const float *filters,
                       const float *bias, int64_t inputs, int64_t outputs, int64_t pad, float negative_slope,
                       float *const *y) {
    Batches all = {batches, shapes, 2 * pad - 2};
    int64_t blocks = all_blocks(&all), depth = FILLED(inputs), filled = FILLED(outputs);
    #pragma omp parallel if (blocks > 1)
    {
        float *a = malloc(BYTES(depth)), *c = malloc(BYTES(filled));
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < blocks; number++) {
            int64_t block = number, batch = batch_of(&all, &block);
            Grid from = grid_of(&all, batch, inputs, 0), to = grid_of(&all, batch, outputs, all.growth);
            inputs_of_tiles(x[batch], &from, pad, block * TILES, a);
            for (int64_t i = 0; i < PLACES; i++)
                product(a + i * STEP(depth), depth, 1, filters + i * depth * filled, TILES, depth, filled,
                        c + i * STEP(filled), 0);
            outputs_of_tiles(c, &to, bias, negative_slope, block * TILES, y[batch]);
        }
        free(a);
        free(c);
    }
}

/* Sums over tiles of (B' x D)'(A g C'), (parts, places, filled inputs, filled outputs). */
static void sums_over_tiles(const Batches *all, const float *const *x, const float *const *g, int64_t inputs,
                            int64_t outputs, int64_t parts, float *sums) {
    int64_t blocks = all_blocks(all), depth = FILLED(inputs), filled = FILLED(outputs), step = depth * filled;
    #pragma omp parallel if (parts > 1)
    {
        float *a = malloc(BYTES(depth)), *b = malloc(BYTES(filled));
        #pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            float *sum = sums + part * PLACES * step;
            memset(sum, 0, PLACES * step * sizeof(float));
            for (int64_t number = blocks * part / parts; number < blocks * (part + 1) / parts; number++) {
                int64_t block = number, batch = batch_of(all, &block);
                Grid of_x = grid_of(all, batch, inputs, 0), of_g = grid_of(all, batch, outputs, all->growth);
                inputs_of_tiles(x[batch], &of_x, 0, block * TILES, a);
                gradients_of_tiles(g[batch], &of_g, block * TILES, b);
                for (int64_t i = 0; i < PLACES; i++)
                    product(a + i * STEP(depth), 1, depth, b + i * STEP(filled), depth, TILES, filled, sum + i * step, 1);
            }
        }
        free(a);
        free(b);
    }
}

/* The gradient of the weights, (3, 3, inputs, filled outputs), of a convolution of images x without padding, given g, that
   of its outputs, for batches of x of these shapes. */
void winograd_filter_gradient(int64_t batches, const float *const *x, const int64_t *shapes, const float *const *g,
                              int64_t inputs, int64_t outputs, int64_t parts, float *to) {
    Batches all = {batches, shapes, -2};
    int64_t filled = FILLED(outputs), step = FILLED(inputs) * filled, plane = inputs * filled;
    float *sums = malloc(parts * PLACES * step * sizeof(float));
    sums_over_tiles(&all, x, g, inputs, outputs, parts, sums);
    for (int64_t at = 0; at < plane; at += LANES) {
        vector places[PLACES] = {0}, half[3 * WIDE], kernel[3];
        for (int64_t part = 0; part < parts; part++)
            for (int i = 0; i < PLACES; i++) places[i] += *(const vector *)(sums + (PLACES * part + i) * step + at);
        for (int j = 0; j < WIDE; j++) filters_down_backward(places + j, half + j, WIDE);
        for (int i = 0; i < 3; i++) {
            filters_across_backward(half + i * WIDE, kernel);
            for (int j = 0; j < 3; j++) *(vector *)(to + (3 * i + j) * plane + at) = kernel[j];
        }
    }
    free(sums);
}
