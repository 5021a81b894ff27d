// SPDX-License-Identifier: Apache-2.0
// The ledger: numbered lines, each with the time stamp counter at which it was made.
//
//     LEDGER START
//     1 00000012a05f2001
//     2 00000012a0601b37
//
// The number lives in memory and the stamp is read once a line, so a guest that ran the same stretch
// twice writes the same number with another stamp, and a guest that lost state repeats or skips one.
//
// `pages=N`: before line n, N pages from 2 MiB up are rewritten with n, and each must still hold
// n - 1. One that does not is a torn checkpoint: `CORRUPT page=<i> want=<n-1> have=<x>`.
// `disk=N`: N sectors of the first virtio disk are used, too (see disk.c).
// `interval=N`: iterations of an empty loop between two lines.
//
// The guest `dirty` is this one with another default of `pages`.
#include "machine.h"

#ifndef DEFAULT_PAGES
#define DEFAULT_PAGES 0
#endif

enum { FIRST_PAGE = 0x200000, PAGE_SIZE = 4096 };

static uint32_t line_number;

static volatile uint64_t *page_word(uint32_t page)
{
    return (volatile uint64_t *)(uintptr_t)(FIRST_PAGE + page * PAGE_SIZE);
}

static void report_corrupt(uint32_t page, uint32_t want, uint32_t have)
{
    put_text("CORRUPT page=");
    put_decimal(page);
    put_text(" want=");
    put_decimal(want);
    put_text(" have=");
    put_decimal(have);
    put_byte('\n');
}

// The upper half holds the complement of the round, so that a page of another use stands out.
static uint64_t stamp(uint32_t round)
{
    return ((uint64_t)~round << 32) | round;
}

static void rewrite_pages(uint32_t pages, uint32_t round)
{
    uint64_t want = stamp(round - 1);
    uint64_t next = stamp(round);

    for (uint32_t page = 0; page < pages; page++) {
        uint64_t have = *page_word(page);

        *page_word(page) = next;
        if (have != want)
            report_corrupt(page, round - 1, (uint32_t)have);
    }
}

static char *append_decimal(char *to, uint32_t value)
{
    char digits[10];
    int count = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        *to++ = digits[--count];
    return to;
}

static char *append_hex(char *to, uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        *to++ = "0123456789abcdef"[(value >> shift) & 15];
    return to;
}

// The whole line stands in memory before its first byte leaves, as a write(2) of a program would.
static void write_line(uint32_t number)
{
    static char line[32];
    uint32_t low, high;
    char *end = append_decimal(line, number);

    *end++ = ' ';
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    end = append_hex(end, high);
    end = append_hex(end, low);
    *end++ = '\n';
    for (const char *next = line; next != end; next++)
        put_byte((uint8_t)*next);
}

void guest_main(const struct start_info *info)
{
    uint32_t interval = option(command_line(info), "interval", 0);
    uint32_t disk = option(command_line(info), "disk", 0);
    uint32_t pages = option(command_line(info), "pages", DEFAULT_PAGES);

    if (pages > ram_above(info, FIRST_PAGE) / PAGE_SIZE) {
        put_text("ERROR more pages than the machine has above 2 MiB: give it more memory\n");
        power_off();
    }
    for (uint32_t page = 0; page < pages; page++)
        *page_word(page) = stamp(0);
    if (disk && (disk > DISK_SECTORS_MAX || !disk_begin())) {
        put_text("ERROR no virtio disk, or more sectors than 4096\n");
        power_off();
    }
    disk_clear(disk);
    put_text("LEDGER START\n");
    for (;;) {
        line_number++;
        rewrite_pages(pages, line_number);
        if (disk)
            disk_round(line_number, disk);
        write_line(line_number);
        obey_console_and_power_button();
        for (volatile uint32_t wait = interval; wait; wait--)
            ;
    }
}
