//! stepwell-serve
