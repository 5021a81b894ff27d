// SPDX-License-Identifier: Apache-2.0
// Prints how many thousand times a second this host's time stamp counter counts.
//
// Both ends of the interval are the tightest of many looks at clock and counter together, so that losing the
// processor in between does not matter.
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct instant {
    int64_t clock_ns;
    uint64_t counter;
};

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static struct instant look(void)
{
    struct instant best = {0, 0};
    int64_t tightest_ns = INT64_MAX;
    for (int i = 0; i < 1000; i++) {
        int64_t before = clock_ns();
        uint64_t counter = __rdtsc();
        int64_t gap = clock_ns() - before;
        if (gap < tightest_ns) {
            tightest_ns = gap;
            best = (struct instant){before + gap / 2, counter};
        }
    }
    return best;
}

int main(void)
{
    struct instant begin = look();
    struct timespec pause = {0, 300000000};
    nanosleep(&pause, NULL);
    struct instant end = look();
    double ms = (double)(end.clock_ns - begin.clock_ns) / 1e6;
    printf("%.0f\n", (double)(end.counter - begin.counter) / ms);
    return 0;
}
