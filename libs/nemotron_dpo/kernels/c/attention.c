/* Causal attention by segment on a CPU: what kernels/torch_ops/block_attention.py does by torch's products, without its temporaries.

   The work is cut into items: one query head of one run of consecutive queries with the keys these may see. An item takes its
   queries by blocks; scores and probabilities of a block stay in the cache of a core, in float32, and are computed again in the
   backward pass (Dao et al. 2022, sections 3.1 and B.2). No result depends on which thread takes an item, nor on what else is
   in the row.

   Tensors are contiguous. Legend: L queries, S keys, N query heads, G key/value heads, D head size. */

#include <math.h>
#include <omp.h>

#include "products.h"

enum { BLOCK = 32, WORD = sizeof(float) };

typedef struct {
    i64 queries, num_queries;     /* consecutive, in L */
    i64 num_keys;                 /* that the last of the queries sees; each query before it sees one key less */
    i64 first, num_first, then;   /* in S: num_first keys from `first`, the others from `then` */
} Run;

typedef struct {
    i64 is_half, num_heads, num_groups, size, num_keys; /* N, G, D, S */
    i64 num_runs, num_threads;
    i64 window;                      /* keys that a query sees at most, of those that its run has for it */
    const Run *runs;
    float scale, softcap;            /* scores are softcap * tanh(q . k * scale / softcap); 0: q . k * scale */
} Call;

/* ---- Rows of one head, from tensors and back */

typedef struct {
    const Call *call;
    const Run *run;
    i64 head, group;
    i64 size, num_words;     /* of a row: floats, one of LANES; and what holds one for a product by panels */
    i64 padded, width;       /* keys, one of PANEL; and as rows of scores are apart: not a power of two, which caches dislike */
    int pairs;
} Item;

INLINE Item item_of(const Call *call, i64 number) {
    Item item = {.call = call, .run = call->runs + number / call->num_heads, .head = number % call->num_heads};
#ifdef __AVX512BF16__
    item.pairs = call->is_half && call->size % 2 == 0;
#endif
    item.group = item.head / (call->num_heads / call->num_groups);
    item.size = up(call->size, LANES);
    item.num_words = item.pairs ? call->size / 2 : call->size;
    item.padded = up(item.run->num_keys, PANEL);
    item.width = item.padded + LANES;
    return item;
}

INLINE i64 query_place(const Item *item, i64 query) {
    return ((item->run->queries + query) * item->call->num_heads + item->head) * item->call->size;
}

INLINE i64 key_place(const Item *item, i64 key) {
    const Run *run = item->run;
    i64 token = key < run->num_first ? run->first + key : run->then + key - run->num_first;
    return (token * item->call->num_groups + item->group) * item->call->size;
}

/* LANES values at x[place], of which `count` are there; at last a row of D with zeros up to whole LANES */
INLINE vec take_part(const void *x, i64 place, i64 count, const Call *call) {
    return call->is_half ? get((const half *)x + place, count) : get_floats((const float *)x + place, count);
}

INLINE void give_part(void *x, i64 place, vec part, i64 count, const Call *call) {
    if (call->is_half) put((half *)x + place, part, count);
    else put_floats((float *)x + place, part, count);
}

INLINE void take(float *to, const void *x, i64 place, const Item *item) {
    i64 size = item->call->size;
    for (i64 d = 0; d < size; d += LANES) store(to + d, take_part(x, place + d, size - d, item->call));
}

INLINE void give(void *x, i64 place, const float *from, const Item *item) {
    i64 size = item->call->size;
    for (i64 d = 0; d < size; d += LANES) give_part(x, place + d, load(from + d), size - d, item->call);
}

/* the same row as a product by panels takes it; `scratch` holds a row */
INLINE const float *as_words(const void *x, i64 place, float *scratch, const Item *item) {
    if (item->pairs) memcpy(scratch, (const half *)x + place, item->num_words * WORD);
    else take(scratch, x, place, item);
    return scratch;
}

/* keys or values [num_words, E] by panels; the row of scores `scratch` is free */
INLINE void pack(float *panels, const void *x, float *scratch, const Item *item) {
    for (i64 e = 0; e < item->padded; e++) {
        float *to = panels + e / PANEL * PANEL * item->num_words + e % PANEL;
        const float *from = e < item->run->num_keys ? as_words(x, key_place(item, e), scratch, item) : 0;
        for (i64 w = 0; w < item->num_words; w++) to[w * PANEL] = from ? from[w] : 0;
    }
}

