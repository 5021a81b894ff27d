// SPDX-License-Identifier: Apache-2.0
//! What Pacemaker tells an action through its environment.
//!
//! Parameters are `OCF_RESKEY_*`, what Pacemaker adds of its own `OCF_RESKEY_CRM_meta_*` (OCF 1.1,
//! "Parameter passing"; Pacemaker Explained, "Clone Notifications"). It is read once, at the border;
//! nothing else reads the environment, except `kemari_api::place`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kemari_api::NodeName;
use kemari_api::replica::ReplicaStatus;

use crate::action::Action;
use crate::form::Form;
use crate::transition::Transition;

/// Kept back from the timeout, so that the agent gives its own reason before Pacemaker kills it.
const MARGIN_MIN: Duration = Duration::from_millis(500);
/// The most that is kept back.
const MARGIN_MAX: Duration = Duration::from_secs(3);

/// How thoroughly `monitor` and `validate-all` look (OCF 1.1, "Check levels"): `OCF_CHECK_LEVEL`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CheckLevel {
    /// 0 to 9, and what is no number.
    #[default]
    Basic,
    /// 10 and more.
    Deep,
}

impl CheckLevel {
    /// The value from which on a check is deep, as the meta-data says.
    pub(crate) const DEEP: u32 = 10;

    fn read(text: Option<&str>) -> Self {
        match text.map(|text| text.trim().parse::<u32>()) {
            Some(Ok(level)) if level >= Self::DEEP => Self::Deep,
            _ => Self::Basic,
        }
    }
}

/// In which role `monitor` is to find the replica: Pacemaker's `role` of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Promoted.
    Promoted,
    /// Started, and not promoted.
    Unpromoted,
}

impl Expected {
    /// By its names of before Pacemaker 2.1 and since.
    fn read(role: &str) -> Option<Self> {
        match role {
            "Promoted" | "Master" => Some(Self::Promoted),
            "Unpromoted" | "Slave" => Some(Self::Unpromoted),
            _ => None,
        }
    }
}

/// The environment of one action.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// The parameter `config`.
    pub(crate) config: Option<PathBuf>,
    /// The parameter `shutdown_timeout`, as it is written.
    pub(crate) shutdown_timeout: Option<String>,
    /// Pacemaker's name of the resource, as it names its promotion score.
    pub(crate) resource: Option<String>,
    /// Pacemaker's name of this node.
    pub(crate) node: Option<String>,
    /// Where `migrate_to` is to hand the guest over to.
    pub(crate) migrate_target: Option<String>,
    /// What becomes of the replicas; `None` if Pacemaker did not say.
    pub(crate) transition: Option<Transition>,
    /// What the resource is to Pacemaker. Only Pacemaker's word counts: see `under_pacemaker`.
    pub(crate) form: Form,
    /// How thoroughly to look.
    pub(crate) check: CheckLevel,
    /// The role that a monitor is for; `None` for a probe, and for one without a role.
    pub(crate) expected: Option<Expected>,
    /// The operation's timeout.
    pub(crate) timeout: Option<Duration>,
    /// Pacemaker runs this action; otherwise a person or ocf-tester does, and there may be no
    /// cluster whose attributes could be set.
    pub(crate) under_pacemaker: bool,
    /// What `notify` tells about.
    pub(crate) notice: Notice,
}

/// What a clone notification says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notice {
    /// `pre` or `post`.
    pub(crate) moment: String,
    /// The operation it is about: `start`, `stop`, `promote`, `demote`.
    pub(crate) operation: String,
    /// Nodes whose instances are stopped in this transition.
    pub(crate) stopped: BTreeSet<NodeName>,
    /// Nodes whose instances are started in this transition.
    pub(crate) started: BTreeSet<NodeName>,
    /// Nodes whose instances are demoted in this transition.
    pub(crate) demoted: BTreeSet<NodeName>,
}

