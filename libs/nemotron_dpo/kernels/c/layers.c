/* What lies between the products of a layer, on a CPU and in bfloat16, in one pass over memory each.

   Values are rounded where the operations of torch that these stand for round them. Legend: T tokens, H features. */

#include <math.h>
#include <omp.h>

#include "vectors.h"

#define EACH(index, count)                                                                                                    \
    _Pragma("omp parallel for schedule(static) num_threads(num_threads)") for (i64 index = 0; index < count; index++)

INLINE vec sigmoid(vec x) { return 1 / (1 + choose(x < -88.f, splat(INFINITY), exponential(-x))); }

/* silu(gate) * up [T, H] of gate and up [T, 2H] */
void swiglu(const half *gate_and_up, half *out, i64 num_rows, i64 size, i64 num_threads) {
    EACH(t, num_rows) {
        const half *gate = gate_and_up + t * 2 * size, *other = gate + size;
        for (i64 h = 0; h < size; h += LANES) {
            vec x = get(gate + h, size - h);
            put(out + t * size + h, rounded(x * sigmoid(x)) * get(other + h, size - h), size - h);
        }
    }
}

/* the gradient [T, 2H] of gate and up, from that of `swiglu` [T, H] */
void swiglu_backward(const half *gate_and_up, const half *grad, half *out, i64 num_rows, i64 size, i64 num_threads) {
    EACH(t, num_rows) {
        const half *gate = gate_and_up + t * 2 * size, *other = gate + size;
        half *to = out + t * 2 * size;
        for (i64 h = 0; h < size; h += LANES) {
            vec x = get(gate + h, size - h), g = get(grad + t * size + h, size - h), s = sigmoid(x);
            put(to + h, rounded(g * get(other + h, size - h)) * s * (1 + x * (1 - s)), size - h);
            put(to + size + h, rounded(x * s) * g, size - h);
        }
    }
}

/* x [T, H] / sqrt(mean(x^2) + eps) * gain [H]; `scales` [T] are the inverses of the roots */
void rms_norm(const half *x, const float *gain, half *out, float *scales, i64 num_rows, i64 size, float eps, i64 num_threads) {
    EACH(t, num_rows) {
        vec squares = splat(0);
        for (i64 h = 0; h < size; h += LANES) {
            vec one = get(x + t * size + h, size - h);
            squares += one * one;
        }
        scales[t] = 1 / sqrtf(sum(squares) / size + eps);
        for (i64 h = 0; h < size; h += LANES)
            put(out + t * size + h, get(x + t * size + h, size - h) * scales[t] * get_floats(gain + h, size - h), size - h);
    }
}

/* the gradients of x [T, H] and of gain [H], from that of `rms_norm`; `parts` holds `num_threads` gains, up to whole LANES */
void rms_norm_backward(const half *x, const float *gain, const float *scales, const half *grad, half *out, float *gain_grad,
                       float *parts, i64 num_rows, i64 size, i64 num_threads) {
    i64 padded = up(size, LANES);
    memset(parts, 0, num_threads * padded * sizeof(float));
    EACH(t, num_rows) {
        const half *x_row = x + t * size, *grad_row = grad + t * size;
        float *part = parts + omp_get_thread_num() * padded;
        vec products = splat(0);
        for (i64 h = 0; h < size; h += LANES) {
            vec product = get(x_row + h, size - h) * scales[t] * get(grad_row + h, size - h);
            store(part + h, load(part + h) + product);
            products += product * get_floats(gain + h, size - h);
        }
        float mean = sum(products) / size;
        for (i64 h = 0; h < size; h += LANES) {
            vec normed = get(x_row + h, size - h) * scales[t];
            vec turned = get(grad_row + h, size - h) * get_floats(gain + h, size - h);
            put(out + t * size + h, (turned - normed * mean) * scales[t], size - h);
        }
    }
    for (i64 h = 0; h < size; h++) {
        gain_grad[h] = 0;
        for (i64 thread = 0; thread < num_threads; thread++) gain_grad[h] += parts[thread * padded + h];
    }
}

/* x [T, N, D] whose first `turned` entries are pairs (i, i + turned / 2), turned by angles [T, turned]; see kernels/rotary.py */
void rotate(const half *x, const half *cosines, const half *sines, half *out, i64 num_rows, i64 num_heads, i64 size, i64 turned,
            float direction, i64 num_threads) {
    i64 middle = turned / 2;
    EACH(t, num_rows) {
        const half *cosine = cosines + t * turned, *sine = sines + t * turned;
        for (i64 n = 0; n < num_heads; n++) {
            const half *from = x + (t * num_heads + n) * size;
            half *to = out + (t * num_heads + n) * size;
            for (i64 d = 0; d < middle; d += LANES) {
                i64 count = middle - d;
                vec a = get(from + d, count), b = get(from + middle + d, count);
                vec a_sine = get(sine + d, count) * direction, b_sine = get(sine + middle + d, count) * direction;
                put(to + d, rounded(a * get(cosine + d, count)) + b * a_sine, count);
                put(to + middle + d, rounded(b * get(cosine + middle + d, count)) + a * b_sine, count);
            }
            memcpy(to + turned, from + turned, (size - turned) * sizeof(half));
        }
    }
}

/* total += part, `size` of both */
void add_half(float *total, const half *part, i64 size, i64 num_threads) {
    enum { PIECE = 4096 };
    EACH(piece, up(size, PIECE) / PIECE) {
        for (i64 i = piece * PIECE; i < least(size, (piece + 1) * PIECE); i += LANES)
            put_floats(total + i, get_floats(total + i, size - i) + get(part + i, size - i), size - i);
    }
}
