/* The gated delta rule on a CPU: what kernels/torch_ops/gated_delta.py does by torch's products, without its temporaries.

   With the state h [K, D] of a head a token computes h = exp(g) * h, then h += k w^T with w = beta * u, u = v - h^T k, and
   y = h^T q. Of a chunk that begins with the state h, `since` being what is left of that at each token and `left` what is left
   at each token of those before it:
       u = v - since * h^T k - (left * k k^T) w below the diagonal,   y = since * h^T q + (left * q k^T) w.
   So w is solved for, block by block of tokens. How the work is cut, and what stays of a chunk, is chunks.h's, whose B are keys
   and C queries here, x values, and A one.

   Legend: S tokens of the row, N heads, G groups of them, D head size, K state size; T tokens of a chunk. */

#include "chunks.h"

/* how many times the gradients of queries and keys are given, each by some heads of a group */
i64 delta_parts(const Call *call) { return parts_of(call); }

typedef struct {
    const void *v, *k, *q;       /* [S, N, D], [S, G, K] */
    const float *g, *beta;       /* [S, N] */
    void *y;                     /* [S, N, D] */
} Forward;

/* ---- What a chunk's tokens write */

typedef struct {
    Shared shared;
    Decays decays;
    float *met;                  /* [T, T] of the group, a triangle: each key by each */
    float *rates;                /* [T] beta, and zeros */
    float *less;                 /* [T, T] what of w is in u: zero on the diagonal */
    float *v, *u, *w, *read;     /* [T, D]; read: h^T k */
} Writing;

INLINE i64 writing_floats(const Item *item, i64 width) {
    return 3 * width * item->state + 3 * width * width + 6 * width + 4 * width * item->size;
}

INLINE Writing writing_in(float **free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->size;
    Writing of = {.shared = shared_in(free, item), .decays = decays_in(free, width)};
    of.met = floats(free, width * width);
    of.less = floats(free, width * width);
    of.rates = floats(free, width);
    float **all[] = {&of.v, &of.u, &of.w, &of.read};
    for (int i = 0; i < 4; i++) *all[i] = floats(free, rows);
    return of;
}

/* keys and queries of a chunk, and what they meet of one another */
static void share_all(Writing *of, const void *k, const void *q, const Chunk *chunk, const Item *item) {
    begin(&of->shared, chunk);
    share(&of->shared, k, q, item);
    triangle(of->shared.B, of->shared.B_turned, of->met, of->shared.width, chunk->count, item->state);
}

/* the same of keys alone */
static void share_keys(Writing *of, const void *k, const Chunk *chunk, const Item *item) {
    begin(&of->shared, chunk);
    take_B(&of->shared, k, item);
    transpose(of->shared.B, of->shared.B_turned, of->shared.width, item->state);
    triangle(of->shared.B, of->shared.B_turned, of->met, of->shared.width, chunk->count, item->state);
}

INLINE ints places_from(i64 s) {
    ints place;
    for (int i = 0; i < LANES; i++) place[i] = s + i;
    return place;
}

/* to [columns] += of `count` tokens the sum of factors[s * step] * rows[s] */
INLINE void add_rows(float *to, const float *factors, i64 step, const float *rows, i64 count, i64 columns) {
    i64 d = 0;
    for (; d + 4 * LANES <= columns; d += 4 * LANES) {
        vec a = load(to + d), b = load(to + d + LANES), c = load(to + d + 2 * LANES), e = load(to + d + 3 * LANES);
        for (i64 s = 0; s < count; s++) {
            const float *row = rows + s * columns + d;
            float factor = factors[s * step];
            a += factor * load(row);
            b += factor * load(row + LANES);
            c += factor * load(row + 2 * LANES);
            e += factor * load(row + 3 * LANES);
        }
        store(to + d, a);
        store(to + d + LANES, b);
        store(to + d + 2 * LANES, c);
        store(to + d + 3 * LANES, e);
    }
    for (; d < columns; d += LANES) {
        vec a = load(to + d);
        for (i64 s = 0; s < count; s++) a += factors[s * step] * load(rows + s * columns + d);
        store(to + d, a);
    }
}

