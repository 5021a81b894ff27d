// SPDX-License-Identifier: Apache-2.0
//! Reaching the passive replica: which link is tried, what follows when it fails, and the way back
//! to a better one.
//!
//! What the loss of a link means for outputs is the licence's affair: they are held from the loss to
//! the first commit over whatever link carries the pair next. The pair goes on from the epoch that
//! the passive replica holds.

use std::mem;
use std::time::Duration;

use kemari_api::config::{LinkAddresses, ReplicationAddress};
use kemari_api::replica::{LinkUse, LinkView};
use kemari_replication::active::ActiveConfig;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::links::{AfterFailure, LinkNumber, Links};
use kemari_replication::wire::{Purpose, Refusal as PeerRefusal};
use kemari_transport::Connection;

use super::finish::Finish;
use super::pair::{LinkState, PAIRED, Phase};
use super::{Answer, Conductor, Refusal};
use crate::clock;
use crate::link::LinkError;
use crate::link::active::{self, Attempt, LinkEvent, LinkId, Others, Waits, Way};

/// Between two attempts to reach a passive replica that was lost.
const RETRY: Duration = Duration::from_millis(500);

/// A look whether a better link can be used again.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    id: LinkId,
    link: LinkNumber,
}

impl Conductor {
    /// Begins to replicate to the replica at these addresses.
    pub(super) fn connect_to(&mut self, addresses: LinkAddresses) -> Answer {
        match (&self.link, &mut self.links) {
            (LinkState::None, links) => {
                match links {
                    // Which of them failed last is worth to be known.
                    Some(links) if links.addresses().meets(&addresses) => {
                        if *links.addresses() != addresses {
                            links.replace(addresses);
                        }
                    }
                    links => *links = Some(Links::new(addresses)),
                }
                self.connect();
                Ok(())
            }
            (_, None) => Err(Refusal::Ending),
            (state, Some(links)) => {
                let is_retry = matches!(state, LinkState::Retry { .. });
                let fits = if is_retry {
                    links.addresses().meets(&addresses)
                } else {
                    let current = links.address(links.current());
                    addresses.iter().any(|address| address == current)
                };
                // Also while it is tried again: the replica there holds a state of this generation.
                if !fits {
                    return Err(Refusal::Busy {
                        addresses: links.addresses().clone(),
                    });
                }
                if *links.addresses() != addresses {
                    tracing::info!(vm = %self.config.vm.name, "the links of the pair are now {addresses}");
                    links.replace(addresses);
                    if let LinkState::Up(pair) = &mut self.link {
                        pair.look = None;
                    }
                }
                if is_retry {
                    self.connect();
                }
                Ok(())
            }
        }
    }

    /// Begins an attempt over the current link.
    pub(super) fn connect(&mut self) {
        if let Some(links) = &self.links {
            let address = links.address(links.current()).clone();
            self.attempt(Way::Connect(address), None);
        }
    }

    /// `leaving`: what carries the pair until the other side has answered.
    fn attempt(&mut self, way: Way, leaving: Option<active::Link>) {
        let config = ActiveConfig {
            identity: self.identity(),
            node: self.node.clone(),
            purpose: if self.migration.is_some() {
                Purpose::Migration
            } else {
                Purpose::Replication
            },
            generation: self.generation,
            sent: self.progress.sent,
            acked: self.progress.acked,
        };
        let attempt = self.next_attempt();
        let id = attempt.id;
        self.statistics.link_failed(None);
        match active::start(attempt, way, config) {
            Ok(()) => {
                self.link = LinkState::Connecting {
                    id,
                    _leaving: leaving.map(Box::new),
                }
            }
            Err(error) => self.retry_later(&LinkError::Io(error)),
        }
    }

    fn next_attempt(&mut self) -> Attempt {
        self.next_link += 1;
        let several = self.links.as_ref().is_some_and(Links::are_several);
        Attempt {
            id: LinkId(self.next_link),
            waits: Waits {
                silence_max: self.silence_max(),
                others: if several { Others::There } else { Others::None },
            },
            tls: self.security.tls().cloned(),
            inputs: self.sender.clone(),
        }
    }

    /// The current link, for the log.
    pub(super) fn link_name(&self) -> String {
        self.links.as_ref().map_or_else(String::new, |links| {
            links.address(links.current()).to_string()
        })
    }

