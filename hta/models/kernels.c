/* What is computed between convolutions in training, one pass over memory each: see kernels.py, which says it in torch.

   All tensors are channels-last: `rows` positions of `channels` values, of several batches in one call. `counts` says how
   often a position counts. Sums are of pieces of PIECE positions, added up in their order: so they do not depend on the
   threads. `sums` is room for (pieces, 2, channels) of them.
   The file includes itself once a type of the activations: bfloat16 with float statistics, float, and double. */

#ifndef VALUE

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Both are known to native.py too. */
#define MOST_CHANNELS 256
#define PIECE 512

#define VECTOR 32
#define FEW 8 /* as many classes as rotations need fill a smaller one */
#define PIVOT_ROWS 16
/* Below this many values the threads cost more than they bring. */
#define SERIAL 32768

/* Rows first to last of a batch. */
typedef struct {
    int64_t batch, first, last;
} Piece;

static inline int64_t pieces_of(int64_t rows) {
    return (rows + PIECE - 1) / PIECE;
}

static int64_t all_pieces(int64_t batches, const int64_t *rows) {
    int64_t pieces = 0;
    for (int64_t batch = 0; batch < batches; batch++) pieces += pieces_of(rows[batch]);
    return pieces;
}

static inline Piece piece_at(int64_t number, const int64_t *rows) {
    int64_t batch = 0;
    for (; number >= pieces_of(rows[batch]); batch++) number -= pieces_of(rows[batch]);
    int64_t first = number * PIECE, last = first + PIECE;
    return (Piece){batch, first, last < rows[batch] ? last : rows[batch]};
}

static inline float from_bfloat16(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Rounds to the nearest, to even; what is not a number stays so. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    return (word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* exp of values <= 0 to 2 units in the last place, in a form that compilers vectorise; NaN stays NaN. */
static inline float exp_float(float x) {
    float clamped = x < -87.0f ? -87.0f : x;
    float n = rintf(clamped * 1.44269504f);
    float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float value = p * r * r + r + 1.0f;
    uint32_t power = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, sizeof scale);
    return value * scale;
}

#define VALUE uint16_t
#define STATISTIC float
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define EXP exp_float
#define LOG logf
#define SQRT sqrtf
#define NAME(name) name##_bfloat16
#include "kernels.c"

#define VALUE float
#define STATISTIC float
#define LOAD(x) (x)
#define STORE(x) (x)
#define EXP exp_float
#define LOG logf
#define SQRT sqrtf
#define NAME(name) name##_float32
#include "kernels.c"

#define VALUE double
#define STATISTIC double
#define LOAD(x) (x)
#define STORE(x) (x)
#define EXP exp
#define LOG log
#define SQRT sqrt
#define NAME(name) name##_float64
#include "kernels.c"

#else

/* One channel of all sums of pieces, the `part`-th of the two. */
static double NAME(total)(const STATISTIC *sums, int64_t pieces, int64_t channels, int64_t part, int64_t channel) {
    double total = 0;
    for (int64_t piece = 0; piece < pieces; piece++) total += sums[(2 * piece + part) * channels + channel];
    return total;
}

/* Mean and variance of each channel, `moments` is (2, channels): of powers of x - pivot, lest large means cancel. */
void NAME(moments)(int64_t batches, const VALUE *const *x, const STATISTIC *const *counts, const int64_t *rows,
                   int64_t channels, int64_t total, STATISTIC *restrict sums, STATISTIC *restrict moments) {
    STATISTIC pivot[MOST_CHANNELS] = {0};
    int64_t few = rows[0] < PIVOT_ROWS ? rows[0] : PIVOT_ROWS, pieces = all_pieces(batches, rows);
    for (int64_t p = 0; p < few; p++)
        for (int64_t c = 0; c < channels; c++) pivot[c] += LOAD(x[0][p * channels + c]) / few;
    #pragma omp parallel for schedule(static) if (pieces * PIECE * channels > SERIAL)
    for (int64_t number = 0; number < pieces; number++) {
        STATISTIC first[MOST_CHANNELS] = {0}, second[MOST_CHANNELS] = {0};
        Piece piece = piece_at(number, rows);
        const VALUE *restrict values = x[piece.batch];
        for (int64_t p = piece.first; p < piece.last; p++) {
            STATISTIC count = counts[piece.batch][p];
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC offset = LOAD(values[p * channels + c]) - pivot[c];
                first[c] += count * offset;
                second[c] += count * offset * offset;
            }
        }
        memcpy(sums + 2 * number * channels, first, channels * sizeof(STATISTIC));
        memcpy(sums + (2 * number + 1) * channels, second, channels * sizeof(STATISTIC));
    }
    for (int64_t c = 0; c < channels; c++) {
        double offset = NAME(total)(sums, pieces, channels, 0, c) / total;
        double variance = NAME(total)(sums, pieces, channels, 1, c) / total - offset * offset;
        moments[c] = pivot[c] + offset;
        moments[channels + c] = variance < 0 ? 0 : variance;
    }
}

