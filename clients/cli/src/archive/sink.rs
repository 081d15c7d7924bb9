//! A file that grows by whole lines, and says when they are durable. What a run that was killed left behind of a line
//! is cut off by the next one, and so are the zeros that a machine leaves which dies when the file has grown; a file
//! that is damaged in any other way is refused, and left as it is.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::de::{self, Deserialize, Deserializer};

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
        // What tasks say is for whoever archives them.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
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
        let Whole { end, has_newline } = end.map_err(|why| wrong("go on with", &path, why))?;
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
        let mut sink = Self { path, file, lines, pending: 0 };
        if !has_newline {
            sink.take(&mut &b"\n"[..])?;
        }
        Ok(sink)
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

/// What a file has that is whole.
struct Whole {
    /// Where it ends.
    end: u64,
    /// It ends with a newline, or is empty.
    has_newline: bool,
}

fn damaged(at: u64, why: impl std::fmt::Display) -> std::io::Error {
    let what = format!("damaged behind byte {at}: {why}");
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

/// How each line begins.
const LINE: &[u8] = b"{\"task\":";
/// How each member begins.
const MEMBER: &[u8] = b"\x1f\x8b\x08";

/// Whether what is at a place begins so, or is the begin of it.
fn begins(file: &mut File, at: u64, with: &[u8]) -> std::io::Result<bool> {
    file.seek(SeekFrom::Start(at))?;
    let mut is = Vec::new();
    file.take(with.len().try_into().unwrap_or(u64::MAX)).read_to_end(&mut is)?;
    Ok(with.starts_with(&is))
}

/// Whether there are only zeros from a place on.
fn are_zeros(file: &mut File, from: u64) -> std::io::Result<bool> {
    file.seek(SeekFrom::Start(from))?;
    let mut rest = BufReader::new(file);
    loop {
        let part = rest.fill_buf()?;
        let length = part.len();
        if length == 0 || part.iter().any(|byte| *byte != 0) {
            return Ok(length == 0);
        }
        rest.consume(length);
    }
}

/// Up to where lines are whole. The last one may have lost its newline.
fn whole_lines(file: &mut File) -> std::io::Result<Whole> {
    let length = file.seek(SeekFrom::End(0))?;
    let end = last_newline(file, length)?;
    if end == length {
        return Ok(Whole { end, has_newline: true });
    }
    if are_zeros(file, end)? {
        // Only behind a line of ours: other files may be meant to end so.
        let before = last_newline(file, end.saturating_sub(1))?;
        if end == 0 || begins(file, before, LINE)? {
            return Ok(Whole { end, has_newline: true });
        }
        return Err(damaged(end, "zeros behind a line that is no task's"));
    }
    file.seek(SeekFrom::Start(end))?;
    let mut rest = serde_json::Deserializer::from_reader(BufReader::new(&mut *file));
    let read = Json::deserialize(&mut rest).and_then(|_| rest.end());
    match read {
        Ok(()) => Ok(Whole { end: length, has_newline: false }),
        Err(why) if why.is_io() => Err(why.into()),
        Err(why) if why.is_eof() && begins(file, end, LINE)? => {
            Ok(Whole { end, has_newline: true })
        }
        Err(why) => Err(damaged(end, why)),
    }
}

/// Any JSON, of which nothing is kept. `serde::de::IgnoredAny` would not tell a number that is cut from a wrong one.
struct Json;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> de::Visitor<'de> for Json {
    type Value = Self;

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut of: A) -> Result<Self, A::Error> {
        while of.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut of: A) -> Result<Self, A::Error> {
        while of.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The place behind the last newline.
fn last_newline(file: &mut File, mut end: u64) -> std::io::Result<u64> {
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

/// Up to where members are whole.
fn whole_members(file: &mut File) -> std::io::Result<Whole> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut whole = Whole { end: 0, has_newline: true };
    while !reader.fill_buf()?.is_empty() {
        let mut last = Last(None);
        match copy(&mut GzDecoder::new(&mut reader), &mut last) {
            Ok(_) => {}
            Err(why) if why.kind() == std::io::ErrorKind::UnexpectedEof => {
                let file = reader.get_mut();
                if begins(file, whole.end, MEMBER)? || are_zeros(file, whole.end)? {
                    break;
                }
                return Err(damaged(whole.end, "not packed by gzip"));
            }
            Err(_) if are_zeros(reader.get_mut(), whole.end)? => break,
            Err(why) => return Err(damaged(whole.end, why)),
        }
        whole.end = reader.stream_position()?;
        whole.has_newline = last.0.map_or(whole.has_newline, |byte| byte == b'\n');
    }
    Ok(whole)
}

/// Keeps the last byte of what is written.
struct Last(Option<u8>);

impl Write for Last {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = bytes.last().copied().or(self.0);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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

    const ONE: &str = "{\"task\":{\"n\":1,\"is\":\"na\u{ef}ve\"},\"steps\":[]}\n";
    const TWO: &str =
        "{\"task\":{\"n\":-2.5e1,\"is\":true,\"of\":null},\"steps\":[\"\\ud83d\\ude80\"]}\n";
    const THREE: &str = "{\"task\":3}\n";

    fn written(path: &Path, lines: &[&str]) {
        let mut sink = Sink::open(path).unwrap_or_else(|why| panic!("{why:?}"));
        for line in lines {
            sink.take(&mut line.as_bytes()).unwrap_or_else(|_| panic!());
            assert!(sink.pending() > 0);
            sink.sync().unwrap_or_else(|_| panic!());
            assert_eq!(sink.pending(), 0);
        }
    }

    #[test]
    fn a_file_goes_on_behind_its_last_whole_line_wherever_it_was_cut() {
        for name in ["a.jsonl", "a.jsonl.gz"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            written(&path, &[ONE, TWO]);
            let whole = std::fs::read(&path).unwrap();
            for length in 0..=whole.len() {
                std::fs::write(&path, &whole[..length]).unwrap();
                written(&path, &[THREE]);
                let text = read(&path);
                assert!(text.ends_with(THREE), "{length}: {text}");
                let before = text.strip_suffix(THREE).unwrap();
                let both = format!("{ONE}{TWO}");
                assert!(["", ONE, &both].contains(&before), "{length}: {text}");
                // Without its newline a line of plain text is whole.
                let is_whole = length + usize::from(name == "a.jsonl") >= whole.len();
                assert_eq!(before == both, is_whole, "{name} {length}");
            }
        }
    }

    #[test]
    fn zeros_that_a_machine_left_which_died_are_cut_off_behind_whole_lines() {
        for name in ["a.jsonl", "a.jsonl.gz"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            for lines in [&[][..], &[ONE], &[ONE, TWO]] {
                for zeros in [1, 7, 64, 200_000] {
                    let _ = std::fs::remove_file(&path);
                    written(&path, lines);
                    let length = std::fs::metadata(&path).unwrap().len();
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(length + zeros).unwrap();
                    written(&path, &[THREE]);
                    assert_eq!(read(&path), lines.concat() + THREE, "{name} {zeros}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_kind_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let packed = folder.path().join("a.jsonl.gz");
        written(&packed, &[ONE, TWO]);
        let whole = std::fs::read(&packed).unwrap();
        written(&packed, &[THREE]);
        let longer = std::fs::read(&packed).unwrap();
        let mut cases: Vec<(&str, Vec<u8>)> = Vec::new();
        // One bit of the text, and the length and the sum behind it, of the first member.
        let first = {
            let alone = folder.path().join("b.jsonl.gz");
            written(&alone, &[ONE]);
            std::fs::read(&alone).unwrap().len()
        };
        for at in [0, 1, first - 8, first - 1] {
            let mut bytes = longer.clone();
            bytes[at] ^= 0x40;
            cases.push(("a.jsonl.gz", bytes));
        }
        // A member that was cut with others behind it.
        cases.push(("a.jsonl.gz", [&whole[..first - 3], &longer[first..]].concat()));
        cases.push(("a.jsonl.gz", ONE.into()));
        cases.push(("a.jsonl.gz", b"x".to_vec()));
        // Zeros are cut off only where nothing follows, and behind a line of ours.
        cases.push(("a.jsonl", b"notes\n\0\0".to_vec()));
        cases.push(("a.jsonl.gz", [&whole[..], b"\0\0x"].concat()));
        for text in [
            "notes",
            "one\ntwo",
            "[1, 2",
            "{\"name\":1",
            "{\"task\":1}}",
            "{\"task\":x",
            "{\"task\":1\0\0",
            "\0\0x",
            "\0\0{\"task\":1}\n\0",
        ] {
            cases.push(("a.jsonl", format!("{ONE}{text}").into()));
            cases.push(("a.jsonl", text.into()));
        }
        for (name, bytes) in cases {
            let path = folder.path().join(name);
            std::fs::write(&path, &bytes).unwrap();
            assert!(Sink::open(&path).is_err(), "{name}: {}", String::from_utf8_lossy(&bytes));
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn packed_text_without_a_last_newline_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        written(&path, &[ONE.trim_end()]);
        written(&path, &[TWO]);
        assert_eq!(read(&path), format!("{ONE}{TWO}"));
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_read_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let sink = Sink::open(folder.path()).unwrap_or_else(|_| panic!());
        let mode = std::fs::metadata(sink.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
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
