// SPDX-License-Identifier: Apache-2.0
//! Snapshots: the guest in a file, and going on from one.
//!
//! A snapshot is a recorded session of the replication protocol: greeting, copy of all memory, one
//! checkpoint, goodbye (`docs/wire-protocol.md`). So it is checked on the way back in as a peer is:
//! name and kind of the machine, every checksum, the state's version.

use std::fs::File;
use std::io::{self, Write};

use kemari_api::replica::AfterSnapshot;
use kemari_api::{Epoch, Generation};
use kemari_replication::active::{
    ActiveConfig, ActiveSender, ActiveSession, Base, BeginTransaction,
};
use kemari_replication::event_tap::{Carry, ClosedEpoch};
use kemari_replication::licence::Licence;
use kemari_replication::wire::{Goodbye, Purpose};
use kemari_vmm::PageIndex;

use super::finish::DRAIN;
use super::{Answer, Conductor, End, Refusal};
use crate::link::passive::Held;
use crate::record::Kind;

/// Pages written between two looks at how far it is: 4 MiB.
const CHUNK_PAGES: u64 = 1024;

impl Conductor {
    /// Writes the guest to this file; it stands still meanwhile.
    pub(super) fn save_snapshot(&mut self, file: File, after: AfterSnapshot) -> Answer {
        self.needs_active("only an active guest can be saved")?;
        if self.finish.is_some() {
            return Err(Refusal::Ending);
        }
        self.needs_sound_memory()?;
        if !matches!(self.licence(), Licence::Solo { .. }) || !self.link.is_none() {
            return Err(Refusal::Failed(
                "The guest is being replicated: end the replication first (stop the passive \
                 replica), or use the passive replica instead of a snapshot"
                    .into(),
            ));
        }
        self.machine
            .pause()
            .map_err(|error| Refusal::failed(&error))?;
        let detail = std::mem::take(&mut self.detail);
        let saved = self.write_snapshot(file);
        self.detail = detail;
        if let Err(text) = saved {
            self.resume_guest();
            return Err(Refusal::Failed(format!("The snapshot failed: {text}")));
        }
        tracing::info!(
            vm = %self.config.vm.name, generation = %self.generation, ?after, "saved to a snapshot"
        );
        match after {
            AfterSnapshot::Continue => self.resume_guest(),
            AfterSnapshot::Stop => {
                self.write_record(Kind::Saved);
                self.end = Some(End::Quit);
            }
        }
        Ok(())
    }

    fn write_snapshot(&mut self, file: File) -> Result<(), String> {
        // What the outside does not take now goes along and is let out after the restore.
        self.outputs.drain(DRAIN);
        let state = self
            .machine
            .save()
            .map_err(|error| crate::exit::chain(&error))?;
        let closed = self
            .outputs
            .with_gate(|gate| gate.close_epoch(Carry::Undelivered));
        let mut recording = Recording::begin(file, self.recorded()).map_err(|e| e.to_string())?;
        self.record_memory(&mut recording)?;
        recording
            .finish(&closed, &state.encode())
            .map_err(|error| error.to_string())
    }

    fn recorded(&self) -> ActiveConfig {
        ActiveConfig {
            identity: self.identity(),
            node: self.node.clone(),
            purpose: Purpose::Snapshot,
            generation: self.generation,
            sent: Epoch::default(),
            acked: Epoch::default(),
        }
    }

    fn record_memory(&mut self, recording: &mut Recording) -> Result<(), String> {
        let ram = self.machine.memory();
        let pages = ram.page_count();
        let mut first = 0;
        while first < pages {
            let end = pages.min(first + CHUNK_PAGES);
            self.capture
                .read(&ram, (first..end).map(PageIndex))
                .map_err(|error| crate::exit::chain(&error))?;
            let mut copied = self.capture.pages();
            while recording
                .sender
                .copy_pages(&mut recording.frames, &mut copied)
                > 0
            {}
            drop(copied);
            recording.flush().map_err(|error| error.to_string())?;
            first = end;
            self.detail = format!("saving to a snapshot: {} %", first * 100 / pages.max(1));
            self.publish();
        }
        Ok(())
    }

    /// Goes on with a guest from a snapshot.
    pub(super) fn run_snapshot(&mut self, held: &Held, generation: Generation) -> Answer {
        self.needs_newer(generation)?;
        let (Some(checkpoint), Some(state)) = (held.replica.held(), &held.state) else {
            return Err(Refusal::NotInSync);
        };
        self.run_from(checkpoint.epoch, &held.replica, state, generation)
    }
}

/// A session on its way into a file.
struct Recording {
    file: File,
    sender: ActiveSender,
    frames: Vec<u8>,
}

impl Recording {
    fn begin(file: File, config: ActiveConfig) -> io::Result<Self> {
        let mut frames = Vec::new();
        let sender = ActiveSession::new(config).record(&mut frames);
        let mut recording = Self {
            file,
            sender,
            frames,
        };
        recording.flush()?;
        Ok(recording)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.frames)?;
        self.frames.clear();
        Ok(())
    }

    fn finish(&mut self, closed: &ClosedEpoch, state: &[u8]) -> io::Result<()> {
        let epoch = closed.epoch;
        let before = Epoch::new(epoch.get().saturating_sub(1));
        let begin = BeginTransaction {
            epoch,
            base: Base::Copy,
            pages: 0,
            delivered_up_to: closed.delivered_up_to.min(before),
            console_position: closed.console_position,
        };
        let (sender, frames) = (&mut self.sender, &mut self.frames);
        sender.begin(frames, begin);
        sender.state(frames, state);
        sender.outputs(frames, &closed.outputs);
        sender.commit(frames);
        sender.goodbye(frames, Goodbye::HandedOver { epoch });
        self.flush()?;
        self.file.sync_all()
    }
}
