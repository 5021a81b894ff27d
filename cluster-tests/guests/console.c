// SPDX-License-Identifier: Apache-2.0
// The serial console of a bare guest, and the two ways of ending it from outside.
#include "machine.h"

// A missing UART reads as 0xff, which looks ready: the byte is lost and the guest goes on.
void put_byte(uint8_t byte)
{
    while (!(inb(COM1_LSR) & LSR_THR_EMPTY))
        ;
    outb(COM1_DATA, byte);
}

void put_text(const char *text)
{
    while (*text)
        put_byte((uint8_t)*text++);
}

void put_decimal(uint32_t value)
{
    char digits[11];
    char *first = digits + sizeof digits - 1;

    *first = 0;
    do {
        *--first = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    put_text(first);
}

void power_off(void)
{
    outw(PM1A_CONTROL, SLP_EN_S5);
    outw(PM1A_CONTROL, SLP_EN_S5_QEMU);
    for (;;)
        halt_forever();
}

// 'q' on the console or the ACPI power button power off, 'r' resets. Looks once, waits for nothing.
// Gives the byte that was typed and is none of these, 0 for none.
uint8_t obey_console_and_power_button(void)
{
    uint8_t typed;

    uint8_t line_status = inb(COM1_LSR);
    uint16_t power_status = inw(PM1A_STATUS);

    if (power_status != NO_DEVICE_16 && (power_status & PWRBTN_STS))
        power_off();
    if (line_status == NO_DEVICE_8 || !(line_status & LSR_DATA_READY))
        return 0;
    typed = inb(COM1_DATA);
    switch (typed) {
    case 'q':
        power_off();
    case 'r':
        outb(I8042_COMMAND, I8042_RESET);
        halt_forever();
    }
    return typed;
}
