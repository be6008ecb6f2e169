/* Logits of a block of the vocabulary, in float32, and what is kept of them, while they are in the cache.

   There is a kernel where the CPU adds products of pairs of bfloat16 to floats, but for those with tiles of bfloat16 (AMX), where
   oneDNN's products are faster still. A logit is one sum in one order, whatever else is computed beside it.

   Legend: C tokens, V entries of the block, K pairs of features. */

#include <math.h>
#include <omp.h>

#include "vectors.h"

enum { TOKENS = 48, ROWS = 6, PANEL = 64, DEPTH = 512 }; /* of a tile; of it at once; entries of a panel; pairs of it at once */

typedef struct {
    i64 panels, row, thread; /* floats: of the packed block, of a tile's row, of a thread's tile */
} Sizes;

INLINE Sizes sizes_of(i64 entries, i64 depth) {
    i64 row = up(entries, PANEL) + LANES; /* rows that lie a power of two apart would share few lines of a cache */
    return (Sizes){up(entries, PANEL) * depth, row, TOKENS * (row + depth)};
}

/* LANES logits, of which those from `count` on are below all others and not read */
INLINE vec get_logits(const float *from, i64 count) {
    vec x = splat(-INFINITY);
    if (count >= LANES) x = load(from);
    else memcpy(&x, from, count * sizeof(float));
    return x;
}

static float highest_logit(const float *logits, i64 count) {
    vec most = splat(-INFINITY);
    float highest = -INFINITY;
    for (i64 v = 0; v < count; v += LANES) {
        vec x = get_logits(logits + v, count - v);
        most = choose(x > most, x, most);
    }
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    return highest;
}

/* of a row of logits, `apart` from one another: the highest, whether the one at `place` is the first of the highest, and of
   e = exp(logit - highest) the sums of e, of e * (highest - logit) and of e * e */
static void sum_up(const float *logits, i64 count, i64 place, float *sums, i64 apart) {
    float highest = highest_logit(logits, count);
    vec total = splat(0), weighted = splat(0), squares = splat(0);
    for (i64 v = 0; v < count; v += LANES) {
        vec x = get_logits(logits + v, count - v) - highest, part = exponential(x);
        total += part;
        weighted -= part * choose(x < -88.f, splat(-88), x); /* there e is 0, and x may be infinite */
        squares += part * part;
    }
    float first = logits[place] == highest && highest_logit(logits, place) < highest;
    float all[] = {highest, first, sum(total), sum(weighted), sum(squares)};
    for (int i = 0; i < 5; i++) sums[i * apart] = all[i];
}

/* `sums` [5, C] of float32 logits [C, V] as of `sum_up`, which other code multiplied */
void sum_up_logits(const float *logits, const i64 *places, float *sums, i64 num_tokens, i64 num_entries, i64 num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (i64 token = 0; token < num_tokens; token++)
        sum_up(logits + token * num_entries, num_entries, places[token], sums + token, num_tokens);
}

#if defined __AVX512BF16__ && !defined __AMX_BF16__

typedef uint32_t word; /* a pair of bfloat16 */

