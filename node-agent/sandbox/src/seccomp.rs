//! Loading a seccomp filter that was compiled before.

use std::io;

/// Bytes of one instruction (`struct sock_filter`).
const INSTRUCTION_BYTES: usize = 8;

/// Loads a filter, as `seccomp_export_bpf(3)` writes it, into the calling thread, for good. It
/// needs CAP_SYS_ADMIN, or no_new_privs.
///
/// # Errors
/// `InvalidData` for what is no whole number of instructions, or more than a filter may have;
/// what the kernel says of it.
pub fn load(program: &[u8]) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let whole = !program.is_empty() && program.len().is_multiple_of(INSTRUCTION_BYTES);
    let length = u16::try_from(instructions.len()).ok().filter(|_| whole);
    let Some(len) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes are no filter", program.len())));
    };
    let filter = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    let flags: libc::c_uint = 0;
    // SAFETY: the kernel reads `len` instructions, which live across the call, and keeps none of
    // our memory. What the filter then forbids is an error of a later system call, not undefined.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&filter)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_refused() {
        for bytes in [&[][..], &[0; 7], &[0; 12]] {
            assert!(load(bytes).is_err_and(|e| e.kind() == io::ErrorKind::InvalidData));
        }
    }
}
