// SPDX-License-Identifier: Apache-2.0
//! Who may change something: root, and whom polkit allows it.
//!
//! `org.freedesktop.PolicyKit1.Authority` is described in polkit(8) and its reference manual. Where
//! polkit does not answer, only root may.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tracing::{debug, info};
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus::zvariant::Type;
use zbus::{Connection, Variant, fdo};

/// What polkit is asked about; `packaging/polkit/org.kemari.policy` says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// The guest's power button.
    PowerButton,
    /// Another replica goes on.
    ChangeRole,
    /// What may be newer elsewhere is lost.
    ForceActive,
}

impl Act {
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::PowerButton, Self::ChangeRole, Self::ForceActive];

    pub const fn id(self) -> &'static str {
        match self {
            Self::PowerButton => "org.kemari.power-button",
            Self::ChangeRole => "org.kemari.change-role",
            Self::ForceActive => "org.kemari.force-active",
        }
    }
}

/// `CheckAuthorizationFlags`: a person may be asked for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// The `Subject` of polkit.
#[derive(Debug, Serialize, Type)]
struct Subject<'a> {
    kind: &'a str,
    details: HashMap<&'a str, Variant<'a>>,
}

/// The `AuthorizationResult` of polkit.
#[derive(Debug, Deserialize, Type)]
struct Authorization {
    allowed: bool,
    challenge: bool,
    #[expect(
        dead_code,
        reason = "polkit's answer has it, and D-Bus reads an answer whole"
    )]
    details: HashMap<String, String>,
}

#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority"
)]
trait Authority {
    fn check_authorization(
        &self,
        subject: &Subject<'_>,
        action_id: &str,
        details: HashMap<&str, &str>,
        flags: u32,
        cancellation_id: &str,
    ) -> zbus::Result<Authorization>;
}

/// Lets root and whom polkit allows pass.
pub(super) async fn check(
    connection: &Connection,
    header: &Header<'_>,
    act: Act,
) -> fdo::Result<()> {
    let sender = header
        .sender()
        .ok_or_else(|| fdo::Error::AccessDenied("Nobody knows who asks".to_owned()))?;
    let name = BusName::from(sender.clone());
    let uid = fdo::DBusProxy::new(connection)
        .await?
        .get_connection_unix_user(name)
        .await?;
    let by_person = header
        .primary()
        .flags()
        .contains(Flags::ALLOW_INTERACTIVE_AUTH);
    check_user(connection, uid, sender.as_str(), by_person, act).await
}

async fn check_user(
    connection: &Connection,
    uid: u32,
    sender: &str,
    by_person: bool,
    act: Act,
) -> fdo::Result<()> {
    if uid == 0 {
        return Ok(());
    }
    let action = act.id();
    match ask_polkit(connection, sender, by_person, act).await {
        Ok(Authorization { allowed: true, .. }) => {
            info!(uid, action, "Allowed by polkit");
            Ok(())
        }
        Ok(Authorization { challenge, .. }) => {
            info!(uid, action, "Refused by polkit");
            let remedy = if challenge {
                "; it would allow it to someone who can be asked for a password"
            } else {
                ""
            };
            Err(fdo::Error::AccessDenied(format!(
                "polkit does not allow {action} to user {uid}{remedy}"
            )))
        }
        Err(error) => {
            debug!(%error, "polkit does not answer");
            Err(fdo::Error::AccessDenied(format!(
                "Only root may do this: polkit, which could allow {action} to others, does not answer"
            )))
        }
    }
}

async fn ask_polkit(
    connection: &Connection,
    sender: &str,
    by_person: bool,
    act: Act,
) -> zbus::Result<Authorization> {
    let subject = Subject {
        kind: "system-bus-name",
        details: HashMap::from([("name", Variant::from(sender))]),
    };
    let flags = if by_person { ALLOW_USER_INTERACTION } else { 0 };
    AuthorityProxy::new(connection)
        .await?
        .check_authorization(&subject, act.id(), HashMap::new(), flags, "")
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_bus::PrivateBus;

    struct Polkit;

    #[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
    impl Polkit {
        #[zbus(name = "CheckAuthorization")]
        fn check_authorization(
            &self,
            subject: (String, HashMap<String, zbus::OwnedVariant>),
            action_id: &str,
            _details: HashMap<String, String>,
            flags: u32,
            _cancellation_id: String,
        ) -> ((bool, bool, HashMap<String, String>),) {
            let (kind, details) = subject;
            assert_eq!(kind, "system-bus-name");
            assert!(details.into_keys().eq(["name"]));
            let allowed = action_id == Act::PowerButton.id();
            let challenge = action_id == Act::ChangeRole.id();
            let allowed = allowed || challenge && flags == ALLOW_USER_INTERACTION;
            ((allowed, challenge && !allowed, HashMap::new()),)
        }
    }

    fn denied(result: fdo::Result<()>) -> String {
        match result {
            Err(fdo::Error::AccessDenied(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn polkit_decides_for_all_but_root() {
        let Some(bus) = PrivateBus::start() else {
            return;
        };
        let agent = bus.connect().await;
        let ask = async |uid, by_person, act| check_user(&agent, uid, ":1.7", by_person, act).await;
        assert!(ask(0, false, Act::ForceActive).await.is_ok());
        let text = denied(ask(1000, false, Act::PowerButton).await);
        assert!(text.starts_with("Only root may do this"), "{text}");

        let polkit = bus.connect().await;
        let path = "/org/freedesktop/PolicyKit1/Authority";
        polkit.object_server().at(path, Polkit).await.unwrap();
        polkit
            .request_name("org.freedesktop.PolicyKit1")
            .await
            .unwrap();
        assert!(ask(1000, false, Act::PowerButton).await.is_ok());
        assert!(ask(1000, true, Act::ChangeRole).await.is_ok());
        let text = denied(ask(1000, false, Act::ChangeRole).await);
        assert!(text.contains("password"), "{text}");
        let text = denied(ask(1000, true, Act::ForceActive).await);
        assert!(
            text.contains("org.kemari.force-active to user 1000"),
            "{text}"
        );
    }

    #[test]
    fn the_policy_file_has_these_actions_and_no_other() {
        let policy = include_str!("../../../packaging/polkit/org.kemari.policy");
        for act in Act::ALL {
            assert!(policy.contains(&format!("<action id=\"{}\">", act.id())));
        }
        assert_eq!(policy.matches("<action id=").count(), Act::ALL.len());
    }
}
