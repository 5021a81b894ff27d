// SPDX-License-Identifier: Apache-2.0
// The ledger as a program of a Linux guest: numbered lines, each with the time stamp counter at which it was made.
//
//     LEDGER START
//     1 00000012a05f2001
//     2 00000012a0601b37
//
// Every line is one write(2) to the console, which is raw: a line feed stays a line feed. Nobody else writes there.
// The number lives in this process's memory only, so a machine that lost state repeats or skips one.
//
// `ledger.interval_ms=N` on the kernel's command line is the pause between two lines, 100 unless given; 0 is none.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static const char INTERVAL[] = "ledger.interval_ms=";

static long interval_ms(void)
{
    char line[4096];
    int file = open("/proc/cmdline", O_RDONLY);
    if (file < 0)
        return 100;
    ssize_t length = read(file, line, sizeof line - 1);
    close(file);
    if (length < 0)
        return 100;
    line[length] = 0;
    const char *found = strstr(line, INTERVAL);
    long value = found ? strtol(found + sizeof INTERVAL - 1, NULL, 10) : 100;
    return value < 0 ? 0 : value;
}

static int open_console(void)
{
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    struct termios mode;
    if (console >= 0 && tcgetattr(console, &mode) == 0) {
        cfmakeraw(&mode);
        tcsetattr(console, TCSANOW, &mode);
    }
    return console;
}

static void put(int console, const char *line, size_t length)
{
    // The tty takes a short line whole; what it did not take is still owed.
    while (length > 0) {
        ssize_t taken = write(console, line, length);
        if (taken < 0 && errno != EINTR)
            exit(1);
        if (taken > 0) {
            line += taken;
            length -= (size_t)taken;
        }
    }
}

static void rest(long pause_ms)
{
    struct timespec left = {pause_ms / 1000, pause_ms % 1000 * 1000000};
    while (pause_ms > 0 && nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

int main(void)
{
    int console = open_console();
    if (console < 0)
        return 1;
    long pause_ms = interval_ms();
    put(console, "LEDGER START\n", 13);
    for (uint64_t number = 1;; number++) {
        char line[48];
        int length = snprintf(line, sizeof line, "%llu %016llx\n", (unsigned long long)number,
                              (unsigned long long)__rdtsc());
        put(console, line, (size_t)length);
        rest(pause_ms);
    }
}
