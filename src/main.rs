//! The `pgweir` binary: parse arguments, run, exit.

fn main() {}
