//! The rules for payloads, which travel and are stored as JSON text: what passes here can always
//! be stored, delivered and read back byte for byte. One pass over the text, no allocation.

use std::fmt;

/// Payloads are nested at most this deep.
pub const DEPTH_MAX: u32 = 64;
/// Payloads are at most this large, unless a service is configured otherwise: 1 MiB.
pub const BYTES_MAX: usize = 1 << 20;
/// The config of a step is at most this large: 64 KiB.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// What is wrong with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has more bytes than allowed.
    TooLarge {
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// It is not JSON.
    Malformed {
        /// Byte at which reading stopped, from 0.
        at: usize,
        /// What could stand there.
        wanted: &'static str,
    },
    /// It is JSON, but an object was wanted.
    NotAnObject,
    /// Arrays and objects are nested too deep.
    TooDeep {
        /// Byte at which the first level too many begins, from 0.
        at: usize,
    },
    /// A string contains `\u0000`, which text columns cannot hold.
    Nul {
        /// Byte at which the escape begins, from 0.
        at: usize,
    },
    /// A string contains half of a surrogate pair, which is no character.
    LoneSurrogate {
        /// Byte at which the escape begins, from 0.
        at: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, max } => {
                write!(f, "has {bytes} bytes; at most {max} are allowed")
            }
            Self::Malformed { at, wanted } => {
                write!(f, "is not JSON: {wanted} is wanted at byte {at}")
            }
            Self::NotAnObject => write!(f, "must be a JSON object"),
            Self::TooDeep { at } => {
                write!(f, "is nested deeper than {DEPTH_MAX} levels at byte {at}")
            }
            Self::Nul { at } => write!(f, r"contains \u0000 at byte {at}"),
            Self::LoneSurrogate { at } => write!(f, "contains a lone surrogate at byte {at}"),
        }
    }
}

impl std::error::Error for Fault {}

/// Checks that the text is one JSON value within the rules for payloads.
pub fn check(text: &str, bytes_max: usize) -> Result<(), Fault> {
    if text.len() > bytes_max {
        return Err(Fault::TooLarge { bytes: text.len(), max: bytes_max });
    }
    Scanner { bytes: text.as_bytes(), at: 0 }.document()
}

/// Checks that the text is one JSON object within the rules for payloads.
pub fn check_object(text: &str, bytes_max: usize) -> Result<(), Fault> {
    check(text, bytes_max)?;
    let is_object = text.trim_ascii_start().starts_with('{');
    if is_object { Ok(()) } else { Err(Fault::NotAnObject) }
}

/// The containers that are open, innermost in the lowest bit: 1 = object, 0 = array.
#[derive(Default)]
struct Open {
    objects: u64,
    depth: u32,
}

impl Open {
    fn push(&mut self, object: bool, at: usize) -> Result<(), Fault> {
        if self.depth == DEPTH_MAX {
            return Err(Fault::TooDeep { at });
        }
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Fault> {
        let mut open = Open::default();
        loop {
            if self.value(&mut open)? {
                continue; // the first element of a container that was opened
            }
            if !self.next_element(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Reads a value up to its end, or up to its first element. True in the second case.
    fn value(&mut self, open: &mut Open) -> Result<bool, Fault> {
        self.space();
        match self.peek() {
            Some(b'{') => return self.enter(open, true),
            Some(b'[') => return self.enter(open, false),
            Some(b'"') => self.string()?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word(b"true")?,
            Some(b'f') => self.word(b"false")?,
            Some(b'n') => self.word(b"null")?,
            _ => return Err(self.malformed("a value")),
        }
        Ok(false)
    }

    /// Opens a container. True when it has elements, false when it was closed again.
    fn enter(&mut self, open: &mut Open, object: bool) -> Result<bool, Fault> {
        open.push(object, self.at)?;
        self.at += 1;
        self.space();
        if self.peek() == Some(if object { b'}' } else { b']' }) {
            self.at += 1;
            open.pop();
            return Ok(false);
        }
        if object {
            self.key()?;
        }
        Ok(true)
    }

    /// After a value: closes what ends here and steps to the next element. False at the end.
    fn next_element(&mut self, open: &mut Open) -> Result<bool, Fault> {
        loop {
            self.space();
            if open.depth == 0 {
                let ended = self.at == self.bytes.len();
                return if ended { Ok(false) } else { Err(self.malformed("the end")) };
            }
            match (open.in_object(), self.peek()) {
                (true, Some(b',')) => {
                    self.at += 1;
                    self.space();
                    self.key()?;
                    return Ok(true);
                }
                (false, Some(b',')) => {
                    self.at += 1;
                    return Ok(true);
                }
                (true, Some(b'}')) | (false, Some(b']')) => {
                    self.at += 1;
                    open.pop();
                }
                (true, _) => return Err(self.malformed("`,` or `}`")),
                (false, _) => return Err(self.malformed("`,` or `]`")),
            }
        }
    }

    fn key(&mut self) -> Result<(), Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("a key"));
        }
        self.string()?;
        self.space();
        self.byte(b':', "`:`")
    }

    fn string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => return Err(self.malformed("an escaped control character")),
                Some(_) => self.at += 1,
                None => return Err(self.malformed("`\"`")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let at = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.unit()? {
                0 => Err(Fault::Nul { at }),
                0xd800..=0xdbff => match self.bytes.get(self.at..self.at + 2) {
                    Some(br"\u") => {
                        self.at += 1;
                        let low = self.unit()?;
                        let paired = (0xdc00..=0xdfff).contains(&low);
                        if paired { Ok(()) } else { Err(Fault::LoneSurrogate { at }) }
                    }
                    _ => Err(Fault::LoneSurrogate { at }),
                },
                0xdc00..=0xdfff => Err(Fault::LoneSurrogate { at }),
                _ => Ok(()),
            },
            _ => Err(self.malformed("an escape")),
        }
    }

