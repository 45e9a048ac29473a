//! Programs that run in pods and hosts of an instance for somebody outside.
//!
//! `http` starts one per `exec` request and reads its output until it ends. Invariants: a program that nobody reads any
//! more is ended as Ctrl-C does; in virtual time the clock runs while somebody waits for output.
//!
//! May depend on [`crate::drive`]. Read first: `engine/src/pod/processes.rs`.

use std::time::Duration;

use flatnet_agents::runtime::exec::Exec;
use flatnet_engine::clock::Instant;
use flatnet_engine::pod::{Pod, ProgramId, ProgramOutput};
use flatnet_engine::tables::PortId;

use super::{Instance, RequestError};

/// How far virtual time goes at once while a program is silent.
const VIRTUAL_STEP: Duration = Duration::from_millis(100);

/// Where a program runs.
#[derive(Debug)]
pub(super) enum Running {
    /// In a simulated pod or a host.
    Simulated {
        /// The worker that has it.
        worker: u8,
        /// The port there.
        port: PortId,
        /// Its number there.
        id: ProgramId,
    },
    /// In a real pod.
    Real(Exec),
}

impl Instance {
    /// Starts a program in a pod or host and returns its number.
    ///
    /// # Errors
    /// [`RequestError::Machine`], [`RequestError::Drive`].
    pub fn start_program(&mut self, machine: &str, command: Vec<String>) -> Result<u64, RequestError> {
        let publisher = &self.drive.network.publisher;
        let missing = || RequestError::Machine {
            name: machine.to_owned(),
            known: publisher.places().map(|(name, _)| name.to_owned()).collect(),
        };
        let place = publisher.place(machine).ok_or_else(missing)?;
        let (worker, port) = (place.worker, place.port);
        if let Some(uid) = self.drive.network.real_pod(machine) {
            let failed = |why| RequestError::Exec { pod: machine.to_owned(), why };
            let exec = self.drive.network.publisher.runtime.exec(&uid, command).map_err(failed)?;
            return Ok(self.keep_program(Running::Real(exec)));
        }
        if !place.is_simulated {
            let why = "nothing of ours runs there, or no more".to_owned();
            return Err(RequestError::Exec { pod: machine.to_owned(), why });
        }
        let visit = move |pod: &mut Pod, now: Instant| pod.exec(&command, now);
        let id = self.drive.ask(worker, move |worker| worker.with_pod(port, visit))?;
        let id = id.ok_or_else(|| RequestError::Machine { name: machine.to_owned(), known: Vec::new() })?;
        Ok(self.keep_program(Running::Simulated { worker, port, id }))
    }

    fn keep_program(&mut self, program: Running) -> u64 {
        let number = self.next_program;
        self.next_program += 1;
        self.programs.insert(number, program);
        number
    }

    /// Takes what a program wrote since the last call.
    ///
    /// # Errors
    /// [`RequestError::Program`], [`RequestError::Drive`].
    pub fn program_output(&mut self, number: u64) -> Result<ProgramOutput, RequestError> {
        if let Some(Running::Real(program)) = self.programs.get_mut(&number) {
            let (bytes, exit_code) = program.output();
            return Ok(ProgramOutput { bytes, exit_code });
        }
        let output = self.with_program(number, |pod, id, _| pod.output(id))?;
        if !self.drive.is_virtual() || !output.bytes.is_empty() || output.exit_code.is_some() {
            return Ok(output);
        }
        self.drive.wait_for(VIRTUAL_STEP, |_| None::<()>);
        self.with_program(number, |pod, id, _| pod.output(id))
    }

    /// Says whether a program should be given more standard input now.
    ///
    /// # Errors
    /// [`RequestError::Program`], [`RequestError::Drive`].
    pub fn program_wants_input(&mut self, number: u64) -> Result<bool, RequestError> {
        if let Some(Running::Real(program)) = self.programs.get_mut(&number) {
            return Ok(program.wants_input());
        }
        self.with_program(number, |pod, id, _| pod.wants_input(id))
    }

    /// Gives a program standard input; `None` ends it.
    ///
    /// # Errors
    /// [`RequestError::Program`], [`RequestError::Drive`].
    pub fn program_input(&mut self, number: u64, bytes: Option<Vec<u8>>) -> Result<(), RequestError> {
        if let Some(Running::Real(program)) = self.programs.get_mut(&number) {
            match bytes {
                Some(bytes) => program.input(&bytes),
                None => program.close_input(),
            }
            return Ok(());
        }
        self.with_program(number, move |pod, id, _| match bytes {
            Some(bytes) => pod.input(id, &bytes),
            None => pod.close_input(id),
        })
    }

    /// Ends a program as Ctrl-C does.
    ///
    /// # Errors
    /// [`RequestError::Program`], [`RequestError::Drive`].
    pub fn interrupt_program(&mut self, number: u64) -> Result<(), RequestError> {
        if let Some(Running::Real(program)) = self.programs.get_mut(&number) {
            program.interrupt();
            return Ok(());
        }
        self.with_program(number, |pod, id, now| pod.signal(id, now))
    }

    /// Ends a program, if it runs, and forgets it.
    pub fn forget_program(&mut self, number: u64) {
        // A worker that does not answer has nothing to end.
        let _ = self.interrupt_program(number);
        self.programs.remove(&number);
    }

    /// Does something with a program of a simulated pod that is still there.
    fn with_program<R: Send + 'static>(
        &mut self,
        number: u64,
        visit: impl FnOnce(&mut Pod, ProgramId, Instant) -> R + Send + 'static,
    ) -> Result<R, RequestError> {
        let missing = RequestError::Program(number);
        let Some(&Running::Simulated { worker, port, id }) = self.programs.get(&number) else {
            return Err(missing);
        };
        let visit = move |pod: &mut Pod, now: Instant| visit(pod, id, now);
        let result = self.drive.ask(worker, move |worker| worker.with_pod(port, visit))?;
        result.ok_or(RequestError::Program(number))
    }
}
