// SPDX-License-Identifier: Apache-2.0
// The first virtio block device (VIRTIO 1.1, sections 4.1 and 5.2), one request at a time, polled.
//
// `disk=N`: before line n, sector n % N of the disk is written with n, another sector is read back
// and must hold what memory says was written there last. One that does not is a disk that does not
// fit the memory: `CORRUPT sector=<i> want=<n> have=<x>`. Every 16th round the disk is flushed.
#include "machine.h"

enum {
    CONFIG_ADDRESS = 0xcf8,
    CONFIG_DATA = 0xcfc,
    VENDOR_VIRTIO = 0x1af4,
    DEVICE_BLOCK = 0x1042,
    COMMAND = 0x04,
    COMMAND_MEMORY_AND_MASTER = 0x06,
    BAR0 = 0x10,
    CAPABILITIES = 0x34,
    CAPABILITY_VENDOR = 0x09,
    CFG_COMMON = 1,
    CFG_NOTIFY = 2,
    STATUS_DRIVER = 3, // ACKNOWLEDGE, DRIVER
    STATUS_FEATURES_OK = 8,
    STATUS_DRIVER_OK = 4,
    VERSION_1 = 1, // in the upper half of the features
    FLUSH = 1 << 9,
    TYPE_IN = 0,
    TYPE_OUT = 1,
    TYPE_FLUSH = 4,
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    QUEUE_SIZE = 4,
    SECTOR = 512,
    WORDS = SECTOR / 4,
    FLUSH_EVERY = 16,
};

struct common_config {
    uint32_t device_feature_select, device_feature;
    uint32_t driver_feature_select, driver_feature;
    uint16_t msix_config, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint32_t queue_desc, queue_desc_high, queue_driver, queue_driver_high;
    uint32_t queue_device, queue_device_high;
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static struct {
    struct descriptor descriptors[QUEUE_SIZE];
    struct { uint16_t flags, index, ring[QUEUE_SIZE], event; } available;
    struct { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE_SIZE]; uint16_t event; } used
        __attribute__((aligned(4)));
} queue __attribute__((aligned(4096)));

static struct { uint32_t type, reserved; uint64_t sector; } request __attribute__((aligned(16)));
static uint32_t data[WORDS] __attribute__((aligned(16)));
static volatile uint8_t status;
static volatile uint16_t *doorbell;
static uint32_t written[DISK_SECTORS_MAX];

static uint32_t config(uint32_t slot, uint32_t offset)
{
    outl(CONFIG_ADDRESS, 1u << 31 | slot << 11 | (offset & 0xfc));
    return inl(CONFIG_DATA) >> (offset & 3) * 8;
}

static uint32_t find_slot(void)
{
    for (uint32_t slot = 0; slot < 32; slot++)
        if (config(slot, 0) == ((uint32_t)DEVICE_BLOCK << 16 | VENDOR_VIRTIO))
            return slot;
    return 0;
}

static uint32_t area(uint32_t slot, uint8_t kind, uint32_t *capability)
{
    for (uint32_t at = config(slot, CAPABILITIES) & 0xfc; at; at = config(slot, at + 1) & 0xfc)
        if ((config(slot, at) & 0xff) == CAPABILITY_VENDOR && (config(slot, at + 3) & 0xff) == kind) {
            *capability = at;
            return (config(slot, BAR0) & ~15u) + config(slot, at + 8);
        }
    return 0;
}

// Whether there is a disk; it is ready for requests then.
int disk_begin(void)
{
    uint32_t slot = find_slot(), capability = 0;
    volatile struct common_config *common;

    if (!slot)
        return 0;
    outl(CONFIG_ADDRESS, 1u << 31 | slot << 11 | COMMAND);
    outl(CONFIG_DATA, COMMAND_MEMORY_AND_MASTER);
    common = (volatile struct common_config *)(uintptr_t)area(slot, CFG_COMMON, &capability);
    if (!common)
        return 0;
    common->device_status = 0;
    common->device_status = STATUS_DRIVER;
    common->driver_feature_select = 0;
    common->driver_feature = FLUSH;
    common->driver_feature_select = 1;
    common->driver_feature = VERSION_1;
    common->device_status = STATUS_DRIVER | STATUS_FEATURES_OK;
    common->queue_select = 0;
    common->queue_size = QUEUE_SIZE;
    common->queue_desc = (uint32_t)(uintptr_t)queue.descriptors;
    common->queue_driver = (uint32_t)(uintptr_t)&queue.available;
    common->queue_device = (uint32_t)(uintptr_t)&queue.used;
    common->queue_enable = 1;
    common->device_status = STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
    doorbell = (volatile uint16_t *)(uintptr_t)area(slot, CFG_NOTIFY, &capability);
    doorbell += common->queue_notify_off * config(slot, capability + 16) / 2;
    return 1;
}

static void describe(uint16_t number, volatile void *address, uint32_t length, uint16_t flags)
{
    struct descriptor *descriptor = &queue.descriptors[number];

    descriptor->address = (uint32_t)(uintptr_t)address;
    descriptor->length = length;
    descriptor->flags = flags;
    descriptor->next = number + 1;
}

static void perform(uint32_t type, uint32_t sector)
{
    volatile uint16_t *used = &queue.used.index;
    uint16_t before = *used, last = 1;

    request.type = type;
    request.sector = sector;
    status = 0xff;
    describe(0, &request, sizeof request, DESC_NEXT);
    if (type != TYPE_FLUSH)
        describe(last++, data, SECTOR, DESC_NEXT | (type == TYPE_IN ? DESC_WRITE : 0));
    describe(last, &status, 1, DESC_WRITE);
    queue.available.ring[queue.available.index % QUEUE_SIZE] = 0;
    __asm__ volatile("" : : : "memory");
    queue.available.index++;
    __asm__ volatile("lock; addl $0, (%%esp)" : : : "memory");
    *doorbell = 0;
    while (*used == before)
        obey_console_and_power_button();
    if (status) {
        put_text("CORRUPT disk request failed with status ");
        put_decimal(status);
        put_byte('\n');
    }
}

static void check(uint32_t sector)
{
    perform(TYPE_IN, sector);
    for (uint32_t word = 0; word < WORDS; word++)
        if (data[word] != written[sector]) {
            put_text("CORRUPT sector=");
            put_decimal(sector);
            put_text(" want=");
            put_decimal(written[sector]);
            put_text(" have=");
            put_decimal(data[word]);
            put_byte('\n');
            return;
        }
}

// Nothing is known of a disk before; `sectors` of it are used.
void disk_clear(uint32_t sectors)
{
    for (uint32_t word = 0; word < WORDS; word++)
        data[word] = 0;
    for (uint32_t sector = 0; sector < sectors; sector++)
        perform(TYPE_OUT, sector);
}

void disk_round(uint32_t round, uint32_t sectors)
{
    uint32_t sector = round % sectors;

    for (uint32_t word = 0; word < WORDS; word++)
        data[word] = round;
    perform(TYPE_OUT, sector);
    written[sector] = round;
    check(round * 7 % sectors);
    if (round % FLUSH_EVERY == 0)
        perform(TYPE_FLUSH, 0);
}
