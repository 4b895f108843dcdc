//! A command on a terminal, as a person has it before them.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    pty::OpenptFlags,
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};
use trellis_lab::wait;

use crate::cluster::{LIMIT, wait_for};

/// The terminal, and who runs on it.
pub struct Pty {
    master: File,
    /// Held, so that the terminal's settings can be read when the command has ended.
    slave: OwnedFd,
    child: Child,
    text: Arc<Mutex<String>>,
    before: Termios,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Pty {
    /// Starts the command in a session of its own whose terminal this is.
    pub fn spawn(command: &Command, rows: u16, columns: u16) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
                .unwrap();
        tcsetwinsize(&master, size(rows, columns)).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // Who runs the tests in the background, as CI may, has Ctrl-C ignored in all they start.
        let mut on_terminal = Command::new("env");
        on_terminal.args(["--default-signal=INT,QUIT", "setsid", "--ctty"]);
        on_terminal.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            on_terminal.env(name, value.unwrap_or_default());
        }
        let child = on_terminal.env("TERM", "xterm").stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let text = Arc::new(Mutex::new(String::new()));
        let (mut reader, seen) = (File::from(master.try_clone().unwrap()), Arc::clone(&text));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO when the last one has closed it.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { master: File::from(master), slave, child, text, before }
    }

    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, size(rows, columns)).unwrap();
    }

    /// What stands on it so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until these words stand on it.
    #[track_caller]
    pub fn expect(&self, words: &str) {
        let seen = wait::until_true(&format!("{words:?} on the terminal"), LIMIT, || self.text().contains(words));
        seen.unwrap_or_else(|e| panic!("{e}; it shows {:?}", self.text()));
    }

    /// The exit code; the terminal must be as it was before.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        let code = wait_for(&mut self.child, LIMIT);
        let after = tcgetattr(&self.slave).unwrap();
        let modes = |t: &Termios| (t.local_modes, t.input_modes, t.output_modes);
        assert_eq!(modes(&after), modes(&self.before), "the terminal's modes are as they were");
        code
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