/* norm(x) = factor * x + offset */
static void NAME(affine)(const STATISTIC *mean, const STATISTIC *variance, const STATISTIC *gamma, const STATISTIC *beta,
                         STATISTIC eps, int64_t channels, STATISTIC *factor, STATISTIC *offset) {
    for (int64_t c = 0; c < channels; c++) {
        factor[c] = gamma[c] / SQRT(variance[c] + eps);
        offset[c] = beta[c] - factor[c] * mean[c];
    }
}

/* y = leaky(norm(x)) */
void NAME(activate)(int64_t batches, const VALUE *const *x, const int64_t *rows, int64_t channels,
                    const STATISTIC *mean, const STATISTIC *variance, const STATISTIC *gamma, const STATISTIC *beta,
                    STATISTIC eps, STATISTIC negative_slope, VALUE *const *y) {
    STATISTIC factor[MOST_CHANNELS], offset[MOST_CHANNELS];
    NAME(affine)(mean, variance, gamma, beta, eps, channels, factor, offset);
    int64_t pieces = all_pieces(batches, rows);
    #pragma omp parallel for schedule(static) if (pieces * PIECE * channels > SERIAL)
    for (int64_t number = 0; number < pieces; number++) {
        Piece piece = piece_at(number, rows);
        const VALUE *restrict from = x[piece.batch];
        VALUE *restrict to = y[piece.batch];
        for (int64_t p = piece.first; p < piece.last; p++)
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC normed = factor[c] * LOAD(from[p * channels + c]) + offset[c];
                to[p * channels + c] = STORE(normed > 0 ? normed : negative_slope * normed);
            }
    }
}

/* From the gradients of `activate` those of x, in place, and of gamma and beta, `gradients` is (2, channels). With g the
   gradient before LeakyReLU: factor * g - counts / total * factor * (sum of g + xhat * sum of g * xhat). */
void NAME(activate_backward)(int64_t batches, VALUE *const *grads, const VALUE *const *x, const STATISTIC *const *counts,
                             const int64_t *rows, int64_t channels, int64_t total, const STATISTIC *restrict mean,
                             const STATISTIC *variance, const STATISTIC *gamma, const STATISTIC *beta, STATISTIC eps,
                             STATISTIC negative_slope, STATISTIC *restrict sums, STATISTIC *restrict gradients) {
    STATISTIC factor[MOST_CHANNELS], offset[MOST_CHANNELS], at_zero[MOST_CHANNELS], slope[MOST_CHANNELS];
    NAME(affine)(mean, variance, gamma, beta, eps, channels, factor, offset);
    int64_t pieces = all_pieces(batches, rows);
    #pragma omp parallel for schedule(static) if (pieces * PIECE * channels > SERIAL)
    for (int64_t number = 0; number < pieces; number++) {
        STATISTIC plain[MOST_CHANNELS] = {0}, centred[MOST_CHANNELS] = {0};
        Piece piece = piece_at(number, rows);
        const VALUE *restrict values = x[piece.batch], *restrict grad = grads[piece.batch];
        for (int64_t p = piece.first; p < piece.last; p++)
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC value = LOAD(values[p * channels + c]), through = LOAD(grad[p * channels + c]);
                through *= factor[c] * value + offset[c] > 0 ? 1 : negative_slope;
                plain[c] += through;
                centred[c] += through * (value - mean[c]);
            }
        memcpy(sums + 2 * number * channels, plain, channels * sizeof(STATISTIC));
        memcpy(sums + (2 * number + 1) * channels, centred, channels * sizeof(STATISTIC));
    }
    for (int64_t c = 0; c < channels; c++) {
        double scale = 1 / sqrt((double)variance[c] + eps), to_beta = NAME(total)(sums, pieces, channels, 0, c);
        double to_gamma = NAME(total)(sums, pieces, channels, 1, c) * scale;
        gradients[c] = to_gamma;
        gradients[channels + c] = to_beta;
        slope[c] = factor[c] * to_gamma * scale / total;
        at_zero[c] = factor[c] * to_beta / total - slope[c] * mean[c];
    }
    #pragma omp parallel for schedule(static) if (pieces * PIECE * channels > SERIAL)
    for (int64_t number = 0; number < pieces; number++) {
        Piece piece = piece_at(number, rows);
        const VALUE *restrict values = x[piece.batch];
        VALUE *restrict grad = grads[piece.batch];
        for (int64_t p = piece.first; p < piece.last; p++) {
            STATISTIC count = counts[piece.batch][p];
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC value = LOAD(values[p * channels + c]), through = LOAD(grad[p * channels + c]);
                through *= factor[c] * value + offset[c] > 0 ? 1 : negative_slope;
                grad[p * channels + c] = STORE(factor[c] * through - count * (at_zero[c] + slope[c] * value));
            }
        }
    }
}

