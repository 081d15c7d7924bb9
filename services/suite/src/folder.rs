//! Folders that go again: where they can be, and how they are removed.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The address of a unix socket has 104 bytes on some systems; a folder's name and the socket's take
/// 32 of them.
const BASE_BYTES_MAX: usize = 70;
/// A process that was just killed may still write into its folder.
const REMOVE_TRIES: usize = 100;
const REMOVE_AGAIN: Duration = Duration::from_millis(20);

/// Makes a folder that only its owner can enter. Without a place it is made where temporary files
/// are, unless the way there is too long for a socket, or, for another owner, closed.
pub(crate) fn make(within: Option<PathBuf>, for_another: bool) -> io::Result<PathBuf> {
    let base = within.unwrap_or_else(|| {
        let temporary = std::env::temp_dir();
        let short = temporary.as_os_str().len() <= BASE_BYTES_MAX;
        if short && (!for_another || is_open(&temporary)) { temporary } else { "/tmp".into() }
    });
    let path = base.join(format!("stepwell-{:08x}", rand::random::<u32>()));
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// True if every user can go there.
pub(crate) fn is_open(path: &Path) -> bool {
    path.ancestors().all(|folder| {
        folder.as_os_str().is_empty()
            || folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    })
}

/// Removes a folder and what is in it.
pub(crate) fn remove(path: &Path) {
    for _ in 0..REMOVE_TRIES {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                std::thread::sleep(REMOVE_AGAIN);
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_enter_a_folder() {
        let base = make(None, false).unwrap();
        assert_eq!(base.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(base.as_os_str().len() <= BASE_BYTES_MAX + 18);
        assert!(!is_open(&base.join("inner")), "nobody else gets through");
        let inner = make(Some(base.clone()), true).unwrap();
        assert_eq!(inner.parent(), Some(base.as_path()));
        remove(&base);
        assert!(!base.exists());
    }
}
