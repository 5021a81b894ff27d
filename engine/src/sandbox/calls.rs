// SPDX-License-Identifier: Apache-2.0
//! System calls in groups, one for each thing a thread may need to do.

use nix::libc::{self as c, c_int, c_long};

use super::filter::{Call, any, ioctl, kvm, on_itself, only, unless, with, without};

const PROT_EXEC: u32 = c::PROT_EXEC.cast_unsigned();
const CLONE_THREAD: u32 = c::CLONE_THREAD.cast_unsigned();
const SIGBUS: u32 = c::SIGBUS.cast_unsigned();
const SIGSYS: u32 = c::SIGSYS.cast_unsigned();

/// What every thread does: memory, locks, time, signals to itself, its log, its end.
pub(super) const BASE: &[Call] = &[
    without(c::SYS_mmap, 2, PROT_EXEC),
    without(c::SYS_mprotect, 2, PROT_EXEC),
    any(c::SYS_munmap),
    any(c::SYS_mremap),
    any(c::SYS_madvise),
    any(c::SYS_brk),
    any(c::SYS_futex),
    any(c::SYS_sched_yield),
    any(c::SYS_sched_getaffinity),
    any(c::SYS_clock_gettime),
    any(c::SYS_clock_getres),
    any(c::SYS_gettimeofday),
    any(c::SYS_time),
    any(c::SYS_clock_nanosleep),
    any(c::SYS_nanosleep),
    any(c::SYS_restart_syscall),
    any(c::SYS_getrandom),
    any(c::SYS_getpid),
    any(c::SYS_gettid),
    // The log, and the doorbells (eventfd) of other threads.
    any(c::SYS_write),
    any(c::SYS_writev),
    any(c::SYS_close),
    // Whether a descriptor is open, before it is closed: debug builds look.
    only(c::SYS_fcntl, 1, c::F_GETFD.cast_unsigned()),
    any(c::SYS_rt_sigprocmask),
    any(c::SYS_rt_sigreturn),
    any(c::SYS_sigaltstack),
    // Kicks of vCPUs, and abort(3).
    on_itself(c::SYS_tgkill, 0),
    // A bus error that is none of guest RAM gets its default action back.
    only(c::SYS_rt_sigaction, 0, SIGBUS),
    only(c::SYS_prctl, 0, c::PR_GET_NAME.cast_unsigned()),
    only(c::SYS_prctl, 0, c::PR_SET_NAME.cast_unsigned()),
    only(c::SYS_prctl, 0, c::PR_SET_VMA.cast_unsigned()),
    any(c::SYS_exit),
    any(c::SYS_exit_group),
];

/// Calls that fail where they are not allowed, since the C library or a backtrace tries them and
/// does without: files looked at by name.
pub(super) const FAIL: &[(c_long, c_int)] = &[
    (c::SYS_openat, c::EPERM),
    (c::SYS_open, c::EPERM),
    (c::SYS_stat, c::EPERM),
    (c::SYS_newfstatat, c::EPERM),
    (c::SYS_statx, c::EPERM),
    (c::SYS_access, c::EPERM),
    (c::SYS_readlink, c::EPERM),
    (c::SYS_readlinkat, c::EPERM),
    (c::SYS_getcwd, c::EPERM),
];

/// A filter cannot look at the flags of clone3. The C library hears that there is none and tries
/// clone instead, whose flags it can.
pub(super) const FAIL_CLONE3: &[(c_long, c_int)] = &[(c::SYS_clone3, c::ENOSYS)];

/// Starting threads, never processes, and confining them.
pub(super) const THREADS: &[Call] = &[
    with(c::SYS_clone, 0, CLONE_THREAD),
    any(c::SYS_set_robust_list),
    any(c::SYS_rseq),
    only(c::SYS_prctl, 0, c::PR_SET_NO_NEW_PRIVS.cast_unsigned()),
    only(c::SYS_seccomp, 0, c::SECCOMP_SET_MODE_FILTER),
];

/// Waiting for descriptors.
pub(super) const EVENTS: &[Call] = &[
    any(c::SYS_read),
    any(c::SYS_poll),
    any(c::SYS_ppoll),
    any(c::SYS_epoll_wait),
    any(c::SYS_epoll_pwait),
    any(c::SYS_epoll_pwait2),
    any(c::SYS_epoll_ctl),
];

