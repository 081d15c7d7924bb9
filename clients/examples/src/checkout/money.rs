//! Money: whole cents inside, a JSON number with two decimals outside. No amount is ever a float.

use std::{fmt, iter::Sum, ops::Add, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::Number;

/// An amount of money, not negative: `124.76` in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(i64);

impl Money {
    /// So many cents.
    pub const fn of_cents(cents: i64) -> Self {
        Self(cents)
    }

    /// In cents.
    pub const fn cents(self) -> i64 {
        self.0
    }

    /// So many times.
    #[must_use]
    pub const fn times(self, n: i64) -> Self {
        Self(self.0 * n)
    }

    /// So many hundredths of it, rounded to the cent, halves up.
    #[must_use]
    pub const fn percent(self, n: i64) -> Self {
        Self((self.0 * n + 50) / 100)
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Money {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let decimals = decimals.trim_end_matches('0');
        // Twelve digits times a thousand pieces are far from the end of an i64.
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || whole.len() > 12 || !digits(whole) || !digits(decimals) {
            return Err("an amount of money is wanted, such as 124.76");
        }
        if decimals.len() > 2 {
            return Err("an amount of money has at most two decimals");
        }
        let cents = format!("{whole}{decimals:0<2}").parse();
        cents.map(Self).map_err(|_| "an amount of money is wanted, such as 124.76")
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: Number = self.to_string().parse().map_err(ser::Error::custom)?;
        number.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Number::deserialize(deserializer)?.to_string().parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_to_the_cent() {
        for (json, cents, written) in
            [("8.8", 880, "8.80"), ("8.80", 880, "8.80"), ("0.01", 1, "0.01"), ("7", 700, "7.00")]
        {
            let money: Money = serde_json::from_str(json).unwrap();
            assert_eq!(money.cents(), cents, "{json}");
            assert_eq!(serde_json::to_string(&money).unwrap(), written);
            assert_eq!(serde_json::to_value(money).unwrap().to_string(), written);
        }
        assert_eq!(serde_json::from_str::<Money>("1.500").unwrap().cents(), 150);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for json in ["-1", "1e2", "0.005", "1234567890123", "\"1\"", "null"] {
            assert!(serde_json::from_str::<Money>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_share_is_rounded_to_the_cent() {
        assert_eq!(Money::of_cents(10_997).percent(8).cents(), 880);
        assert_eq!(Money::of_cents(1_006).percent(8).cents(), 80);
        assert_eq!(Money::of_cents(1_007).percent(8).cents(), 81);
    }
}
