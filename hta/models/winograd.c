/* Convolutions with 3 x 3 kernels in float32 by Winograd's F(2 x 2, 3 x 3): 16 instead of 36 products for a tile of 2 x 2
   outputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).

   y = A'[(G w G') * (B' x B)]A, where * is a product of matrices of channels at each of 16 places of the tile. The
   gradient of the weights is the transpose, G'[(B' x B)'(A g A')]G; that of the input is a convolution of the padded
   gradient with the turned kernel. Tiles are worked on in blocks that stay in the caches.

   All images are channels-last. Channels are filled up to whole vectors, with zeros. Sums over tiles come in parts, for
   the caller to add up: so they do not depend on the threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The rows of a product that are kept in registers: many with 2 vectors each, or few with 3. */
#ifdef __AVX512F__
#define LANES 16
#define MANY_ROWS 12
#define FEW_ROWS 8
#else
#define LANES 8
#define MANY_ROWS 6
#define FEW_ROWS 4
#endif
/* Tiles of a block, a multiple of both. */
#define TILES 48
/* The same value as in winograd.py. */
#define MOST_CHANNELS 256
/* Values from one place of a tile to the next, for a block: no power of two, whose multiples share places in the cache. */
#define STEP(channels) (TILES * (channels) + 80)
#define FILLED(channels) (((channels) + LANES - 1) / LANES * LANES)
#define BYTES(channels) (16 * STEP(channels) * sizeof(float))
#define INLINE static inline __attribute__((always_inline))

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
    int64_t down = (shape[1] + all->growth + 1) / 2, across = (shape[2] + all->growth + 1) / 2;
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

/* The pixel at row and column, or zeros outside of the images. */
INLINE const float *pixel(const float *x, const Grid *grid, int64_t image, int64_t row, int64_t column) {
    int inside = image < grid->images && row >= 0 && row < grid->height && column >= 0 && column < grid->width;
    return inside ? x + ((image * grid->height + row) * grid->width + column) * grid->channels : nothing;
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
        #pragma GCC unroll 16
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

/* B' x B of a block of tiles, `to` is (16, tiles, channels); the images begin `pad` pixels inside. */
static void inputs_of_tiles(const float *x, const Grid *grid, int64_t pad, int64_t first, float *to) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, to += filled) {
        Place at = place_of(grid, first + tile);
        const float *pixels[16];
        for (int i = 0; i < 16; i++)
            pixels[i] = pixel(x, grid, at.image, 2 * at.row + i / 4 - pad, 2 * at.column + i % 4 - pad);
        for (int64_t k = 0; k < channels; k += LANES) {
            vector d[16], half[16];
            for (int i = 0; i < 16; i++) d[i] = load(pixels[i], k, channels);
            for (int j = 0; j < 4; j++) {
                half[j] = d[j] - d[8 + j];
                half[4 + j] = d[4 + j] + d[8 + j];
                half[8 + j] = d[8 + j] - d[4 + j];
                half[12 + j] = d[4 + j] - d[12 + j];
            }
            for (int i = 0; i < 16; i += 4) {
                *(vector *)(to + (i + 0) * step + k) = half[i] - half[i + 2];
                *(vector *)(to + (i + 1) * step + k) = half[i + 1] + half[i + 2];
                *(vector *)(to + (i + 2) * step + k) = half[i + 2] - half[i + 1];
                *(vector *)(to + (i + 3) * step + k) = half[i + 1] - half[i + 3];
            }
        }
    }
}

/* A g A' of a block of tiles, `to` is (16, tiles, channels). */
static void gradients_of_tiles(const float *g, const Grid *grid, int64_t first, float *to) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, to += filled) {
        Place at = place_of(grid, first + tile);
        const float *pixels[4];
        for (int i = 0; i < 4; i++) pixels[i] = pixel(g, grid, at.image, 2 * at.row + i / 2, 2 * at.column + i % 2);
        for (int64_t k = 0; k < channels; k += LANES) {
            vector d[4], half[8];
            for (int i = 0; i < 4; i++) d[i] = load(pixels[i], k, channels);
            for (int j = 0; j < 2; j++) {
                half[j] = d[j];
                half[2 + j] = d[j] + d[2 + j];
                half[4 + j] = d[j] - d[2 + j];
                half[6 + j] = -d[2 + j];
            }
            for (int i = 0; i < 4; i++) {
                *(vector *)(to + (4 * i + 0) * step + k) = half[2 * i];
                *(vector *)(to + (4 * i + 1) * step + k) = half[2 * i] + half[2 * i + 1];
                *(vector *)(to + (4 * i + 2) * step + k) = half[2 * i] - half[2 * i + 1];
                *(vector *)(to + (4 * i + 3) * step + k) = -half[2 * i + 1];
            }
        }
    }
}

