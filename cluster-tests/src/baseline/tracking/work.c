// SPDX-License-Identifier: Apache-2.0
// Writes one byte into every page of some memory, again and again for some seconds. Prints how many pages a second.
// Arguments: MiB, seconds.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 1;
    size_t size = (size_t)atol(argv[1]) << 20;
    volatile char *memory = calloc(size, 1);
    if (!memory)
        return 1;
    double begin = 0, end = 0;
    long passes = -1; // the first one gets the memory from the kernel and does not count
    do {
        for (size_t at = 0; at < size; at += 4096)
            memory[at]++;
        end = now();
        if (++passes == 0)
            begin = end;
    } while (end - begin < atof(argv[2]) || passes == 0);
    printf("%.0f\n", passes * (size / 4096) / (end - begin));
    return 0;
}
