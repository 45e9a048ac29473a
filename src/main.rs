//! The `flatnet` command line.

use std::process::ExitCode;

use clap::Parser as _;
use flatnet::args::{Arguments, Command};
use flatnet::up;

fn main() -> miette::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Up(arguments) => up::run(&arguments),
    }
}
