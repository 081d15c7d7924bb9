//! stepwell-examples
