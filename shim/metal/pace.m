/* How long work takes: predicted from multiply-adds, and corrected by what command buffers took.
 *
 * macOS ends a command buffer that keeps the display waiting, from about 0.6 s on, and its limits
 * are not documented. So command buffers stay well below it, also where the prediction is too short
 * by a factor of five. */
#include <math.h>

#include "metal.h"

/* Multiply-adds a second before anything was measured: half of what these kernels should reach on
 * the slowest Apple GPU for Macs, that of an M1, whose peak is 1.3e12. */
#define GUESSED_RATE 0.35e12
/* Multiply-adds of a thread of a kernel that does not say its work. */
#define THREAD_WORK      256.0
#define DISPATCH_SECONDS 4e-6 /* of an empty dispatch */
/* A list of a shorter predicted time stays whole, a longer one goes in parts. */
#define WHOLE_SECONDS 0.2
#define PART_SECONDS  0.1
/* What is only guessed counts as longer by this. */
#define DOUBT 2.0
/* Shorter command buffers say more of their overhead than of their kernels, and a pipeline that ran
 * for less is not measured. */
#define LEAST_SECONDS 1e-3
/* One measurement changes a pace by this factor at the most, and a lower pace is taken on in part:
 * to predict too much costs some microseconds for a part, too little may cost the work. */
#define MOST_CHANGE 16.0
#define DOWNWARDS   0.25
/* What macOS ended took too long. It may have no times, and would have taken this long or longer,
 * and this many times the prediction, so that what is tried again is cut into shorter parts. */
#define ENDED_SECONDS 0.6
#define AT_LEAST      2.0
/* Dispatches of at least this many multiply-adds are of many vectors, and bound by arithmetic: the
 * work rate is theirs. Older command buffers fade from it. */
#define MANY_VECTORS 2e8
#define FADE         0.9

static double work_of(const oxb_driver_dispatch *d) {
    if (d->work != 0) return (double)d->work;
    const oxb_size *groups = &d->threadgroups, *threads = &d->threads;
    return THREAD_WORK * groups->x * groups->y * groups->z * threads->x * threads->y * threads->z;
}

/* Seconds of a multiply-add. A pipeline of which nothing is known is guessed to be as slow as
 * others have been on this device, and never faster than the first guess. Called with the lock
 * held. */
static double pace_of(const metal_pace *pace, const metal_pipeline *p) {
    if (p->pace > 0) return p->pace;
    return fmax(1 / GUESSED_RATE, pace->work > 0 ? pace->seconds / pace->work : 0);
}

/* Seconds without the overhead. Called with the lock held. */
static double seconds_of(const metal_pace *pace, const oxb_driver_dispatch *d) {
    return work_of(d) * pace_of(pace, d->pipeline);
}

/* Called with the lock held. */
static double cautious_seconds_of(const metal_pace *pace, const oxb_driver_dispatch *d) {
    const metal_pipeline *p = d->pipeline;
    return DISPATCH_SECONDS + seconds_of(pace, d) * (p->measured >= LEAST_SECONDS ? 1 : DOUBT);
}

uint32_t metal_pace_cut(metal_pace *pace, const oxb_driver_dispatch *list, uint32_t n, bool whole) {
    double seconds = 0;
    uint32_t fit = 0;
    pthread_mutex_lock(&pace->lock);
    for (uint32_t i = 0; i < n; i++) {
        seconds += cautious_seconds_of(pace, list + i);
        if (seconds <= PART_SECONDS) fit = i + 1;
    }
    pthread_mutex_unlock(&pace->lock);
    if (seconds <= (whole ? WHOLE_SECONDS : PART_SECONDS)) return n;
    return fit != 0 ? fit : 1;
}

/* Called with the lock held. */
static void measure_rate(metal_pace *pace, const oxb_driver_dispatch *list, uint32_t n,
                         double seconds) {
    double work = 0, of_many = 0;
    for (uint32_t i = 0; i < n; i++) {
        work += (double)list[i].work;
        if ((double)list[i].work >= MANY_VECTORS) of_many += (double)list[i].work;
    }
    if (of_many == 0 || of_many < work / 2) return;
    pace->work = FADE * pace->work + work;
    pace->seconds = FADE * pace->seconds + seconds;
}

void metal_pace_learn(metal_pace *pace, const oxb_driver_dispatch *list, uint32_t n, double seconds,
                      metal_end end) {
    double predicted = 0, largest = 0;
    /* Other errors say nothing of the time that the work takes. */
    if (end != METAL_COMPLETED && end != METAL_TOO_LONG) return;
    pthread_mutex_lock(&pace->lock);
    for (uint32_t i = 0; i < n; i++) {
        metal_pipeline *p = list[i].pipeline;
        double share = seconds_of(pace, list + i);
        p->share += share;
        if (p->share > largest) largest = p->share;
        predicted += DISPATCH_SECONDS + share;
    }
    if (end == METAL_TOO_LONG) seconds = fmax(seconds, fmax(ENDED_SECONDS, AT_LEAST * predicted));
    bool says = seconds >= LEAST_SECONDS && largest > 0;
    double change = says ? log(fmin(fmax(seconds / predicted, 1 / MOST_CHANGE), MOST_CHANGE)) : 0;
    if (change < 0) change *= DOWNWARDS;
    for (uint32_t i = 0; i < n; i++) {
        metal_pipeline *p = list[i].pipeline;
        double share = p->share;
        p->share = 0; /* and so it is changed once */
        if (!says || share <= 0) continue;
        /* The largest share is the likeliest to be wrong by the whole factor. */
        p->pace = pace_of(pace, p) * exp(change * share / largest);
        /* A pace that was only seen to be too fast stays in doubt. */
        if (end == METAL_COMPLETED) p->measured += seconds * share / predicted;
    }
    if (says) measure_rate(pace, list, n, seconds);
    pthread_mutex_unlock(&pace->lock);
}

double metal_work_rate(void *device) {
    metal_pace *pace = &((metal_device *)device)->pace;
    pthread_mutex_lock(&pace->lock);
    double rate = pace->seconds > 0 ? pace->work / pace->seconds : 0;
    pthread_mutex_unlock(&pace->lock);
    return rate;
}
