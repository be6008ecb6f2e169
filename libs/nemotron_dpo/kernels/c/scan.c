/* The recurrence of Mamba-2 on a CPU: what kernels/torch_ops/mamba2.py does by torch's products, without its temporaries.

   With the state h [K, D] of a head a token computes h = exp(dt * A) h + dt * B x^T and y = h^T C + skip * x. How the work is
   cut, and what stays of a chunk, is chunks.h's.

   Legend: S tokens of the row, N heads, G groups of them, D head size, K state size; T tokens of a chunk. */

#include "chunks.h"

/* how many times the gradients of B and C are given, each by some heads of a group */
i64 scan_parts(const Call *call) { return parts_of(call); }

/* ---- Forward */

typedef struct {
    const void *x, *B, *C;              /* [S, N, D], [S, G, K] */
    const float *dt, *rates, *skips;    /* [S, N]; A and D [N] */
    void *y;                            /* [S, N, D] */
} Forward;

i64 scan_floats(const Call *call) {
    Item item = item_of(call, 0);
    i64 width = up(call->most_tokens, BLOCK), rows = width * item.size;
    return 3 * width * item.state + 2 * width * width + 5 * width + 5 * rows +
           call->num_slots * MOST_HEADS * item.state * item.size;
}

typedef struct {
    Shared shared;
    Decays decays;
    float *x, *inputs, *mixed, *read, *ending; /* [T, D] */
    float *mixing;                             /* [T, T] */
    float *states;                             /* by slot and head [K, D] */
} Work;

INLINE Work work_in(float *free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->size;
    Work of = {.shared = shared_in(&free, item), .decays = decays_in(&free, width)};
    float **all[] = {&of.x, &of.inputs, &of.mixed, &of.read, &of.ending};
    for (int i = 0; i < 5; i++) *all[i] = floats(&free, rows);
    of.mixing = floats(&free, width * width);
    of.states = free;
    return of;
}

static void mix(float *mixing, const Decays *decays, const Shared *of) {
    for (i64 t = 0; t < of->chunk->count; t++)
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES)
            store(mixing + t * of->width + s, decay(decays, t, s) * load(of->scores + t * of->width + s));
}

/* x [T, D] and dt * x of one head */
INLINE void take_inputs(float *x, float *inputs, const Decays *decays, const void *from, i64 head, const Chunk *chunk,
                        const Item *item) {
    i64 size = item->call->size;
    take_rows(x, from, head * size, item->call->x_row, size, item->size, chunk, item->call);
    scale_rows(inputs, x, decays->steps, up(chunk->count, BLOCK), item->size);
}

static void forward_head(Work *of, const Forward *in, i64 number, const Chunk *before, const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->shared.chunk;
    i64 head = item->head + number, size = item->size, count = chunk->count;
    set_decays(&of->decays, in->dt + head, in->rates[head], call->num_heads, chunk);
    take_inputs(of->x, of->inputs, &of->decays, in->x, head, chunk, item);
    mix(of->mixing, &of->decays, &of->shared);
    sum_before(of->mixing, of->shared.width, of->inputs, of->mixed, count, size, 0);
    const float *state = before ? state_of(of->states, before->slot, number, item) : 0;
    if (state)
        product(of->shared.C, (Strides){item->state, 1}, state, size, of->read, size, up(count, ROWS), size, item->state, 0);
    for (i64 t = 0; t < count; t++)
        for (i64 d = 0; d < call->size; d += LANES) {
            vec y = load(of->mixed + t * size + d) + load(of->x + t * size + d) * in->skips[head];
            if (state) y += load(of->read + t * size + d) * of->decays.since[t];
            give(in->y, ((chunk->first + t) * call->num_heads + head) * call->size + d, y, call->size - d, call);
        }
    float *ends = state_of(of->states, chunk->slot, number, item);
    if (!ends) return;
    scale_rows(of->ending, of->inputs, of->decays.until, of->shared.width, size);
    end_state(ends, state, of->ending, &of->shared, of->decays.across, item);
}

void scan(const Call *call, const Forward *in, float *scratch) {
    i64 each = scan_floats(call);
#pragma omp parallel for schedule(dynamic) num_threads(call->num_threads)
    for (i64 number = 0; number < num_items(call); number++) {
        Item item = item_of(call, number);
        Work of = work_in(scratch + omp_get_thread_num() * each, &item);
        for (i64 c = call->trees[item.tree]; c < call->trees[item.tree + 1]; c++) {
            const Chunk *chunk = call->chunks + c;
            begin(&of.shared, chunk);
            share(&of.shared, in->B, in->C, &item);
            for (i64 head = 0; head < item.num_heads; head++)
                forward_head(&of, in, head, chunk->parent < 0 ? 0 : call->chunks + chunk->parent, &item);
        }
    }
}

/* ---- Backward: states are computed again and kept for a tree, then chunks are taken in reverse

   The gradient of dt * A at a token is that of every term that decays across it: of a token before it that is read at or
   after it. Sums of just these terms are taken, so none cancel. */

