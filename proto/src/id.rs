//! The identifiers that travel as text: leases, cursors and page tokens. All are opaque to callers;
//! only the services read what is inside.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// Steps of one task have numbers below this.
pub const STEPS_MAX: i64 = 16_384;

/// A step's key: its task's key and its number in one.
pub fn step_key(task: i64, number: i32) -> i64 {
    task * STEPS_MAX + i64::from(number)
}

/// The task's key of a step's key.
pub fn task_of(step: i64) -> i64 {
    step / STEPS_MAX
}

/// The step's number in its task.
pub fn number_of(step: i64) -> i32 {
    i32::try_from(step % STEPS_MAX).expect("a remainder below 16,384")
}

/// The public id of a step.
pub fn step_id(task_id: &str, number: i32) -> String {
    format!("{task_id}.{number}")
}

/// Reads the public id of a step: its task's id and its number.
pub fn parse_step_id(text: &str) -> Option<(&str, i32)> {
    let (task_id, number) = text.rsplit_once('.')?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|number: &i32| i64::from(*number) < STEPS_MAX)?;
    plain.then_some((task_id, number))
}

/// Most characters of a correlation id.
pub const CORRELATION_ID_MAX: usize = 100;

/// Checks a correlation id; or says what it must be.
pub fn check_correlation_id(text: &str) -> Result<(), String> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if starts && plain && text.len() <= CORRELATION_ID_MAX {
        return Ok(());
    }
    Err(format!(
        "must be a letter or digit, then letters, digits, `_` and `-`, {CORRELATION_ID_MAX} at most"
    ))
}

/// A correlation id for a task without one: `tsk_<base 36 of ms>_<6 letters and digits>`, from the
/// time in ms since 1970 and a random number.
pub fn correlation_id(ms: u64, random: u64) -> String {
    format!("tsk_{}_{:0>6}", base36(ms), base36(random % 36_u64.pow(6)))
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % 36).expect("a remainder below 36");
        digits.push(char::from_digit(digit, 36).expect("a digit of base 36"));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// The public id of an executor's session.
pub fn executor_id(session: i64) -> String {
    format!("{:x}-{:x}", session >> 32, session & 0xffff_ffff)
}

/// Reads the public id of an executor's session.
pub fn parse_executor_id(text: &str) -> Option<i64> {
    let part = |text: &str| {
        let plain = matches!(text.len(), 1..=8) && text.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| i64::from_str_radix(text, 16).ok()).flatten()
    };
    let (node, number) = text.split_once('-')?;
    let session = part(node).filter(|node| *node <= i64::from(i32::MAX))? << 32 | part(number)?;
    (executor_id(session) == text).then_some(session)
}

/// The right to run one attempt of one step, as it travels in `Lease.lease_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId {
    /// The step's key.
    pub step: i64,
    /// The fence: drawn anew for each lease.
    pub token: i64,
    /// Which attempt.
    pub attempt: i32,
}

impl LeaseId {
    /// As it goes over the wire.
    pub fn encode(self) -> String {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.step.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.token.to_be_bytes());
        bytes[16..].copy_from_slice(&self.attempt.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what came over the wire.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 20];
        if BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(20) {
            return None;
        }
        let at = |from: usize| {
            i64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"))
        };
        let attempt = i32::from_be_bytes(bytes[16..].try_into().expect("four bytes"));
        let (step, token) = (at(0), at(8));
        (step >= 0 && token >= 0 && attempt > 0).then_some(Self { step, token, attempt })
    }
}

/// A place in the log between two commits, as it travels in `SubscribeResponse.cursor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which log: a restored or replaced database has another.
    pub epoch: i64,
    /// Position of the last event before the place.
    pub position: i64,
}

impl Cursor {
    const VERSION: u8 = 1;

    /// As it goes over the wire.
    pub fn encode(self) -> String {
        let mut bytes = [Self::VERSION; 17];
        bytes[1..9].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[9..].copy_from_slice(&self.position.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what came over the wire.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 17];
        if BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(17) {
            return None;
        }
        let at = |from: usize| {
            i64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"))
        };
        let (epoch, position) = (at(1), at(9));
        (bytes[0] == Self::VERSION && position >= 0).then_some(Self { epoch, position })
    }
}

/// Where a page of a list begins, as it travels in `next_page_token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// What is listed: a token of one list is none of another.
    pub list: u64,
    /// The key before which it begins.
    pub before: i64,
    /// For a list in the order of times, the time of that key, in microseconds.
    pub at: Option<i64>,
}

impl PageToken {
    const VERSION: u8 = 1;
    const TIMED: u8 = 3;

    /// As it goes over the wire.
    pub fn encode(self) -> String {
        let mut bytes = [Self::VERSION; 25];
        bytes[1..9].copy_from_slice(&self.list.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.before.to_be_bytes());
        let Some(at) = self.at else { return BASE64_URL_SAFE_NO_PAD.encode(&bytes[..17]) };
        bytes[0] = Self::TIMED;
        bytes[17..].copy_from_slice(&at.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what came over the wire.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 25];
        let len = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let eight = |from: usize| bytes[from..from + 8].try_into().expect("eight bytes");
        let at = match (len, bytes[0]) {
            (17, Self::VERSION) => None,
            (25, Self::TIMED) => Some(i64::from_be_bytes(eight(17))),
            _ => return None,
        };
        let (list, before) = (u64::from_be_bytes(eight(1)), i64::from_be_bytes(eight(9)));
        (before >= 0).then_some(Self { list, before, at })
    }
}

