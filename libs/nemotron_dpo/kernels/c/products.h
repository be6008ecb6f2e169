/* Products of small matrices of floats, or of pairs of bfloat16 summed up as floats; what they read and add to is in the cache.

   A pair of bfloat16 is held as one float, so that both are moved alike; `pairs` says which they are. */

#pragma once
#include "vectors.h"

#define VECTORS (LANES == 8 ? 2 : 4) /* of a panel: ROWS * VECTORS sums fit the registers */
enum { ROWS = 4, PANEL = LANES * VECTORS, DEPTH = 64 };

#ifdef __AVX512F__
#define IN_REGISTER(x) __asm__("" : "+v"(x)) /* GCC would load it once more for every row */
#else
#define IN_REGISTER(x)
#endif

INLINE vec fused(vec sum, vec a, vec b, int pairs) {
#ifdef __AVX512BF16__
    if (pairs) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
#endif
    return sum + a * b;
}

typedef struct {
    i64 row, step; /* how far apart in memory the rows of a factor are, and its columns */
} Strides;

INLINE void tile(int vectors, int pairs, const float *a, Strides at, const float *b, i64 b_row, float *c, i64 c_row, i64 depth,
                 int add) {
    vec sums[ROWS][4];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = add ? load(c + r * c_row + v * LANES) : splat(0);
    for (i64 k = 0; k < depth; k++) {
        vec part[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            part[v] = load(b + k * b_row + v * LANES);
            IN_REGISTER(part[v]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            vec x = splat(a[r * at.row + k * at.step]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[r][v] = fused(sums[r][v], x, part[v], pairs);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store(c + r * c_row + v * LANES, sums[r][v]);
}

typedef void Tile(const float *a, Strides at, const float *b, i64 b_row, float *c, i64 c_row, i64 depth, int add);

#define TILE(name, vectors, pairs)                                                                                            \
    static __attribute__((noinline)) void name(const float *a, Strides at, const float *b, i64 b_row, float *c, i64 c_row,    \
                                               i64 depth, int add) {                                                          \
        tile(vectors, pairs, a, at, b, b_row, c, c_row, depth, add);                                                          \
    }
TILE(tile_1, 1, 0)
TILE(tile_2, 2, 0)
TILE(tile_3, 3, 0)
TILE(tile_4, 4, 0)
TILE(tile_1_of_pairs, 1, 1)
TILE(tile_2_of_pairs, 2, 1)
TILE(tile_3_of_pairs, 3, 1)
TILE(tile_4_of_pairs, 4, 1)
static Tile *const tiles[2][4] = {{tile_1, tile_2, tile_3, tile_4},
                                  {tile_1_of_pairs, tile_2_of_pairs, tile_3_of_pairs, tile_4_of_pairs}};

/* c [rows, columns] = a @ b, or c += a @ b: columns a multiple of LANES and not above PANEL, rows one of ROWS */
INLINE void multiply(int pairs, const float *a, Strides at, const float *b, i64 b_row, float *c, i64 c_row, i64 rows,
                     i64 columns, i64 depth, int add) {
    Tile *one = tiles[pairs][columns / LANES - 1];
    for (i64 r = 0; r < rows; r += ROWS) one(a + r * at.row, at, b, b_row, c + r * c_row, c_row, depth, add);
}

/* c [rows, columns] = a [rows, depth] @ b, this by panels [depth, PANEL] */
INLINE void times_panels(int pairs, const float *a, const float *b, float *c, i64 c_row, i64 rows, i64 columns, i64 depth) {
    for (i64 n = 0; n < columns; n += PANEL)
        multiply(pairs, a, (Strides){depth, 1}, b + n * depth, PANEL, c + n, c_row, rows, least(PANEL, columns - n), depth, 0);
}

/* c [rows, columns] = a [rows, depth] @ b [depth, columns], or c += */
INLINE void product(const float *a, Strides at, const float *b, i64 b_row, float *c, i64 c_row, i64 rows, i64 columns, i64 depth,
                    int add) {
    for (i64 k = 0; k < depth; k += DEPTH)
        for (i64 n = 0; n < columns; n += PANEL)
            multiply(0, a + k * at.step, at, b + k * b_row + n, b_row, c + n, c_row, rows, least(PANEL, columns - n),
                     least(DEPTH, depth - k), add || k);
}

/* the same without gaps */
INLINE void times_rows(const float *a, Strides at, const float *b, float *c, i64 rows, i64 size, i64 depth, int add) {
    product(a, at, b, size, c, size, rows, size, depth, add);
}