typedef struct {
    const void *x, *B, *C;
    const float *dt, *rates, *skips;
    const void *grad;                   /* of y */
    void *dx;                           /* [S, N, D] */
    float *ddt;                         /* [S, N] */
    float *dB, *dC;                     /* by part [S, G, K] */
    float *drates, *dskips;             /* by tree [N] */
} Backward;

i64 scan_backward_floats(const Call *call) {
    Item item = item_of(call, 0);
    i64 width = up(call->most_tokens, BLOCK), rows = width * item.size, states = MOST_HEADS * item.state * item.size;
    return 7 * width * item.state + 4 * width * width + 8 * width + 9 * rows + (call->num_slots + call->most_inner) * states;
}

typedef struct {
    Shared shared;
    Decays decays;
    float *C_turned, *dB_turned, *dC_turned, *dread;            /* [K, T] */
    float *mixing, *dmixing, *dscores;                          /* [T, T] */
    float *x, *inputs, *grads, *dinputs, *written, *scaled;     /* [T, D] */
    float *inputs_turned, *grads_turned, *scaled_turned;        /* [D, T] */
    float *terms, *through, *dlogs;                             /* [T] */
    float *states, *ends;                                       /* by inner chunk, or slot, and head [K, D] */
} Undo;

INLINE Undo undo_in(float *free, const Item *item) {
    i64 width = up(item->call->most_tokens, BLOCK), rows = width * item->size;
    Undo of = {.shared = shared_in(&free, item), .decays = decays_in(&free, width)};
    float **by_state[] = {&of.C_turned, &of.dB_turned, &of.dC_turned, &of.dread};
    float **squares[] = {&of.mixing, &of.dmixing, &of.dscores}, **by_token[] = {&of.terms, &of.through, &of.dlogs};
    float **by_size[] = {&of.x,       &of.inputs,        &of.grads,        &of.dinputs,      &of.written,
                         &of.scaled,  &of.inputs_turned, &of.grads_turned, &of.scaled_turned};
    for (int i = 0; i < 4; i++) *by_state[i] = floats(&free, width * item->state);
    for (int i = 0; i < 3; i++) *squares[i] = floats(&free, width * width);
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
        begin(&of->shared, chunk);
        take_B(&of->shared, in->B, item);
        for (i64 head = 0; head < item->num_heads; head++) {
            set_decays(&of->decays, in->dt + item->head + head, in->rates[item->head + head], call->num_heads, chunk);
            take_inputs(of->x, of->inputs, &of->decays, in->x, item->head + head, chunk, item);
            scale_rows(of->scaled, of->inputs, of->decays.until, of->shared.width, item->size);
            i64 before = chunk->parent < 0 ? -1 : call->chunks[chunk->parent].inner;
            end_state(state_of(of->states, chunk->inner, head, item), state_of(of->states, before, head, item), of->scaled,
                      &of->shared, of->decays.across, item);
        }
    }
}

/* within the chunk: the mixing of its tokens, and the gradients of their scores and of dt * A */
static void undo_mixing(Undo *of) {
    i64 width = of->shared.width;
    memset(of->terms, 0, width * WORD);
    for (i64 t = of->shared.chunk->count - 1; t >= 0; t--) {
        vec before = splat(0);
        for (i64 s = 0; s < up(t + 1, BLOCK); s += LANES) {
            i64 at = t * width + s;
            vec left = decay(&of->decays, t, s), scores = load(of->shared.scores + at), dscores = left * load(of->dmixing + at);
            vec terms = load(of->terms + s) + dscores * scores;
            store(of->mixing + at, left * scores);
            store(of->dscores + at, load(of->dscores + at) + dscores);
            store(of->terms + s, terms);
            ints place;
            for (int i = 0; i < LANES; i++) place[i] = s + i;
            before += choose(place < (int32_t)t, terms, splat(0));
        }
        of->dlogs[t] = sum(before);
    }
}

/* through the state at the chunk's end, whose gradient `end` is */
static void undo_end(Undo *of, const float *end, const Item *item) {
    i64 width = of->shared.width, size = item->size, count = of->shared.chunk->count;
    scale_columns(of->scaled_turned, of->inputs_turned, of->decays.until, size, width);
    product(end, (Strides){size, 1}, of->scaled_turned, width, of->dB_turned, width, item->state, width, size, 1);
    product(of->shared.B, (Strides){item->state, 1}, end, size, of->written, size, up(count, ROWS), size, item->state, 0);
    float before = 0;
    for (i64 s = 0; s < count; s++) {
        of->dlogs[s] += before;
        before += of->decays.until[s] * dot(of->inputs + s * size, of->written + s * size, size);
        scale(of->dinputs + s * size, of->written + s * size, of->decays.until[s], size, 1);
    }
}

