//! stepwell-step
