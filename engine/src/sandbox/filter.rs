// SPDX-License-Identifier: Apache-2.0
//! From lists of system calls to seccomp filters (seccomp(2)).
//!
//! A filter is two programs, of which the kernel takes the sterner answer: one lets through what is
//! listed and traps the rest, the other makes calls fail that the C library tries without need.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// One system call that is let through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    number: c_long,
    when: Option<When>,
}

/// What one of its arguments must be. Only the low 32 bits count.
#[derive(Debug, Clone, Copy)]
struct When {
    argument: u8,
    test: Test,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    Is(u32),
    IsNot(u32),
    Masked {
        mask: u32,
        value: u32,
    },
    /// The id of this process.
    OwnProcess,
}

/// The call, whatever its arguments.
pub(super) const fn any(number: c_long) -> Call {
    Call { number, when: None }
}

const fn when(number: c_long, argument: u8, test: Test) -> Call {
    Call {
        number,
        when: Some(When { argument, test }),
    }
}

/// The call, if that argument has this value.
pub(super) const fn only(number: c_long, argument: u8, value: u32) -> Call {
    when(number, argument, Test::Is(value))
}

/// The call, unless that argument has this value.
pub(super) const fn unless(number: c_long, argument: u8, value: u32) -> Call {
    when(number, argument, Test::IsNot(value))
}

/// The call, if none of these bits is set in that argument.
pub(super) const fn without(number: c_long, argument: u8, bits: u32) -> Call {
    let test = Test::Masked {
        mask: bits,
        value: 0,
    };
    when(number, argument, test)
}

/// The call, if all of these bits are set in that argument.
pub(super) const fn with(number: c_long, argument: u8, bits: u32) -> Call {
    let test = Test::Masked {
        mask: bits,
        value: bits,
    };
    when(number, argument, test)
}

/// The call, if that argument is the id of this process.
pub(super) const fn on_itself(number: c_long, argument: u8) -> Call {
    when(number, argument, Test::OwnProcess)
}

/// An ioctl of KVM by its number in `linux/kvm.h`, whatever direction and size are encoded with it.
pub(super) const fn kvm(number: u8) -> Call {
    let test = Test::Masked {
        mask: 0xffff,
        // KVMIO.
        value: 0xae00 | number as u32,
    };
    when(libc::SYS_ioctl, 1, test)
}

/// Every ioctl of KVM.
pub(super) const KVM_ALL: Call = when(
    libc::SYS_ioctl,
    1,
    Test::Masked {
        mask: 0xff00,
        value: 0xae00,
    },
);

/// Any other ioctl.
pub(super) const fn ioctl(request: u32) -> Call {
    only(libc::SYS_ioctl, 1, request)
}

/// The programs of one kind of thread.
#[derive(Debug)]
pub(super) struct Filter {
    allowing: BpfProgram,
    failing: Vec<BpfProgram>,
}

/// A program could not be made.
pub(super) type FilterError = seccompiler::BackendError;

impl Filter {
    /// Lets these calls through. Of those that `fail` they must not contain, the C library hears
    /// that they failed; all others are trapped.
    pub(super) fn new(
        allowed: impl IntoIterator<Item = Call>,
        fail: &[(c_long, libc::c_int)],
    ) -> Result<Self, FilterError> {
        // An empty list of rules stands for "whatever the arguments".
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut whatever = Vec::new();
        for call in allowed {
            let of_call = rules.entry(call.number).or_default();
            match call.when {
                Some(when) => of_call.push(when.rule()?),
                None => whatever.push(call.number),
            }
        }
        for number in whatever {
            rules.insert(number, Vec::new());
        }
        let mut failing: BTreeMap<libc::c_int, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
        for (number, error) in fail {
            if !rules.contains_key(number) {
                rules.insert(*number, Vec::new());
                failing
                    .entry(*error)
                    .or_default()
                    .insert(*number, Vec::new());
            }
        }
        Ok(Self {
            allowing: program(rules, SeccompAction::Trap, SeccompAction::Allow)?,
            failing: failing
                .into_iter()
                .map(|(error, rules)| {
                    let fails = SeccompAction::Errno(error.unsigned_abs());
                    program(rules, SeccompAction::Allow, fails)
                })
                .collect::<Result<_, _>>()?,
        })
    }

    /// Confines the calling thread.
    pub(super) fn apply(&self) -> Result<(), seccompiler::Error> {
        // The one that allows comes last: it does not let the others be set.
        for program in &self.failing {
            apply_filter(program)?;
        }
        apply_filter(&self.allowing)
    }
}

impl When {
    fn rule(self) -> Result<SeccompRule, FilterError> {
        let (operator, value) = match self.test {
            Test::Is(value) => (SeccompCmpOp::Eq, value),
            Test::IsNot(value) => (SeccompCmpOp::Ne, value),
            Test::Masked { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
            Test::OwnProcess => (SeccompCmpOp::Eq, std::process::id()),
        };
        let condition = SeccompCondition::new(
            self.argument,
            SeccompCmpArgLen::Dword,
            operator,
            value.into(),
        )?;
        SeccompRule::new(vec![condition])
    }
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, FilterError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()
}
