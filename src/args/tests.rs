//! Whether what may be typed is what is said elsewhere.

use super::*;
use clap::CommandFactory as _;
use flatnet_engine::{ledger::DropReason, pod::PodDrop};

#[test]
fn hints_of_drop_reasons_name_commands_that_there_are() {
    let arguments = Arguments::command();
    let hints = DropReason::ALL.iter().map(|reason| reason.hint());
    for hint in hints.chain(PodDrop::ALL.iter().map(|reason| reason.hint())) {
        for quoted in hint.split('`').skip(1).step_by(2) {
            let Some(command) = quoted.strip_prefix("flatnet ") else { continue };
            let name = command.split(' ').next().unwrap_or_default();
            assert!(arguments.find_subcommand(name).is_some(), "{hint}");
        }
    }
}

#[test]
fn help_fits_the_screen_and_says_what_each_table_is_once() {
    for command in Arguments::command().get_subcommands_mut() {
        let help = command.render_long_help().to_string();
        assert!(!help.contains("Possible values"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
    }
    let mut arguments = Arguments::command();
    let help = arguments.find_subcommand_mut("show").unwrap().render_help().to_string();
    for table in Table::value_variants() {
        assert_eq!(help.matches(&format!("\n  {:<9}  ", table.name())).count(), 1, "{help}");
    }
}
