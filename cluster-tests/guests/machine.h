// SPDX-License-Identifier: Apache-2.0
// The machine as a bare guest sees it: ports of the VMM's devices and what the boot handed over.
//
// Everything polls: no interrupts, no timers, no paging, one vCPU. Bare guests run on an
// instruction emulator of about 1.6 million instructions a second in places, so every loop is short.
#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>

enum {
    COM1_DATA = 0x3f8,
    COM1_LSR = 0x3fd,
    COM1_SCRATCH = 0x3ff,
    LSR_DATA_READY = 0x01,
    LSR_THR_EMPTY = 0x20,
    NO_DEVICE_8 = 0xff,     // what a read of an unclaimed port gives
    NO_DEVICE_16 = 0xffff,
    PM1A_STATUS = 0x600,
    PM1A_CONTROL = 0x604,
    PWRBTN_STS = 1 << 8,
    SLP_EN_S5 = 0x3400,     // SLP_EN, SLP_TYP 5: S5 of the Kemari machine
    SLP_EN_S5_QEMU = 0x2000, // SLP_EN, SLP_TYP 0: S5 of QEMU's PIIX4
    I8042_COMMAND = 0x64,
    I8042_RESET = 0xfe,
};

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void halt_forever(void)
{
    for (;;)
        __asm__ volatile("cli; hlt" : : : "memory");
}

// The start information of the PVH boot ABI, version 1 (Xen: xen/include/public/arch-x86/hvm/start_info.h).
struct start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t modules;
    uint64_t module_list;
    uint64_t command_line;
    uint64_t rsdp;
    uint64_t memory_map;    // from here on only with version 1 and later
    uint32_t memory_ranges;
    uint32_t reserved;
};

struct memory_range {
    uint64_t start;
    uint64_t size;
    uint32_t type;
    uint32_t reserved;
};

enum { START_INFO_MAGIC = 0x336ec578, MEMORY_TYPE_RAM = 1 };

// console.c
void put_byte(uint8_t byte);
void put_text(const char *text);
void put_decimal(uint32_t value);
uint8_t obey_console_and_power_button(void);
void power_off(void) __attribute__((noreturn));

// boot.c
const char *command_line(const struct start_info *info);
uint32_t option(const char *line, const char *name, uint32_t otherwise);
uint64_t ram_above(const struct start_info *info, uint32_t start);

// disk.c
enum { DISK_SECTORS_MAX = 4096 };
int disk_begin(void);
void disk_clear(uint32_t sectors);
void disk_round(uint32_t round, uint32_t sectors);

// Every guest defines this one.
void guest_main(const struct start_info *info);

#endif
