//! stepwell-task
