//! A file that grows by whole lines, and says when they are durable. What a run that was killed left behind of a line
//! is cut off by the next one.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};

use super::copy;
use crate::fault::Fault;

/// The file.
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    /// What goes to it. Packed lines are in memory until they are one whole member.
    lines: Lines,
    /// Bytes of lines that are not durable yet.
    pending: u64,
}

enum Lines {
    Plain(BufWriter<File>),
    Packed(GzEncoder<Vec<u8>>),
}

impl Sink {
    /// Opens a file, or makes one in a folder. One that is there is gone on with behind its last whole line.
    pub(super) fn open(to: &Path) -> Result<Self, Fault> {
        let wrong = |what: &str, path: &Path, why: std::io::Error| {
            Fault::new(format!("cannot {what} {}", path.display())).because(why.to_string())
        };
        let path = if to.is_dir() { to.join(new_name()) } else { to.to_owned() };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(|why| wrong("open", &path, why))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Fault::usage(format!("{} is written by another run", path.display())));
            }
            Err(TryLockError::Error(why)) => return Err(wrong("lock", &path, why)),
        }
        let is_packed = path.extension().is_some_and(|extension| extension == "gz");
        let end = if is_packed { whole_members(&mut file) } else { whole_lines(&mut file) };
        let end = end.map_err(|why| wrong("read", &path, why))?;
        file.set_len(end).map_err(|why| wrong("cut", &path, why))?;
        file.seek(SeekFrom::Start(end))?;
        // So that the file itself is there after a crash.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|why| wrong("sync", folder, why))?;
        let lines =
            if is_packed { packed() } else { Lines::Plain(BufWriter::new(file.try_clone()?)) };
        Ok(Self { path, file, lines, pending: 0 })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of lines that are not durable yet.
    pub(super) fn pending(&self) -> u64 {
        self.pending
    }

    /// Takes a whole line.
    pub(super) fn take(&mut self, line: &mut impl Read) -> Result<(), Fault> {
        self.pending += match &mut self.lines {
            Lines::Plain(file) => copy(line, file)?,
            Lines::Packed(member) => copy(line, member)?,
        };
        Ok(())
    }

    /// Makes all lines durable.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        match &mut self.lines {
            Lines::Plain(file) => file.flush()?,
            Lines::Packed(_) => {
                if let Lines::Packed(member) = std::mem::replace(&mut self.lines, packed()) {
                    self.file.write_all(&member.finish()?)?;
                }
            }
        }
        self.file.sync_all()?;
        self.pending = 0;
        Ok(())
    }
}

fn packed() -> Lines {
    Lines::Packed(GzEncoder::new(Vec::new(), Compression::default()))
}

/// A name that no other run has at the same time.
fn new_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("tasks-{}-{}.jsonl", now.as_millis(), std::process::id())
}

/// Where the last whole line ends.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0; 64 << 10];
    while end > 0 {
        let length = u64::try_from(block.len()).unwrap_or(u64::MAX).min(end);
        let part = &mut block[..usize::try_from(length).unwrap_or(0)];
        file.seek(SeekFrom::Start(end - length))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - length + u64::try_from(at).unwrap_or(0) + 1);
        }
        end -= length;
    }
    Ok(0)
}

/// Where the last whole member ends.
fn whole_members(file: &mut File) -> std::io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut end = 0;
    while !reader.fill_buf()?.is_empty() {
        let mut member = GzDecoder::new(&mut reader);
        if copy(&mut member, &mut std::io::sink()).is_err() {
            break;
        }
        end = reader.stream_position()?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use flate2::read::MultiGzDecoder;

    use super::*;

    fn read(path: &Path) -> String {
        let bytes = std::fs::read(path).unwrap();
        let mut text = String::new();
        if path.extension().is_some_and(|extension| extension == "gz") {
            MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        } else {
            text = String::from_utf8(bytes).unwrap();
        }
        text
    }

    #[test]
    fn a_file_goes_on_behind_its_last_whole_line_wherever_it_was_cut() {
        for name in ["a.jsonl", "a.jsonl.gz"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let mut sink = Sink::open(&path).unwrap_or_else(|_| panic!());
            for line in ["one\n", "two\n"] {
                sink.take(&mut line.as_bytes()).unwrap_or_else(|_| panic!());
                assert!(sink.pending() > 0);
                sink.sync().unwrap_or_else(|_| panic!());
                assert_eq!(sink.pending(), 0);
            }
            drop(sink);
            let whole = std::fs::read(&path).unwrap();
            for length in 0..=whole.len() {
                std::fs::write(&path, &whole[..length]).unwrap();
                let mut sink = Sink::open(&path).unwrap_or_else(|_| panic!());
                sink.take(&mut "three\n".as_bytes()).unwrap_or_else(|_| panic!());
                sink.sync().unwrap_or_else(|_| panic!());
                let text = read(&path);
                let before = text.strip_suffix("three\n").unwrap();
                assert!(["", "one\n", "one\ntwo\n"].contains(&before), "{length}: {text}");
                assert_eq!(before == "one\ntwo\n", length == whole.len(), "{name} {length}");
            }
        }
    }

    #[test]
    fn two_runs_do_not_write_one_file_and_a_folder_gets_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let sink = Sink::open(folder.path()).unwrap_or_else(|_| panic!());
        assert_eq!(sink.path().parent(), Some(folder.path()));
        assert!(Sink::open(sink.path()).is_err());
        assert!(Sink::open(&folder.path().join("missing/a.jsonl")).is_err());
    }
}