impl Environment {
    /// Reads what `lookup` finds by name; in the process, `std::env::var`.
    pub(crate) fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let meta = |key: &str| lookup(&format!("OCF_RESKEY_CRM_meta_{key}"));
        let nodes = |key: &str| meta(key).map(|text| node_list(&text)).unwrap_or_default();
        Self {
            config: lookup("OCF_RESKEY_config")
                .filter(|text| !text.is_empty())
                .map(PathBuf::from),
            shutdown_timeout: lookup("OCF_RESKEY_shutdown_timeout").filter(|text| !text.is_empty()),
            resource: lookup("OCF_RESOURCE_INSTANCE").filter(|name| !name.is_empty()),
            node: meta("on_node").filter(|name| !name.is_empty()),
            migrate_target: meta("migrate_target").filter(|name| !name.is_empty()),
            transition: Transition::read(meta),
            form: Form::read(meta),
            check: CheckLevel::read(lookup("OCF_CHECK_LEVEL").as_deref()),
            expected: meta("role").as_deref().and_then(Expected::read),
            timeout: meta("timeout")
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis),
            // ocf-tester sets some CRM_meta variables too, but not this one.
            under_pacemaker: lookup("OCF_RESKEY_crm_feature_set").is_some(),
            notice: Notice {
                moment: meta("notify_type").unwrap_or_default(),
                operation: meta("notify_operation").unwrap_or_default(),
                stopped: nodes("notify_stop_uname"),
                started: nodes("notify_start_uname"),
                demoted: nodes("notify_demote_uname"),
            },
        }
    }

    /// Pacemaker's name of this node; outside Pacemaker what the replica calls it.
    pub(crate) fn node_or<'a>(&'a self, status: &'a ReplicaStatus) -> &'a str {
        self.node.as_deref().unwrap_or_else(|| status.node.as_str())
    }

    /// How long `action` may take: Pacemaker's timeout, or the advised one, less a margin.
    pub(crate) fn budget(&self, action: Action) -> Duration {
        let timeout = self
            .timeout
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or_else(|| action.timeout());
        let margin = (timeout / 10).clamp(MARGIN_MIN, MARGIN_MAX);
        // A timeout shorter than the margin is too short for anything; half of it is tried.
        timeout.checked_sub(margin).unwrap_or(timeout / 2)
    }
}

/// Pacemaker separates names by blanks; a place without a name is a blank too.
fn node_list(text: &str) -> BTreeSet<NodeName> {
    text.split_whitespace()
        .filter_map(|name| name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|key| {
            pairs
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn parameters_and_notifications_are_read() {
        let environment = from(&[
            ("OCF_RESKEY_config", "/etc/kemari/vm.toml"),
            ("OCF_RESKEY_crm_feature_set", "3.16.1"),
            ("OCF_RESKEY_CRM_meta_timeout", "20000"),
            ("OCF_RESKEY_CRM_meta_notify_type", "post"),
            ("OCF_RESKEY_CRM_meta_notify_operation", "stop"),
            ("OCF_RESKEY_CRM_meta_notify_stop_uname", " node2  node3 "),
            ("OCF_RESKEY_CRM_meta_notify_start_uname", " "),
            ("OCF_RESKEY_CRM_meta_notify_promote_uname", " "),
            ("OCF_RESKEY_CRM_meta_notify_active_uname", "node2 node3"),
            ("OCF_RESKEY_CRM_meta_on_node", "node2"),
            ("OCF_RESKEY_shutdown_timeout", "45"),
        ]);
        assert_eq!(
            environment.config,
            Some(PathBuf::from("/etc/kemari/vm.toml"))
        );
        assert!(environment.under_pacemaker);
        assert_eq!(environment.notice.stopped.len(), 2);
        assert!(environment.notice.started.is_empty());
        assert_eq!(environment.timeout, Some(Duration::from_secs(20)));
        assert_eq!(environment.node.as_deref(), Some("node2"));
        assert_eq!(environment.shutdown_timeout.as_deref(), Some("45"));
        assert!(environment.transition.unwrap().ends_all());
    }

    #[test]
    fn ten_and_more_is_a_deep_check() {
        for (level, check) in [
            ("0", CheckLevel::Basic),
            ("", CheckLevel::Basic),
            ("9", CheckLevel::Basic),
            ("deep", CheckLevel::Basic),
            ("10", CheckLevel::Deep),
            (" 20 ", CheckLevel::Deep),
        ] {
            assert_eq!(from(&[("OCF_CHECK_LEVEL", level)]).check, check, "{level}");
        }
        assert_eq!(from(&[]).check, CheckLevel::Basic);
    }

    #[test]
    fn a_monitor_is_for_a_role_by_either_of_its_names() {
        for (role, expected) in [
            ("Promoted", Some(Expected::Promoted)),
            ("Master", Some(Expected::Promoted)),
            ("Unpromoted", Some(Expected::Unpromoted)),
            ("Slave", Some(Expected::Unpromoted)),
            ("Started", None),
            ("", None),
        ] {
            let environment = from(&[("OCF_RESKEY_CRM_meta_role", role)]);
            assert_eq!(environment.expected, expected, "{role}");
        }
    }

    #[test]
    fn an_empty_parameter_counts_as_missing() {
        let empty = from(&[
            ("OCF_RESKEY_config", ""),
            ("OCF_RESKEY_shutdown_timeout", ""),
        ]);
        assert_eq!((empty.config, empty.shutdown_timeout), (None, None));
        assert_eq!(empty.transition, None);
    }

    #[test]
    fn the_budget_ends_before_the_timeout() {
        let mut environment = Environment::default();
        for (timeout_ms, budget_ms) in [
            (60_000, 57_000),
            (20_000, 18_000),
            (1_000, 500),
            (100, 50),
            (0, 18_000),
        ] {
            environment.timeout = Some(Duration::from_millis(timeout_ms));
            assert_eq!(
                environment.budget(Action::Monitor),
                Duration::from_millis(budget_ms)
            );
        }
        environment.timeout = None;
        assert_eq!(environment.budget(Action::Start), Duration::from_secs(57));
    }
}
