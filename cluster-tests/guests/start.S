# SPDX-License-Identifier: Apache-2.0
# Where a bare guest begins: 32-bit flat protected mode, paging off, ebx = the PVH start information.
#
# The state is the one the PVH boot ABI promises (Xen: docs/misc/pvh.pandoc), so no descriptor table
# is loaded and no interrupt ever arrives. The object is 64-bit ELF around 32-bit code, because
# loaders of direct-boot kernels read 64-bit ELF only. `.code32` comes from the build.

        .section .note.Xen, "a", @note
        .balign 4
        .long 4                         # size of the name
        .long 8                         # size of the descriptor
        .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .quad _start

        .section .text.start, "ax", @progbits
        .globl _start
        .type _start, @function
_start:
        cli
        cld
        movl $stack_top, %esp
        # A reset without a fresh load must not find the counters of the last boot.
        movl $bss_start, %edi
        movl $bss_end, %ecx
        subl %edi, %ecx
        shrl $2, %ecx
        xorl %eax, %eax
        rep stosl
        pushl %ebx
        call guest_main
1:      cli
        hlt
        jmp 1b

        .section .note.GNU-stack, "", @progbits
