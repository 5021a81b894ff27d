// SPDX-License-Identifier: Apache-2.0
// Writes to the same pages again and again and says nothing: the guest that checkpoints are measured with.
//
// `pages=N`: N pages from 2 MiB up are written to, one word each, round after round.
// `fill=N`: before that, N pages from 2 MiB up get words that are not zero, once.
// `quiet=N`: iterations of an empty loop after each round.
//
// It prints `PAGES START` when it begins its rounds, and what is typed at its console, once a round.
#include "machine.h"

enum { FIRST_PAGE = 0x200000, PAGE_SIZE = 4096 };

static volatile uint32_t *page_word(uint32_t page)
{
    return (volatile uint32_t *)(uintptr_t)(FIRST_PAGE + page * PAGE_SIZE);
}

void guest_main(const struct start_info *info)
{
    uint32_t fill = option(command_line(info), "fill", 0);
    uint32_t pages = option(command_line(info), "pages", 0);
    uint32_t quiet = option(command_line(info), "quiet", 0);
    uint32_t most = fill > pages ? fill : pages;

    if (most > ram_above(info, FIRST_PAGE) / PAGE_SIZE) {
        put_text("ERROR more pages than the machine has above 2 MiB: give it more memory\n");
        power_off();
    }
    for (uint32_t page = 0; page < fill; page++)
        *page_word(page) = ~page;
    put_text("PAGES START\n");
    for (uint32_t round = 1;; round++) {
        uint8_t typed = obey_console_and_power_button();

        if (typed)
            put_byte(typed);
        for (uint32_t page = 0; page < pages; page++)
            *page_word(page) = round;
        for (volatile uint32_t wait = quiet; wait; wait--)
            ;
    }
}
