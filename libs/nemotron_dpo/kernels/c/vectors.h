/* Vectors of floats as wide as the CPU that compiles this, by GCC's and Clang's vector extensions. */

#pragma once
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#elif defined __AVX2__
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type) __attribute__((vector_size(LANES * sizeof(type)), aligned(sizeof(type)), may_alias))

typedef int64_t i64;
typedef uint16_t half; /* the bits of a bfloat16 */
typedef float vec VECTOR(float);
typedef int32_t ints VECTOR(int32_t);
typedef uint32_t words VECTOR(uint32_t);
typedef half halves VECTOR(half);

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec x) { *(vec *)to = x; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec choose(ints first, vec a, vec b) { return (vec)(((ints)a & first) | ((ints)b & ~first)); }

INLINE float sum(vec x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

#ifdef __AVX512F__ /* of __builtin_convertvector GCC 12 makes several instructions */
INLINE words longer(halves x) { return (words)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE halves shorter(words x) { return (halves)_mm512_cvtepi32_epi16((__m512i)x); }
#else
INLINE words longer(halves x) { return __builtin_convertvector(x, words); }
INLINE halves shorter(words x) { return __builtin_convertvector(x, halves); }
#endif

/* the bits of the nearest bfloat16, ties to even, and some below them */
INLINE words nearest(vec x) {
    words bits = (words)x, same = (words)(x == x);
    return ((bits + 0x7fff + (bits >> 16 & 1)) & same) | (0x7fc00000 & ~same);
}

INLINE vec widen(halves x) { return (vec)(longer(x) << 16); }
INLINE halves narrow(vec x) { return shorter(nearest(x) >> 16); }
INLINE vec rounded(vec x) { return (vec)(nearest(x) & 0xffff0000); }

/* LANES values, of which those from `count` on are zero and not read, or not written */
INLINE vec get(const half *from, i64 count) {
    halves x = {0};
    if (count >= LANES) x = *(const halves *)from;
    else memcpy(&x, from, count * sizeof(half));
    return widen(x);
}

INLINE void put(half *to, vec x, i64 count) {
    halves narrowed = narrow(x);
    if (count >= LANES) *(halves *)to = narrowed;
    else memcpy(to, &narrowed, count * sizeof(half));
}

INLINE vec get_floats(const float *from, i64 count) {
    vec x = splat(0);
    if (count >= LANES) x = load(from);
    else memcpy(&x, from, count * sizeof(float));
    return x;
}

INLINE void put_floats(float *to, vec x, i64 count) {
    if (count >= LANES) store(to, x);
    else memcpy(to, &x, count * sizeof(float));
}

/* exp, to 2 units in the last place, of what is not above 88; zero and not a denormal below -87 (Cephes, expf) */
INLINE vec exponential(vec x) {
    vec whole = (x * 1.44269504f + 12582912.f) - 12582912.f;
    vec rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.f;
    vec power = (vec)((__builtin_convertvector(whole, ints) + 127) << 23);
    return choose(x < -87.f, splat(0), y * power);
}

/* tanh, to 2 units in the last place (Cephes, tanhf) */
INLINE vec hyperbolic_tangent(vec x) {
    vec size = choose(x < 0, -x, x), square = x * x;
    vec y = splat(-5.70498872745e-3f);
    y = y * square + 2.06390887954e-2f;
    y = y * square - 5.37397155531e-2f;
    y = y * square + 1.33314422036e-1f;
    y = y * square - 3.33332819422e-1f;
    y = y * square * x + x;
    vec far = 1 - 2 / (exponential(choose(size < 40, size, splat(40)) * 2) + 1);
    return choose(size < 0.625f, y, choose(x < 0, -far, far));
}