/* Draws canvases of images, given as `pixels` rows of 3 colours each: `to` is (canvases, images, places, 3), and
   `sources`, (canvases, places), says which pixel each place shows. */
void NAME(render)(const STATISTIC *restrict from, const int64_t *restrict sources, int64_t canvases, int64_t places,
                  int64_t images, int64_t pixels, VALUE *restrict to) {
    #pragma omp parallel for schedule(static) if (canvases * images * places > SERIAL)
    for (int64_t number = 0; number < canvases * images; number++)
        for (int64_t place = 0; place < places; place++) {
            const STATISTIC *pixel = from + 3 * (number % images * pixels + sources[number / images * places + place]);
            for (int c = 0; c < 3; c++) to[3 * (number * places + place) + c] = STORE(pixel[c]);
        }
}

/* Adds the gradients of the canvases to those of the pixels. */
void NAME(render_backward)(const VALUE *restrict grad, const int64_t *restrict sources, int64_t canvases, int64_t places,
                           int64_t images, int64_t pixels, STATISTIC *restrict to) {
    #pragma omp parallel for schedule(static) if (canvases * images * places > SERIAL)
    for (int64_t image = 0; image < images; image++)
        for (int64_t place = 0; place < canvases * places; place++) {
            STATISTIC *pixel = to + 3 * (image * pixels + sources[place]);
            const VALUE *from = grad + 3 * ((place / places * images + image) * places + place % places);
            for (int c = 0; c < 3; c++) pixel[c] += LOAD(from[c]);
        }
}

/* Sum over rows and classes of hits times -log softmax, one a piece, and its gradient. The rows come in blocks of
   `patches`, `images` of them a canvas; hits and counts are the same for all images of a canvas. */
void NAME(entropy)(const VALUE *restrict logits, const uint8_t *restrict hits, const STATISTIC *restrict counts,
                   int64_t images, int64_t patches, int64_t rows, int64_t classes, VALUE *restrict grad,
                   STATISTIC *restrict sums) {
    /* Rows are worked on in whole vectors, filled up with logits that count for nothing: remainders cost far more. */
    int64_t padded = classes <= FEW ? FEW : (classes + VECTOR - 1) / VECTOR * VECTOR;
    #pragma omp parallel for schedule(static) if (rows * classes > SERIAL)
    for (int64_t number = 0; number < pieces_of(rows); number++) {
        VALUE row[MOST_CHANNELS];
        uint8_t hit[MOST_CHANNELS] = {0};
        double total = 0;
        Piece piece = piece_at(number, &rows);
        for (int64_t p = piece.first; p < piece.last; p++) {
            int64_t place = p / (images * patches) * patches + p % patches;
            STATISTIC values[MOST_CHANNELS], powers[MOST_CHANNELS], most = -INFINITY, sum = 0, right = 0;
            memcpy(row, logits + p * classes, classes * sizeof(VALUE));
            memcpy(hit, hits + place * classes, classes);
            for (int64_t k = classes; k < padded; k++) row[k] = STORE((STATISTIC)-1e30);
            #pragma omp simd reduction(max : most)
            for (int64_t k = 0; k < padded; k++) {
                values[k] = LOAD(row[k]);
                most = values[k] > most ? values[k] : most;
            }
            #pragma omp simd reduction(+ : sum, right)
            for (int64_t k = 0; k < padded; k++) {
                powers[k] = EXP(values[k] - most);
                sum += powers[k];
                right += hit[k] * (values[k] - most);
            }
            STATISTIC share = counts[place] / sum;
            total += counts[place] * LOG(sum) - right;
            for (int64_t k = 0; k < padded; k++) row[k] = STORE(share * powers[k] - hit[k]);
            memcpy(grad + p * classes, row, classes * sizeof(VALUE));
        }
        sums[number] = total;
    }
}

#undef VALUE
#undef STATISTIC
#undef LOAD
#undef STORE
#undef EXP
#undef LOG
#undef SQRT
#undef NAME

#endif