/* keys or values [E, D] */
INLINE void unpack(float *to, const void *x, const Item *item) {
    for (i64 e = 0; e < item->run->num_keys; e++) take(to + e * item->size, x, key_place(item, e), item);
    memset(to + item->run->num_keys * item->size, 0, (item->padded - item->run->num_keys) * item->size * WORD);
}

/* queries `first` to `first + count`, and rows of zeros up to BLOCK */
INLINE void take_block(float *to, const void *x, i64 first, i64 count, const Item *item) {
    for (i64 r = 0; r < count; r++) take(to + r * item->size, x, query_place(item, first + r), item);
    memset(to + count * item->size, 0, (BLOCK - count) * item->size * WORD);
}

INLINE void take_words(float *to, const void *x, i64 first, i64 count, float *scratch, const Item *item) {
    for (i64 r = 0; r < count; r++)
        memcpy(to + r * item->num_words, as_words(x, query_place(item, first + r), scratch, item), item->num_words * WORD);
    memset(to + count * item->num_words, 0, (BLOCK - count) * item->num_words * WORD);
}

/* ---- Scores of a block of queries */

typedef struct {
    i64 first, count, rows;  /* its queries, of the run's; and as rows of a product */
    i64 before;              /* keys before the first query's own */
    i64 from, seen;          /* the keys that any of them sees, by whole panels and LANES; a row of scores begins at `from` */
} Block;

INLINE Block block_of(const Item *item, i64 first) {
    const Run *run = item->run;
    Block block = {.first = first, .count = least(BLOCK, run->num_queries - first)};
    block.rows = up(block.count, ROWS);
    block.before = run->num_keys - run->num_queries + first;
    i64 hidden = block.before + 1 - item->call->window;
    block.from = hidden > 0 ? hidden / PANEL * PANEL : 0;
    block.seen = up(block.before + block.count, LANES) - block.from;
    return block;
}

/* -inf where query r of the block does not see a key */
INLINE void hide(float *row, i64 r, const Block *block, const Call *call) {
    i64 last = block->before + r - block->from, hidden = last + 1 - call->window;
    for (i64 e = 0; e < hidden; e++) row[e] = -INFINITY;
    for (i64 e = last + 1; e < block->seen; e++) row[e] = -INFINITY;
}

/* products of queries and keys -> capped scores; unless `slopes` is 0, how much these grow with the products */
INLINE void cap(float *row, float *slopes, i64 count, const Call *call) {
    for (i64 e = 0; e < count; e += LANES) {
        vec t = hyperbolic_tangent(load(row + e) * (call->scale / call->softcap));
        store(row + e, t * call->softcap);
        if (slopes) store(slopes + e, (1 - t * t) * call->scale);
    }
}

/* ---- Forward */

typedef struct {
    const void *query, *key, *value; /* [L, N, D], [S, G, D] */
    const float *sinks;              /* [N]: scores of a key without a value; or 0 */
    void *out;                       /* [L, N, D] */
    float *normalizer;               /* [L, N]: of the scores' exponentials, its logarithm */
} Forward;

static i64 most_keys(const Call *call) {
    i64 most = 0;
    for (i64 r = 0; r < call->num_runs; r++) most = call->runs[r].num_keys > most ? call->runs[r].num_keys : most;
    return up(most, PANEL);
}

/* floats that each thread needs */
i64 forward_floats(const Call *call) {
    i64 size = up(call->size, LANES), keys = most_keys(call);
    return 2 * keys * size + BLOCK * (2 * size + keys + LANES);
}

/* row [count]: scores -> their exponentials, unnormalized; returns the sum. `least` is one more score, be it -inf */
INLINE float exponentials(float *row, i64 count, float scale, float least, float *largest) {
    vec most = splat(-INFINITY), total = splat(0);
    for (i64 e = 0; e < count; e += LANES) {
        vec x = load(row + e);
        most = choose(most > x, most, x);
    }
    *largest = most[0];
    for (int i = 1; i < LANES; i++) *largest = most[i] > *largest ? most[i] : *largest;
    *largest = least > *largest ? least : *largest;
    for (i64 e = 0; e < count; e += LANES) {
        vec p = exponential((load(row + e) - *largest) * scale);
        total += p;
        store(row + e, p);
    }
    return sum(total);
}

