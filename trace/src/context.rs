//! One context: which trace, which span of it, and whether it is sampled.

use std::fmt::{self, Write};

/// A place in a trace, as `traceparent` names it. What is malformed is no context, never an error:
/// tracing must not make a call fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

const SAMPLED: u8 = 1;
/// A later version of the format may be longer; no longer than this is looked at.
const TEXT_BYTES_MAX: usize = 256;

impl TraceContext {
    /// Bytes of a context in a row.
    pub const BYTES: usize = 25;

    /// A context of these parts; none if an id is all zeros.
    pub(crate) fn new(trace: [u8; 16], span: [u8; 8], flags: u8) -> Option<Self> {
        let named = trace != [0; 16] && span != [0; 8];
        named.then_some(Self { trace, span, flags })
    }

    /// Reads a `traceparent`: version, trace id, span id and flags. Of a version after 00 the parts
    /// that version 00 has are read.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let mut parts = text.split('-');
        let [version] = hex(parts.next()?)?;
        let (trace, span) = (hex(parts.next()?)?, hex(parts.next()?)?);
        let [flags] = hex(parts.next()?)?;
        let whole = version != 0xff && (version != 0 || parts.next().is_none());
        if whole { Self::new(trace, span, flags) } else { None }
    }

    /// Reads what a row keeps.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, flags) = rest.split_first_chunk()?;
        Self::new(*trace, *span, *flags.first()?)
    }

    /// As a row keeps it.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes[24] = self.flags;
        bytes
    }

    /// True when whoever continues the trace is to record it.
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace's id, 32 hex digits, as it stands in log lines.
    pub fn trace_id(self) -> String {
        let mut text = String::with_capacity(32);
        // Writing to a string cannot fail.
        let _ = write_hex(&mut text, &self.trace);
        text
    }

    /// True when both are of one trace.
    pub fn is_of_trace(self, other: Self) -> bool {
        self.trace == other.trace
    }

    pub(crate) fn parts(self) -> ([u8; 16], [u8; 8], u8) {
        (self.trace, self.span, self.flags)
    }
}

/// As a `traceparent` of version 00: 55 bytes.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        write_hex(f, &self.trace)?;
        f.write_char('-')?;
        write_hex(f, &self.span)?;
        write!(f, "-{:02x}", self.flags)
    }
}

fn write_hex(to: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
}

/// Lower-case hex digits, exactly as many as fill the bytes.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_whole_traceparent_is_read_and_written_as_it_was() {
        let text = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let context = TraceContext::parse(&text).unwrap();
        assert!(context.is_sampled() && context.trace_id() == TRACE);
        assert_eq!((context.to_string().as_str(), text.len()), (text.as_str(), 55));
        let later = TraceContext::parse(&format!("01-{TRACE}-00f067aa0ba902b7-01-more")).unwrap();
        assert_eq!(later, context, "a later version has more, which is left out");
        let other = TraceContext::parse(&format!("00-{TRACE}-00f067aa0ba902b8-00")).unwrap();
        assert!(!other.is_sampled() && other.is_of_trace(context) && other != context);
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for bad in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}"),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-0"),
            format!("00-{TRACE}-é0f067aa0ba902b-01"),
            format!("01-{TRACE}-00f067aa0ba902b7-01-{}", "x".repeat(500)),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad}");
        }
        assert_eq!(TraceContext::from_bytes(&[1; 24]), None);
        assert_eq!(TraceContext::from_bytes(&[0; 25]), None);
    }

    proptest! {
        #[test]
        fn text_and_bytes_give_back_what_they_were_made_of(
            trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), flags in any::<u8>(),
        ) {
            if let Some(context) = TraceContext::new(trace, span, flags) {
                prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
                prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            }
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".{0,80}") {
            let _ = TraceContext::parse(&text);
        }
    }
}
