//! `docs/counters.md` says what every counter of a node and of a pod means, as the code has it. `UPDATE_DOCS=1` writes it.

use std::fmt::Write as _;
use std::path::Path;

use flatnet_engine::ledger::{DropReason, Term};
use flatnet_engine::pod::PodDrop;

const HEAD: &str = "# Counters

Written by `UPDATE_DOCS=1 cargo test --test counters`, checked by every test run.

Every frame at a node is in the node's ledger, and the ledger balances at any moment at which the workers rest:

    received + originated + copied + split = sent + consumed + merged + dropped + held

";

#[test]
fn the_page_of_counters_says_what_the_code_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/counters.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(found == page, "docs/counters.md is old: UPDATE_DOCS=1 cargo test --test counters");
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page += "| term | what is counted |\n| --- | --- |\n";
    for term in Term::ALL {
        let _ = writeln!(page, "| `{}` | {} |", term.name(), term.meaning());
    }
    page += "| `dropped` | The sum of the reasons below. |\n";
    page += "| `held` | Wait inside the node: for a neighbour, or on the way to another worker. |\n";
    page += "\n## Why a node drops a frame\n\nIn the order of a packet's way. There is no catch-all.\n\n";
    page += "| reason | what it means | what to do |\n| --- | --- | --- |\n";
    for reason in DropReason::ALL {
        let _ = writeln!(page, "| `{}` | {} | {} |", reason.name(), reason.meaning(), reason.hint());
    }
    page += "\n## Why a pod drops something\n\n";
    page += "A pod or host takes frames from its link and counts on its own; the node's ledger ends at the link.\n`flatnet show drops POD` prints them.\n\n";
    page += "| reason | what it means | what to do |\n| --- | --- | --- |\n";
    for reason in PodDrop::ALL {
        let _ = writeln!(page, "| `{}` | {} | {} |", reason.name(), reason.meaning(), reason.hint());
    }
    page
}
