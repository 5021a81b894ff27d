// SPDX-License-Identifier: Apache-2.0
//! Which of several links carries the pair.
//!
//! The links are numbered in the order of preference. One is in use at a time. When it fails, the
//! others are tried one after the other, each once: a *round*. Whether and when there is another
//! round is the caller's affair. While a less preferred link carries the pair, the better ones are
//! due to be looked at again after a while; one that fails again soon after the pair went back to it
//! waits twice as long the next time, so a link that comes and goes does not take the pair along.

use std::time::Duration;

use kemari_api::config::{LinkAddresses, ReplicationAddress};

/// A better link is looked at again after this.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest pause before a better link that keeps failing is looked at again.
const PAUSE_MAX: Duration = Duration::from_secs(640);
/// A link that carried the pair for so long since it returned is taken for sound.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// A link, by its place in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkNumber(usize);

/// What follows when a link failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// The next one, which is the current one now, was not tried in this round.
    TryNext,
    /// All were tried, for the first time since one carried the pair.
    AllFailed,
    /// All were tried once more.
    AllFailedAgain,
}

/// What is known of one link.
#[derive(Debug, Clone)]
struct Link {
    /// Why it failed last, unless it carried the pair since.
    failure: Option<String>,
    /// When the pair went back to it.
    returned: Option<Duration>,
    /// Until it is looked at again, from its last failure on.
    pause: Duration,
    /// Not looked at before this.
    due: Duration,
}

impl Link {
    const fn new() -> Self {
        Self {
            failure: None,
            returned: None,
            pause: PAUSE_MIN,
            due: Duration::ZERO,
        }
    }
}

/// The links to the other replica, and which one it is.
#[derive(Debug, Clone)]
pub struct Links {
    addresses: LinkAddresses,
    links: Vec<Link>,
    current: usize,
    /// Links that failed in this round.
    tried: usize,
    /// Rounds in which all failed, since one carried the pair.
    rounds: u32,
}

impl Links {
    /// Links of which nothing is known yet; the first one is current.
    #[must_use]
    pub fn new(addresses: LinkAddresses) -> Self {
        Self {
            links: vec![Link::new(); addresses.count()],
            addresses,
            current: 0,
            tried: 0,
            rounds: 0,
        }
    }

    /// Where they lead.
    #[must_use]
    pub const fn addresses(&self) -> &LinkAddresses {
        &self.addresses
    }

    /// Takes other addresses of the same replica; what is known of those that stay is kept.
    pub fn replace(&mut self, addresses: LinkAddresses) {
        let known = |address: &ReplicationAddress| {
            let mut known = self.addresses.iter().zip(&self.links);
            known.find(|(other, _)| *other == address)
        };
        let links = addresses
            .iter()
            .map(|address| known(address).map_or_else(Link::new, |(_, link)| link.clone()));
        let links: Vec<_> = links.collect();
        let current = self.addresses.get(self.current);
        let stays = addresses
            .iter()
            .position(|address| Some(address) == current);
        self.links = links;
        self.current = stays.unwrap_or(0);
        self.addresses = addresses;
        self.tried = 0;
    }

    /// The link in use, or the one that is tried.
    #[must_use]
    pub const fn current(&self) -> LinkNumber {
        LinkNumber(self.current)
    }

    /// Whether there is a choice.
    #[must_use]
    pub const fn are_several(&self) -> bool {
        self.addresses.count() > 1
    }

    /// Where a link leads.
    ///
    /// # Panics
    /// The number is of other links.
    #[must_use]
    pub fn address(&self, link: LinkNumber) -> &ReplicationAddress {
        self.addresses.get(link.0).expect("a link of these")
    }

    /// Why a link failed last, unless it carried the pair since.
    #[must_use]
    pub fn failure(&self, link: LinkNumber) -> Option<&str> {
        self.links.get(link.0)?.failure.as_deref()
    }

    /// Every link.
    pub fn numbers(&self) -> impl Iterator<Item = LinkNumber> + use<> {
        (0..self.links.len()).map(LinkNumber)
    }