/* u [T, D], which has all but what `less` takes of w, and w = rate * u */
static void solve_before(const float *less, i64 width, const float *rates, float *u, float *w, i64 count, i64 columns) {
    for (i64 first = 0; first < count; first += BLOCK) {
        i64 end = least(first + BLOCK, count);
        if (first)
            product(less + first * width, (Strides){width, 1}, w, columns, u + first * columns, columns,
                    up(end - first, ROWS), columns, first, 1);
        for (i64 t = first; t < end; t++) {
            add_rows(u + t * columns, less + t * width + first, 1, w + first * columns, t - first, columns);
            scale(w + t * columns, u + t * columns, rates[t], columns, 0);
        }
    }
}

/* the same of the transposed triangle, from the last token to the first: z = rate * solved */
static void solve_after(const float *less, i64 width, const float *rates, float *solved, float *z, i64 count, i64 columns) {
    for (i64 first = up(count, BLOCK) - BLOCK; first >= 0; first -= BLOCK) {
        i64 end = least(first + BLOCK, count);
        if (end < count)
            product(less + end * width + first, (Strides){1, width}, z + end * columns, columns, solved + first * columns,
                    columns, BLOCK, columns, count - end, 1);
        for (i64 t = end - 1; t >= first; t--) {
            add_rows(solved + t * columns, less + (t + 1) * width + t, width, z + (t + 1) * columns, end - t - 1, columns);
            scale(z + t * columns, solved + t * columns, rates[t], columns, 0);
        }
    }
}

/* what a head's tokens write: u and w, of the state before, unless NULL */
static void write_head(Writing *of, const void *v, const float *g, const float *beta, i64 head, const float *state,
                       const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->shared.chunk;
    i64 width = of->shared.width, size = item->size, count = chunk->count;
    set_decays(&of->decays, g + head, 1, call->num_heads, chunk);
    for (i64 t = 0; t < width; t++) of->rates[t] = t < count ? beta[(chunk->first + t) * call->num_heads + head] : 0;
    take_rows(of->v, v, head * call->size, call->x_row, call->size, size, chunk, call);
    memcpy(of->u, of->v, width * size * WORD);
    if (state) {
        product(of->shared.B, (Strides){item->state, 1}, state, size, of->read, size, up(count, ROWS), size, item->state, 0);
        for (i64 t = 0; t < count; t++) scale(of->u + t * size, of->read + t * size, -of->decays.since[t], size, 1);
    }
    for (i64 t = 0; t < count; t++)
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES) {
            vec less = -decay(&of->decays, t, s) * load(of->met + t * width + s);
            store(of->less + t * width + s, choose(places_from(s) < (int32_t)t, less, splat(0)));
        }
    solve_before(of->less, width, of->rates, of->u, of->w, count, size);
    memset(of->w + count * size, 0, (width - count) * size * WORD);
}

/* ---- Forward */

i64 delta_floats(const Call *call) {
    Item item = item_of(call, 0);
    i64 width = up(call->most_tokens, BLOCK);
    return writing_floats(&item, width) + width * width + 2 * width * item.size +
           call->num_slots * MOST_HEADS * item.state * item.size;
}

typedef struct {
    Writing writing;
    float *mixing;               /* [T, T] */
    float *mixed, *read;         /* [T, D] */
    float *states;               /* by slot and head [K, D] */
} Work;

INLINE Work work_in(float *free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->size;
    Work of = {.writing = writing_in(&free, item)};
    of.mixing = floats(&free, width * width);
    of.mixed = floats(&free, rows);
    of.read = floats(&free, rows);
    of.states = free;
    return of;
}

static void forward_head(Work *of, const Forward *in, i64 number, const Chunk *before, const Item *item) {
    const Call *call = item->call;
    const Shared *shared = &of->writing.shared;
    const Decays *decays = &of->writing.decays;
    const Chunk *chunk = shared->chunk;
    i64 head = item->head + number, size = item->size, count = chunk->count, width = shared->width;
    const float *state = before ? state_of(of->states, before->slot, number, item) : 0;
    write_head(&of->writing, in->v, in->g, in->beta, head, state, item);
    for (i64 t = 0; t < count; t++)
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES)
            store(of->mixing + t * width + s, decay(decays, t, s) * load(shared->scores + t * width + s));
    sum_before(of->mixing, width, of->writing.w, of->mixed, count, size, 0);
    if (state) product(shared->C, (Strides){item->state, 1}, state, size, of->read, size, up(count, ROWS), size, item->state, 0);
    for (i64 t = 0; t < count; t++)
        for (i64 d = 0; d < call->size; d += LANES) {
            vec y = load(of->mixed + t * size + d);
            if (state) y += load(of->read + t * size + d) * decays->since[t];
            give(in->y, ((chunk->first + t) * call->num_heads + head) * call->size + d, y, call->size - d, call);
        }
    float *ends = state_of(of->states, chunk->slot, number, item);
    if (!ends) return;
    scale_rows(of->mixed, of->writing.w, decays->until, width, size);
    end_state(ends, state, of->mixed, shared, decays->across, item);
}

