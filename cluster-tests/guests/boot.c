// SPDX-License-Identifier: Apache-2.0
// What the boot handed over: the command line and the size of RAM.
#include "machine.h"

const char *command_line(const struct start_info *info)
{
    if (info->magic != START_INFO_MAGIC || !info->command_line)
        return "";
    return (const char *)(uintptr_t)info->command_line;
}

static uint32_t number_at(const char *text)
{
    uint32_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint32_t)(*text++ - '0');
    return value;
}

// The decimal number of the word `name=NUMBER`; the first such word counts.
uint32_t option(const char *line, const char *name, uint32_t otherwise)
{
    while (*line) {
        const char *wanted = name;

        while (*line == ' ')
            line++;
        while (*wanted && *line == *wanted) {
            line++;
            wanted++;
        }
        if (!*wanted && *line == '=')
            return number_at(line + 1);
        while (*line && *line != ' ')
            line++;
    }
    return otherwise;
}

// Bytes of RAM from `start` to the end of the range it lies in; 0 if it lies in none. A boot without
// a memory map (version 0) promises nothing, and the answer is then "as much as you like".
uint64_t ram_above(const struct start_info *info, uint32_t start)
{
    const struct memory_range *ranges;

    if (info->magic != START_INFO_MAGIC || info->version < 1 || !info->memory_map)
        return ~0ull;
    ranges = (const struct memory_range *)(uintptr_t)info->memory_map;
    for (uint32_t i = 0; i < info->memory_ranges; i++) {
        uint64_t end = ranges[i].start + ranges[i].size;

        if (ranges[i].type == MEMORY_TYPE_RAM && ranges[i].start <= start && start < end)
            return end - start;
    }
    return 0;
}
