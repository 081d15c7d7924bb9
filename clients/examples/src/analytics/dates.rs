//! The days that a task is about.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use stepwell_client::HandlerError;

/// Two days, as they are given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DateRange {
    start_date: String,
    end_date: String,
}

impl DateRange {
    /// The first day and the last, in their order. Errors, both for good: `INVALID_DATE_FORMAT`,
    /// `INVALID_DATE_RANGE`.
    pub(super) fn days(&self) -> Result<(NaiveDate, NaiveDate), HandlerError> {
        let (first, last) = (day(&self.start_date)?, day(&self.end_date)?);
        if first > last {
            let what = format!("{first} is after {last}");
            return Err(HandlerError::new("InvalidInput", what)
                .code("INVALID_DATE_RANGE")
                .permanent());
        }
        Ok((first, last))
    }
}

fn day(text: &str) -> Result<NaiveDate, HandlerError> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|error| {
        HandlerError::new("InvalidInput", format!("{text:?} is no day such as 2024-01-31: {error}"))
            .code("INVALID_DATE_FORMAT")
            .permanent()
    })
}
