//! placeholder while the lab's library is built up
fn main() {}
