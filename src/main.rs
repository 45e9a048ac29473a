//! The `flatnet` command line.

fn main() {}
