//! Why a container could not be made, in one sentence. libcontainer wraps an error once a process
//! it passes through, and tells each of them in its log besides; what a person needs is the
//! innermost cause, once. Pure.

/// What libcontainer's processes put before the error of the one below.
const WRAPPERS: [&str; 4] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
    "failed to execute: ",
];

/// The sentence for libcontainer's error (with its sources) and the first of the events it logged.
pub fn concise(error: &str, events: &str) -> String {
    let mut cause = error.trim();
    while let Some(inner) = WRAPPERS.iter().find_map(|w| cause.strip_prefix(w)) {
        cause = inner.trim_start();
    }
    if let Some(text) = program(cause) {
        return text;
    }
    // The first event is the innermost; the others are its echo on the way out.
    let first = events.split("; ").next().unwrap_or_default().trim();
    if first.is_empty() || cause.contains(first) {
        return format!("cannot make the container: {cause}");
    }
    format!("cannot make the container: {cause}: {first}")
}

/// The program is missing or unfit, as runc (and so `kubectl describe`) words it.
fn program(cause: &str) -> Option<String> {
    let rest = cause.strip_prefix("executable '")?;
    let (program, why) = rest.split_once('\'')?;
    if why.contains("not found in $PATH") && program.contains('/') {
        return Some(format!("exec: {program:?}: stat {program}: no such file or directory"));
    }
    if why.contains("not found in $PATH") {
        return Some(format!("exec: {program:?}: executable file not found in $PATH"));
    }
    why.contains("permissions").then(|| format!("exec: {program:?}: permission denied"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAPPED: &str = "failed to create container: exec process failed with error error in executing process : ";

    #[test]
    fn a_missing_or_unfit_program_is_told_as_runc_tells_it() {
        let said = |cause: &str| concise(&format!("{WRAPPED}{cause}"), "executable for container process not found; x");
        assert_eq!(
            said("executable 'nothing' not found in $PATH"),
            "exec: \"nothing\": executable file not found in $PATH"
        );
        assert_eq!(
            said("executable '/no/such' not found in $PATH"),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(
            said("executable '/etc/passwd' at path '\"/etc/passwd\"' does not have correct permissions"),
            "exec: \"/etc/passwd\": permission denied"
        );
    }

    #[test]
    fn a_step_is_told_with_its_innermost_event_and_nothing_twice() {
        let events = "failed to canonicalize \"/x\": No such file or directory (os error 2); failed to mount Mount {}; \
                      failed to initialize container process: failed to prepare rootfs";
        assert_eq!(
            concise(&format!("{WRAPPED}failed to prepare rootfs"), events),
            "cannot make the container: failed to prepare rootfs: failed to canonicalize \"/x\": No such file or \
             directory (os error 2)"
        );
        assert_eq!(concise("failed to create container: x", ""), "cannot make the container: x");
        assert_eq!(concise("x: y", "y; z"), "cannot make the container: x: y");
    }
}