void delta(const Call *call, const Forward *in, float *scratch) {
    i64 each = delta_floats(call);
#pragma omp parallel for schedule(dynamic) num_threads(call->num_threads)
    for (i64 number = 0; number < num_items(call); number++) {
        Item item = item_of(call, number);
        Work of = work_in(scratch + omp_get_thread_num() * each, &item);
        for (i64 c = call->trees[item.tree]; c < call->trees[item.tree + 1]; c++) {
            const Chunk *chunk = call->chunks + c;
            share_all(&of.writing, in->k, in->q, chunk, &item);
            for (i64 head = 0; head < item.num_heads; head++)
                forward_head(&of, in, head, chunk->parent < 0 ? 0 : call->chunks + chunk->parent, &item);
        }
    }
}

/* ---- Backward: states are computed again and kept for a tree, then chunks are taken in reverse

   `solved` is the gradient of beta * u, z = beta * solved that of v. The gradient of g at a token is that of every term that
   decays across it: of a token before it that is read at or after it. Sums of just these terms are taken, so none cancel. */

typedef struct {
    const void *v, *k, *q;
    const float *g, *beta;
    const void *grad;            /* of y */
    void *dv;                    /* [S, N, D] */
    float *dg, *dbeta;           /* [S, N] */
    float *dk, *dq;              /* by part [S, G, K] */
} Backward;

typedef struct {
    Writing writing;
    float *C_turned, *dB_turned, *dC_turned, *dread;            /* [K, T] */
    float *mixing, *dmixing, *dmet, *dscores, *dkeys;           /* [T, T]; the last two are sums over the item's heads */
    float *grads, *solved, *z, *written, *scaled;               /* [T, D] */
    float *w_turned, *grads_turned, *z_turned, *scaled_turned;  /* [D, T] */
    float *terms, *through, *dlogs;                             /* [T] */
    float *states, *ends;                                       /* by inner chunk, or slot, and head [K, D] */
} Undo;

i64 delta_backward_floats(const Call *call) {
    Item item = item_of(call, 0);
    i64 width = up(call->most_tokens, BLOCK), states = MOST_HEADS * item.state * item.size;
    return writing_floats(&item, width) + 4 * width * item.state + 5 * width * width + 3 * width + 9 * width * item.size +
           (call->num_slots + call->most_inner) * states;
}

INLINE Undo undo_in(float *free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->size;
    Undo of = {.writing = writing_in(&free, item)};
    float **by_state[] = {&of.C_turned, &of.dB_turned, &of.dC_turned, &of.dread};
    float **squares[] = {&of.mixing, &of.dmixing, &of.dmet, &of.dscores, &of.dkeys};
    float **by_token[] = {&of.terms, &of.through, &of.dlogs};
    float **by_size[] = {&of.grads,    &of.solved,       &of.z,        &of.written,      &of.scaled,
                         &of.w_turned, &of.grads_turned, &of.z_turned, &of.scaled_turned};
    for (int i = 0; i < 4; i++) *by_state[i] = floats(&free, width * item->state);
    for (int i = 0; i < 5; i++) *squares[i] = floats(&free, width * width);
    for (int i = 0; i < 3; i++) *by_token[i] = floats(&free, width);
    for (int i = 0; i < 9; i++) *by_size[i] = floats(&free, rows);
    of.states = free;
    of.ends = free + item->call->most_inner * item->num_heads * item->state * item->size;
    return of;
}

/* the last state of every chunk of the tree that has children */
static void keep_states(Undo *of, const Backward *in, const Item *item) {
    const Call *call = item->call;
    for (i64 c = call->trees[item->tree]; c < call->trees[item->tree + 1]; c++) {
        const Chunk *chunk = call->chunks + c;
        if (chunk->inner < 0) continue;
        share_keys(&of->writing, in->k, chunk, item);
        for (i64 head = 0; head < item->num_heads; head++) {
            i64 before = chunk->parent < 0 ? -1 : call->chunks[chunk->parent].inner;
            const float *state = state_of(of->states, before, head, item);
            write_head(&of->writing, in->v, in->g, in->beta, item->head + head, state, item);
            scale_rows(of->scaled, of->writing.w, of->writing.decays.until, of->writing.shared.width, item->size);
            end_state(state_of(of->states, chunk->inner, head, item), state, of->scaled, &of->writing.shared,
                      of->writing.decays.across, item);
        }
    }
}