    /// The passive replica is out of reach over this link. What that means for outputs is the
    /// licence's affair.
    pub(super) fn link_lost(&mut self, error: &LinkError) {
        if self.link.is_none() {
            return;
        }
        self.link = LinkState::None;
        self.verify_ended();
        self.attachments.storage().changes().abort_round();
        if self.finish.as_ref().is_some_and(Finish::has_left) {
            return self.finish_if_possible();
        }
        self.progress.session_sent = false;
        self.statistics.copying(false);
        self.statistics.link_failed(Some(error.to_string()));
        // A migration asks where nobody needs to be asked: that the place remembers more generations
        // than this guest has had is no reason to stop it.
        if let LinkError::Refused(PeerRefusal::Outdated { generation }) = error
            && self.migration.is_none()
        {
            let generation = *generation;
            return self.become_outdated(generation);
        }
        let lost = self.link_name();
        let is_news = self.links.as_ref().is_some_and(Links::is_first_round);
        let next = self.after_failure(error);
        self.tell_gate(LicenceEvent::SessionLost);
        self.in_sync = false;
        match self.licence() {
            Licence::Cut { .. } => self.lost_a_pair(&lost, error, next, is_news),
            Licence::Reverting { generation } => {
                // Nothing was offered to the passive replica yet: still the only one.
                if self.write_record(super::Kind::Solo) {
                    self.tell_gate(LicenceEvent::SoloGranted { generation });
                    self.lost_before_pairing(&lost, error, next, is_news);
                }
            }
            _ => self.lost_before_pairing(&lost, error, next, is_news),
        }
    }

    fn after_failure(&mut self, error: &LinkError) -> AfterFailure {
        let Some(links) = &mut self.links else {
            return AfterFailure::AllFailed;
        };
        match error {
            LinkError::Refused(_) => links.answered(),
            _ => links.failed(clock::now(), error.to_string()),
        }
    }

    fn lost_a_pair(&mut self, lost: &str, error: &LinkError, next: AfterFailure, is_news: bool) {
        match next {
            AfterFailure::TryNext => {
                if is_news {
                    tracing::warn!(
                        vm = %self.config.vm.name, role = %self.role, generation = %self.generation,
                        peer = %self.peer_name(), link = lost, next = self.link_name(),
                        t_mono_us = clock::now_us(),
                        "the link failed, outputs are held until the next one carries: {error}"
                    );
                    self.detail = format!(
                        "outputs are held, {} is tried: {lost} failed: {error}",
                        self.link_name()
                    );
                }
                self.connect();
            }
            AfterFailure::AllFailed => {
                tracing::warn!(
                    vm = %self.config.vm.name, role = %self.role, generation = %self.generation,
                    peer = %self.peer_name(), link = lost, t_mono_us = clock::now_us(),
                    "the passive replica is out of reach, outputs are held: {error}"
                );
                self.detail = format!("outputs are held: {error}");
                self.retry_later(error);
            }
            AfterFailure::AllFailedAgain => {
                tracing::debug!(vm = %self.config.vm.name, "still out of reach: {error}");
                self.retry_later(error);
            }
        }
    }

    fn lost_before_pairing(
        &mut self,
        lost: &str,
        error: &LinkError,
        next: AfterFailure,
        is_news: bool,
    ) {
        if let Some(migration) = self.migration.take() {
            migration.answer(Err(Refusal::Failed(format!(
                "The migration failed: {error}"
            ))));
            self.not_replicating(error);
            return self.stop_tracking();
        }
        if next != AfterFailure::TryNext {
            self.not_replicating(error);
            return self.stop_tracking();
        }
        if is_news {
            tracing::warn!(
                vm = %self.config.vm.name, generation = %self.generation, link = lost,
                next = self.link_name(), "not replicating over this link, the next one is tried: {error}"
            );
        }
        self.stop_tracking();
        self.connect();
    }

    /// Says why there is no pair.
    pub(super) fn not_replicating(&mut self, why: &dyn std::fmt::Display) {
        let detail = format!("not replicating: {why}");
        // The agent tries again every second; only news is worth a warning.
        if detail == self.detail {
            tracing::debug!(vm = %self.config.vm.name, "{detail}");
        } else {
            tracing::warn!(vm = %self.config.vm.name, generation = %self.generation, "{detail}");
        }
        self.detail = detail;
    }

    fn retry_later(&mut self, error: &LinkError) {
        let last_word = matches!(error, LinkError::Refused(refusal) if active::is_final(refusal));
        let pause = if last_word { RETRY * 10 } else { RETRY };
        self.link = LinkState::Retry {
            at: clock::now() + pause,
        };
    }

    /// Whether the pair could change links now without disturbing anything else.
    fn may_go_back(&self) -> bool {
        let LinkState::Up(pair) = &self.link else {
            return false;
        };
        matches!(pair.phase, Phase::Checkpoints { .. })
            && self.is_paired()
            && self.finish.is_none()
            && self.verify.is_none()
            && self.migration.is_none()
    }