/* through the state at its start: `start` gets its gradient, or that and what it has */
static void undo_start(Undo *of, const float *state, const float *end, float *start, int add, const Item *item) {
    i64 width = of->shared.width, size = item->size, count = of->shared.chunk->count;
    scale_columns(of->scaled_turned, of->grads_turned, of->decays.since, size, width);
    product(state, (Strides){size, 1}, of->scaled_turned, width, of->dread, width, item->state, width, size, 0);
    for (i64 t = 0; t < width; t += LANES) {
        vec total = splat(0);
        for (i64 k = 0; k < item->state; k++) {
            vec dread = load(of->dread + k * width + t);
            total += load(of->C_turned + k * width + t) * dread;
            store(of->dC_turned + k * width + t, load(of->dC_turned + k * width + t) + dread);
        }
        store(of->through + t, total);
    }
    float after = end ? of->decays.across * dot(state, end, item->state * size) : 0;
    for (i64 t = count - 1; t >= 0; t--) of->dlogs[t] += after += of->through[t];
    if (end) scale(start, end, of->decays.across, item->state * size, add);
    scale_rows(of->scaled, of->grads, of->decays.since, count, size);
    product(of->shared.C, (Strides){1, item->state}, of->scaled, size, start, size, item->state, size, count, add || end);
}

static void give_head(Undo *of, const Backward *in, i64 head, const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->shared.chunk;
    i64 size = item->size, at = item->tree * call->num_heads + head;
    for (i64 t = 0; t < chunk->count; t++) {
        const float *x = of->x + t * size, *grads = of->grads + t * size, *dinputs = of->dinputs + t * size;
        i64 token = (chunk->first + t) * call->num_heads + head;
        for (i64 d = 0; d < call->size; d += LANES)
            give(in->dx, token * call->size + d, load(dinputs + d) * of->decays.steps[t] + load(grads + d) * in->skips[head],
                 call->size - d, call);
        in->ddt[token] = dot(x, dinputs, size) + in->rates[head] * of->dlogs[t];
        in->drates[at] += of->decays.steps[t] * of->dlogs[t];
        in->dskips[at] += dot(grads, x, size);
    }
}

static void backward_head(Undo *of, const Backward *in, i64 number, const Chunk *before, const Item *item) {
    const Call *call = item->call;
    const Chunk *chunk = of->shared.chunk;
    i64 head = item->head + number, size = item->size, count = chunk->count, width = of->shared.width;
    set_decays(&of->decays, in->dt + head, in->rates[head], call->num_heads, chunk);
    take_inputs(of->x, of->inputs, &of->decays, in->x, head, chunk, item);
    take_rows(of->grads, in->grad, head * call->size, call->grad_row, call->size, size, chunk, call);
    transpose(of->inputs, of->inputs_turned, width, size);
    transpose(of->grads, of->grads_turned, width, size);
    triangle(of->grads, of->inputs_turned, of->dmixing, width, count, size);
    undo_mixing(of);
    sum_after(of->mixing, width, of->grads, of->dinputs, count, size, 0);
    const float *end = state_of(of->ends, chunk->slot, number, item);
    if (end) undo_end(of, end, item);
    if (before)
        undo_start(of, state_of(of->states, before->inner, number, item), end, state_of(of->ends, before->slot, number, item),
                   !chunk->is_last, item);
    give_head(of, in, head, item);
}

static void backward_chunk(Undo *of, const Backward *in, const Chunk *chunk, const Item *item) {
    i64 state = item->state;
    begin(&of->shared, chunk);
    i64 width = of->shared.width;
    share(&of->shared, in->B, in->C, item);
    transpose(of->shared.C, of->C_turned, width, state);
    memset(of->dscores, 0, width * width * WORD);
    memset(of->dB_turned, 0, state * width * WORD);
    memset(of->dC_turned, 0, state * width * WORD);
    for (i64 head = 0; head < item->num_heads; head++)
        backward_head(of, in, head, chunk->parent < 0 ? 0 : item->call->chunks + chunk->parent, item);
    float *own = of->C_turned, *scratch = of->dread; /* no longer needed */
    sum_before(of->dscores, width, of->shared.B, own, chunk->count, state, 0);
    give_rows(in->dC, own, of->dC_turned, scratch, &of->shared, item);
    sum_after(of->dscores, width, of->shared.C, own, chunk->count, state, 0);
    give_rows(in->dB, own, of->dB_turned, scratch, &of->shared, item);
}

void scan_backward(const Call *call, const Backward *in, float *scratch) {
    i64 each = scan_backward_floats(call);
#pragma omp parallel for schedule(dynamic) num_threads(call->num_threads)
    for (i64 number = 0; number < num_items(call); number++) {
        Item item = item_of(call, number);
        Undo of = undo_in(scratch + omp_get_thread_num() * each, &item);
        keep_states(&of, in, &item);
        for (i64 c = call->trees[item.tree + 1] - 1; c >= call->trees[item.tree]; c--)
            backward_chunk(&of, in, call->chunks + c, &item);
    }
}
