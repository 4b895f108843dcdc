//! Runs scenarios in order, prints as libtest does, and takes the lab down at the end.

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::Instant,
};

use crate::cluster::Cluster;

/// How a scenario ended that did not fail.
pub enum Outcome {
    Passed,
    /// Why it could not run here.
    Skipped(String),
}

pub type Body = fn(&mut Cluster) -> Outcome;

/// A sentence about the cluster, and what shows it.
pub struct Scenario {
    pub name: &'static str,
    pub body: Body,
}

pub fn main(all: &[Scenario]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--list") {
        for scenario in all {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    let words = words(&args);
    let chosen: Vec<&Scenario> =
        all.iter().filter(|s| words.is_empty() || words.iter().any(|w| s.name.contains(w))).collect();
    println!("\nrunning {} tests", chosen.len());
    if chosen.is_empty() {
        // Nothing ran, so nothing was shown: a scenario that was renamed must not pass for ever.
        eprintln!("no scenario's name contains {}; --list names them", words.join(" or "));
        summary(0, 1, all.len());
        return ExitCode::FAILURE;
    }
    let begin = Instant::now();
    let mut cluster = match Cluster::up() {
        Ok(cluster) => cluster,
        Err(why) if why.starts_with("SKIPPED") => {
            for scenario in &chosen {
                eprintln!("SKIPPED: e2e {}: {}", scenario.name, why.trim_start_matches("SKIPPED: "));
                println!("test {} ... ok", scenario.name);
            }
            summary(chosen.len(), 0, all.len() - chosen.len());
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("the lab did not come up: {why}");
            println!("test {} ... FAILED", chosen[0].name);
            summary(0, chosen.len(), all.len() - chosen.len());
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for scenario in &chosen {
        let started = Instant::now();
        match panic::catch_unwind(AssertUnwindSafe(|| (scenario.body)(&mut cluster))) {
            Ok(outcome) => {
                if let Outcome::Skipped(why) = outcome {
                    eprintln!("SKIPPED: e2e {}: {why}", scenario.name);
                }
                println!("test {} ... ok", scenario.name);
                passed += 1;
            }
            Err(_) => {
                println!("test {} ... FAILED", scenario.name);
                cluster.tell_what_is();
                failed += 1;
            }
        }
        eprintln!("  {} took {:.1} s", scenario.name, started.elapsed().as_secs_f64());
        cluster.tidy();
    }
    drop(cluster);
    eprintln!("all scenarios took {:.1} s", begin.elapsed().as_secs_f64());
    summary(passed, failed, all.len() - chosen.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The words that names are looked for. Flags are libtest's and mean nothing here, nor do their values.
fn words(args: &[String]) -> Vec<&str> {
    const WITH_VALUE: [&str; 7] =
        ["--test-threads", "--format", "--color", "--logfile", "--skip", "--shuffle-seed", "-Z"];
    let mut found = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if WITH_VALUE.contains(&arg.as_str()) {
            args.next();
        } else if !arg.starts_with('-') {
            found.push(arg.as_str());
        }
    }
    found
}

fn summary(passed: usize, failed: usize, filtered: usize) {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out\n"
    );
}