    /// The current link carries the pair.
    pub fn carries(&mut self) {
        self.tried = 0;
        self.rounds = 0;
        if let Some(link) = self.links.get_mut(self.current) {
            link.failure = None;
        }
    }

    /// The current link failed, or was tried without success.
    pub fn failed(&mut self, now: Duration, why: String) -> AfterFailure {
        if let Some(link) = self.links.get_mut(self.current) {
            let soon = link
                .returned
                .take()
                .is_some_and(|returned| now.saturating_sub(returned) < SOUND_AFTER);
            link.pause = if soon {
                (link.pause * 2).min(PAUSE_MAX)
            } else {
                PAUSE_MIN
            };
            link.due = now + link.pause;
            link.failure = Some(why);
        }
        self.tried += 1;
        if self.tried < self.links.len() {
            self.current = (self.current + 1) % self.links.len();
            return AfterFailure::TryNext;
        }
        self.current = 0;
        self.round_over()
    }

    /// The other replica answered over the current link that it does not take part: another link
    /// would lead to the same answer.
    pub fn answered(&mut self) -> AfterFailure {
        self.round_over()
    }

    fn round_over(&mut self) -> AfterFailure {
        self.tried = 0;
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds == 1 {
            AfterFailure::AllFailed
        } else {
            AfterFailure::AllFailedAgain
        }
    }

    /// Whether this is the first round since a link carried the pair.
    #[must_use]
    pub const fn is_first_round(&self) -> bool {
        self.rounds == 0
    }

    /// A link that is better than the current one and due to be looked at.
    #[must_use]
    pub fn better(&self, now: Duration) -> Option<LinkNumber> {
        let better = self.links.iter().take(self.current);
        better
            .enumerate()
            .find(|(_, link)| link.due <= now)
            .map(|(number, _)| LinkNumber(number))
    }

    /// When a better link is due to be looked at, if there is one.
    #[must_use]
    pub fn better_due(&self) -> Option<Duration> {
        self.links
            .iter()
            .take(self.current)
            .map(|link| link.due)
            .min()
    }

    /// A better link was looked at, and it does not lead to the other replica.
    pub fn not_yet(&mut self, link: LinkNumber, now: Duration, why: String) {
        if let Some(link) = self.links.get_mut(link.0) {
            link.failure = Some(why);
            link.due = now + link.pause;
        }
    }

    /// A better link could not be looked at, or not be used, for a reason that is not its own.
    pub fn later(&mut self, link: LinkNumber, now: Duration) {
        if let Some(link) = self.links.get_mut(link.0) {
            link.due = now + link.pause;
        }
    }