static void forward_item(const Item *item, const Forward *of, float *scratch) {
    const Run *run = item->run;
    i64 size = item->size, width = item->width;
    float *keys = scratch, *values = keys + item->padded * size, *queries = values + item->padded * size;
    float *mixed = queries + BLOCK * size, *scores = mixed + BLOCK * size;
    const Call *call = item->call;
    float scale = call->softcap ? 1 : call->scale, sink = of->sinks ? of->sinks[item->head] / scale : -INFINITY;
    pack(keys, of->key, scores, item);
    unpack(values, of->value, item);
    for (i64 first = 0; first < run->num_queries; first += BLOCK) {
        Block block = block_of(item, first);
        float inverse[BLOCK];
        take_words(queries, of->query, first, block.count, mixed, item);
        times_panels(item->pairs, queries, keys + block.from * item->num_words, scores, width, block.rows, block.seen,
                     item->num_words);
        for (i64 r = 0; r < block.count; r++) {
            float *row = scores + r * width, largest;
            if (call->softcap) cap(row, 0, block.seen, call);
            hide(row, r, &block, call);
            float total = exponentials(row, block.seen, scale, sink, &largest);
            if (of->sinks) total += expf((sink - largest) * scale);
            inverse[r] = 1 / total;
            of->normalizer[(run->queries + first + r) * call->num_heads + item->head] = largest * scale + logf(total);
        }
        times_rows(scores, (Strides){width, 1}, values + block.from * size, mixed, block.rows, size, block.seen, 0);
        for (i64 r = 0; r < block.count; r++) {
            for (i64 d = 0; d < size; d += LANES) store(mixed + r * size + d, load(mixed + r * size + d) * inverse[r]);
            give(of->out, query_place(item, first + r), mixed + r * size, item);
        }
    }
}

void attend(const Call *call, const Forward *of, float *scratch) {
    i64 each = forward_floats(call);
#pragma omp parallel for schedule(dynamic) num_threads(call->num_threads)
    for (i64 number = 0; number < call->num_runs * call->num_heads; number++) {
        Item item = item_of(call, number);
        forward_item(&item, of, scratch + omp_get_thread_num() * each);
    }
}

/* ---- Backward */

typedef struct {
    const void *query, *key, *value;
    const float *normalizer;
    const void *grad;                /* of `out` */
    void *dquery, *dkey, *dvalue;    /* as query, key and value */
    float *means;                    /* [L, N]: of the gradients of probabilities; or 0 */
} Backward;

i64 backward_floats(const Call *call) {
    i64 size = up(call->size, LANES), keys = most_keys(call);
    return 3 * keys * size + BLOCK * (5 * size + 2 * (keys + LANES)) + (call->softcap ? keys : 0);
}

/* floats for what each head of a run adds to the gradients of the run's keys, and as many for those of its values */
INLINE i64 part_floats(const Call *call, const Run *run) { return up(run->num_keys, PANEL) * up(call->size, LANES); }

/* and for all of them, head by head, of the runs before number `runs` */
INLINE i64 parts_before(const Call *call, i64 runs) {
    i64 total = 0;
    for (i64 r = 0; r < runs; r++) total += 2 * call->num_heads * part_floats(call, call->runs + r);
    return total;
}

i64 parts_floats(const Call *call) { return parts_before(call, call->num_runs); }

/* scores [count] -> probabilities; gradients of probabilities -> of scores: p * (dp - sum(p * dp)) * scale. Returns the sum */
INLINE float score_gradients(float *p, float *dp, i64 count, float scale, float normalizer) {
    vec total = splat(0);
    for (i64 e = 0; e < count; e += LANES) {
        vec x = exponential(load(p + e) * scale - normalizer);
        store(p + e, x);
        total += x * load(dp + e);
    }
    float mean = sum(total);
    for (i64 e = 0; e < count; e += LANES) store(dp + e, load(p + e) * (load(dp + e) - mean) * scale);
    return mean;
}

