/* What kernels that go through a forest of chunks, head by head, have in common: the work as items, rows, triangles, decays.

   Chunks of tokens are a forest: each takes the state [K, D] that its parent ends with. The work is cut into items: a few heads
   of one group through one tree of chunks. What they share of a chunk, B, C and their products, is made once for them; all else
   stays in the cache of a core, in float32. No result depends on which thread takes an item, nor on what else is in the row.

   A token's decay across others is the exponential of a difference of sums. The sums are kept as a float and what it lacks:
   a token that forgets all makes them large, and the differences behind it are as small as ever.

   Legend: S tokens of the row, N heads, G groups of them, D head size, K state size; T tokens of a chunk. */

#pragma once
#include <omp.h>

#include "products.h"

enum { BLOCK = 16, MOST_HEADS = 4, WORD = sizeof(float), LINE = 64 }; /* rows of a triangle at once; heads of an item; bytes */

typedef struct {
    i64 first, count;    /* its tokens in S */
    i64 parent;          /* its number, or -1 */
    i64 inner;           /* its number among those of its tree that have children, or -1 */
    i64 slot;            /* for its last state, which others take when it is no longer needed; -1 without children */
    i64 is_last;         /* of its parent's children */
} Chunk;

typedef struct {
    i64 is_half, num_heads, num_groups, size, state; /* N, G, D, K */
    i64 x_row, B_row, C_row, grad_row;               /* how far apart tokens are in memory */
    i64 num_trees, num_tokens, num_threads;          /* S */
    i64 most_tokens, most_inner, num_slots;          /* of a chunk; of a tree; for all trees */
    const i64 *trees;                                /* the first chunk of each, and at last their number */
    const Chunk *chunks;
} Call;

typedef struct {
    const Call *call;
    i64 tree, group, head, num_heads, part; /* the first of its heads, how many; the number of its heads among its group's */
    i64 size, state;                        /* D and K, multiples of BLOCK */
} Item;

INLINE i64 parts_of(const Call *call) { return up(call->num_heads / call->num_groups, MOST_HEADS) / MOST_HEADS; }

INLINE i64 num_items(const Call *call) { return call->num_trees * call->num_groups * parts_of(call); }

INLINE Item item_of(const Call *call, i64 number) {
    i64 parts = parts_of(call), heads = call->num_heads / call->num_groups;
    Item item = {.call = call, .part = number % parts, .group = number / parts % call->num_groups};
    item.tree = number / parts / call->num_groups;
    item.head = item.group * heads + item.part * heads / parts;
    item.num_heads = item.group * heads + (item.part + 1) * heads / parts - item.head;
    item.size = up(call->size, BLOCK);
    item.state = up(call->state, BLOCK);
    return item;
}

INLINE float *floats(float **free, i64 count) {
    float *mine = *free;
    *free += up(count, BLOCK);
    return mine;
}

/* ---- Rows, from tensors and back */

INLINE vec take(const void *x, i64 place, i64 count, const Call *call) {
    return call->is_half ? get((const half *)x + place, count) : get_floats((const float *)x + place, count);
}

INLINE void give(void *x, i64 place, vec part, i64 count, const Call *call) {
    if (call->is_half) put((half *)x + place, part, count);
    else put_floats((float *)x + place, part, count);
}

/* [T, width] of `size` values at `place` of each token, and rows of zeros up to a multiple of BLOCK; what is beside them, the
   next head's, is called into the cache meanwhile */
static void take_rows(float *to, const void *x, i64 place, i64 row, i64 size, i64 width, const Chunk *chunk, const Call *call) {
    i64 bytes = call->is_half ? sizeof(half) : sizeof(float);
    for (i64 t = 0; t < chunk->count; t++) {
        i64 from = (chunk->first + t) * row + place;
        for (i64 i = 0; i < size * bytes; i += LINE) __builtin_prefetch((const char *)x + (from + size) * bytes + i);
        for (i64 d = 0; d < width; d += LANES) store(to + t * width + d, d < size ? take(x, from + d, size - d, call) : splat(0));
    }
    memset(to + chunk->count * width, 0, (up(chunk->count, BLOCK) - chunk->count) * width * WORD);
}

