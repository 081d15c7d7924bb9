//! stepwell-suite