    /// The pair goes back to a better link, which is the current one from now on.
    pub fn go_back(&mut self, link: LinkNumber, now: Duration) {
        if let Some(found) = self.links.get_mut(link.0) {
            found.returned = Some(now);
            self.current = link.0;
            self.tried = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(count: usize) -> LinkAddresses {
        let text = |n| format!("kemari:tcp:10.0.{n}.1:4444").parse().unwrap();
        LinkAddresses::new((1..=count).map(text).collect()).unwrap()
    }

    fn links(count: usize) -> Links {
        Links::new(addresses(count))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(links: &mut Links, now: u64) -> AfterFailure {
        links.failed(at(now), "cut".into())
    }

    #[test]
    fn a_single_link_has_no_other() {
        let mut one = links(1);
        one.carries();
        assert_eq!(fail(&mut one, 1), AfterFailure::AllFailed);
        assert_eq!(fail(&mut one, 2), AfterFailure::AllFailedAgain);
        one.carries();
        assert_eq!(fail(&mut one, 3), AfterFailure::AllFailed);
        assert_eq!((one.better(at(100)), one.better_due()), (None, None));
    }

    #[test]
    fn each_link_is_tried_once_in_a_round_beginning_after_the_one_that_failed() {
        let mut three = links(3);
        assert_eq!(fail(&mut three, 1), AfterFailure::TryNext);
        assert_eq!(three.current(), LinkNumber(1));
        three.carries();
        assert_eq!(fail(&mut three, 2), AfterFailure::TryNext);
        assert_eq!(three.current(), LinkNumber(2));
        assert_eq!(fail(&mut three, 2), AfterFailure::TryNext);
        assert_eq!(three.current(), LinkNumber(0));
        assert_eq!(fail(&mut three, 2), AfterFailure::AllFailed);
        assert_eq!(three.current(), LinkNumber(0));
        assert_eq!(three.failure(LinkNumber(2)), Some("cut"));
    }

    #[test]
    fn what_the_other_replica_answers_is_asked_over_no_other_link() {
        let mut two = links(2);
        assert_eq!(two.answered(), AfterFailure::AllFailed);
        assert_eq!(two.current(), LinkNumber(0));
        assert_eq!(fail(&mut two, 1), AfterFailure::TryNext);
    }

    #[test]
    fn the_pair_goes_back_to_a_better_link_and_waits_longer_each_time_it_fails_again() {
        let mut two = links(2);
        two.carries();
        let mut now = 100;
        let mut pause = PAUSE_MIN.as_secs();
        for _ in 0..10 {
            fail(&mut two, now);
            two.carries();
            assert_eq!(two.better_due(), Some(at(now + pause)));
            assert_eq!(two.better(at(now + pause - 1)), None);
            now += pause;
            let better = two.better(at(now)).unwrap();
            two.go_back(better, at(now));
            two.carries();
            assert_eq!((two.better(at(now)), two.failure(better)), (None, None));
            pause = (pause * 2).min(PAUSE_MAX.as_secs());
            now += 1;
        }
        assert_eq!(pause, PAUSE_MAX.as_secs());
        // One that held for long is a sound one again.
        now += SOUND_AFTER.as_secs();
        fail(&mut two, now);
        assert_eq!(two.better_due(), Some(at(now) + PAUSE_MIN));
    }

    #[test]
    fn a_better_link_that_is_not_there_yet_is_looked_at_again() {
        let mut two = links(2);
        fail(&mut two, 0);
        two.carries();
        let better = two.better(at(5)).unwrap();
        two.not_yet(better, at(5), "no route".into());
        assert_eq!(
            (two.better(at(9)), two.better(at(10))),
            (None, Some(better))
        );
        assert_eq!(two.failure(better), Some("no route"));
        assert_eq!(two.current(), LinkNumber(1));
    }

    #[test]
    fn other_addresses_of_the_same_replica_keep_the_link_in_use() {
        let mut two = links(2);
        fail(&mut two, 0);
        two.carries();
        let second = two.address(two.current()).clone();
        two.replace(addresses(3));
        assert_eq!(two.address(two.current()), &second);
        assert_eq!(two.failure(LinkNumber(0)), Some("cut"));
        two.replace(second.into());
        assert_eq!((two.current(), two.better_due()), (LinkNumber(0), None));
    }

    proptest! {
        /// Whatever happens: a round tries each link once, and a better link is a better one.
        #[test]
        fn rounds_end_and_better_links_are_better(
            count in 1_usize..=8, events in prop::collection::vec((0_u8..6, 0_u64..100), 0..200)
        ) {
            let mut links = links(count);
            let mut now = 0;
            let mut failures = 0;
            for (event, seconds) in events {
                now += seconds;
                match event {
                    0 | 1 => {
                        failures += 1;
                        let next = fail(&mut links, now);
                        prop_assert_eq!(next == AfterFailure::TryNext, failures < count);
                        failures %= count;
                    }
                    2 => { links.carries(); failures = 0; }
                    3 => if let Some(better) = links.better(at(now)) {
                        prop_assert!(better < links.current());
                        links.go_back(better, at(now));
                        failures = 0;
                    }
                    4 => if let Some(better) = links.better(at(now)) {
                        links.not_yet(better, at(now), String::new());
                    }
                    _ => if let Some(better) = links.better(at(now)) {
                        links.later(better, at(now));
                        prop_assert!(links.better(at(now)) != Some(better));
                    }
                }
                prop_assert!(links.current().0 < count);
                let due = links.better_due();
                prop_assert_eq!(due.is_some(), links.current() > LinkNumber(0));
                prop_assert!(due.is_none_or(|due| due <= at(now) + PAUSE_MAX));
            }
        }
    }
}