#ifdef __AVX512F__
/* [16, 16]: four times each row is interleaved with the one that is eight below */
INLINE void transpose_tile(const float *from, i64 from_row, float *to, i64 to_row) {
    const ints low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    vec x[BLOCK], y[BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) x[i] = load(from + i * from_row);
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK / 2; i++) {
            y[2 * i] = __builtin_shuffle(x[i], x[i + BLOCK / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + BLOCK / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) x[i] = y[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) store(to + i * to_row, x[i]);
}
#else
INLINE void transpose_tile(const float *from, i64 from_row, float *to, i64 to_row) {
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < BLOCK; j++) to[j * to_row + i] = from[i * from_row + j];
}
#endif

/* to [columns, rows] = from [rows, columns], both multiples of BLOCK */
static void transpose(const float *from, float *to, i64 rows, i64 columns) {
    for (i64 r = 0; r < rows; r += BLOCK)
        for (i64 c = 0; c < columns; c += BLOCK) transpose_tile(from + r * columns + c, columns, to + c * rows + r, rows);
}

/* to [rows, columns] = from [rows, columns], each column times its factor */
INLINE void scale_columns(float *to, const float *from, const float *factors, i64 rows, i64 columns) {
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < columns; c += LANES) store(to + r * columns + c, load(from + r * columns + c) * load(factors + c));
}

INLINE void scale_rows(float *to, const float *from, const float *factors, i64 rows, i64 columns) {
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < columns; c += LANES) store(to + r * columns + c, load(from + r * columns + c) * factors[r]);
}

/* to = factor * from, or += */
INLINE void scale(float *to, const float *from, float factor, i64 count, int add) {
    for (i64 i = 0; i < count; i += LANES) store(to + i, (add ? load(to + i) : splat(0)) + load(from + i) * factor);
}

