// SPDX-License-Identifier: Apache-2.0
// Boots, prints `HELLO <command line>`, powers off: the shortest life of a machine.
#include "machine.h"

void guest_main(const struct start_info *info)
{
    put_text("HELLO ");
    put_text(command_line(info));
    put_byte('\n');
    power_off();
}