static void mix(Undo *of) {
    const Shared *shared = &of->writing.shared;
    for (i64 t = 0; t < shared->chunk->count; t++)
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES)
            store(of->mixing + t * shared->width + s,
                  decay(&of->writing.decays, t, s) * load(shared->scores + t * shared->width + s));
}

/* within the chunk: the gradients of what queries and keys meet of keys, and of the decays between */
static void undo_mixing(Undo *of) {
    const Writing *writing = &of->writing;
    i64 width = writing->shared.width;
    memset(of->terms, 0, width * WORD);
    for (i64 t = writing->shared.chunk->count - 1; t >= 0; t--) {
        vec before = splat(0);
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES) {
            i64 at = t * width + s;
            ints is_before = places_from(s) < (int32_t)t;
            vec left = decay(&writing->decays, t, s), dmixing = load(of->dmixing + at);
            vec dmet = choose(is_before, load(of->dmet + at), splat(0));
            vec terms = load(of->terms + s) + (dmixing * load(of->mixing + at) + dmet * load(writing->less + at));
            store(of->dscores + at, load(of->dscores + at) + left * dmixing);
            store(of->dkeys + at, load(of->dkeys + at) - left * dmet);
            store(of->terms + s, terms);
            before += choose(is_before, terms, splat(0));
        }
        of->dlogs[t] = sum(before);
    }
}

/* through the state at the chunk's end, whose gradient `end` is: before w is undone */
static void undo_end(Undo *of, const float *end, const Item *item) {
    const Shared *shared = &of->writing.shared;
    const Decays *decays = &of->writing.decays;
    i64 width = shared->width, size = item->size, count = shared->chunk->count;
    scale_columns(of->scaled_turned, of->w_turned, decays->until, size, width);
    product(end, (Strides){size, 1}, of->scaled_turned, width, of->dB_turned, width, item->state, width, size, 1);
    product(shared->B, (Strides){item->state, 1}, end, size, of->written, size, up(count, ROWS), size, item->state, 0);
    for (i64 s = 0; s < count; s++) {
        of->through[s] = decays->until[s] * dot(of->writing.w + s * size, of->written + s * size, size);
        scale(of->solved + s * size, of->written + s * size, decays->until[s], size, 1);
    }
}

/* the gradients of queries, or of keys less what `factors` say, by what is read of the state: [K, T], and that times these */
INLINE void undo_reading(Undo *of, const float *state, const float *turned, const float *factors, const Item *item) {
    i64 width = of->writing.shared.width, size = item->size;
    scale_columns(of->scaled_turned, turned, factors, size, width);
    product(state, (Strides){size, 1}, of->scaled_turned, width, of->dread, width, item->state, width, size, 0);
}

/* through the state at its start: `start` gets its gradient, or that and what it has */
static void undo_start(Undo *of, const float *state, const float *end, float *start, int add, const Item *item) {
    const Shared *shared = &of->writing.shared;
    const Decays *decays = &of->writing.decays;
    i64 width = shared->width, size = item->size, count = shared->chunk->count;
    undo_reading(of, state, of->grads_turned, decays->since, item);
    for (i64 t = 0; t < width; t += LANES) {
        vec total = splat(0);
        for (i64 k = 0; k < item->state; k++) {
            vec dread = load(of->dread + k * width + t);
            total += load(of->C_turned + k * width + t) * dread;
            store(of->dC_turned + k * width + t, load(of->dC_turned + k * width + t) + dread);
        }
        store(of->through + t, total);
    }
    undo_reading(of, state, of->z_turned, decays->since, item);
    scale(of->dB_turned, of->dread, -1, item->state * width, 1);
    for (i64 t = 0; t < count; t++)
        of->through[t] -= decays->since[t] * dot(of->z + t * size, of->writing.read + t * size, size);
    float after = end ? decays->across * dot(state, end, item->state * size) : 0;
    for (i64 t = count - 1; t >= 0; t--) of->dlogs[t] += after += of->through[t];
    if (end) scale(start, end, decays->across, item->state * size, add);
    scale_rows(of->scaled, of->grads, decays->since, count, size);
    product(shared->C, (Strides){1, item->state}, of->scaled, size, start, size, item->state, size, count, add || end);
    scale_rows(of->scaled, of->z, decays->since, count, size);
    for (i64 i = 0; i < count * size; i += LANES) store(of->scaled + i, -load(of->scaled + i));
    product(shared->B, (Strides){1, item->state}, of->scaled, size, start, size, item->state, size, count, 1);
}

