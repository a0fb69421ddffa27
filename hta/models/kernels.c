/* What is computed between convolutions in training, one pass over memory each: see kernels.py, which says it in torch.

   All tensors are channels-last: `rows` positions of `channels` values. `counts` says how often a position counts.
   Sums come piece by piece, PIECE positions each, for the caller to add up: so they do not depend on the threads.
   The file includes itself once a type of the activations: bfloat16 with float statistics, float, and double. */

#ifndef VALUE

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Both are known to native.py too. */
#define MOST_CHANNELS 256
#define PIECE 512

#define VECTOR 32
#define PIECES ((rows + PIECE - 1) / PIECE)
#define FIRST_ROW (piece * PIECE)
#define LAST_ROW (FIRST_ROW + PIECE < rows ? FIRST_ROW + PIECE : rows)
/* Below this many values the threads cost more than they bring. */
#define SERIAL 32768

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
#define NAME(name) name##_bfloat16
#include "kernels.c"

#define VALUE float
#define STATISTIC float
#define LOAD(x) (x)
#define STORE(x) (x)
#define EXP exp_float
#define LOG logf
#define NAME(name) name##_float32
#include "kernels.c"

#define VALUE double
#define STATISTIC double
#define LOAD(x) (x)
#define STORE(x) (x)
#define EXP exp
#define LOG log
#define NAME(name) name##_float64
#include "kernels.c"

#else

/* Weighted sums of the first and second powers of x - pivot: `sums` is (pieces, 2, channels). */
void NAME(moments)(const VALUE *restrict x, const STATISTIC *restrict counts, const STATISTIC *restrict pivot,
                   int64_t rows, int64_t channels, STATISTIC *restrict sums) {
    #pragma omp parallel for schedule(static) if (rows * channels > SERIAL)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        STATISTIC first[MOST_CHANNELS] = {0}, second[MOST_CHANNELS] = {0};
        for (int64_t p = FIRST_ROW; p < LAST_ROW; p++)
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC offset = LOAD(x[p * channels + c]) - pivot[c];
                first[c] += counts[p] * offset;
                second[c] += counts[p] * offset * offset;
            }
        memcpy(sums + 2 * piece * channels, first, channels * sizeof(STATISTIC));
        memcpy(sums + (2 * piece + 1) * channels, second, channels * sizeof(STATISTIC));
    }
}

/* y = leaky(factor * x + offset) */
void NAME(activate)(const VALUE *restrict x, const STATISTIC *restrict factor, const STATISTIC *restrict offset,
                    STATISTIC negative_slope, int64_t rows, int64_t channels, VALUE *restrict y) {
    #pragma omp parallel for schedule(static) if (rows * channels > SERIAL)
    for (int64_t piece = 0; piece < PIECES; piece++)
        for (int64_t p = FIRST_ROW; p < LAST_ROW; p++)
            for (int64_t c = 0; c < channels; c++) {
            STATISTIC normed = factor[c] * LOAD(x[p * channels + c]) + offset[c];
            y[p * channels + c] = STORE(normed > 0 ? normed : negative_slope * normed);
        }
}

/* Sums of g and of g * (x - mean), g the gradient before LeakyReLU: `sums` is (pieces, 2, channels). */
void NAME(reduce)(const VALUE *restrict grad, const VALUE *restrict x, const STATISTIC *restrict factor,
                  const STATISTIC *restrict offset, const STATISTIC *restrict mean, STATISTIC negative_slope,
                  int64_t rows, int64_t channels, STATISTIC *restrict sums) {
    #pragma omp parallel for schedule(static) if (rows * channels > SERIAL)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        STATISTIC plain[MOST_CHANNELS] = {0}, centred[MOST_CHANNELS] = {0};
        for (int64_t p = FIRST_ROW; p < LAST_ROW; p++)
            for (int64_t c = 0; c < channels; c++) {
                STATISTIC value = LOAD(x[p * channels + c]), through = LOAD(grad[p * channels + c]);
                through *= factor[c] * value + offset[c] > 0 ? 1 : negative_slope;
                plain[c] += through;
                centred[c] += through * (value - mean[c]);
            }
        memcpy(sums + 2 * piece * channels, plain, channels * sizeof(STATISTIC));
        memcpy(sums + (2 * piece + 1) * channels, centred, channels * sizeof(STATISTIC));
    }
}

/* grad = factor * g - counts * (at_zero + slope * x), in place, g as in `reduce` */
void NAME(subtract)(VALUE *restrict grad, const VALUE *restrict x, const STATISTIC *restrict counts,
                    const STATISTIC *restrict factor, const STATISTIC *restrict offset,
                    const STATISTIC *restrict at_zero, const STATISTIC *restrict slope, STATISTIC negative_slope,
                    int64_t rows, int64_t channels) {
    #pragma omp parallel for schedule(static) if (rows * channels > SERIAL)
    for (int64_t piece = 0; piece < PIECES; piece++)
        for (int64_t p = FIRST_ROW; p < LAST_ROW; p++)
            for (int64_t c = 0; c < channels; c++) {
            STATISTIC value = LOAD(x[p * channels + c]);
            STATISTIC through = LOAD(grad[p * channels + c]);
            through *= factor[c] * value + offset[c] > 0 ? 1 : negative_slope;
            grad[p * channels + c] = STORE(factor[c] * through - counts[p] * (at_zero[c] + slope[c] * value));
        }
}

/* Sum over rows and classes of hits times -log softmax, one a piece, and its gradient. The rows come in blocks of
   `patches`, `images` of them a canvas; hits and counts are the same for all images of a canvas. */
void NAME(entropy)(const VALUE *restrict logits, const uint8_t *restrict hits, const STATISTIC *restrict counts,
                   int64_t images, int64_t patches, int64_t rows, int64_t classes, VALUE *restrict grad,
                   STATISTIC *restrict sums) {
    /* Rows are worked on in whole vectors, filled up with logits that count for nothing: remainders cost far more. */
    int64_t padded = (classes + VECTOR - 1) / VECTOR * VECTOR;
    #pragma omp parallel for schedule(static) if (rows * classes > SERIAL)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        VALUE row[MOST_CHANNELS];
        uint8_t hit[MOST_CHANNELS] = {0};
        double total = 0;
        for (int64_t p = FIRST_ROW; p < LAST_ROW; p++) {
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
        sums[piece] = total;
    }
}

#undef VALUE
#undef STATISTIC
#undef LOAD
#undef STORE
#undef EXP
#undef LOG
#undef NAME

#endif