/// Talking over sockets that are open.
pub(super) const STREAMS: &[Call] = &[
    any(c::SYS_read),
    any(c::SYS_readv),
    any(c::SYS_recvfrom),
    any(c::SYS_recvmsg),
    any(c::SYS_sendto),
    any(c::SYS_sendmsg),
    any(c::SYS_shutdown),
    any(c::SYS_setsockopt),
    any(c::SYS_getsockopt),
    any(c::SYS_getpeername),
    any(c::SYS_getsockname),
    // Copies of the descriptor; to and from non-blocking.
    any(c::SYS_fcntl),
    any(c::SYS_dup),
    ioctl(FIONBIO),
    any(c::SYS_poll),
    any(c::SYS_ppoll),
];

const FIONBIO: u32 = 0x5421;
const FIONREAD: u32 = 0x541b;

/// Connecting: resolving names as the C library does it, which loads modules, then the connection.
pub(super) const CONNECT: &[Call] = &[
    any(c::SYS_mmap),
    any(c::SYS_mprotect),
    any(c::SYS_openat),
    any(c::SYS_newfstatat),
    any(c::SYS_stat),
    any(c::SYS_fstat),
    any(c::SYS_fstatfs),
    any(c::SYS_statx),
    any(c::SYS_lseek),
    any(c::SYS_pread64),
    any(c::SYS_uname),
    any(c::SYS_sysinfo),
    any(c::SYS_sendmmsg),
    any(c::SYS_recvmmsg),
    // Which addresses this node has, for the order of the peer's: by netlink, after a bind to it.
    any(c::SYS_bind),
    any(c::SYS_connect),
    ioctl(FIONREAD),
    any(c::SYS_getuid),
    any(c::SYS_geteuid),
    any(c::SYS_getgid),
    any(c::SYS_getegid),
    only(c::SYS_socket, 0, c::AF_UNIX.cast_unsigned()),
    only(c::SYS_socket, 0, c::AF_INET.cast_unsigned()),
    only(c::SYS_socket, 0, c::AF_INET6.cast_unsigned()),
    only(c::SYS_socket, 0, c::AF_NETLINK.cast_unsigned()),
];

/// Waiting for memory errors, and the last words to systemd.
pub(super) const LAST_WORDS: &[Call] = &[
    any(c::SYS_read),
    only(c::SYS_socket, 0, c::AF_UNIX.cast_unsigned()),
    any(c::SYS_connect),
    any(c::SYS_sendto),
    any(c::SYS_sendmsg),
];

/// Taking callers.
pub(super) const ACCEPT: &[Call] = &[any(c::SYS_accept4)];

/// What exits of the guest and device models do with KVM besides running it.
pub(super) const KVM_DEVICES: &[Call] = &[
    kvm(0x61), // KVM_IRQ_LINE
    kvm(0x67), // KVM_IRQ_LINE_STATUS
    kvm(0xa5), // KVM_SIGNAL_MSI
    kvm(0x79), // KVM_IOEVENTFD
    kvm(0x76), // KVM_IRQFD
    kvm(0x6a), // KVM_SET_GSI_ROUTING
];

