// SPDX-License-Identifier: Apache-2.0
//! `[sandbox]`: the user that the engine becomes.

use kemari_api::config::VmConfig;
use nix::unistd::User;

use super::Problem;

/// What this node lacks for the sandbox.
pub(super) fn problems(config: &VmConfig) -> Option<Problem> {
    let user = &config.sandbox.user;
    if !config.sandbox.enabled {
        let text = "the engine will keep all its rights, a guest that breaks out is root; for \
                    debugging only";
        return Some(Problem::warning("sandbox.enabled", text));
    }
    let text = match User::from_name(user.as_str()) {
        Ok(Some(found)) if !found.uid.is_root() => return None,
        Ok(Some(_)) => format!("user {user} has uid 0, it is root; give another"),
        Ok(None) => format!(
            "there is no user {user} on this host; make it (useradd --system --no-create-home \
             --shell /usr/sbin/nologin {user})"
        ),
        Err(error) => format!("cannot look up user {user}: {error}; check nsswitch.conf"),
    };
    Some(Problem::missing("sandbox.user", text))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::host::described;
    use super::*;

    #[test]
    fn the_user_must_be_there() {
        let told = |more: &str| problems(&described(&format!("[sandbox]\n{more}")));
        assert_eq!(told("user = \"nobody\"\n"), None);
        let missing = told("user = \"no-such-user\"\n").unwrap();
        assert!(missing.text.contains("useradd"), "{missing:?}");
        let off = told("enabled = false\nuser = \"no-such-user\"\n").unwrap();
        assert_eq!(off.severity, Severity::Warning);
    }
}