    /// The four digits after the `u` of an escape.
    fn unit(&mut self) -> Result<u32, Fault> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|b| char::from(b).to_digit(16));
            let Some(digit) = digit else { return Err(self.malformed("a hexadecimal digit")) };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > from { Ok(()) } else { Err(self.malformed("a digit")) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Fault> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.malformed("a value"))
    }

    fn byte(&mut self, byte: u8, wanted: &'static str) -> Result<(), Fault> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.malformed(wanted))
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn malformed(&self, wanted: &'static str) -> Fault {
        Fault::Malformed { at: self.at, wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_json_passes() {
        for text in [
            "null",
            " true ",
            "-0.5e+10",
            "12345678901234567890123",
            r#"{"a": [1, {"b": []}, {}], "c": "\ud83d\ude00 \u00e4 \n"}"#,
            "\t[\r\n]",
            "\"😀\"",
        ] {
            assert_eq!(check(text, BYTES_MAX), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_where_it_breaks() {
        for (text, at) in [
            ("", 0),
            ("{", 1),
            ("[1,]", 3),
            ("{\"a\":1,}", 7),
            ("{a:1}", 1),
            ("01", 1),
            ("1.", 2),
            ("1e", 2),
            ("-", 1),
            ("+1", 0),
            ("nul", 0),
            ("\"a", 2),
            ("\"\\x\"", 2),
            ("\"\\u12g4\"", 5),
            ("\"\n\"", 1),
            ("1 2", 2),
            ("[1}", 2),
            ("{\"a\" 1}", 5),
            ("NaN", 0),
            ("'a'", 0),
            ("\u{feff}1", 0),
        ] {
            let fault = check(text, BYTES_MAX).unwrap_err();
            assert!(
                matches!(fault, Fault::Malformed { at: a, .. } if a == at),
                "{text}: {fault:?}"
            );
        }
    }

    #[test]
    fn what_could_not_be_stored_is_refused() {
        assert_eq!(check(r#"["a\u0000"]"#, 99), Err(Fault::Nul { at: 3 }));
        for lone in
            [r#""\ud800""#, r#""\ud800x""#, r#""\ud800\n""#, r#""\ud800\u0041""#, r#""\udc00""#]
        {
            assert_eq!(check(lone, 99), Err(Fault::LoneSurrogate { at: 1 }), "{lone}");
        }
        // The backslash is escaped, so these are the characters, not an escape.
        assert_eq!(check(r#""\\u0000 \\ud800""#, 99), Ok(()));
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(check(&nested(64), 200), Ok(()));
        assert_eq!(check(&nested(65), 200), Err(Fault::TooDeep { at: 64 }));
        let mixed = r#"{"a":["#.repeat(32) + &"]}".repeat(32);
        assert_eq!(check(&mixed, 900), Ok(()));
        assert_eq!(check("1234", 3), Err(Fault::TooLarge { bytes: 4, max: 3 }));
    }

    #[test]
    fn only_an_object_is_an_object() {
        assert_eq!(check_object(" {} ", 9), Ok(()));
        assert_eq!(check_object("[{}]", 9), Err(Fault::NotAnObject));
    }

    proptest::proptest! {
        #[test]
        fn it_agrees_with_a_parser(text in r#"[\[\]{}",:0-9eE.+\-a \\tru]{0,12}"#) {
            let ours = check(&text, 99).is_ok();
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            proptest::prop_assert_eq!(ours, theirs);
        }
    }
}
