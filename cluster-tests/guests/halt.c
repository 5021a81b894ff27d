// SPDX-License-Identifier: Apache-2.0
// Prints `HALT` and stops its vCPU for ever: a machine that must be paused while nothing runs.
#include "machine.h"

void guest_main(const struct start_info *info)
{
    (void)info;
    put_text("HALT\n");
    halt_forever();
}
