//! stepwell-cli
