//! stepwell-tests