static void give_head(Undo *of, const Backward *in, i64 head, const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->writing.shared.chunk;
    i64 size = item->size;
    for (i64 t = 0; t < chunk->count; t++) {
        i64 token = (chunk->first + t) * call->num_heads + head;
        for (i64 d = 0; d < call->size; d += LANES)
            give(in->dv, token * call->size + d, load(of->z + t * size + d), call->size - d, call);
        in->dg[token] = of->dlogs[t];
        in->dbeta[token] = dot(of->solved + t * size, of->writing.u + t * size, size);
    }
}

static void backward_head(Undo *of, const Backward *in, i64 number, const Chunk *before, const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->writing.shared.chunk;
    i64 head = item->head + number, size = item->size, count = chunk->count, width = of->writing.shared.width;
    const float *state = before ? state_of(of->states, before->inner, number, item) : 0;
    const float *end = state_of(of->ends, chunk->slot, number, item);
    write_head(&of->writing, in->v, in->g, in->beta, head, state, item);
    take_rows(of->grads, in->grad, head * call->size, call->grad_row, call->size, size, chunk, call);
    transpose(of->writing.w, of->w_turned, width, size);
    transpose(of->grads, of->grads_turned, width, size);
    mix(of);
    sum_after(of->mixing, width, of->grads, of->solved, count, size, 0);
    if (end) undo_end(of, end, item);
    solve_after(of->writing.less, width, of->writing.rates, of->solved, of->z, count, size);
    memset(of->z + count * size, 0, (width - count) * size * WORD);
    transpose(of->z, of->z_turned, width, size);
    triangle(of->grads, of->w_turned, of->dmixing, width, count, size);
    triangle(of->z, of->w_turned, of->dmet, width, count, size);
    undo_mixing(of);
    float gone = 0;
    for (i64 s = 0; s < count && end; s++) {
        of->dlogs[s] += gone;
        gone += of->through[s];
    }
    if (before) undo_start(of, state, end, state_of(of->ends, before->slot, number, item), !chunk->is_last, item);
    give_head(of, in, head, item);
}

static void backward_chunk(Undo *of, const Backward *in, const Chunk *chunk, const Item *item) {
    const Shared *shared = &of->writing.shared;
    share_all(&of->writing, in->k, in->q, chunk, item);
    i64 state = item->state, width = shared->width;
    transpose(shared->C, of->C_turned, width, state);
    memset(of->dscores, 0, width * width * WORD);
    memset(of->dkeys, 0, width * width * WORD);
    memset(of->dB_turned, 0, state * width * WORD);
    memset(of->dC_turned, 0, state * width * WORD);
    for (i64 head = 0; head < item->num_heads; head++)
        backward_head(of, in, head, chunk->parent < 0 ? 0 : item->call->chunks + chunk->parent, item);
    float *own = of->C_turned, *scratch = of->dread; /* no longer needed */
    sum_before(of->dscores, width, shared->B, own, chunk->count, state, 0);
    give_rows(in->dq, own, of->dC_turned, scratch, shared, item);
    sum_after(of->dscores, width, shared->C, own, chunk->count, state, 0);
    sum_before(of->dkeys, width, shared->B, own, chunk->count, state, 1);
    sum_after(of->dkeys, width, shared->B, own, chunk->count, state, 1);
    give_rows(in->dk, own, of->dB_turned, scratch, shared, item);
}

void delta_backward(const Call *call, const Backward *in, float *scratch) {
    i64 each = delta_backward_floats(call);
#pragma omp parallel for schedule(dynamic) num_threads(call->num_threads)
    for (i64 number = 0; number < num_items(call); number++) {
        Item item = item_of(call, number);
        Undo of = undo_in(scratch + omp_get_thread_num() * each, &item);
        keep_states(&of, in, &item);
        for (i64 c = call->trees[item.tree + 1] - 1; c >= call->trees[item.tree]; c--)
            backward_chunk(&of, in, call->chunks + c, &item);
    }
}
