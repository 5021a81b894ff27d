// SPDX-License-Identifier: Apache-2.0
//! What the end of an engine's unit is in OCF's codes.

use kemari_api::unit::{ProcessEnd, UnitState};

use crate::exit::{Code, Failure};

/// The failure of a unit that should have started.
pub(crate) fn failure(state: &UnitState, unit: &str) -> Failure {
    if state.load != "loaded" {
        let text = format!(
            "The systemd unit {unit} is {}: install the package kemari, then systemctl daemon-reload",
            state.load
        );
        return Failure::new(Code::Installed, text);
    }
    Failure::new(code_of_end(state.end), state.ending(unit))
}

/// The engine ends with the codes of sysexits.h; systemd itself with 203 when the program is
/// missing (systemd.exec(5), "Process exit codes").
fn code_of_end(end: ProcessEnd) -> Code {
    match end {
        ProcessEnd::Exit(78) => Code::Configured,
        ProcessEnd::Exit(77) => Code::Permission,
        ProcessEnd::Exit(69 | 203) => Code::Installed,
        _ => Code::Generic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_status_of_the_engine_has_its_ocf_code() {
        for (status, code) in [
            (78, Code::Configured),
            (77, Code::Permission),
            (69, Code::Installed),
            (203, Code::Installed),
            (71, Code::Generic),
            (1, Code::Generic),
            (0, Code::Generic),
        ] {
            assert_eq!(code_of_end(ProcessEnd::Exit(status)), code, "{status}");
        }
        assert_eq!(code_of_end(ProcessEnd::Signal(78)), Code::Generic);
    }

    #[test]
    fn a_missing_unit_is_a_missing_package() {
        let state = UnitState {
            load: "not-found".to_owned(),
            active: "inactive".to_owned(),
            job: false,
            result: "success".to_owned(),
            text: String::new(),
            end: ProcessEnd::Unknown,
        };
        assert_eq!(failure(&state, "u").code, Code::Installed);
    }
}
