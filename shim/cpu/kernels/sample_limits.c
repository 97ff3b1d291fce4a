/* The filters of a choice, as a limit among the logits: found by selection, without a sort. */
#include "cpu/limits.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/choice.h"

#define ALL  UINT64_MAX
#define ROOM 49152u /* numbers that are selected from in the scratch */

typedef struct workspace {
    float candidates[ROOM + CPU_LANES]; /* what is left of the logits */
    float list[ROOM + CPU_LANES];       /* what is left of those during a selection */
    float slab[CPU_CHOICE_SLAB + CPU_LANES];
    uint64_t sums[CPU_CHOICE_CHAINS][CPU_CHOICE_RANGES];
} workspace;

_Static_assert(sizeof(workspace) <= CPU_SCRATCH, "the scratch of a choice is too small");

typedef struct numbers {
    const float *x;
    uint64_t n;
    float low, high; /* those outside are not looked at */
} numbers;

typedef struct selection {
    float value;
    uint64_t ties;  /* how many of those equal to it are selected, in their order */
    uint64_t equal; /* how many there are */
} selection;

/* Ascending with w. */
static uint32_t order_of(float w) {
    uint32_t bits;
    memcpy(&bits, &w, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float of_order(uint32_t order) {
    const uint32_t bits = order >> 31 ? order & 0x7fffffffu : ~order;
    float w;
    memcpy(&w, &bits, sizeof w);
    return w;
}

/* One of the numbers, from place `at` on. There must be one. */
static float number_from(const numbers *a, uint64_t at) {
    while (!(a->x[at] >= a->low && a->x[at] <= a->high)) at = at + 1 < a->n ? at + 1 : 0;
    return a->x[at];
}

/* Where to divide the numbers: the middle one of three, now and then the middle of their range, so
 * that no order of them takes more than some 100 passes. */
static float pivot(const numbers *a, unsigned pass) {
    if (pass % 4 == 3) {
        const uint32_t low = order_of(a->low), high = order_of(a->high);
        return of_order(low + (high - low) / 2);
    }
    const float x = number_from(a, a->n / 4), y = number_from(a, a->n / 2);
    const float z = number_from(a, a->n / 4 * 3);
    const float low = x < y ? x : y, high = x < y ? y : x;
    return z < low ? low : z > high ? high : z;
}

/* Leave out what is not in the range, where the rest fits in the list. Returns how many are. */
static uint64_t narrow(const cpu_choice *c, numbers *a, float *list) {
    const uint64_t count = c->pack(a->x, a->n, a->low, a->high, list, ROOM);
    if (count <= ROOM) {
        a->x = list;
        a->n = count;
    }
    return count;
}

/* The k-th largest of the `count` numbers, k >= 1; the lowest where there are fewer. */
static selection select_largest(const cpu_choice *c, numbers a, uint64_t k, float *list) {
    uint64_t count = narrow(c, &a, list);
    if (k > count) return (selection){a.low, ALL, ALL};
    for (unsigned pass = 0;; pass++) {
        const float value = pivot(&a, pass);
        const cpu_tally tally = c->tally(a.x, a.n, value, a.high);
        if (k <= tally.above) {
            a.low = nextafterf(value, INFINITY);
            count = tally.above;
        } else if (k <= tally.above + tally.equal) {
            return (selection){value, k - tally.above, tally.equal};
        } else {
            a.high = nextafterf(value, -INFINITY);
            k -= tally.above + tally.equal;
            count -= tally.above + tally.equal;
        }
        if (count <= ROOM) narrow(c, &a, list);
    }
}

float cpu_lowest_within(float largest, float scale, uint32_t u) {
    uint32_t low = order_of(-FLT_MAX), high = order_of(largest);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (choice_distance(largest, of_order(middle), scale) <= u)
            high = middle;
        else
            low = middle + 1;
    }
    return of_order(low);
}

/* The k largest, and candidates that have them all. */
static selection largest_of(const cpu_choice *c, workspace *space, numbers *a, uint64_t k) {
    /* The k-th largest of the largest of groups bounds the k-th largest of all. */
    const uint64_t in_groups = CPU_CHOICE_GROUP * CPU_LANES;
    const uint64_t groups = (a->n + in_groups - 1) / in_groups * CPU_LANES;
    if (k <= groups && groups <= ROOM) {
        c->maxima(a->x, a->n, space->candidates);
        const numbers largest = {space->candidates, groups, a->low, a->high};
        a->low = select_largest(c, largest, k, space->list).value;
    }
    narrow(c, a, space->candidates);
    return select_largest(c, *a, k, space->list);
}

cpu_limit cpu_limit_of_count(const cpu_call *call, const float *w, uint64_t n, float largest,
                             uint64_t k) {
    numbers a = {w, n, -FLT_MAX, largest};
    if (k == 0) return (cpu_limit){-FLT_MAX, ALL};
    const selection found = largest_of(&call->isa->f32->choice, call->scratch, &a, k);
    return (cpu_limit){found.value, found.ties == found.equal ? ALL : found.ties};
}

typedef struct nucleus {
    const cpu_choice *choice;
    workspace *space;
    float largest, scale;
    selection lowest; /* of what top-k kept */
} nucleus;

static cpu_masses masses_of(const nucleus *p, const numbers *a) {
    return (cpu_masses){.x = a->x,
                        .n = a->n,
                        .low = a->low,
                        .high = a->high,
                        .largest = p->largest,
                        .scale = p->scale,
                        .sums = p->space->sums,
                        .slab = p->space->slab};
}

/* The sum of the probabilities of those that top-k left out among the equals of the lowest. */
static uint64_t surplus(const nucleus *p, const numbers *a) {
    const selection s = p->lowest;
    if (s.ties == s.equal || s.value < a->low || s.value > a->high) return 0;
    return (s.equal - s.ties) * choice_probability(choice_distance(p->largest, s.value, p->scale));
}

/* The sums of the probabilities of the numbers by distance from `first` on, in space->sums[0].
 * Returns the shift that leads from distances to the sums: as fine as the numbers allow. */
static uint32_t add_masses(const nucleus *p, const numbers *a, uint32_t first) {
    uint64_t *sums = p->space->sums[0];
    cpu_masses job = masses_of(p, a);
    const float smallest = p->choice->smallest(a->x, a->n, a->low);
    job.first = first;
    while ((choice_distance(p->largest, smallest, p->scale) - first) >> job.shift >=
           CPU_CHOICE_RANGES)
        job.shift++;
    memset(p->space->sums, 0, sizeof p->space->sums);
    p->choice->masses(&job);
    for (unsigned chain = 1; chain < CPU_CHOICE_CHAINS; chain++)
        for (unsigned i = 0; i < CPU_CHOICE_RANGES; i++) sums[i] += p->space->sums[chain][i];
    const uint64_t more = surplus(p, a);
    if (more != 0)
        sums[(choice_distance(p->largest, p->lowest.value, p->scale) - first) >> job.shift] -= more;
    return job.shift;
}

/* Keep the numbers whose distances are at least `first` and less than `end`. */
static void keep_distances(const nucleus *p, numbers *a, uint32_t first, uint32_t end) {
    const float low = cpu_lowest_within(p->largest, p->scale, end - 1);
    if (low > a->low) a->low = low;
    if (first == 0) return;
    const float high = nextafterf(cpu_lowest_within(p->largest, p->scale, first - 1), -INFINITY);
    if (high < a->high) a->high = high;
}

/* Have a list of what top-k kept, where it fits: of the equals of the lowest only those. */
static void take_ties(nucleus *p, numbers *a) {
    numbers above = {a->x, a->n, nextafterf(a->low, INFINITY), a->high};
    const uint64_t count = narrow(p->choice, &above, p->space->candidates);
    if (count + p->lowest.ties > ROOM) return;
    a->x = above.x;
    a->n = count + p->lowest.ties;
    for (uint64_t i = count; i < a->n; i++) p->space->candidates[i] = a->low;
    p->lowest.equal = p->lowest.ties;
}

#define NEAR (16u << 20) /* distances among which the limit is looked for first: most often few */
#define FAR  (32u << 20) /* distances from here on have no probability */

/* What top-p keeps of the numbers: found by ranges of distances, then of those in the range in
 * which the sum reaches its target, to a single distance, whose logits are counted. */
static selection reach(const nucleus *p, numbers a, const struct oxb_sampling *s) {
    numbers far = a;
    uint64_t before = 0, target = 0, rest = 0;
    uint32_t first = 0, shift;
    keep_distances(p, &far, NEAR, FAR);
    if (far.low <= far.high) {
        const cpu_masses job = masses_of(p, &far);
        rest = p->choice->mass(&job) - surplus(p, &far);
    }
    keep_distances(p, &a, 0, NEAR);
    do {
        const uint64_t *sums = p->space->sums[0];
        unsigned range = 0;
        shift = add_masses(p, &a, first);
        if (target == 0) {
            uint64_t total = rest;
            for (unsigned i = 0; i < CPU_CHOICE_RANGES; i++) total += sums[i];
            /* floor(total * top_p / 2^32) without a product of more than 64 bits */
            target = (total >> 32) * s->top_p + ((total & UINT32_MAX) * s->top_p >> 32);
            if (target == 0) target = 1;
        }
        while (range < CPU_CHOICE_RANGES && before + sums[range] < target) before += sums[range++];
        if (range == CPU_CHOICE_RANGES) { /* not near: once at most */
            a = far;
            first = NEAR;
            shift = 1;
        } else {
            first += range << shift;
            keep_distances(p, &a, first, first + (1u << shift));
            narrow(p->choice, &a, p->space->list);
        }
        if (first > s->least) return p->lowest; /* min-p keeps less */
    } while (shift != 0);
    const uint32_t each = choice_probability(first);
    return select_largest(p->choice, a, (target - before + each - 1) / each, p->space->list);
}

cpu_limit cpu_limit_of_filters(const cpu_call *call, const float *w, uint64_t n, float largest,
                               const struct oxb_sampling *s) {
    const cpu_choice *c = &call->isa->f32->choice;
    workspace *space = call->scratch;
    numbers a = {w, n, -FLT_MAX, largest};
    selection kept = {-FLT_MAX, ALL, ALL};
    if (s->top_k != 0 && s->top_k < n) kept = largest_of(c, space, &a, s->top_k);
    if (s->top_p != 0) {
        const selection of_k = kept;
        nucleus p = {c, space, largest, s->scale, kept};
        if (kept.ties != ALL) {
            a.low = kept.value;
            take_ties(&p, &a);
        }
        kept = reach(&p, a, s);
        if (kept.value == of_k.value) kept.equal = of_k.equal;
    }
    const float least = cpu_lowest_within(largest, s->scale, s->least);
    if (least > kept.value) return (cpu_limit){least, ALL};
    return (cpu_limit){kept.value, kept.ties == kept.equal ? ALL : kept.ties};
}
