// SPDX-License-Identifier: Apache-2.0
//! The guest's vCPU and the carrier that lets outputs out (`engine/src/outputs`).

use kemari_replication::event_tap::Release;
use kemari_replication::licence::Permission;
use kemari_replication::{Generation, Output, OutputKind};

use super::{Engine, Input};
use crate::env::{Env, Event};
use crate::outside::Right;
use crate::schedule::US;

/// What each queued output is counted with besides its bytes.
const OVERHEAD_BYTES: usize = 64;

/// An output the carrier is letting out.
#[derive(Debug)]
pub struct Job {
    release: Release,
    generation: Generation,
    solo: bool,
    /// The outside has it already; otherwise it gets it when the job ends.
    out: bool,
}

impl Engine {
    pub(super) fn guest_soon(&mut self, env: &mut Env) {
        let delay = env.between(env.profile.step / 4, env.profile.step);
        env.queue.put(delay, Event::Guest(self.host, self.life));
    }

    /// The guest executes a step, if it is let and if its devices have room.
    pub fn guest(&mut self, env: &mut Env) {
        self.guest_soon(env);
        if !self.machine.executes {
            return;
        }
        if self.machine.registers.off || env.fault(env.profile.power_off) {
            self.machine.registers.off = true;
            self.machine.executes = false;
            return self.hear(env, Input::PowerOff);
        }
        if !self.gate.tap().has_room() {
            env.counts.full_queues += 1;
            return;
        }
        let input = env.rng.u64(..);
        if let Some((kind, bytes)) = self.machine.step(input) {
            self.output(env, kind, &bytes);
        }
    }

    fn output(&mut self, env: &mut Env, kind: OutputKind, bytes: &[u8]) {
        let idle = self.gate.tap().is_empty() && self.writing.is_none();
        let all = self.gate.licence().permission() == Permission::All;
        if idle && all && kind != OutputKind::Console && env.rng.bool() {
            // The device's own way to the TAP under a solo licence.
            let output = Output {
                kind,
                position: 0,
                bytes: bytes.to_vec(),
            };
            return self.emit(env, &output, (self.generation, true), output.bytes.len());
        }
        let first = self.gate.push(kind, bytes);
        self.queued_bytes += bytes.len();
        let held = self.gate.tap().has_pending();
        if first && held {
            self.output_since = Some(env.local(self.host));
        }
        if !held {
            self.carrier_soon(env);
        } else if first {
            self.hear(env, Input::OutputQueued);
        }
    }

    pub(super) fn carrier_soon(&mut self, env: &mut Env) {
        let delay = env.delay(30 * US, 10_000 * US);
        env.queue.put(delay, Event::Carrier(self.host, self.life));
    }

    /// The carrier takes the next output, or ends with the one it has.
    pub fn carrier(&mut self, env: &mut Env) {
        if self.writing.is_some() {
            self.end_job(env);
            return self.carrier_soon(env);
        }
        let Some(generation) = self.gate.licence().generation() else {
            return;
        };
        let solo = self.gate.licence().permission() == Permission::All;
        let Some(release) = self.gate.next_release() else {
            return;
        };
        let out = env.rng.bool() && !env.fault(env.profile.sink);
        if out {
            let length = release.output.bytes.len();
            self.emit(env, &release.output, (generation, solo), length);
        }
        self.writing = Some(Job {
            release,
            generation,
            solo,
            out,
        });
        self.carrier_soon(env);
    }

    /// What is being let out is out, or the sink did not take it.
    fn end_job(&mut self, env: &mut Env) {
        let Some(job) = self.writing.take() else {
            return;
        };
        let bytes = job.release.output.bytes.len();
        let fails = !job.out && env.fault(env.profile.sink);
        if !job.out {
            let length = if fails {
                env.rng.usize(0..bytes)
            } else {
                bytes
            };
            let right = (job.generation, job.solo);
            self.emit(env, &job.release.output, right, length);
        }
        // Handed out, it shares the output with the tap; the tap shall own it alone again.
        drop(job);
        if fails {
            self.gate.hand_out_again();
        } else {
            self.gate.taken();
            self.queued_bytes -= bytes;
        }
    }

    fn emit(&self, env: &mut Env, output: &Output, right: (Generation, bool), length: usize) {
        let (generation, solo) = right;
        env.counts.outputs += 1;
        env.tell(self.host, || {
            let (kind, at) = (output.kind, output.position);
            format!("lets out {length} bytes of {kind:?} at {at}, {generation}, solo: {solo}")
        });
        env.outside.take(Right { generation, solo }, output, length);
    }

    /// Waits until nothing is being written that a revoked licence no longer allows.
    pub(super) fn settle(&mut self, env: &mut Env) {
        self.end_job(env);
    }

    /// Waits a little for the outside to take everything.
    pub(super) fn drain(&mut self, env: &mut Env) {
        while !self.gate.tap().is_empty() && !env.fault(env.profile.sink) {
            if self.writing.is_none() {
                self.carrier(env);
            }
            if self.writing.is_none() {
                return;
            }
            self.end_job(env);
        }
    }

    /// How many bytes of outputs these are.
    pub(super) fn bytes_of<'o>(outputs: impl Iterator<Item = &'o Output>) -> usize {
        outputs.map(|output| output.bytes.len()).sum()
    }

    /// What they count against a limit.
    pub(super) fn cost_of<'o>(outputs: impl Iterator<Item = &'o Output>) -> usize {
        outputs
            .map(|output| output.bytes.len() + OVERHEAD_BYTES)
            .sum()
    }
}