static void backward_item(const Item *item, const Backward *of, float *dkey, float *dvalue, float *scratch) {
    const Run *run = item->run;
    i64 size = item->size, width = item->width;
    float *key_panels = scratch, *value_panels = key_panels + item->padded * size, *keys = value_panels + item->padded * size;
    float *queries = keys + item->padded * size, *grads = queries + BLOCK * size, *turned = grads + BLOCK * size;
    float *query_words = turned + BLOCK * size, *grad_words = query_words + BLOCK * size;
    float *p = grad_words + BLOCK * size, *ds = p + BLOCK * width, *slopes = ds + BLOCK * width;
    const Call *call = item->call;
    float scale = call->softcap ? 1 : call->scale;
    pack(key_panels, of->key, p, item);
    pack(value_panels, of->value, p, item);
    unpack(keys, of->key, item);
    memset(dkey, 0, item->padded * size * WORD);
    memset(dvalue, 0, item->padded * size * WORD);
    for (i64 first = 0; first < run->num_queries; first += BLOCK) {
        Block block = block_of(item, first);
        i64 panels = block.from * item->num_words, offset = block.from * size;
        take_block(queries, of->query, first, block.count, item);
        take_block(grads, of->grad, first, block.count, item);
        take_words(query_words, of->query, first, block.count, turned, item);
        take_words(grad_words, of->grad, first, block.count, turned, item);
        times_panels(item->pairs, query_words, key_panels + panels, p, width, block.rows, block.seen, item->num_words);
        times_panels(item->pairs, grad_words, value_panels + panels, ds, width, block.rows, block.seen, item->num_words);
        for (i64 r = 0; r < block.count; r++) {
            i64 place = (run->queries + first + r) * call->num_heads + item->head;
            float *scores = p + r * width, *gradients = ds + r * width;
            if (call->softcap) cap(scores, slopes, block.seen, call);
            hide(scores, r, &block, call);
            float mean = score_gradients(scores, gradients, block.seen, scale, of->normalizer[place]);
            if (of->means) of->means[place] = mean;
            if (call->softcap)
                for (i64 e = 0; e < block.seen; e += LANES) store(gradients + e, load(gradients + e) * load(slopes + e));
        }
        times_rows(p, (Strides){1, width}, grads, dvalue + offset, block.seen, size, block.count, 1);
        times_rows(ds, (Strides){1, width}, queries, dkey + offset, block.seen, size, block.count, 1);
        times_rows(ds, (Strides){width, 1}, keys + offset, turned, block.rows, size, block.seen, 0);
        for (i64 r = 0; r < block.count; r++) give(of->dquery, query_place(item, first + r), turned + r * size, item);
    }
}

/* where a run has a token of S among its keys, or -1 */
INLINE i64 key_of(const Run *run, i64 token) {
    if (token >= run->first && token < run->first + run->num_first) return token - run->first;
    if (token >= run->then && token < run->then + run->num_keys - run->num_first) return token - run->then + run->num_first;
    return -1;
}

/* the gradients of one token's key and value in one group: what runs and heads have added, in their order */
static void add_parts(const Call *call, const Backward *of, const float *parts, i64 token, i64 group) {
    i64 per_group = call->num_heads / call->num_groups, size = up(call->size, LANES);
    i64 place = (token * call->num_groups + group) * call->size;
    for (i64 d = 0; d < size; d += LANES) {
        vec dkey = splat(0), dvalue = splat(0);
        const float *of_run = parts;
        for (i64 r = 0; r < call->num_runs; r++) {
            i64 e = key_of(call->runs + r, token), part = part_floats(call, call->runs + r);
            for (i64 h = group * per_group; e >= 0 && h < (group + 1) * per_group; h++) {
                dkey += load(of_run + 2 * h * part + e * size + d);
                dvalue += load(of_run + (2 * h + 1) * part + e * size + d);
            }
            of_run += 2 * call->num_heads * part;
        }
        give_part(of->dkey, place + d, dkey, call->size - d, call);
        give_part(of->dvalue, place + d, dvalue, call->size - d, call);
    }
}

void attend_backward(const Call *call, const Backward *of, float *scratch, float *parts) {
    i64 each = backward_floats(call);
#pragma omp parallel num_threads(call->num_threads)
    {
#pragma omp for schedule(dynamic)
        for (i64 number = 0; number < call->num_runs * call->num_heads; number++) {
            Item item = item_of(call, number);
            i64 part = part_floats(call, item.run);
            float *dkey = parts + parts_before(call, number / call->num_heads) + item.head * 2 * part;
            backward_item(&item, of, dkey, dkey + part, scratch + omp_get_thread_num() * each);
        }
#pragma omp for schedule(static)
        for (i64 token = 0; token < call->num_keys; token++)
            for (i64 group = 0; group < call->num_groups; group++) add_parts(call, of, parts, token, group);
    }
}
