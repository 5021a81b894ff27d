// SPDX-License-Identifier: Apache-2.0
//! What the machine that runs the tests can do.

/// Whether `/dev/kvm` here runs stock Linux kernels: it needs hardware virtualisation (flag `vmx` or
/// `svm`); without it, KVM emulates every instruction and only small bare guests are bearable.
#[must_use]
pub fn runs_linux_guests() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    hardware
        && std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}
