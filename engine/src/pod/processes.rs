//! Programs in a pod: how they are started, spoken to and ended.
//!
//! The control side calls these methods of [`Pod`]; `program` is what the programs do. Invariants: at most [`RUNNING_LIMIT`] run and
//! [`ENDED_LIMIT`] ended ones wait to be read. Allowed dependencies: `program`. Read first: `mod.rs`.

use super::program::{Probe, ProbeError, ProbeOutcome, Program};
use super::socket::{Event, Owner, ProgramId};
use super::{KILLED, Pod, PodState};
use crate::clock::Instant;

/// Programs that may run at once.
const RUNNING_LIMIT: usize = 1024;
/// Ended programs whose output waits to be read; the oldest gives way.
const ENDED_LIMIT: usize = 1024;

/// What a program wrote and whether it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProgramOutput {
    /// What it wrote since the last call.
    pub bytes: Vec<u8>,
    /// Its exit code, once it ended.
    pub exit_code: Option<i32>,
}

impl Pod {
    /// Starts a program by its words; it begins with the next [`Pod::poll`].
    pub fn exec(&mut self, argv: &[String], now: Instant) -> ProgramId {
        self.add_program(Program::new(argv).with_reader(), now)
    }

    /// Starts a probe; it begins with the next [`Pod::poll`].
    pub fn probe(&mut self, probe: Probe, now: Instant) -> ProgramId {
        self.add_program(Program::probe(probe), now)
    }

    /// Returns what a probe found, once it ended; one that ended so long ago that it is forgotten found a dead pod.
    #[must_use]
    pub fn probe_outcome(&self, id: ProgramId) -> Option<ProbeOutcome> {
        if self.state == PodState::Dead || !self.programs.contains_key(&id) {
            let (started, ended) = (self.now, self.now);
            return Some(ProbeOutcome { result: Err(ProbeError::PodDead), started, ended });
        }
        self.programs.get(&id)?.probe_outcome()
    }

    /// Takes what a program wrote; an unknown one (or one that ended long ago) wrote nothing and ended with 137.
    pub fn output(&mut self, id: ProgramId) -> ProgramOutput {
        match self.programs.get_mut(&id) {
            None => ProgramOutput { bytes: Vec::new(), exit_code: Some(KILLED) },
            Some(program) => {
                let waits = program.is_full();
                let output = ProgramOutput { bytes: program.take_output(), exit_code: program.exit_code() };
                if waits {
                    self.stack.events.push_back((Owner::Program(id), Event::Input));
                }
                output
            }
        }
    }

    /// Takes what a container's program wrote: its output, of squid its access log.
    pub fn container_output(&mut self, name: &str) -> Vec<u8> {
        let container = self.containers.iter_mut().find(|container| container.config.name == name);
        container.map(|container| container.app.take_output()).unwrap_or_default()
    }

    /// Says whether a program should be given more standard input now; what it does not read waits for it, whole.
    #[must_use]
    pub fn wants_input(&self, id: ProgramId) -> bool {
        self.programs.get(&id).is_none_or(Program::wants_input)
    }

    /// Gives a program standard input.
    pub fn input(&mut self, id: ProgramId, bytes: &[u8]) {
        if let Some(program) = self.programs.get_mut(&id) {
            program.input(bytes);
            self.stack.events.push_back((Owner::Program(id), Event::Input));
        }
    }

    /// Ends a program's standard input.
    pub fn close_input(&mut self, id: ProgramId) {
        if let Some(program) = self.programs.get_mut(&id) {
            program.close_input();
            self.stack.events.push_back((Owner::Program(id), Event::Input));
        }
    }

    /// Ends a program as ctrl-C does.
    pub fn signal(&mut self, id: ProgramId, now: Instant) {
        self.now = now;
        if let Some(program) = self.programs.get_mut(&id)
            && program.exit_code().is_none()
        {
            program.interrupt(now);
            self.end_program(id);
        }
    }

    fn add_program(&mut self, mut program: Program, now: Instant) -> ProgramId {
        self.now = self.now.max(now);
        let id = ProgramId(self.next_program);
        self.next_program += 1;
        if self.state == PodState::Dead {
            program = Program::failed("the pod is dead", KILLED);
        } else if self.programs.len() - self.ended.len() >= RUNNING_LIMIT {
            program = Program::failed("too many programs", KILLED);
        }
        let runs = program.exit_code().is_none();
        self.programs.insert(id, program);
        if runs {
            self.stack.events.push_back((Owner::Program(id), Event::Start));
        } else {
            self.retire(id);
        }
        id
    }

    pub(super) fn end_program(&mut self, id: ProgramId) {
        let owner = Owner::Program(id);
        self.stack.close_owner(owner, false, self.now);
        self.set_wake(owner, None);
        self.retire(id);
    }

    fn retire(&mut self, id: ProgramId) {
        self.ended.push_back(id);
        if self.ended.len() > ENDED_LIMIT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.programs.remove(&oldest);
        }
    }
}
