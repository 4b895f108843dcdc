//! Settings below `/proc/sys/net`, which shows the calling thread's own network namespace.

use super::KernelError;

/// Sets one, e.g. `ipv4/ip_forward` to `1`; nothing is written when it has that value already.
pub fn set(name: &str, value: &str) -> Result<bool, KernelError> {
    let path = format!("/proc/sys/net/{name}");
    let failed = |source| KernelError::Refused { verb: "set", object: format!("{path} to {value}"), source };
    if std::fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(false);
    }
    std::fs::write(&path, value).map_err(failed)?;
    Ok(true)
}
