//! What a Service is: VIP to backends, schedulers; pure, no I/O and no clock.