    /// When a better link is to be looked at.
    pub(super) fn look_due(&self) -> Option<Duration> {
        match &self.link {
            LinkState::Up(pair) if pair.look.is_none() && self.may_go_back() => {
                self.links.as_ref()?.better_due()
            }
            _ => None,
        }
    }

    /// Looks at a better link, if that is due.
    pub(super) fn look_at_better_link(&mut self) {
        let now = clock::now();
        if self.look_due().is_none_or(|due| due > now) {
            return;
        }
        let Some(links) = &self.links else { return };
        let Some(link) = links.better(now) else {
            return;
        };
        let address = links.address(link).clone();
        let attempt = self.next_attempt();
        let id = attempt.id;
        match active::look(attempt, address) {
            Ok(()) => {
                if let LinkState::Up(pair) = &mut self.link {
                    pair.look = Some(Look { id, link });
                }
            }
            Err(error) => {
                tracing::debug!(vm = %self.config.vm.name, "no thread to look at a better link: {error}");
                self.later(link);
            }
        }
    }

    fn later(&mut self, link: LinkNumber) {
        if let Some(links) = &mut self.links {
            links.later(link, clock::now());
        }
    }

    /// What came of a look; `Err`: this event is of something else.
    pub(super) fn looked(&mut self, id: LinkId, event: LinkEvent) -> Result<(), LinkEvent> {
        let LinkState::Up(pair) = &mut self.link else {
            return Err(event);
        };
        let Some(Look { link, .. }) = pair.look.take_if(|look| look.id == id) else {
            return Err(event);
        };
        match event {
            LinkEvent::Reached(connection) if self.may_go_back() => self.go_back(link, connection),
            LinkEvent::Lost(error) => self.not_yet(link, &error),
            // The pair has something else to do.
            _ => self.later(link),
        }
        Ok(())
    }

    fn not_yet(&mut self, link: LinkNumber, why: &dyn std::fmt::Display) {
        if let Some(links) = &mut self.links {
            tracing::debug!(vm = %self.config.vm.name, link = %links.address(link), "still not to be used: {why}");
            links.not_yet(link, clock::now(), why.to_string());
        }
    }

    /// The pair leaves its link for a better one.
    fn go_back(&mut self, link: LinkNumber, connection: Connection) {
        let left = self.link_name();
        let LinkState::Up(pair) = mem::replace(&mut self.link, LinkState::None) else {
            return;
        };
        let Some(links) = &mut self.links else { return };
        links.go_back(link, clock::now());
        let address = links.address(link).clone();
        tracing::info!(
            vm = %self.config.vm.name, role = %self.role, generation = %self.generation,
            peer = %self.peer_name(), link = %address, left, t_mono_us = clock::now_us(),
            "the better link can be used again: the pair goes back to it"
        );
        self.detail = format!("the pair goes back to {address}, outputs are held meanwhile");
        self.progress.session_sent = false;
        self.attachments.storage().changes().abort_round();
        self.in_sync = false;
        if self.tell_gate(LicenceEvent::SessionLost) {
            self.attempt(Way::Made(address, connection), Some(pair.link));
        }
    }

    /// What the status says of a pair in sync.
    pub(super) fn paired_detail(&self) -> String {
        let Some(links) = self.links.as_ref().filter(|links| links.are_several()) else {
            return PAIRED.to_owned();
        };
        let current = links.current();
        let mut text = format!("{PAIRED}; over {}", links.address(current));
        let failed = links.numbers().take_while(|link| *link < current);
        for (link, why) in failed.filter_map(|link| Some((link, links.failure(link)?))) {
            text.push_str(&format!(", since {} failed: {why}", links.address(link)));
        }
        text
    }

    /// Every link of this replica.
    pub(super) fn link_views(&self) -> Vec<LinkView> {
        if let Some(at) = &self.reached_at {
            return vec![LinkView {
                address: at.clone(),
                state: LinkUse::InUse,
                failure: String::new(),
            }];
        }
        let Some(links) = &self.links else {
            return Vec::new();
        };
        let view = |link: LinkNumber| {
            let failure = links.failure(link).unwrap_or_default().to_owned();
            LinkView {
                address: links.address(link).to_string(),
                state: match &self.link {
                    LinkState::Up(_) if link == links.current() => LinkUse::InUse,
                    LinkState::Connecting { .. } if link == links.current() => LinkUse::Tried,
                    _ if failure.is_empty() => LinkUse::Idle,
                    _ => LinkUse::Failed,
                },
                failure,
            }
        };
        links.numbers().map(view).collect()
    }

    /// One address, for what knows no links.
    pub(super) fn connect_once(&mut self, address: ReplicationAddress) {
        self.links = Some(Links::new(address.into()));
        self.connect();
    }
}