/* [16, 16] words: four times each row is interleaved with the one that is eight below */
INLINE void transpose(const word *from, i64 from_row, float *to) {
    const words low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    words x[LANES], y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = *(const words *)(from + i * from_row);
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = __builtin_shuffle(x[i], x[i + LANES / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(to + i * PANEL, (vec)x[i]);
}

/* entries of the weight [count, K], as a panel [K, PANEL]; entries that are not there are zero */
static void pack_panel(const word *weight, i64 count, i64 depth, float *panel) {
    i64 whole = count == PANEL ? depth / LANES * LANES : 0;
    for (i64 k = 0; k < whole; k += LANES)
        for (i64 j = 0; j < PANEL; j += LANES) transpose(weight + j * depth + k, depth, panel + k * PANEL + j);
    for (i64 k = whole; k < depth; k++)
        for (i64 j = 0; j < PANEL; j++) ((word *)panel)[k * PANEL + j] = j < count ? weight[j * depth + k] : 0;
}

/* tokens [count, K], as groups [K, ROWS] */
static void pack_tokens(const word *hidden, i64 count, i64 depth, word *groups) {
    for (i64 r = 0; r < up(count, ROWS); r += ROWS)
        for (i64 i = 0; i < ROWS; i++)
            for (i64 k = 0; k < depth; k++) groups[r * depth + k * ROWS + i] = r + i < count ? hidden[(r + i) * depth + k] : 0;
}

/* logits [ROWS, PANEL] = tokens [K, ROWS] * panel [K, PANEL], or += */
static __attribute__((noinline)) void add_up(const word *tokens, const float *panel, i64 depth, float *logits, i64 row, int add) {
    __m512 sums[ROWS][PANEL / LANES];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL / LANES; v++) sums[r][v] = (__m512)(add ? load(logits + r * row + v * LANES) : splat(0));
    for (i64 k = 0; k < depth; k++) {
        vec part[PANEL / LANES];
#pragma GCC unroll 4
        for (int v = 0; v < PANEL / LANES; v++) {
            part[v] = load(panel + k * PANEL + v * LANES);
            __asm__("" : "+v"(part[v])); /* GCC would load it once more for every row */
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            __m512i one = _mm512_set1_epi32(tokens[k * ROWS + r]);
            __asm__("" : "+v"(one));
#pragma GCC unroll 4
            for (int v = 0; v < PANEL / LANES; v++)
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)one, (__m512bh)(__m512)part[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL / LANES; v++) store(logits + r * row + v * LANES, (vec)sums[r][v]);
}

/* log(sum(exp(logits))) of a row, and its softmax where it is wanted; the logits are lost */
static float log_sum_exp(float *logits, half *softmax, i64 count) {
    vec most = splat(-INFINITY), total = splat(0);
    float highest = -INFINITY;
    for (i64 v = count; v < up(count, LANES); v++) logits[v] = -INFINITY;
    for (i64 v = 0; v < count; v += LANES) most = choose(load(logits + v) > most, load(logits + v), most);
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    for (i64 v = 0; v < count; v += LANES) {
        vec part = exponential(load(logits + v) - highest);
        total += part;
        store(logits + v, part);
    }
    float all = sum(total);
    if (softmax)
        for (i64 v = 0; v < count; v += LANES) put(softmax + v, load(logits + v) * (1 / all), count - v);
    return highest + logf(all);
}

/* logits = hidden [C, 2K] @ weight [V, 2K].T: of each token the logit `at` its place, `log_sums` [C] over the block, and
   unless NULL `softmax` [C, V] over it and `sums` [5, C] as of `sum_up`. `panels` and `tiles` are `panels_floats` floats and
   `tiles_floats` for each thread. */
void read_logits(const half *hidden, const half *weight, const i64 *places, float *at, float *log_sums, half *softmax,
                 float *sums, float *panels, float *tiles, i64 num_tokens, i64 num_entries, i64 size, i64 num_threads) {
    i64 depth = size / 2, rows = up((num_tokens - 1) / (4 * num_threads) + 1, ROWS); /* few tokens are divided more finely */
    Sizes sizes = sizes_of(num_entries, depth);
    if (rows > TOKENS) rows = TOKENS;
#pragma omp parallel num_threads(num_threads)
    {
        float *tile = tiles + omp_get_thread_num() * sizes.thread;
        word *tokens = (word *)tile + TOKENS * sizes.row;
#pragma omp for schedule(static)
        for (i64 n = 0; n < num_entries; n += PANEL)
            pack_panel((const word *)weight + n * depth, least(PANEL, num_entries - n), depth, panels + n * depth);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < num_tokens; first += rows) {
            i64 count = least(rows, num_tokens - first);
            pack_tokens((const word *)hidden + first * depth, count, depth, tokens);
            for (i64 n = 0; n < num_entries; n += PANEL)
                for (i64 k = 0; k < depth; k += DEPTH)
                    for (i64 r = 0; r < count; r += ROWS)
                        add_up(tokens + r * depth + k * ROWS, panels + n * depth + k * PANEL, least(DEPTH, depth - k),
                               tile + r * sizes.row + n, sizes.row, k > 0);
            for (i64 r = 0, token = first; r < count; r++, token++) {
                at[token] = tile[r * sizes.row + places[token]];
                if (sums) sum_up(tile + r * sizes.row, num_entries, places[token], sums + token, num_tokens);
                log_sums[token] = log_sum_exp(tile + r * sizes.row, softmax ? softmax + token * num_entries : 0, num_entries);
            }
        }
    }
}

i64 panels_floats(i64 entries, i64 size) { return sizes_of(entries, size / 2).panels; }

#else

void read_logits(const half *hidden, const half *weight, const i64 *places, float *at, float *log_sums, half *softmax,
                 float *sums, float *panels, float *tiles, i64 num_tokens, i64 num_entries, i64 size, i64 num_threads) {}

i64 panels_floats(i64 entries, i64 size) { return 0; } /* there is no kernel */

#endif

i64 tiles_floats(i64 entries, i64 size) { return sizes_of(entries, size / 2).thread; }
