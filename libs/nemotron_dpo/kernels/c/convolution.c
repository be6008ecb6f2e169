/* The causal convolution in front of a recurrence: of each channel the weighted sum of a token's and of those before it on its
   path, in one pass over memory. Sums are float32. No result depends on the number of threads.

   Legend: S tokens of the row, C channels, W taps: of the token itself, of the one before it, and so on. */

#include <omp.h>

#include "vectors.h"

enum { CHANNELS = 128, TOGETHER = 128, MOST_TAPS = 16 }; /* of one thread at a time; tokens whose sum is added to that of all */

typedef struct {
    i64 is_half, num_tokens, num_channels, num_taps, num_threads;
    i64 x_row, grad_row;   /* how far apart tokens are in memory */
    const i64 *earlier;    /* [W, S]: the token that is 0, 1, ... before each, or -1 */
    const i64 *firsts;     /* [S + 1]: where in `users` those of each token begin */
    const i64 *users;      /* [., 2]: a token that takes this one, and by which tap */
    const float *weight;   /* [W, C] */
} Call;

INLINE vec take(const void *x, i64 place, i64 count, int is_half) {
    return is_half ? get((const half *)x + place, count) : get_floats((const float *)x + place, count);
}

INLINE void give(void *x, i64 place, vec part, i64 count, int is_half) {
    if (is_half) put((half *)x + place, part, count);
    else put_floats((float *)x + place, part, count);
}

INLINE void convolve_token(const Call *call, const void *x, const float *bias, void *y, i64 token, int is_half) {
    i64 size = call->num_channels;
    for (i64 c = 0; c < size; c += LANES) {
        vec total = call->earlier[token] < 0 ? splat(0) : get_floats(bias + c, size - c);
        for (i64 w = 0; w < call->num_taps; w++) {
            i64 from = call->earlier[w * call->num_tokens + token];
            if (from < 0) break;
            total += get_floats(call->weight + w * size + c, size - c) * take(x, from * call->x_row + c, size - c, is_half);
        }
        give(y, token * size + c, total, size - c, is_half);
    }
}

/* y [S, C] of x [S, C]; zero of tokens in no piece */
void convolve(const Call *call, const void *x, const float *bias, void *y) {
#pragma omp parallel for num_threads(call->num_threads) schedule(static)
    for (i64 token = 0; token < call->num_tokens; token++)
        if (call->is_half) convolve_token(call, x, bias, y, token, 1);
        else convolve_token(call, x, bias, y, token, 0);
}

/* sums [1 + W, CHANNELS] over tokens: of the gradient, and of it times what each tap takes */
INLINE void add_token(const Call *call, const void *x, const void *grad, float *sums, i64 token, i64 first, i64 count, int is_half) {
    for (i64 c = 0; c < count; c += LANES) {
        vec g = take(grad, token * call->grad_row + first + c, count - c, is_half);
        store(sums + c, load(sums + c) + g);
        for (i64 w = 0; w < call->num_taps; w++) {
            i64 from = call->earlier[w * call->num_tokens + token];
            if (from < 0) break;
            float *sum = sums + (1 + w) * CHANNELS + c;
            store(sum, load(sum) + g * take(x, from * call->x_row + first + c, count - c, is_half));
        }
    }
}

INLINE void undo_token(const Call *call, const void *grad, void *dx, i64 token, i64 first, i64 count, int is_half) {
    i64 size = call->num_channels;
    for (i64 c = 0; c < count; c += LANES) {
        vec total = splat(0);
        for (i64 u = call->firsts[token]; u < call->firsts[token + 1]; u++) {
            const i64 *user = call->users + 2 * u;
            total += get_floats(call->weight + user[1] * size + first + c, count - c) *
                     take(grad, user[0] * call->grad_row + first + c, count - c, is_half);
        }
        give(dx, token * size + first + c, total, count - c, is_half);
    }
}

INLINE void undo_channels(const Call *call, const void *x, const void *grad, void *dx, float *sums, i64 first, int is_half) {
    i64 count = least(CHANNELS, call->num_channels - first), all = (1 + call->num_taps) * CHANNELS;
    float total[(1 + MOST_TAPS) * CHANNELS], part[(1 + MOST_TAPS) * CHANNELS];
    memset(total, 0, all * sizeof(float));
    for (i64 start = 0; start < call->num_tokens; start += TOGETHER) {
        memset(part, 0, all * sizeof(float));
        for (i64 token = start; token < least(start + TOGETHER, call->num_tokens); token++) {
            if (call->earlier[token] >= 0) add_token(call, x, grad, part, token, first, count, is_half);
            undo_token(call, grad, dx, token, first, count, is_half);
        }
        for (i64 i = 0; i < all; i += LANES) store(total + i, load(total + i) + load(part + i));
    }
    for (i64 w = 0; w <= call->num_taps; w++)
        memcpy(sums + w * call->num_channels + first, total + w * CHANNELS, count * sizeof(float));
}

/* dx [S, C], and `sums` [1 + W, C]: the gradients of the bias and of the weight */
void convolve_backward(const Call *call, const void *x, const void *grad, void *dx, float *sums) {
#pragma omp parallel for num_threads(call->num_threads) schedule(dynamic)
    for (i64 first = 0; first < call->num_channels; first += CHANNELS)
        if (call->is_half) undo_channels(call, x, grad, dx, sums, first, 1);
        else undo_channels(call, x, grad, dx, sums, first, 0);
}
