//! What runs on a lab's cluster: images made here, without a registry, and their manifests.

pub mod image;
pub mod web;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{Error, Result, layout::Layout};

/// Makes the web application's image present on all nodes that are on.
pub fn provide(layout: &Layout, bin_dir: &Path) -> Result<()> {
    let archive = web::write_archive(&layout.root)?;
    let output = Command::new(bin_dir.join("trellis"))
        .args(["image", "import", "--all-nodes"])
        .arg(&archive)
        .env("TRELLIS_CONFIG", layout.contexts())
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("run trellis"))?;
    if output.status.success() {
        return Ok(());
    }
    let what = "trellis image import".to_owned();
    let output_text = format!("\n{}", String::from_utf8_lossy(&output.stderr));
    Err(Error::Command { what, status: output.status.to_string(), output: output_text })
}