/// Running a vCPU, and its state.
pub(super) const KVM_VCPU: &[Call] = &[
    kvm(0x80), // KVM_RUN
    kvm(0xc7), // KVM_RESET_DIRTY_RINGS, when one is full
    kvm(0x81), // KVM_GET_REGS
    kvm(0x82), // KVM_SET_REGS
    kvm(0x83), // KVM_GET_SREGS
    kvm(0x84), // KVM_SET_SREGS
    kvm(0xcc), // KVM_GET_SREGS2
    kvm(0xcd), // KVM_SET_SREGS2
    kvm(0x88), // KVM_GET_MSRS
    kvm(0x89), // KVM_SET_MSRS
    kvm(0x8c), // KVM_GET_FPU
    kvm(0x8d), // KVM_SET_FPU
    kvm(0x8e), // KVM_GET_LAPIC
    kvm(0x8f), // KVM_SET_LAPIC
    kvm(0x98), // KVM_GET_MP_STATE
    kvm(0x99), // KVM_SET_MP_STATE
    kvm(0x9f), // KVM_GET_VCPU_EVENTS
    kvm(0xa0), // KVM_SET_VCPU_EVENTS
    kvm(0xa1), // KVM_GET_DEBUGREGS
    kvm(0xa2), // KVM_SET_DEBUGREGS; KVM_SET_TSC_KHZ
    kvm(0xa3), // KVM_GET_TSC_KHZ
    kvm(0xa4), // KVM_GET_XSAVE
    kvm(0xcf), // KVM_GET_XSAVE2
    kvm(0xa6), // KVM_GET_XCRS
    kvm(0xa7), // KVM_SET_XCRS
    kvm(0xad), // KVM_KVMCLOCK_CTRL
    kvm(0xe1), // KVM_SET_DEVICE_ATTR
    kvm(0xe2), // KVM_GET_DEVICE_ATTR
];

const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETQUEUE: u32 = 0x4004_54d9;

/// Disks and TAPs that are open.
pub(super) const DISKS_AND_TAPS: &[Call] = &[
    any(c::SYS_readv),
    any(c::SYS_pread64),
    any(c::SYS_pwrite64),
    any(c::SYS_preadv),
    any(c::SYS_pwritev),
    any(c::SYS_preadv2),
    any(c::SYS_pwritev2),
    any(c::SYS_fdatasync),
    any(c::SYS_fsync),
    any(c::SYS_fallocate),
    any(c::SYS_lseek),
    any(c::SYS_io_uring_enter),
    // The lock goes with the disk.
    only(c::SYS_fcntl, 1, c::F_OFD_SETLK.cast_unsigned()),
    ioctl(BLKDISCARD),
    ioctl(BLKZEROOUT),
    ioctl(TUNSETOFFLOAD),
    ioctl(TUNSETQUEUE),
];

/// The licence record, the boot files, snapshots.
pub(super) const FILES: &[Call] = &[
    any(c::SYS_openat),
    any(c::SYS_renameat),
    any(c::SYS_unlink),
    any(c::SYS_unlinkat),
    any(c::SYS_fstat),
    any(c::SYS_statx),
    any(c::SYS_newfstatat),
    any(c::SYS_lseek),
    any(c::SYS_read),
    any(c::SYS_readv),
    any(c::SYS_pread64),
    any(c::SYS_fsync),
    any(c::SYS_fdatasync),
    any(c::SYS_ftruncate),
    any(c::SYS_fcntl),
];

/// Making a machine: its memory, descriptors and rings, and its kick signal (but never another
/// handler for what is forbidden).
pub(super) const MACHINES: &[Call] = &[
    any(c::SYS_eventfd2),
    any(c::SYS_epoll_create1),
    any(c::SYS_epoll_ctl),
    any(c::SYS_io_uring_setup),
    any(c::SYS_io_uring_register),
    any(c::SYS_memfd_create),
    any(c::SYS_ftruncate),
    any(c::SYS_fallocate),
    any(c::SYS_mbind),
    any(c::SYS_mlock),
    any(c::SYS_mlock2),
    any(c::SYS_munlock),
    any(c::SYS_dup),
    unless(c::SYS_rt_sigaction, 0, SIGSYS),
];

/// The asynchronous runtime, the control socket's connections and the words to systemd.
pub(super) const RUNTIME: &[Call] = &[
    any(c::SYS_eventfd2),
    any(c::SYS_epoll_create1),
    any(c::SYS_timerfd_create),
    any(c::SYS_timerfd_settime),
    any(c::SYS_socketpair),
    only(c::SYS_socket, 0, c::AF_UNIX.cast_unsigned()),
    any(c::SYS_connect),
    any(c::SYS_getuid),
    any(c::SYS_geteuid),
    any(c::SYS_getgid),
    any(c::SYS_getegid),
    unless(c::SYS_rt_sigaction, 0, SIGSYS),
    // The lock and the socket's file, at the end.
    any(c::SYS_flock),
    any(c::SYS_unlink),
    any(c::SYS_unlinkat),
];
