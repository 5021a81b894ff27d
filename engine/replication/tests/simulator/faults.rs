// SPDX-License-Identifier: Apache-2.0
//! What happens to hosts and paths, just before any event.

use super::env::{Event, HostId};
use super::schedule::MS;
use super::world::World;

impl World {
    /// Something bad.
    pub fn upset(&mut self) {
        let host: HostId = self.env.rng.usize(0..2);
        match self.env.rng.u32(0..24) {
            0..=1 if self.reaches(1 - host) => self.crash_for_a_while(host),
            2 => self.crash_for_a_while(host),
            3..=4 => {
                self.env.counts.kills += 1;
                self.stop_engine(host, "killed");
            }
            5..=8 => self.freeze_for_a_while(host),
            9..=11 => {
                self.env.line(|| "- the link is cut".to_owned());
                self.env.network.link_cut = true;
                self.heal_later();
            }
            12..=13 => {
                self.env.tell(host, || "reaches nobody");
                self.env.network.isolated[host] = true;
                self.membership_changed();
                self.heal_later();
            }
            14 => {
                self.env.line(|| "- the witness is gone".to_owned());
                self.witness = false;
                self.membership_changed();
                self.heal_later();
            }
            15..=19 => self.env.cut_connection(),
            _ => self.env.stall_connection(),
        }
    }

    fn heal_later(&mut self) {
        let delay = self.env.between(MS / 2, 70 * MS);
        self.env.queue.put(delay, Event::Heal);
    }

    fn crash_for_a_while(&mut self, host: HostId) {
        if self.env.network.up[host] {
            self.crash(host);
            let delay = self.env.between(MS, 60 * MS);
            self.env.queue.put(delay, Event::Boot(host));
        }
    }

    fn freeze_for_a_while(&mut self, host: HostId) {
        if self.env.network.up[host] && !self.hosts[host].frozen {
            self.env.counts.freezes += 1;
            self.env.tell(host, || "the host freezes");
            self.hosts[host].frozen = true;
            self.membership_changed();
            let delay = self.env.between(MS, 80 * MS);
            self.env.queue.put(delay, Event::Thaw(host));
        }
    }
}
