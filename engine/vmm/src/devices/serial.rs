// SPDX-License-Identifier: Apache-2.0
//! The serial port: a 16550 (by vm-superio) with an input queue in front of its receive FIFO.
//!
//! Input from outside waits in the queue and moves into the FIFO as there is room, but never while
//! the machine is paused: a byte that arrived between two captures would be in neither, or in both.
//! The queue is part of the state. Output bytes are collected and taken by the vCPU thread, so that
//! nobody else's code runs under the devices' lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::errno;

use super::{Devices, InterruptLine, RestoreDevicesError};

/// First port (COM1).
pub(crate) const FIRST: u16 = 0x3f8;
/// Last port.
pub(crate) const LAST: u16 = 0x3ff;
/// Interrupt line.
pub(crate) const IRQ: u32 = 4;
/// Offset of the modem control register, which reading does not change.
const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;
/// Bytes of input that wait for the guest at most, beside the FIFO.
const QUEUE_LIMIT: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialPortState {
    /// Divisor low and high, IER, IIR, LCR, LSR, MCR, MSR, scratch.
    registers: [u8; 9],
    fifo: Vec<u8>,
    queue: Vec<u8>,
}

/// The port's interrupt output: an edge on every trigger, except while it is silenced.
#[derive(Debug)]
struct Edge {
    line: InterruptLine,
    silent: AtomicBool,
}

impl Trigger for Edge {
    type E = errno::Error;

    fn trigger(&self) -> Result<(), errno::Error> {
        if self.silent.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.line.set(true)?;
        self.line.set(false)
    }
}

#[derive(Debug)]
pub(crate) struct SerialPort {
    uart: Serial<EdgeHandle, NoEvents, Vec<u8>>,
    edge: Arc<Edge>,
    queue: VecDeque<u8>,
    frozen: bool,
}

#[derive(Debug, Clone)]
struct EdgeHandle(Arc<Edge>);

impl Trigger for EdgeHandle {
    type E = errno::Error;

    fn trigger(&self) -> Result<(), errno::Error> {
        self.0.trigger()
    }
}

impl SerialPort {
    pub(crate) fn new(line: InterruptLine) -> Self {
        let edge = Arc::new(Edge {
            line,
            silent: AtomicBool::new(false),
        });
        Self {
            uart: Serial::new(EdgeHandle(Arc::clone(&edge)), Vec::new()),
            edge,
            queue: VecDeque::new(),
            frozen: true,
        }
    }

    pub(crate) fn read(&mut self, port: u16) -> u8 {
        let value = self.uart.read(offset(port));
        self.feed();
        value
    }

    pub(crate) fn write(&mut self, port: u16, value: u8) {
        if let Err(error) = self.uart.write(offset(port), value) {
            tracing::error!(%error, "Serial port write failed");
        }
        self.feed();
    }

    /// Moves the bytes the guest wrote since the last call into `into`.
    pub(crate) fn take_output(&mut self, into: &mut Vec<u8>) {
        into.append(self.uart.writer_mut());
    }

    /// From now on input stays in the queue.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// From now on input reaches the guest.
    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
        self.feed();
    }

    /// Queues input; returns how many bytes there was room for.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes
            .len()
            .min(QUEUE_LIMIT - self.queue.len().min(QUEUE_LIMIT));
        self.queue.extend(bytes.iter().take(taken));
        self.feed();
        taken
    }

    fn feed(&mut self) {
        if self.frozen || self.queue.is_empty() {
            return;
        }
        // In loopback the FIFO belongs to the guest's own bytes.
        if self.uart.read(MODEM_CONTROL) & LOOPBACK != 0 {
            return;
        }
        let room = self.uart.fifo_capacity().min(self.queue.len());
        let bytes: Vec<u8> = self.queue.drain(..room).collect();
        if !bytes.is_empty()
            && let Err(error) = self.uart.enqueue_raw_bytes(&bytes)
        {
            tracing::error!(%error, "Serial port input failed");
        }
    }

    pub(crate) fn save(&self) -> SerialPortState {
        let state = self.uart.state();
        SerialPortState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            fifo: state.in_buffer,
            queue: self.queue.iter().copied().collect(),
        }
    }

    pub(crate) fn restore(&mut self, state: &SerialPortState) -> Result<(), RestoreDevicesError> {
        // The interrupt that may be pending is in the interrupt controllers' state already.
        self.edge.silent.store(true, Ordering::Relaxed);
        let uart = Serial::from_state(
            &uart_state(state),
            EdgeHandle(Arc::clone(&self.edge)),
            NoEvents,
            Vec::new(),
        );
        self.edge.silent.store(false, Ordering::Relaxed);
        self.uart = uart.map_err(|_| RestoreDevicesError::SerialFifo {
            bytes: state.fifo.len(),
        })?;
        self.queue = state.queue.iter().take(QUEUE_LIMIT).copied().collect();
        Ok(())
    }
}

fn uart_state(state: &SerialPortState) -> SerialState {
    let [
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
    ] = state.registers;
    SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer: state.fifo.clone(),
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port.saturating_sub(FIRST)).unwrap_or(u8::MAX)
}

/// The outside end of the serial line towards the guest. Cloning is cheap; usable from any thread.
#[derive(Debug, Clone)]
pub struct ConsoleInput(pub(crate) Arc<Mutex<Devices>>);

impl ConsoleInput {
    /// Sends bytes to the guest. Returns how many were taken: the queue holds 4,096 bytes, and the
    /// caller keeps the rest. While the machine is paused the bytes wait.
    #[must_use = "what was not taken is still the caller's"]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        devices.serial.push(bytes)
    }
}
