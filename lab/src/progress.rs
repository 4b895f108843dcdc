//! Telling a person what is going on: a live line on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps of one long command, each with the time since its begin.
pub struct Progress {
    begin: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Begins now; writes to stderr.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { begin: Instant::now(), bar, quiet: false }
    }

    /// Says nothing: for waiting within another command's story.
    #[must_use]
    pub fn quiet() -> Self {
        Self { begin: Instant::now(), bar: None, quiet: true }
    }

    /// Since the begin.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What is being done now: shown on a terminal only, until the next.
    pub fn now(&self, doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(doing.to_owned());
        }
    }

    /// Something is done: a line that stays.
    pub fn done(&self, what: &str) {
        let line = format!("{:>6.2} s  {what}", self.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => {
                // A closed stderr is no reason to stop.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