/// Where a page of a list of events begins, as it travels in `next_page_token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventsToken {
    /// What is listed: a token of one list is none of another.
    pub list: u64,
    /// What is left of it: events with positions above this one
    pub after: i64,
    /// and up to this one.
    pub until: i64,
    /// So many of the first event and what is derived from it were on the page before.
    pub skip: u32,
    /// Where the whole list ends.
    pub end: i64,
}

impl EventsToken {
    const VERSION: u8 = 2;

    /// As it goes over the wire.
    pub fn encode(self) -> String {
        let mut bytes = [Self::VERSION; 37];
        bytes[1..9].copy_from_slice(&self.list.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.after.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.until.to_be_bytes());
        bytes[25..33].copy_from_slice(&self.end.to_be_bytes());
        bytes[33..].copy_from_slice(&self.skip.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what came over the wire.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 37];
        if BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(37) {
            return None;
        }
        let at = |from: usize| bytes[from..from + 8].try_into().expect("eight bytes");
        let list = u64::from_be_bytes(at(1));
        let [after, until, end] = [9, 17, 25].map(|from| i64::from_be_bytes(at(from)));
        let skip = u32::from_be_bytes(bytes[33..].try_into().expect("four bytes"));
        let in_order = 0 <= after && after <= until && until <= end;
        let token = Self { list, after, until, skip, end };
        (bytes[0] == Self::VERSION && in_order).then_some(token)
    }
}

/// Where a page of exported tasks begins, as it travels in `next_page_token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportToken {
    /// What is exported: a token of one list is none of another.
    pub list: u64,
    /// Tasks up to this key have had their turn, but for this one if it is begun.
    pub task: i64,
    /// The task is begun:
    pub begun: bool,
    /// its next step has this number,
    pub step: i32,
    /// and its next event is behind this position.
    pub position: i64,
}

impl ExportToken {
    const VERSION: u8 = 3;

    /// As it goes over the wire.
    pub fn encode(self) -> String {
        let mut bytes = [Self::VERSION; 30];
        bytes[1..9].copy_from_slice(&self.list.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.task.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.position.to_be_bytes());
        bytes[25..29].copy_from_slice(&self.step.to_be_bytes());
        bytes[29] = u8::from(self.begun);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what came over the wire.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 30];
        if BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(30) {
            return None;
        }
        let at = |from: usize| bytes[from..from + 8].try_into().expect("eight bytes");
        let list = u64::from_be_bytes(at(1));
        let [task, position] = [9, 17].map(|from| i64::from_be_bytes(at(from)));
        let step = i32::from_be_bytes(bytes[25..29].try_into().expect("four bytes"));
        let is_one = task >= 0 && position >= 0 && (0..=16_384).contains(&step) && bytes[29] < 2;
        let token = Self { list, task, begun: bytes[29] == 1, step, position };
        (bytes[0] == Self::VERSION && is_one).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let lease =
            LeaseId { step: step_key(77, 16_383), token: 9_000_000_000_000_000, attempt: 3 };
        assert_eq!(LeaseId::decode(&lease.encode()), Some(lease));
        assert_eq!((task_of(lease.step), number_of(lease.step)), (77, 16_383));
        let cursor = Cursor { epoch: -5, position: i64::MAX };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for at in [None, Some(0), Some(i64::MIN)] {
            let token = PageToken { list: u64::MAX, before: i64::MAX, at };
            assert_eq!(PageToken::decode(&token.encode()), Some(token));
        }
        let token = EventsToken { list: 7, after: 1, until: 2, skip: u32::MAX, end: i64::MAX };
        assert_eq!(EventsToken::decode(&token.encode()), Some(token));
        assert_eq!(EventsToken::decode(&EventsToken { after: 3, ..token }.encode()), None);
        let token = ExportToken { list: 9, task: 4, begun: true, step: 10_000, position: i64::MAX };
        assert_eq!(ExportToken::decode(&token.encode()), Some(token));
        assert_eq!(ExportToken::decode(&ExportToken { step: -1, ..token }.encode()), None);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "x",
            "AAAA",
            "ÄÄÄ",
            &"A".repeat(23),
            &"A".repeat(27),
            &"A".repeat(50),
            &"B".repeat(400),
        ] {
            assert_eq!(LeaseId::decode(text), None, "{text}");
            assert_eq!(Cursor::decode(text), None, "{text}");
            assert_eq!(PageToken::decode(text), None, "{text}");
            assert_eq!(EventsToken::decode(text), None, "{text}");
        }
    }

    #[test]
    fn correlation_ids_are_plain_words() {
        for good in ["a", "7", "order-17_B", &"x".repeat(100), &correlation_id(0, 0)] {
            assert_eq!(check_correlation_id(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "_a", "a b", "a.b", "ä", "a\n", &"x".repeat(101)] {
            assert!(check_correlation_id(bad).is_err(), "{bad}");
        }
        assert_eq!(correlation_id(1_700_000_000_000, 35), "tsk_loyw3v28_00000z");
        assert_eq!(correlation_id(0, u64::MAX).len(), 12);
    }
}
