// SPDX-License-Identifier: Apache-2.0
// Checks the devices behind ports by polling, prints `PIO OK` or `PIO BAD <what> want=<x> have=<y>`
// for each difference, and powers off.
#include "machine.h"

static uint32_t differences;

static void expect(const char *what, uint32_t want, uint32_t have)
{
    if (want == have)
        return;
    differences++;
    put_text("PIO BAD ");
    put_text(what);
    put_text(" want=");
    put_decimal(want);
    put_text(" have=");
    put_decimal(have);
    put_byte('\n');
}

static void check_scratch_register(void)
{
    for (uint32_t value = 0; value < 256; value++) {
        outb(COM1_SCRATCH, (uint8_t)value);
        expect("scratch", value, inb(COM1_SCRATCH));
    }
}

void guest_main(const struct start_info *info)
{
    expect("magic", START_INFO_MAGIC, info->magic);
    check_scratch_register();
    // Nobody answers at 0x0ffe; a VMM must read ones there and swallow the write.
    outb(0x0ffe, 0);
    expect("unclaimed", NO_DEVICE_8, inb(0x0ffe));
    if (!differences)
        put_text("PIO OK\n");
    power_off();
}
