//! Where a subscriber keeps its cursor.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Keeps the cursor of one subscriber.
pub trait CursorStore: Send + Sync {
    /// The cursor that was saved last; none if there is none.
    fn load(&self) -> impl Future<Output = io::Result<Option<String>>> + Send;
    /// Keeps this cursor from now on.
    fn save(&self, cursor: &str) -> impl Future<Output = io::Result<()>> + Send;
}

/// Keeps nothing: the subscriber begins at its start whenever it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCursor;

impl CursorStore for NoCursor {
    async fn load(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    async fn save(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the cursor in a file, which is replaced as a whole. One subscriber per file.
#[derive(Clone, Debug)]
pub struct FileCursor(PathBuf);

impl FileCursor {
    /// The file, and beside it one with `.new` appended while it is written.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self(path.as_ref().to_owned())
    }
}

impl CursorStore for FileCursor {
    async fn load(&self) -> io::Result<Option<String>> {
        match tokio::fs::read_to_string(&self.0).await {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|cursor| !cursor.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn save(&self, cursor: &str) -> io::Result<()> {
        let mut new = self.0.clone().into_os_string();
        new.push(".new");
        tokio::fs::write(&new, cursor).await?;
        tokio::fs::rename(&new, &self.0).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_gives_back_the_cursor_saved_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileCursor::new(folder.path().join("cursor"));
        assert_eq!(store.load().await.unwrap(), None);
        store.save("a").await.unwrap();
        store.save("b").await.unwrap();
        assert_eq!(store.load().await.unwrap(), Some("b".into()));
        let lost = FileCursor::new(folder.path().join("no/such/folder"));
        assert!(lost.save("a").await.is_err());
    }
}