INLINE float dot(const float *a, const float *b, i64 count) {
    vec total = splat(0);
    for (i64 i = 0; i < count; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

/* ---- Products with triangles: of t and s, tokens of a chunk, only s <= t counts; a triangle's rows are `width` apart, and
   zero up to the next multiple of BLOCK */

/* triangle [T, T] = a [T, depth] @ b [depth, width] */
static void triangle(const float *a, const float *b, float *to, i64 width, i64 count, i64 depth) {
    for (i64 t = 0; t < count; t += BLOCK)
        product(a + t * depth, (Strides){depth, 1}, b, width, to + t * width, width, least(BLOCK, up(count - t, ROWS)),
                t + BLOCK, depth, 0);
}

/* to [T, columns], or that and what it has: of each t the sum over s <= t of triangle[t, s] * b[s] */
static void sum_before(const float *triangle, i64 width, const float *b, float *to, i64 count, i64 columns, int add) {
    for (i64 t = 0; t < count; t += BLOCK)
        product(triangle + t * width, (Strides){width, 1}, b, columns, to + t * columns, columns,
                least(BLOCK, up(count - t, ROWS)), columns, least(t + BLOCK, count), add);
}

/* the same: of each s the sum over t >= s of triangle[t, s] * b[t] */
static void sum_after(const float *triangle, i64 width, const float *b, float *to, i64 count, i64 columns, int add) {
    for (i64 s = 0; s < count; s += BLOCK)
        product(triangle + s * width + s, (Strides){1, width}, b + s * columns, columns, to + s * columns, columns,
                least(BLOCK, up(count - s, ROWS)), columns, count - s, add);
}

/* ---- Decays of a head in a chunk */

typedef struct {
    float *steps;           /* [T] dt, and zeros */
    float *high, *low;      /* [T] the sum of dt * A up to each token, in two floats */
    float *since, *until;   /* [T] what is left at each token of the chunk's start, and of each token at its end */
    float across;           /* what is left of its start at its end */
} Decays;

INLINE Decays decays_in(float **free, i64 width) {
    Decays of;
    float **all[] = {&of.steps, &of.high, &of.low, &of.since, &of.until};
    for (int i = 0; i < 5; i++) *all[i] = floats(free, width);
    return of;
}

static void set_decays(Decays *of, const float *dt, float rate, i64 row, const Chunk *chunk) {
    i64 count = chunk->count, width = up(count, BLOCK);
    double log = 0;
    for (i64 t = 0; t < width; t++) {
        float step = t < count ? dt[(chunk->first + t) * row] : 0;
        log += (double)step * rate;
        of->steps[t] = step;
        of->high[t] = log;
        of->low[t] = log - of->high[t];
    }
    for (i64 t = 0; t < width; t += LANES) {
        vec high = load(of->high + t), low = load(of->low + t);
        store(of->since + t, exponential(high + low));
        store(of->until + t, exponential((of->high[count - 1] - high) + (of->low[count - 1] - low)));
    }
    of->across = of->since[count - 1];
}

/* what is left at token t of LANES tokens from s on; zero of those behind it */
INLINE vec decay(const Decays *of, i64 t, i64 s) {
    ints place;
    for (int i = 0; i < LANES; i++) place[i] = s + i;
    vec log = (of->high[t] - load(of->high + s)) + (of->low[t] - load(of->low + s));
    return choose(place <= (int32_t)t, exponential(log), splat(0));
}

/* ---- What the heads of a group share of a chunk */

typedef struct {
    const Chunk *chunk;
    i64 width;          /* T, a multiple of BLOCK */
    float *B, *C;       /* [T, K] */
    float *B_turned;    /* [K, T] */
    float *scores;      /* [T, T], a triangle: C of each token by B of each */
} Shared;

static void take_B(Shared *of, const void *B, const Item *item) {
    const Call *call = item->call;
    take_rows(of->B, B, item->group * call->state, call->B_row, call->state, item->state, of->chunk, call);
}

static void share(Shared *of, const void *B, const void *C, const Item *item) {
    const Call *call = item->call;
    take_B(of, B, item);
    take_rows(of->C, C, item->group * call->state, call->C_row, call->state, item->state, of->chunk, call);
    transpose(of->B, of->B_turned, of->width, item->state);
    triangle(of->C, of->B_turned, of->scores, of->width, of->chunk->count, item->state);
}

INLINE Shared shared_in(float **free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->state;
    Shared of = {.B = floats(free, rows), .C = floats(free, rows), .B_turned = floats(free, rows)};
    of.scores = floats(free, width * width);
    return of;
}

INLINE void begin(Shared *of, const Chunk *chunk) {
    of->chunk = chunk;
    of->width = up(chunk->count, BLOCK);
}

/* state [K, D] = what is left of `before`, unless NULL, and of the chunk's inputs [T, D] decayed to its end */
static void end_state(float *state, const float *before, const float *ending, const Shared *of, float across, const Item *item) {
    if (before) scale(state, before, across, item->state * item->size, 0);
    product(of->B, (Strides){1, item->state}, ending, item->size, state, item->size, item->state, item->size, of->chunk->count,
            before != 0);
}

/* the state in a slot, or none */
INLINE float *state_of(float *states, i64 slot, i64 head, const Item *item) {
    return slot < 0 ? 0 : states + (slot * item->num_heads + head) * item->state * item->size;
}

/* the gradient [T, K] of B or C: what the scores say, in `own`, and what the states say, in `turned` [K, T] */
static void give_rows(float *to, const float *own, float *turned, float *scratch, const Shared *of, const Item *item) {
    const Call *call = item->call;
    transpose(turned, scratch, item->state, of->width);
    for (i64 t = 0; t < of->chunk->count; t++) {
        i64 row = ((item->part * call->num_tokens + of->chunk->first + t) * call->num_groups + item->group) * call->state;
        for (i64 k = 0; k < call->state; k += LANES)
            put_floats(to + row + k, load(own + t * item->state + k) + load(scratch + t * item->state + k), call->state - k);
    }
}
