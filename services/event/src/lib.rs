//! stepwell-event