/* LeakyReLU of A' m A plus the bias, of a block of tiles, into the images. */
static void outputs_of_tiles(const float *from, const Grid *grid, const float *bias, float negative_slope, int64_t first,
                             float *y) {
    int64_t channels = grid->channels, filled = FILLED(channels), step = STEP(filled);
    for (int64_t tile = 0; tile < TILES; tile++, from += filled) {
        Place at = place_of(grid, first + tile);
        if (at.image >= grid->images) return;
        for (int64_t k = 0; k < channels; k += LANES) {
            vector m[16], half[8], shift = bias ? load(bias, k, channels) : (vector){0};
            for (int i = 0; i < 16; i++) m[i] = *(const vector *)(from + i * step + k);
            for (int j = 0; j < 4; j++) {
                half[j] = m[j] + m[4 + j] + m[8 + j];
                half[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
            }
            for (int i = 0; i < 4; i++) {
                const vector *h = half + i / 2 * 4;
                float *to = (float *)pixel(y, grid, at.image, 2 * at.row + i / 2, 2 * at.column + i % 2);
                vector value = i % 2 ? h[1] - h[2] - h[3] : h[0] + h[1] + h[2];
                if (to != nothing) store(to, leaky(value + shift, negative_slope), k, channels);
            }
        }
    }
}

int winograd_lanes(void) {
    return LANES;
}

/* G w G' of a weight (outputs, 3, 3, inputs): `to` is (16, filled inputs, filled outputs). If turned, the filters of the
   convolution back: (16, filled outputs, filled inputs). */
void winograd_filters(const float *w, int64_t inputs, int64_t outputs, int64_t turned, float *to) {
    int64_t depth = FILLED(inputs), filled = FILLED(outputs), step = depth * filled;
    memset(to, 0, 16 * step * sizeof(float));
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t k = 0; k < inputs; k += LANES) {
            vector half[12], places[16];
            for (int j = 0; j < 3; j++) {
                vector column[3];
                for (int i = 0; i < 3; i++) column[i] = load(w + (9 * o + (turned ? 8 - 3 * i - j : 3 * i + j)) * inputs, k, inputs);
                vector outer = 0.5f * (column[0] + column[2]), inner = 0.5f * column[1];
                half[j] = column[0], half[3 + j] = outer + inner, half[6 + j] = outer - inner, half[9 + j] = column[2];
            }
            for (int i = 0; i < 4; i++) {
                const vector *h = half + 3 * i;
                vector outer = 0.5f * (h[0] + h[2]), inner = 0.5f * h[1];
                places[4 * i] = h[0], places[4 * i + 1] = outer + inner, places[4 * i + 2] = outer - inner;
                places[4 * i + 3] = h[2];
            }
            for (int i = 0; i < 16; i++)
                if (turned)
                    *(vector *)(to + i * step + o * depth + k) = places[i];
                else
                    for (int lane = 0; lane < LANES; lane++) to[i * step + (k + lane) * filled + o] = places[i][lane];
        }
}

/* y, after LeakyReLU, of images x, which are padded by `pad` zeros on each side, for batches of these shapes (images, height, width);
   `filters` are from winograd_filters, a bias may be missing. */
void winograd_convolve(int64_t batches, const float *const *x, const int64_t *shapes, const float *filters,
                       const float *bias, int64_t inputs, int64_t outputs, int64_t pad, float negative_slope,
                       float *const *y) {
    Batches all = {batches, shapes, 2 * pad - 2};
    int64_t blocks = all_blocks(&all), depth = FILLED(inputs), filled = FILLED(outputs);
    #pragma omp parallel if (blocks > 1)
    {
        float *a = aligned_alloc(64, BYTES(depth)), *c = aligned_alloc(64, BYTES(filled));
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < blocks; number++) {
            int64_t block = number, batch = batch_of(&all, &block);
            Grid from = grid_of(&all, batch, inputs, 0), to = grid_of(&all, batch, outputs, all.growth);
            inputs_of_tiles(x[batch], &from, pad, block * TILES, a);
            for (int64_t i = 0; i < 16; i++)
                product(a + i * STEP(depth), depth, 1, filters + i * depth * filled, TILES, depth, filled,
                        c + i * STEP(filled), 0);
            outputs_of_tiles(c, &to, bias, negative_slope, block * TILES, y[batch]);
        }
        free(a);
        free(c);
    }
}

/* Sums over tiles of (B' x B)'(A g A'), (parts, 16, filled inputs, filled outputs). */
static void sums_over_tiles(const Batches *all, const float *const *x, const float *const *g, int64_t inputs,
                            int64_t outputs, int64_t parts, float *sums) {
    int64_t blocks = all_blocks(all), depth = FILLED(inputs), filled = FILLED(outputs), step = depth * filled;
    #pragma omp parallel if (parts > 1)
    {
        float *a = aligned_alloc(64, BYTES(depth)), *b = aligned_alloc(64, BYTES(filled));
        #pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            float *sum = sums + part * 16 * step;
            memset(sum, 0, 16 * step * sizeof(float));
            for (int64_t number = blocks * part / parts; number < blocks * (part + 1) / parts; number++) {
                int64_t block = number, batch = batch_of(all, &block);
                Grid of_x = grid_of(all, batch, inputs, 0), of_g = grid_of(all, batch, outputs, all->growth);
                inputs_of_tiles(x[batch], &of_x, 0, block * TILES, a);
                gradients_of_tiles(g[batch], &of_g, block * TILES, b);
                for (int64_t i = 0; i < 16; i++)
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
    float *sums = aligned_alloc(64, parts * 16 * step * sizeof(float));
    sums_over_tiles(&all, x, g, inputs, outputs, parts, sums);
    for (int64_t at = 0; at < plane; at += LANES) {
        vector s[16] = {0}, half[12];
        for (int64_t part = 0; part < parts; part++)
            for (int i = 0; i < 16; i++) s[i] += *(const vector *)(sums + (16 * part + i) * step + at);
        for (int j = 0; j < 4; j++) {
            vector sum = 0.5f * (s[4 + j] + s[8 + j]);
            half[j] = s[j] + sum, half[4 + j] = 0.5f * (s[4 + j] - s[8 + j]), half[8 + j] = sum + s[12 + j];
        }
        for (int i = 0; i < 3; i++) {
            const vector *h = half + 4 * i;
            vector sum = 0.5f * (h[1] + h[2]);
            float *place = to + 3 * i * plane + at;
            *(vector *)place = h[0] + sum;
            *(vector *)(place + plane) = 0.5f * (h[1] - h[2]);
            *(vector *)(place + 2 * plane) = sum + h[3];
        }
    }
    free(sums);
}
