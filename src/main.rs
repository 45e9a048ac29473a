//! The `flatnet` command line.

use std::process::ExitCode;

use clap::Parser as _;
use flatnet::args::{Arguments, Command};
use flatnet::{
    bench, capture, clean, doctor, down, etcd, exec, get, link, logs, node, offload, output, replay, show,
    status, trace, up,
};
use flatnet_agents::runtime::init::{self, Role};

fn main() -> miette::Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(init::COMMAND)
        && let Some(role) = words.next().as_deref().and_then(Role::from_name)
    {
        return Ok(init::run(role));
    }
    // A lock of the caller's is not to be held by a network in the background, nor by pods' programs.
    // Where the system does not say what that is, it goes on as it is.
    let _ = flatnet_engine::sys::keep_inherited_files();
    output::keep_names_whole()?;
    match Arguments::parse().command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Node(arguments) => node::run(*arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Clean(arguments) => clean::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Get(arguments) => get::run(&arguments),
        Command::Delete(arguments) => get::delete(&arguments),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Show(arguments) => show::run(&arguments),
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Link(arguments) => link::run(&arguments),
        Command::Offload(arguments) => offload::run(&arguments),
        Command::Etcd(command) => etcd::run(&command),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    }
}
